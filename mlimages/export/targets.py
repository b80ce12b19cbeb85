"""Target runtimes of an export: the resize that each supports, and how a file is run in it."""

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

from mlimages.core import ExportError, TargetRuntime, summarize_error
from mlimages.export.preprocessing_graph import ResizeImplementation
from mlimages.inference import INPUT, LOGITS, open_session

ComputeLogits = Callable[[NDArray[Any]], NDArray[np.float32]]
"""A function that computes the logits `(1, classes)` of an exported file for a batch of one image."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A target runtime.

    Attributes:
        name: display name.
        resize_implementation: implementation of the resize inside the file; None if the runtime supports no resize, so
            that the file does not include preprocessing.
        load_model: loads a file to compare its logits with the network's: takes the package and the path of the file,
            and returns a function that computes the logits. None for ONNX Runtime, in which every file is compared
            anyway, and for runtimes that cannot run here.
        package: the Python package that `load_model` needs.
        parity_skip_reason: message to the user if an exported file could not be compared in this runtime; "" for ONNX
            Runtime.
    """

    name: str
    resize_implementation: ResizeImplementation | None
    load_model: Callable[[Any, Path], ComputeLogits] | None = None
    package: str = ""
    parity_skip_reason: str = ""

    @property
    def has_loader(self) -> bool:
        """Whether `load_model` is given and its package is installed, so that an exported file can be compared."""
        return self.load_model is not None and find_spec(self.package) is not None


def import_openvino() -> Any:
    """Return the package `openvino`, imported without its telemetry, which would report each import and conversion."""
    name = "openvino_telemetry"
    before = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]  # OpenVINO then uses a stub
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[name]
        sys.modules.update(before)


def _load_in_openvino(openvino: Any, path: Path) -> ComputeLogits:
    """Load a file to be computed in float32; by default, OpenVINO computes in bfloat16 on CPUs that support it."""
    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: np.array(model({INPUT: x})[LOGITS], np.float32)


def _load_in_opencv(cv2: Any, path: Path) -> ComputeLogits:
    network = cv2.dnn.readNetFromONNX(str(path))

    def compute_logits(x: NDArray[Any]) -> NDArray[np.float32]:
        network.setInput(x, INPUT)
        return np.asarray(network.forward(LOGITS), np.float32)

    return compute_logits


RUNTIMES: dict[TargetRuntime, Runtime] = {
    "onnxruntime": Runtime("ONNX Runtime", "operator"),
    "openvino": Runtime("OpenVINO", "portable", _load_in_openvino, "openvino", "the package openvino is not installed"),
    "tensorrt": Runtime(
        "TensorRT", None, parity_skip_reason="TensorRT requires a GPU: compare predictions on a GPU before use"
    ),
    "opencv": Runtime("OpenCV", None, _load_in_opencv, "cv2", "the package opencv-python is not installed"),
    "web": Runtime("onnxruntime-web", "operator", parity_skip_reason="onnxruntime-web runs in a browser"),
}
"""The supported target runtimes. Files for TensorRT and OpenCV have no preprocessing: TensorRT does not accept uint8
images or ONNX's resize, and OpenCV does not accept dynamic sizes."""


def load_in_runtime(target: TargetRuntime, path: Path) -> ComputeLogits | None:
    """Load an exported file in its target runtime, in which it is compared in addition to ONNX Runtime.

    Returns:
        A function that computes the logits of the file. None if the file is not compared in the target runtime, because
        the runtime is not installed, cannot run here, or is ONNX Runtime itself.

    Raises:
        ExportError: the runtime cannot load the file.
    """
    runtime = RUNTIMES[target]
    if runtime.load_model is None or not runtime.has_loader:
        return None
    try:
        package = import_openvino() if target == "openvino" else importlib.import_module(runtime.package)
        return runtime.load_model(package, path)
    except Exception as error:  # each runtime has its own errors
        raise ExportError(
            f"{runtime.name} cannot load the file, so it was not written ({summarize_error(error)[:200]}): try "
            "another --target"
        ) from error


def load_in_onnxruntime(path: Path) -> ComputeLogits:
    """Load a file in ONNX Runtime, and return a function that computes its logits on a single thread."""
    session = open_session(path, prepack_weights=False)

    def compute_logits(x: NDArray[Any]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run([LOGITS], {INPUT: x})[0]
        return logits

    return compute_logits
