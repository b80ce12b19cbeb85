"""Choose the device, and find the precision and memory format to compute with."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from mlimages.core import Device, InputError


def choose_device(name: Device) -> torch.device:
    """Return the device of this name; `auto` is a GPU if available (CUDA before MPS), otherwise the CPU.

    Raises:
        InputError: the name is unknown, or there is no such device on this machine.

    Examples:
        >>> from mlimages.networks import choose_device
        >>> choose_device("cpu")
        device(type='cpu')
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, is_available in available.items() if is_available))
    if name not in available:
        raise InputError(f"device is {name!r}: it must be one of {', '.join(get_args(Device))}")
    if not available[name]:
        raise InputError(f"PyTorch finds no {name} device on this machine: use --device auto")
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions, so that it computes faster in bfloat16 than in float32.

    CPUs and GPUs without these instructions, such as NVIDIA's before Ampere, emulate them slowly.

    Examples:
        >>> import torch
        >>> from mlimages.networks import has_fast_bf16
        >>> has_fast_bf16(torch.device("mps"))
        False
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    is_supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and bool(is_supported)


def find_float32_precision(device: torch.device) -> str:
    """Return the precision of float32 convolutions: `tf32` on a GPU if torch allows TF32 for them, else `fp32`.

    Examples:
        >>> import torch
        >>> from mlimages.networks import find_float32_precision
        >>> find_float32_precision(torch.device("cpu"))
        'fp32'
    """
    return "tf32" if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def to_channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor `(N, C, H, W)` in channels-last memory format, which is faster; return other tensors unchanged.

    Convert all inputs of a network or none: with the same random seed, dropout masks differ between memory formats.

    Examples:
        >>> import torch
        >>> from mlimages.networks import to_channels_last
        >>> to_channels_last(torch.zeros(2, 3, 8, 8)).stride()
        (192, 1, 24, 3)
    """
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
