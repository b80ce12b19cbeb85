"""The runtimes that a file can be exported for: what each computes rightly, and how its outputs are obtained."""

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
from mlimages.inference import INPUT, LOGITS

OPSET = 18
"""Of every file: the first with antialiasing in `Resize`, and the lowest that torch.onnx writes. IR 8 goes with it, so
that ONNX Runtime 1.14 and later reads the file."""

RunLogits = Callable[[NDArray[Any]], NDArray[np.float32]]
"""From the file's input, one image as a batch, to its logits `(1, classes)`."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a file for this runtime contains, and how it is checked there.

    Attributes:
        name: as people write it.
        resize: form of the resize inside the file; None: the runtime cannot compute one, the file takes the
            network's input.
        open: from the package and the file to the logits' function; None where no file is run in this runtime here.
        package: the Python package that `open` needs.
        unchecked: why the file is not run there.
    """

    name: str
    resize: ResizeForm | None
    open: Callable[[Any, Path], RunLogits] | None = None
    package: str = ""
    unchecked: str = ""

    @property
    def is_installed(self) -> bool:
        """Whether a file can be compared in this runtime here."""
        return self.open is not None and find_spec(self.package) is not None


def _open_openvino(openvino: Any, path: Path) -> RunLogits:
    """In 32-bit floats: what OpenVINO chooses by itself depends on the processor (bfloat16 where it has that)."""
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
    "tensorrt": Runtime("TensorRT", None, unchecked="it needs a GPU; compare it there before you use the file"),
    "opencv": Runtime("OpenCV", None, _open_opencv, "cv2", "the package opencv-python is not installed"),
    "web": Runtime("onnxruntime-web", "operator", unchecked="it runs in a browser"),
}
"""TensorRT refuses uint8 images and the resize of ONNX, OpenCV the dynamic sizes: these take the network's input."""


def open_runtime(target: Target, path: Path) -> RunLogits | None:
    """The target's own function of the logits; None where it is ONNX Runtime, or not installed.

    Raises:
        ExportError: the runtime cannot load the file.
    """
    runtime = RUNTIMES[target]
    if runtime.open is None or not runtime.is_installed:
        return None
    try:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report the use
        return runtime.open(importlib.import_module(runtime.package), path)
    except Exception as error:  # each runtime has its own errors
        raise ExportError(f"{runtime.name} cannot load the file ({_first_line(error)}); nothing was written") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
