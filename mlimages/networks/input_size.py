"""Check before any work whether a network can take images of a size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlimages.core import ImageProperty, ModelError

SEARCH_RANGE_PX = 256
"""How far up and down a valid size is searched for."""

SEARCH_STEP_PX = 8
"""First step of the search: a network that downsamples by this factor or more accepts ranges of sizes as wide."""


def check_input_size(build: Callable[[int], nn.Module], name: str, image: ImageProperty, *, native_px: int) -> None:
    """Run the network that `build` returns for a size on the meta device, which computes shapes only.

    Args:
        native_px: the size that the network is designed for, suggested if the search finds none.

    Raises:
        ModelError: a layer gets an empty feature map or an input of the wrong size. The message names the layer and
            the nearest valid square sizes.
    """
    with torch.device("meta"):
        try:
            network = build(image.width)
        except NotImplementedError:  # it computes with values while it is built, so it cannot be checked
            return
        problem = find_size_error(network, image.height, image.width)
        if not problem:
            return
        smaller = _nearest_valid(build, range(image.width - 1, max(0, image.width - SEARCH_RANGE_PX), -1))
        larger = _nearest_valid(build, range(image.width + 1, image.width + SEARCH_RANGE_PX))
        sizes = [str(size) for size in (smaller, larger) if size]
        if not sizes and _is_valid(build, native_px):
            sizes = [str(native_px)]
    hint = f"nearest valid sizes: {' and '.join(sizes)}" if sizes else f"no size within {SEARCH_RANGE_PX} px is valid"
    raise ModelError(f"{name} cannot take {image.width} x {image.height} px: {problem}; {hint}")


def _nearest_valid(build: Callable[[int], nn.Module], sizes: range) -> int | None:
    """The first valid one of `sizes`, searched in steps, then one by one within the last step."""
    for index in range(0, len(sizes), SEARCH_STEP_PX):
        if _is_valid(build, sizes[index]):
            return next(size for size in sizes[max(0, index - SEARCH_STEP_PX + 1) :] if _is_valid(build, size))
    return None


def _is_valid(build: Callable[[int], nn.Module], size: int) -> bool:
    return not find_size_error(build(size), size, size)


def find_size_error(network: nn.Module, height: int, width: int) -> str:
    """Why a network on the meta device cannot take images of this size; empty if it can."""
    last_call: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def record(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                last_call[:] = [(path, module, tuple(inputs[0].shape))]

        return hook

    leaves = [(path, module) for path, module in network.named_modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_pre_hook(record(path)) for path, module in leaves]
    channels = next((module.in_channels for _, module in leaves if isinstance(module, nn.Conv2d)), 3)
    try:
        with torch.no_grad():
            network.eval()(torch.empty(2, channels, height, width, device="meta"))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        return _explain(last_call[0], error) if last_call else str(error).splitlines()[0]
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def _explain(call: tuple[str, nn.Module, tuple[int, ...]], error: Exception) -> str:
    path, module, shape = call
    if isinstance(module, nn.Linear):
        return f"layer {path} expects {module.in_features} features and would get {shape[-1]}"
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        kernel, stride, padding = (_last(getattr(module, name)) for name in ("kernel_size", "stride", "padding"))
        side = min(shape[-2:])
        output = (side + 2 * padding - kernel) // stride + 1
        return f"layer {path} would have no output: ({side} + 2*{padding} - {kernel})/{stride} + 1 = {output}"
    return f"layer {path} fails: {str(error).splitlines()[0]}"


def _last(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[-1]
