"""Whether a network can take pictures of a size, found out before any work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlimages.core import ImageProperty, ModelError

REACH = 256
"""How many pixels up and down a fitting size is looked for."""

STRIDE = 8
"""Sizes tried at first: a network that narrows so much or more takes sizes in bands as wide."""


def check_size(build: Callable[[int], nn.Module], name: str, image: ImageProperty, *, native: int) -> None:
    """Run shapes alone through the network that `build` makes for a size.

    Args:
        native: the size that the network was made for, named where no other is found.

    Raises:
        ModelError: some layer is left without a picture or gets another count than it is made for; the
            message names it and the nearest square sizes that fit.
    """
    with torch.device("meta"):
        try:
            network = build(image.width)
        except NotImplementedError:  # it computes while it is built: then nothing can be said beforehand
            return
        why = misfit(network, image.height, image.width)
        if not why:
            return
        lower = _nearest(build, range(image.width - 1, max(0, image.width - REACH), -1))
        upper = _nearest(build, range(image.width + 1, image.width + REACH))
        near = [str(size) for size in (lower, upper) if size] or ([str(native)] if fits(build, native) else [])
    hint = f"the nearest sizes that fit: {' and '.join(near)}" if near else f"no size within {REACH} pixels fits"
    raise ModelError(f"{name} cannot take {image.width} x {image.height} pixels: {why}; {hint}")


def _nearest(build: Callable[[int], nn.Module], sizes: range) -> int | None:
    """The first of `sizes` that fits: in strides, then one by one in the last of them."""
    for last in range(0, len(sizes), STRIDE):
        if fits(build, sizes[last]):
            return next(size for size in sizes[max(0, last - STRIDE + 1) :] if fits(build, size))
    return None


def fits(build: Callable[[int], nn.Module], size: int) -> bool:
    """Whether a square picture of `size` pixels goes through."""
    return not misfit(build(size), size, size)


def misfit(network: nn.Module, height: int, width: int) -> str:
    """Why a picture of this size does not go through a network on the meta device; empty if it does."""
    last: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                last[:] = [(path, module, tuple(inputs[0].shape))]

        return hook

    leaves = [(path, module) for path, module in network.named_modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_pre_hook(note(path)) for path, module in leaves]
    channels = next((module.in_channels for _, module in leaves if isinstance(module, nn.Conv2d)), 3)
    try:
        with torch.no_grad():
            network.eval()(torch.empty(2, channels, height, width, device="meta"))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        return _explain(last[0], error) if last else str(error).splitlines()[0]
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def _explain(layer: tuple[str, nn.Module, tuple[int, ...]], error: Exception) -> str:
    path, module, shape = layer
    if isinstance(module, nn.Linear):
        return f"layer {path} is made for {module.in_features} numbers and would get {shape[-1]}"
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        kernel, stride, padding = (_last(getattr(module, what)) for what in ("kernel_size", "stride", "padding"))
        narrow = min(shape[-2:])
        out = (narrow + 2 * padding - kernel) // stride + 1
        return f"layer {path} is left with nothing: ({narrow} + 2*{padding} - {kernel})/{stride} + 1 = {out}"
    return f"layer {path} stops: {str(error).splitlines()[0]}"


def _last(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[-1]
