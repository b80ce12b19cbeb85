"""Where to compute, and how precisely."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mlimages.core import Device, InputError


def choose_device(wanted: Device) -> torch.device:
    """The device asked for; `auto` takes a GPU where there is one.

    Raises:
        InputError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[wanted]:
        raise InputError(f"torch sees no {wanted} device here: take --device auto")
    return torch.device(wanted)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Half precision where the device is faster with it; on a CPU without its instructions it is 70 times slower."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def frozen_precision(device: torch.device) -> str:
    """How the frozen part is computed: `fp32`, or `tf32` where a GPU shortens the factors of convolutions."""
    return "tf32" if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def channels_last(tensor: Tensor) -> Tensor:
    """Pictures and kernels `(N, C, H, W)` in the order of memory in which convolutions are fastest; others as they are.

    One order throughout, as the chance in dropout follows it.
    """
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
