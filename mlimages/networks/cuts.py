"""Where a network can be cut, and what comes out of its lower part there, pooled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlimages.core import ModelError
from mlimages.networks.models import Model

ENOUGH = 5
"""Containers are looked into until there are so many cuts."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True, slots=True)
class Cut:
    """One place to cut.

    Attributes:
        name: as `freeze` takes it.
        reader: path of the layer whose input is what the part below gives.
        width: how many numbers that is, pooled.
    """

    name: str
    reader: str
    width: int


def cuts_of(model: Model) -> tuple[Cut, ...]:
    """The cuts in order of execution: the well-known layers (conv1 ... fc7), or a network's stages.

    A cut is read where the next layer with weights takes its input: behind activation, pooling and norm.

    Raises:
        ModelError: there is nothing below the last layer.
    """
    order, widths = _executed(model)
    found: list[Cut] = []
    for name, path in _named(model):
        inside = [place for place, leaf in enumerate(order) if f"{leaf}.".startswith(f"{path}.")]
        reader = _reader(model.network, order[inside[-1] + 1 :]) if inside else None
        if reader is not None and reader not in {cut.reader for cut in found}:
            found.append(Cut(name, reader, widths[reader]))
    if not found:
        raise ModelError(f"{model.name} has no layer below its last: there is nothing to keep")
    return tuple(found)


class Tap:
    """Collects the pooled inputs of all readers while pictures pass: a context manager."""

    def __init__(self, network: nn.Module, cuts: tuple[Cut, ...]) -> None:
        self._taken: dict[str, Tensor] = {}
        self._cuts = cuts
        self._hooks = [_on_input(network.get_submodule(cut.reader), cut.reader, self._taken) for cut in cuts]

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def rows(self) -> Tensor:
        """What the last batch gave, the cuts side by side: float32 `(N, sum of widths)`."""
        rows = torch.cat([self._taken[cut.reader] for cut in self._cuts], dim=1)
        self._taken.clear()
        return rows


def _on_input(module: nn.Module, path: str, taken: dict[str, Tensor]) -> torch.utils.hooks.RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if path not in taken and inputs:  # a layer used twice is read the first time
            taken[path] = _pooled(module, inputs[0].float())

    return module.register_forward_pre_hook(hook)


def _pooled(module: nn.Module, x: Tensor) -> Tensor:
    """The mean over positions: `(N, C)`. A convolution has its channels second, other layers last."""
    if isinstance(module, nn.Conv2d):
        return x.mean(dim=(2, 3))
    return x.flatten(1, -2).mean(dim=1) if x.ndim > 2 else x


def _named(model: Model) -> Iterator[tuple[str, str]]:
    if model.layers:
        by_path = {path: name for name, path in reversed([*model.layers.items()])}  # conv1_1 before conv1
        yield from sorted(((name, path) for path, name in by_path.items() if path != model.head), key=_by_number)
        return
    yield from ((path, path) for path in _stages(model))


def _by_number(named: tuple[str, str]) -> tuple[str, int]:
    container, _, number = named[1].rpartition(".")
    return ("" if container == "features" else container), int(number)


def _stages(model: Model) -> list[str]:
    """Parts that hold weights, the largest looked into until there are enough; the head and lone norms aside."""
    paths = _parts(model.network, "")
    while len([path for path in paths if not _is_aside(model, path)]) < ENOUGH:
        sizes = {path: _size(model.network.get_submodule(path)) for path in paths}
        wide = [path for path in paths if len(_parts(model.network.get_submodule(path), path)) > 1]
        if not wide:
            break
        largest = max(wide, key=lambda path: sizes[path])
        at = paths.index(largest)
        paths[at : at + 1] = _parts(model.network.get_submodule(largest), largest)
    return [path for path in paths if not _is_aside(model, path)]


def _parts(module: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}" if path else name for name, child in module.named_children() if _size(child)]


def _is_aside(model: Model, path: str) -> bool:
    return f"{model.head}.".startswith(f"{path}.") or isinstance(model.network.get_submodule(path), _NORMS)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _reader(network: nn.Module, leaves: list[str]) -> str | None:
    """The first of these layers that mixes features."""
    modules = ((path, network.get_submodule(path)) for path in leaves)
    return next((path for path, module in modules if _size(module) and not isinstance(module, _NORMS)), None)


def _executed(model: Model) -> tuple[list[str], dict[str, int]]:
    """The innermost modules that are used, in order, and how wide the pooled input of each is."""
    order: dict[str, None] = {}
    taken: dict[str, Tensor] = {}
    parts = {path: module for path, module in model.network.named_modules() if path}
    hooks = [module.register_forward_pre_hook(_noting(path, order)) for path, module in parts.items()]
    hooks += [_on_input(module, path, taken) for path, module in parts.items() if _size(module)]
    image = model.preprocessing.image
    try:
        with torch.inference_mode():
            model.network(torch.zeros(1, image.channels, image.height, image.width))
    finally:
        for hook in hooks:
            hook.remove()
    holders = {
        path[:end] for path in order for end, char in enumerate(path) if char == "."
    }  # attention may use its parts' weights without calling them
    return [path for path in order if path not in holders], {path: rows.shape[1] for path, rows in taken.items()}


def _noting(path: str, order: dict[str, None]) -> Callable[..., None]:
    def hook(*_: object) -> None:
        order.setdefault(path)

    return hook
