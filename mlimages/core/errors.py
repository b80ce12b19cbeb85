"""Errors that end a whole run; a failure of one item is a value with a code of `core.codes`.

MlimagesError
├── InputError          a given file, folder or value cannot be used
│   ├── LabelFileError  a line of a label file or of NAME_class_def.txt (given as path:line)
│   └── ImageError      one image; carries a `Fault` code
├── GatherError         a source (key refused, quota exceeded), an output folder or a process fails
├── ModelError          unknown network, weights that do not fit, unsupported input size
├── RunError            a run folder that cannot be resumed or read, or a run whose loss is not finite
│   └── PeerExitedError another process of a distributed run exited
├── ExportError         the network cannot be converted to ONNX, or the file's outputs differ
├── BundleError         an .onnx file that mlimages did not write, or that was changed
├── MissingExtraError   an extra is not installed (also an ImportError); the message has the install command
└── MissingExtraAttributeError  the same for an attribute such as `mlimages.fine_tune` (also an AttributeError)
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlimages.core.codes import Fault


class MlimagesError(Exception):
    """Base class of the errors that mlimages raises; the message is meant for the user."""


class InputError(MlimagesError):
    """An input file, folder or value cannot be used."""


class LabelFileError(InputError):
    """A line of a label file, or of its list of classes (`NAME_class_def.txt`), cannot be parsed."""


class ImageError(InputError):
    """An image cannot be used; `fault` is the code of the reason, `detail` the cause that the decoder reported."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault
        self.detail = detail


class GatherError(MlimagesError):
    """Images cannot be gathered: a source, an output folder or a process failed."""


class ModelError(MlimagesError):
    """A network is unknown, its weights do not match, or it does not support the input size."""


class RunError(MlimagesError):
    """A run folder cannot be read or resumed, or training cannot continue."""


class PeerExitedError(RunError):
    """Another process of a distributed run exited; the run can be resumed.

    Args:
        event: what happened, such as "a process exited"; the message begins with it.
    """

    def __init__(self, event: str) -> None:
        super().__init__(
            f"{event}: read the error message of that process, then run the same command again, "
            "or `mlimages finetune --resume RUN`, with any number of processes"
        )


class ExportError(MlimagesError):
    """A network cannot be converted to ONNX, or its ONNX file cannot be loaded or computes different outputs."""


class BundleError(MlimagesError):
    """A file is not a readable bundle (a model that mlimages exported), or fails its self-test.

    A bundle stores a test image and the outputs for it. The self-test fails if the model now has other outputs.
    """


def summarize_error(error: BaseException) -> str:
    """Return the first line of an error's message, without a full stop at its end; the type if it has no message.

    An OSError is described by its `strerror`, without the file's name.

    >>> summarize_error(FileNotFoundError(2, "No such file or directory", "cats.npy"))
    'No such file or directory'
    """
    text = f"there is no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".!")


def make_install_command(extra: str) -> str:
    """Return the command that installs an extra.

    mlimages 0.5 on PyPI is another, older program: without `>=1`, pip would install it if it finds no other version.

    >>> make_install_command("train")
    'pip install "mlimages[train]>=1"'
    """
    return f'pip install "mlimages[{extra}]>=1"'


class MissingExtraError(MlimagesError, ImportError):
    """An extra is not installed; also an ImportError, so that `try: import` works as usual.

    Args:
        feature: the command or function that needs the extra ("finetune"); the message begins with it.
        extra: the extra's name, as in `make_install_command`.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} requires an optional dependency: {make_install_command(extra)}")
        self.extra = extra


class MissingExtraAttributeError(MlimagesError, AttributeError):
    """An attribute such as `mlimages.fine_tune` needs an extra that is not installed; `hasattr` returns False."""


_WRITE_ERROR_PATTERN = re.compile(r"\(os error (\d+)\)|requested and \d+ written")
"""Matches messages of write errors that lack an errno: those of safetensors' exception, and of numpy's `tofile`."""


@contextmanager
def name_output_in_errors(part_path: Path, path: Path) -> Iterator[None]:
    """Context manager: raise an error in writing `part_path` as an OSError whose `filename` is `path`.

    Other errors are not changed.

    Args:
        part_path: the temporary file or folder, which is renamed to `path` at the end.
        path: the file or folder to name in the message.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if not number and (found := _WRITE_ERROR_PATTERN.search(str(error))):
            number = int(found[1] or errno.ENOSPC)
            raise OSError(number, os.strerror(number), str(path)) from error
        if isinstance(error, OSError) and number:
            file_name = part_path if error.filename is None else Path(str(error.filename))  # None if the disk is full
            if file_name.is_relative_to(part_path):
                error.filename = str(path)
        raise
