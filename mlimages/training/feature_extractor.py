"""Run the frozen part in PyTorch or OpenVINO, in float32 or bfloat16."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, fx

from mlimages.export import import_openvino
from mlimages.networks import find_float32_precision
from mlimages.training.compute_backend import Library, Precision

logger = logging.getLogger(__name__)

FeatureFunction = Callable[[Tensor], tuple[Tensor, ...]]
"""Computes the features of normalized images `(N, C, H, W)`, one tensor per output of the frozen part."""


class ConversionError(Exception):
    """OpenVINO cannot convert the network, its outputs differ from PyTorch's, or it does not support the device."""


class FrozenFeatureExtractor:
    """Computes the outputs of the frozen part in PyTorch or OpenVINO.

    OpenVINO converts the network at the first call, and compiles it when the precision changes.

    Args:
        frozen_part: the lower part of a network from `split_network`, in eval mode.
        library: `torch` or `openvino`, which is used on CPUs only.
        device: device to compute on.
    """

    def __init__(self, frozen_part: fx.GraphModule, library: Library, device: torch.device) -> None:
        self._lower, self._library, self._device = frozen_part, library, device
        self._converted: Any = None
        self._compiled: tuple[Precision, FeatureFunction] | None = None

    def make_precision_key(self, precision: Precision) -> str:
        """Return the text for the cache key of features, such as `fp32`, `bf16` or `openvino 2025.3.0 bf16`."""
        if self._library == "openvino":
            return f"openvino {version('openvino')} {precision}"
        return find_float32_precision(self._device) if precision == "fp32" else precision

    def close(self) -> None:
        """Free the network converted to OpenVINO, if any."""
        self._converted = self._compiled = None

    def __call__(self, x: Tensor, precision: Precision) -> tuple[Tensor, ...]:
        """Compute the features of normalized images `(N, C, H, W)`, one tensor per output of the frozen part.

        Raises:
            ConversionError: OpenVINO cannot convert the network, its outputs differ, or the device is not a CPU.
        """
        if self._library == "torch":
            context: AbstractContextManager[object] = nullcontext()
            if precision == "bf16":
                context = torch.autocast(self._device.type, torch.bfloat16)
            with context:
                return tuple(part.float() for part in self._lower(x))
        if self._compiled is None or self._compiled[0] != precision:
            self._compiled = None  # frees the weights
            self._compiled = precision, self._compile(x, precision)
        return self._compiled[1](x)

    def _compile(self, x: Tensor, precision: Precision) -> FeatureFunction:
        """Compile the network with OpenVINO; if `precision` is fp32, check its outputs for the first image of `x`."""
        if self._device.type != "cpu":
            raise ConversionError("mlimages supports OpenVINO only on CPUs")
        openvino = import_openvino()
        try:
            if self._converted is None:
                self._converted = _convert_to_openvino(openvino, self._lower, x)
            options = {
                "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # other processes may use the same cores
            }
            model = openvino.Core().compile_model(self._converted, "CPU", options)
            outputs = _run_openvino(model, x[:1])
        except Exception as error:  # conversion runs the network's code, which may raise any error
            raise ConversionError(f"OpenVINO cannot convert the frozen layers ({type(error).__name__})") from error
        if precision == "fp32":
            for got, expected in zip(outputs, self._lower(x[:1]), strict=True):
                if got.shape != expected.shape or float((got - expected).abs().max()) > 1e-4 * float(
                    expected.abs().max()
                ):
                    raise ConversionError("the outputs of OpenVINO differ from those of PyTorch")
        return lambda x: _run_openvino(model, x)


def _run_openvino(model: Any, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(part.copy()) for part in model(x.numpy()).values())  # it reuses the memory of outputs


def _convert_to_openvino(openvino: Any, frozen_part: fx.GraphModule, example_input: Tensor) -> Any:
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = example_input[:1].repeat(2, 1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenVINO uses deprecated parts of torch
        decoder = TorchScriptPythonDecoder(  # by default, tracing takes most of the time to check itself
            frozen_part, example_input=example, trace_kwargs={"check_trace": False}
        )
        shape = openvino.PartialShape([-1, *example.shape[1:]])
        return openvino.convert_model(decoder, example_input=example, input=[shape])
