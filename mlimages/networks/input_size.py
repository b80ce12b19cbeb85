"""Check whether a network accepts images of a size, before they are decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mlimages.core import ImageProperty, ModelError

NetworkBuilder = Callable[[ImageProperty], nn.Module]

_MULTIPLES = (1, 2, 4, 8, 14, 16, 28, 32, 64)
"""Networks take any size above a lowest one, or multiples of their patch, window or stride."""


def check_input_size(build: NetworkBuilder, name: str, image_property: ImageProperty, *, native: ImageProperty) -> None:
    """Check that a network accepts images of this size, in a forward pass on the meta device, which computes shapes.

    A network that fails there even at its native size depends on the values of tensors, and is run on the CPU.

    Args:
        native: the size that the network is designed for, suggested if the search finds no valid size.

    Raises:
        ModelError: the forward pass fails. The message names the layer, if it is certain, and the nearest valid square
            sizes.
    """
    problem = find_size_error(build, image_property)
    if not problem:
        return
    if find_size_error(build, native):
        if problem := find_size_error(build, image_property, device="cpu"):
            raise ModelError(f"{name} does not support {image_property.width} x {image_property.height} px: {problem}")
        return
    sizes = [
        size
        for size in (
            _find_nearest_valid_size(build, image_property, -1),
            _find_nearest_valid_size(build, image_property, 1),
        )
        if size
    ]
    near = " and ".join(map(str, sizes or [native.width]))
    raise ModelError(
        f"{name} does not support {image_property.width} x {image_property.height} px: {problem}; "
        f"nearest valid sizes: {near}"
    )


def _find_nearest_valid_size(build: NetworkBuilder, image_property: ImageProperty, step: int) -> int | None:
    """Return the nearest valid size in one direction (`step` is 1 or -1); None if there is none."""

    def is_valid(size: int) -> bool:
        return not find_size_error(build, replace(image_property, width=size, height=size, shorter_px=size))

    invalid = image_property.width
    for size in _find_candidate_sizes(image_property.width, step):
        if not is_valid(size):
            invalid = size
            continue
        while abs(size - invalid) > 1:  # every size above a minimum may be valid
            middle = (size + invalid) // 2
            size, invalid = (middle, invalid) if is_valid(middle) else (size, middle)
        return size
    return None


def _find_candidate_sizes(invalid_size: int, step: int) -> list[int]:
    """Return the next multiple of each of `_MULTIPLES`, nearest first."""
    near = {(invalid_size + step * multiple) // multiple * multiple for multiple in _MULTIPLES}
    return sorted(
        (size for size in near if size > 0 and size != invalid_size), key=lambda size: abs(size - invalid_size)
    )


def find_size_error(build: NetworkBuilder, image_property: ImageProperty, *, device: str = "meta") -> str:
    """Return why the network does not accept images of this size; empty if it does."""
    with torch.device(device), torch.no_grad():
        try:
            network = build(image_property).eval()
        except (AssertionError, ValueError, RuntimeError) as error:
            return _first_line(error)
        return _find_forward_error(network, image_property)


def _find_forward_error(network: nn.Module, image_property: ImageProperty) -> str:
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
        network(torch.zeros(2, image_property.channels, image_property.height, image_property.width))
    except Exception as error:  # the network's code may raise any error on an invalid size
        return _explain_layer_error(last_call[0], error) if last_call else _first_line(error)
    return ""


def _explain_layer_error(layer_call: tuple[str, nn.Module, tuple[int, ...]], error: Exception) -> str:
    """Return why the layer rejects its input, with its arithmetic; by default the library's error message."""
    path, module, shape = layer_call
    if isinstance(module, nn.Linear) and module.in_features != shape[-1]:
        return f"layer {path} expects {module.in_features} features but would get {shape[-1]}"
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and not isinstance(module.padding, str):
        kernel, stride, padding = (_width_of(getattr(module, name)) for name in ("kernel_size", "stride", "padding"))
        side = min(shape[-2:])
        output = (side + 2 * padding - kernel) // stride + 1
        if output < 1 and _width_of(module.dilation if not isinstance(module, nn.AvgPool2d) else 1) == 1:
            return f"layer {path} would have no output: ({side} + 2*{padding} - {kernel})/{stride} + 1 = {output}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".!")


def _width_of(size_or_sizes: int | tuple[int, ...]) -> int:
    return size_or_sizes if isinstance(size_or_sizes, int) else size_or_sizes[-1]
