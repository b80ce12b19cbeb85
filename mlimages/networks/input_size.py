"""Check whether a network accepts an image size, before any image is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlimages.core import ImageProperty, ModelError, Window, summarize_error

NetworkBuilder = Callable[[ImageProperty], nn.Module]

_SIZE_MULTIPLES_PX = (1, 2, 4, 8, 14, 16, 28, 32, 64)
"""Numbers whose multiples are tried as valid sizes: common patch sizes, window sizes and strides."""


def check_input_size(
    build_network: NetworkBuilder, name: str, image_property: ImageProperty, *, default_image_property: ImageProperty
) -> None:
    """Check that a network accepts images of this size.

    The check is a forward pass on the meta device, which computes only shapes. If the network fails there even at its
    default size, its code probably depends on the values of tensors. The check is then repeated on the CPU.

    Args:
        build_network: builds the network for images of a size.
        name: name of the network, for the error message.
        image_property: size and channels of the images.
        default_image_property: size and channels that the network is designed for. The error message suggests this size
            if no other valid size is found.

    Raises:
        ModelError: the forward pass fails. The message names the layer, if it can be determined. It also suggests
            valid square sizes nearby, unless the check ran on the CPU.
    """
    problem, advice = find_size_error(build_network, image_property), ""
    if problem and find_size_error(build_network, default_image_property):
        problem = find_size_error(build_network, image_property, device="cpu")
    elif problem:
        sizes = [_find_nearest_size(build_network, image_property, larger=larger) for larger in (False, True)]
        nearest = " and ".join(str(size) for size in sizes if size) or default_image_property.width
        advice = f"; nearest valid sizes: {nearest}"
    if problem:
        size = f"{image_property.width} x {image_property.height} px"
        raise ModelError(f"{name} does not support {size}: {problem}{advice}")


def _find_nearest_size(build_network: NetworkBuilder, image_property: ImageProperty, *, larger: bool) -> int | None:
    """Return the nearest valid width of a square image, larger or smaller; None if the search finds none."""

    def is_valid(size: int) -> bool:
        return not find_size_error(build_network, replace(image_property, width=size, height=size, shorter_px=size))

    invalid = image_property.width
    for size in _find_candidate_sizes(image_property.width, larger=larger):
        if not is_valid(size):
            invalid = size
            continue
        while abs(size - invalid) > 1:  # every size above a minimum may be valid
            middle = (size + invalid) // 2
            size, invalid = (middle, invalid) if is_valid(middle) else (size, middle)
        return size
    return None


def _find_candidate_sizes(invalid_size: int, *, larger: bool) -> list[int]:
    """Return the sizes to try: the next larger or smaller multiple of each of `_SIZE_MULTIPLES_PX`, nearest first."""
    near = {
        (invalid_size // multiple + 1 if larger else (invalid_size - 1) // multiple) * multiple
        for multiple in _SIZE_MULTIPLES_PX
    }
    return sorted((size for size in near if size > 0), key=lambda size: abs(size - invalid_size))


def find_size_error(build_network: NetworkBuilder, image_property: ImageProperty, *, device: str = "meta") -> str:
    """Return why the network does not accept images of this size; "" if it accepts them."""
    with torch.device(device), torch.no_grad():
        try:
            network = build_network(image_property).eval()
        except (AssertionError, ValueError, RuntimeError) as error:
            return summarize_error(error)
        return _find_forward_pass_error(network, image_property)


def _find_forward_pass_error(network: nn.Module, image_property: ImageProperty) -> str:
    """Return why the forward pass fails for images of this size; "" if it succeeds."""
    last_call: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def record_call(path: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            last_call[:] = [(path, module, tuple(inputs[0].shape))]

    for path, module in network.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_pre_hook(partial(record_call, path))
    try:
        network(torch.zeros(2, image_property.channels, image_property.height, image_property.width))
    except Exception as error:  # the network's code may raise any error on an invalid size
        return (_explain_layer_error(*last_call[0]) if last_call else "") or summarize_error(error)
    return ""


def _explain_layer_error(path: str, module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return why the layer rejects an input of this shape, with the formula of its output size; "" if unknown."""
    if isinstance(module, nn.Linear) and module.in_features != input_shape[-1]:
        return f"layer {path} expects {module.in_features} features but would get {input_shape[-1]}"
    window = get_window(module)
    if window and window.output_width(side_px := min(input_shape[-2:])) < 1:
        return f"layer {path} would have an output of size {window.width_formula(side_px)}"
    return ""


def get_window(module: nn.Module) -> Window | None:
    """Return the sliding window of a convolution or pooling layer along the image width; None for other layers."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return None

    def get_width(size_or_sizes: Any) -> Any:
        """Return the width of `(height, width)`; a single value is both."""
        return size_or_sizes[-1] if isinstance(size_or_sizes, tuple | list) else size_or_sizes

    size = get_width(getattr(module, "dilation", 1)) * (get_width(module.kernel_size) - 1) + 1
    named_padding = {"same": (size - 1) // 2, "valid": 0}
    padding = named_padding[module.padding] if isinstance(module.padding, str) else get_width(module.padding)
    return Window(size, get_width(module.stride), padding, ceil_mode=getattr(module, "ceil_mode", False))
