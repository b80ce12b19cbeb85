"""Choose PyTorch or OpenVINO, and float32 or bfloat16, for a run by its device, network and number of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mlimages.networks import copy_with_shared_tensors, has_fast_bf16

Library = Literal["torch", "openvino"]
Precision = Literal["fp32", "bf16"]

MAX_PRECISION_CHECK_IMAGES = 128
"""Maximum number of validation images whose features are computed in float32 and in bfloat16, to compare them."""

MIN_BFLOAT16_VIEWS = 256
"""With fewer views of training images, the frozen part runs in float32 on CPUs, since bfloat16 would save little."""


class CpuTime(NamedTuple):
    """Time on one CPU core: seconds to convert a network to OpenVINO, and milliseconds of inference per image with each
    library and precision."""

    openvino_conversion_s: float
    torch_fp32_ms: float
    torch_bf16_ms: float
    openvino_fp32_ms: float
    openvino_bf16_ms: float


CPU_TIMES: Mapping[str, CpuTime] = {
    "alexnet": CpuTime(0.4, 14.0, 11.2, 12.6, 6.7),
    "vgg16": CpuTime(1.6, 318, 175, 275, 137),
    "resnet50": CpuTime(1.1, 119, 57.9, 76.7, 38.2),
    "mobilenet_v2": CpuTime(0.9, 24.6, 10.1, 9.6, 4.6),
    "efficientnet_lite0": CpuTime(1.0, 27.5, math.inf, 11.4, math.inf),  # its features in bfloat16 differ by 4 %
    "convnext_tiny": CpuTime(1.1, 139, 69.0, 106, 61.4),
    "timm:vit_tiny_patch16_224": CpuTime(1.0, 41.8, 24.0, 28.2, 15.1),
}
"""CPU time of networks by name, measured by scripts/bench/frozen.py on an AMD EPYC with avx512_bf16, November 2026."""

CPU_TIME_PER_GMAC = CpuTime(1.5, 29, 29, 20, 10)
"""CPU time of networks that are not in CPU_TIMES; milliseconds are per 10^9 multiply-adds of an image. In PyTorch,
bfloat16 is assumed not to be faster than float32, since some layers are slow in it."""


@dataclass(frozen=True, slots=True)
class ComputeBackend:
    """The library and precision with which a run computes, stored in `config.json`.

    Attributes:
        library: library that computes the frozen part.
        frozen_precision: precision of the frozen part for training images; for validation images it is always fp32.
        trained_precision: precision of the trained part.
    """

    library: Library = "torch"
    frozen_precision: Precision = "fp32"
    trained_precision: Precision = "fp32"

    def __post_init__(self) -> None:
        """Check the values, since `config.json` may be edited.

        Raises:
            ValueError: a value is unknown.
        """
        precisions = {self.frozen_precision, self.trained_precision}
        if self.library not in get_args(Library) or not precisions <= {*get_args(Precision)}:
            raise ValueError(repr(self))

    def to_dict(self) -> dict[str, str]:
        """Return the values as stored in `config.json`."""
        return {"library": self.library, "frozen": self.frozen_precision, "trained": self.trained_precision}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ComputeBackend:
        """Create an object from the values of `to_dict`.

        Raises:
            TypeError: the values have an unknown key.
            ValueError: a value is unknown.
        """
        names = {"frozen": "frozen_precision", "trained": "trained_precision"}
        return cls(**{names.get(key, key): value for key, value in dict(values).items()})

    def __str__(self) -> str:
        return f"{'PyTorch' if self.library == 'torch' else 'OpenVINO'} in {self.frozen_precision}"


@dataclass(frozen=True, slots=True)
class Workload:
    """The network that computes the frozen features of a run, and the number of images.

    Attributes:
        model_name: name of the network.
        gmacs: 10^9 multiply-adds per image.
        num_train_views: number of training images times the number of views of each.
        num_val_images: number of validation images.
    """

    model_name: str
    gmacs: float
    num_train_views: int
    num_val_images: int

    def estimate_cpu_time_s(self, library: Library, precision: Precision) -> float:
        """Return the estimated CPU time, in seconds, that it takes to compute the features of all images.

        `precision` is that of the training images; the features of validation images are always computed in fp32.
        """
        times = CPU_TIMES.get(self.model_name) or CpuTime(
            CPU_TIME_PER_GMAC[0], *(self.gmacs * ms for ms in CPU_TIME_PER_GMAC[1:])
        )
        fixed, fp32_ms, bf16_ms = times.openvino_conversion_s, times.openvino_fp32_ms, times.openvino_bf16_ms
        if library == "torch":
            fixed, fp32_ms, bf16_ms = 0.0, times.torch_fp32_ms, times.torch_bf16_ms
        if precision == "fp32":
            return fixed + (self.num_train_views + self.num_val_images) * fp32_ms / 1e3
        bf16_images = self.num_train_views + min(self.num_val_images, MAX_PRECISION_CHECK_IMAGES)
        return fixed + (self.num_val_images * fp32_ms + bf16_images * bf16_ms) / 1e3


def choose_backend(
    workload: Workload | None, precision: Literal["auto", "fp32"], *, device: torch.device, is_frozen: bool
) -> ComputeBackend:
    """Return the library and precision of a run.

    On a CPU, if layers are frozen, the library and precision are chosen for which `estimate_cpu_time_s` is lowest. The
    estimate does not depend on the load of the processor. On a GPU, or if no layer is frozen, PyTorch is used, and
    layers are trained in bfloat16 if the device is fast in it.

    Args:
        workload: network and images whose frozen features are computed. None if features are not cached, or if the run
            was started by an earlier version that did not store the library in `config.json`; frozen layers then run in
            PyTorch in fp32.
        precision: `fp32` computes everything in float32 in PyTorch; `auto` chooses the library and precision.
        device: device of the run; on a GPU, the frozen part runs in PyTorch in fp32.
        is_frozen: whether a part of the network is frozen; on CPUs, the other part is then trained in fp32.
    """
    has_bf16 = has_fast_bf16(device)
    if precision == "fp32":
        return ComputeBackend()
    if device.type != "cpu" or not is_frozen:
        return ComputeBackend(trained_precision="bf16" if has_bf16 else "fp32")
    if workload is None:
        return ComputeBackend()
    libraries: list[Library] = ["torch", "openvino"] if find_spec("openvino") else ["torch"]
    may_round = has_bf16 and workload.num_train_views >= MIN_BFLOAT16_VIEWS
    precisions: list[Precision] = ["fp32", "bf16"] if may_round else ["fp32"]
    ways = [(library, precision) for library in libraries for precision in precisions]
    return ComputeBackend(*min(ways, key=lambda way: workload.estimate_cpu_time_s(*way)))


def count_gmacs(network: nn.Module, example_input: Tensor) -> float:
    """Return the multiply-adds per image, in 10^9, for inputs of the shape of `example_input`, `(N, C, H, W)`."""
    network = copy_with_shared_tensors(network)  # it may keep tensors between calls, which have no values here
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty_like(example_input))
    return float(counter.get_total_flops()) / 2e9 / len(example_input)
