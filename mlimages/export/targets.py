"""Target runtimes of an export: the resize that each supports, and how to run a file in it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.core import ExportError, Target
from mlimages.export.preprocessing_graph import ResizeForm
from mlimages.inference import INPUT, LOGITS, open_session

OPSET = 18
"""ONNX opset of every file: the first with antialiasing in `Resize`, and the lowest that torch.onnx writes. IR 8 goes
with it, so that ONNX Runtime 1.14 and later reads the file."""

RunLogits = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Computes the logits `(1, classes)` for the file's input, a batch of one image."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A target runtime.

    Attributes:
        name: display name.
        resize: implementation of the resize inside the file; None if the runtime supports none, so that the file has no
            preprocessing.
        open: returns a function that computes logits, given the package and the file; None if the export does not run
            files in this runtime.
        package: the Python package that `open` needs.
        reason_unchecked: why the file cannot be checked in this runtime.
    """

    name: str
    resize: ResizeForm | None
    open: Callable[[Any, Path], RunLogits] | None = None
    package: str = ""
    reason_unchecked: str = ""

    @property
    def is_installed(self) -> bool:
        """Whether the runtime is installed, so that a file can be checked in it."""
        return self.open is not None and find_spec(self.package) is not None


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry package, to which it would report each import and conversion."""
    name = "openvino_telemetry"
    before = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]  # OpenVINO then uses a stub
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[name]
        sys.modules.update(before)


def _open_openvino(openvino: Any, path: Path) -> RunLogits:
    """Load a file in float32; by default OpenVINO uses bfloat16 on processors that support it."""
    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: np.array(model({INPUT: x})[LOGITS], np.float32)


def _open_opencv(cv2: Any, path: Path) -> RunLogits:
    network = cv2.dnn.readNetFromONNX(str(path))

    def run(x: NDArray[Any]) -> NDArray[np.float32]:
        network.setInput(x, INPUT)
        return np.asarray(network.forward(LOGITS), np.float32)

    return run


RUNTIMES: dict[Target, Runtime] = {
    "onnxruntime": Runtime("ONNX Runtime", "operator"),
    "openvino": Runtime("OpenVINO", "portable", _open_openvino, "openvino", "the package openvino is not installed"),
    "tensorrt": Runtime(
        "TensorRT", None, reason_unchecked="TensorRT requires a GPU: compare predictions on a GPU before use"
    ),
    "opencv": Runtime("OpenCV", None, _open_opencv, "cv2", "the package opencv-python is not installed"),
    "web": Runtime("onnxruntime-web", "operator", reason_unchecked="onnxruntime-web runs in a browser"),
}
"""TensorRT rejects uint8 images and ONNX's resize, OpenCV dynamic sizes: files for them have no preprocessing."""


def open_runtime(target: Target, path: Path) -> RunLogits | None:
    """Load the file in the target's runtime, and return a function that computes its logits.

    Returns:
        None for ONNX Runtime, and for a runtime that is not installed.

    Raises:
        ExportError: the runtime cannot load the file.
    """
    runtime = RUNTIMES[target]
    if runtime.open is None or not runtime.is_installed:
        return None
    try:
        package = import_openvino() if target == "openvino" else importlib.import_module(runtime.package)
        return runtime.open(package, path)
    except Exception as error:  # each runtime has its own errors
        raise ExportError(f"{runtime.name} cannot load the file ({first_line(error)}); nothing was written") from error


def open_onnxruntime(path: Path) -> RunLogits:
    """Load the file in ONNX Runtime, and return a function that computes its logits, one thread per call."""
    session = open_session(path, prepacking=False)

    def run(x: NDArray[Any]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run([LOGITS], {INPUT: x})[0]
        return logits

    return run


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened; its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
