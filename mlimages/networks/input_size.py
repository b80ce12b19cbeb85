"""Check before any work whether a network can take images of a size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mlimages.core import ImageProperty, ModelError

Build = Callable[[ImageProperty], nn.Module]

_MULTIPLES = (1, 2, 4, 8, 14, 16, 28, 32, 64)
"""Networks take any size above a lowest one, or multiples of their patch, window or stride."""


def check_input_size(build: Build, name: str, image: ImageProperty, *, native: ImageProperty) -> None:
    """Run the network that `build` returns for a height and width on the meta device, which computes shapes only.

    A network that fails there even at its own size needs values, and is run as it is.

    Args:
        native: the size that the network is designed for, suggested if the search finds none.

    Raises:
        ModelError: the network's own forward fails. The message names the layer, where the arithmetic is sure, and
            the nearest valid square sizes.
    """
    problem = find_size_error(build, image)
    if not problem:
        return
    if find_size_error(build, native):
        if problem := find_size_error(build, image, device="cpu"):
            raise ModelError(f"{name} cannot take {image.width} x {image.height} px: {problem}")
        return
    sizes = [size for size in (_nearest(build, image, -1), _nearest(build, image, 1)) if size]
    near = " and ".join(map(str, sizes or [native.width]))
    raise ModelError(f"{name} cannot take {image.width} x {image.height} px: {problem}; nearest valid sizes: {near}")


def _nearest(build: Build, image: ImageProperty, step: int) -> int | None:
    """The first valid size among the next multiples in one direction, or between it and an invalid one before it."""

    def is_valid(size: int) -> bool:
        return not find_size_error(build, replace(image, width=size, height=size, shorter_px=size))

    invalid = image.width
    for size in _candidates(image.width, step):
        if not is_valid(size):
            invalid = size
            continue
        while abs(size - invalid) > 1:  # every size above a lowest one may be valid
            middle = (size + invalid) // 2
            size, invalid = (middle, invalid) if is_valid(middle) else (size, middle)
        return size
    return None


def _candidates(start: int, step: int) -> list[int]:
    """The next multiple of each of `_MULTIPLES`, nearest first."""
    near = {(start + step * multiple) // multiple * multiple for multiple in _MULTIPLES}
    return sorted((size for size in near if size > 0 and size != start), key=lambda size: abs(size - start))


def find_size_error(build: Build, image: ImageProperty, *, device: str = "meta") -> str:
    """Why the network cannot take images of this size; empty if it can."""
    with torch.device(device), torch.no_grad():
        try:
            network = build(image).eval()
        except (AssertionError, ValueError, RuntimeError) as error:
            return _first_line(error)
        return _forward_error(network, image)


def _forward_error(network: nn.Module, image: ImageProperty) -> str:
    last_call: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def record(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                last_call[:] = [(path, module, tuple(inputs[0].shape))]

        return hook

    for path, module in network.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_pre_hook(record(path))
    try:
        network(torch.zeros(2, image.channels, image.height, image.width))
    except Exception as error:  # the code of the network, on a size that it was not made for
        return _explain(last_call[0], error) if last_call else _first_line(error)
    return ""


def _explain(call: tuple[str, nn.Module, tuple[int, ...]], error: Exception) -> str:
    """The arithmetic of a layer that cannot take its input; else the error of the library."""
    path, module, shape = call
    if isinstance(module, nn.Linear) and module.in_features != shape[-1]:
        return f"layer {path} expects {module.in_features} features and would get {shape[-1]}"
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and not isinstance(module.padding, str):
        kernel, stride, padding = (_last(getattr(module, name)) for name in ("kernel_size", "stride", "padding"))
        side = min(shape[-2:])
        output = (side + 2 * padding - kernel) // stride + 1
        if output < 1 and _last(module.dilation if not isinstance(module, nn.AvgPool2d) else 1) == 1:
            return f"layer {path} would have no output: ({side} + 2*{padding} - {kernel})/{stride} + 1 = {output}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".!")


def _last(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[-1]
