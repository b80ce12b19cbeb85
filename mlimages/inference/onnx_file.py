"""Open an .onnx file in ONNX Runtime; read and write its metadata."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mlimages.core import (
    BundleError,
    MissingExtraError,
    copy_bytes,
    describe_unsupported_content,
    disable_telemetry,
    format_command,
    summarize_error,
)

# Since 1.29 its import stores an identifier in the user's cache, and each loaded model is reported:
# https://github.com/microsoft/onnxruntime/pull/27379
with disable_telemetry("ORT_DISABLE_TELEMETRY", "1"):
    import onnxruntime as ort

_CPP_LOCATION = r"^\S+\.(cc|h):\d+ .*\) "
"""Pattern of the source location (file, line and function) at the start of ONNX Runtime's error messages."""

_FIRST_FIELD_TAG = b"\x08"
"""First byte of an ONNX file: the tag of `ir_version`, field 1 of `ModelProto` (onnx/onnx.proto)."""

METADATA_PROPS_FIELD_NUMBER = 14
"""Field number of `metadata_props` in `ModelProto` (onnx/onnx.proto)."""


def open_session(path: Path, *, prepack_weights: bool = True) -> Any:
    """Open an ONNX Runtime session in which each call runs on a single CPU thread; only errors are logged.

    Args:
        prepack_weights: copy the weights of matrix products into the memory layout of the kernels. Without the
            copies, VGG-16 loads 0.5 s faster and predicts single images equally fast.

    Raises:
        BundleError: there is no such file, it is not an ONNX file, or ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", str(int(not prepack_weights)))
    with describe_load_errors(path):
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def describe_load_errors(path: Path) -> Iterator[None]:
    """Context manager: raise an error of ONNX Runtime or `onnx`, while it loads the file at `path`, as a BundleError.

    Raises:
        BundleError: there is no such file, it is not an ONNX file, or it cannot be loaded.
    """
    begin = b""
    try:
        with path.open("rb") as file:  # the errors of both libraries describe neither a wrong path nor another content
            begin = file.read(1000)
        yield
    except FileNotFoundError as error:
        raise BundleError(_describe_missing_file(path)) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # neither their errors nor protobuf's share a base but Exception
        raise BundleError(f"{path} {_describe_load_error(error, begin)}") from error


def run_with_timeout(
    session: Any, output_names: Sequence[str], inputs: Mapping[str, Any], *, timeout_s: float
) -> list[Any]:
    """Run a session and return its outputs; stop after `timeout_s` seconds, since a graph can contain an endless loop.

    Raises:
        TimeoutError: there is no result within `timeout_s`.
        Exception: ONNX Runtime cannot run the graph.
    """
    options = ort.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(timeout_s, setattr, (options, "terminate", True))
    timer.start()
    try:
        results: list[Any] = session.run(output_names, inputs, options)
        return results
    except Exception:
        if options.terminate:
            raise TimeoutError(f"it took longer than {timeout_s:.0f} s") from None
        raise
    finally:
        timer.cancel()


def read_metadata(path: Path, session: Any) -> dict[str, str]:
    """Return the metadata of a session's file.

    Raises:
        BundleError: a value is not UTF-8.
    """
    try:
        return dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} has damaged metadata (not UTF-8): export it again") from error


def copy_with_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Write the network of `source` with this metadata to the file `target`.

    Raises:
        MissingExtraError: `onnx` is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError("writing an .onnx file", "train") from error
    values = onnx.ModelProto()
    onnx.helper.set_model_props(values, dict(sorted(metadata.items())))
    with source.open("rb") as network, target.open("wb") as out:
        for start, end in _find_non_metadata_ranges(network):  # the whole file may be larger than the memory
            copy_bytes(network, out, offset=start, length=end - start)
        out.write(values.SerializeToString())


def _find_non_metadata_ranges(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of the fields of a `ModelProto`, except `metadata_props`.

    After its tag, each field has an integer: either its value, or the length of the bytes that follow.
    """
    start = 0
    while (tag := _read_varint(file)) is not None:
        size = _read_varint(file) or 0
        end = file.seek(size if tag & 7 == 2 else 0, os.SEEK_CUR)
        if tag >> 3 != METADATA_PROPS_FIELD_NUMBER:
            yield start, end
        start = file.seek(end)


def _read_varint(file: BinaryIO) -> int | None:
    """Read a varint of protocol buffers: 7 bits per byte, the least significant first; None if the file ends first."""
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7
    return None


def _describe_missing_file(path: Path) -> str:
    """Return that there is no file at `path`, and how to create it, or what to pass instead."""
    if path.suffix.lower() == ".onnx":
        return f"no file at {path}: create it with {format_command('export', 'RUN', '-o', path)}"
    return f"no file or folder at {path}: use MODEL.onnx or a run folder of `mlimages finetune`"


def _describe_load_error(error: Exception, first_bytes: bytes) -> str:
    """Return why a file with these first bytes cannot be loaded, in words that follow its path in a message."""
    text = summarize_error(error)
    if any(cause in text for cause in ("INVALID_PROTOBUF", "No graph was found", "Error parsing message")):
        if not first_bytes or first_bytes.startswith(_FIRST_FIELD_TAG):
            return "is incomplete or damaged: copy or download it again, or export it again"
        advice = describe_unsupported_content(first_bytes) or "use MODEL.onnx or a run folder of `mlimages finetune`"
        return f"is not an ONNX file: {advice}"
    text = text.partition(" failed:")[2] or text
    return f"cannot be loaded: {re.sub(_CPP_LOCATION, '', text)}"
