"""Errors that end a whole run; what goes wrong with one item is a value with a code of `core.codes`.

MlimagesError
├── InputError          a file, folder or value that was given cannot be used
│   ├── LabelFileError  a line of a label file or class definition (path:line)
│   └── ImageError      one picture; carries a `Fault` code
├── GatherError         a source cannot go on (key refused, quota spent, no such interface)
├── ModelError          unknown network, weights that do not fit, a size it cannot take
├── RunError            a run folder that cannot be resumed or read
│   └── PeerExitedError another process of a distributed run exited
├── ExportError         the ONNX file would not answer as the network does
├── BundleError         an .onnx file that is not one of ours, or was altered
├── MissingExtraError   an optional part is not installed (an ImportError, too); says how to install it
└── MissingNameError    the same, asked for as an attribute: `mlimages.fine_tune` (an AttributeError, too)
"""

from __future__ import annotations

from mlimages.core.codes import Fault


class MlimagesError(Exception):
    """Base of every error that mlimages raises on purpose; its text is fit to show."""


class InputError(MlimagesError):
    """A file, folder or value that was given cannot be used."""


class LabelFileError(InputError):
    """A line of a label file or class definition cannot be understood."""


class ImageError(InputError):
    """One picture cannot be used; `fault` is its stable code, `detail` what was seen."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault
        self.detail = detail


class GatherError(MlimagesError):
    """A source cannot go on."""


class ModelError(MlimagesError):
    """A network is unknown, its weights do not fit, or it cannot take the input size."""


class RunError(MlimagesError):
    """A run folder cannot be read or resumed."""


class PeerExitedError(RunError):
    """Another process of a distributed run exited; the run can be continued.

    Args:
        what: what happened, as the beginning of the sentence.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: see its own message, then run the same command again, or `mlimages finetune --resume RUN`, "
            "with any number of processes"
        )


class ExportError(MlimagesError):
    """The ONNX file would not answer as the trained network does."""


class BundleError(MlimagesError):
    """An .onnx file is not a mlimages bundle, or does not answer as its own probe says."""


def install_hint(extra: str) -> str:
    """The command that installs an extra beside the mlimages that is installed.

    PyPI's mlimages 0.5 is another program: without `>=1`, pip would install it wherever it finds no other version.

    >>> install_hint("train")
    'pip install "mlimages[train]>=1"'
    """
    return f'pip install "mlimages[{extra}]>=1"'


class MissingExtraError(MlimagesError, ImportError):
    """An optional part is not installed; an ImportError as well, so that `try: import` works as everywhere.

    Args:
        what: what was asked for, as the subject of a sentence ("finetune").
        extra: the extra's name, as in `install_hint`.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional part: {install_hint(extra)}")
        self.extra = extra


class MissingNameError(MlimagesError, AttributeError):
    """`mlimages.NAME` of an optional part that is not installed: `hasattr(mlimages, "NAME")` is False."""
