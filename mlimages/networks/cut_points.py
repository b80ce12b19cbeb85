"""Find the points at which a network can be cut, and compute the pooled features at each of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mlimages.core import ModelError
from mlimages.networks.models import Model
from mlimages.networks.weights import is_inside

MIN_CUT_POINTS = 5
"""The largest stage of a network is divided until there are this many cut points."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True, slots=True)
class CutPoint:
    """A point at which a network can be cut.

    Attributes:
        name: the last layer below the cut; an argument of `freeze`.
        consumer: module path of the layer whose input the features are.
        num_features: number of features after pooling.

    Examples:
        >>> from mlimages.networks import build_model, find_cut_points
        >>> model = build_model("lenet5", classes=10, weights="none")
        >>> find_cut_points(model)[0]
        CutPoint(name='conv1', consumer='conv2', num_features=6)
    """

    name: str
    consumer: str
    num_features: int


def find_cut_points(model: Model) -> tuple[CutPoint, ...]:
    """Return the cut points in order of execution: after well-known layers (conv1 ... fc7), or after stages.

    The features at a cut point are the input of the next layer with weights: after activation, pooling and
    normalization.

    Raises:
        ModelError: the network has a single layer.

    Examples:
        >>> from mlimages.networks import build_model, find_cut_points
        >>> model = build_model("lenet5", classes=10, weights="none")
        >>> [(point.name, point.num_features) for point in find_cut_points(model)]
        [('conv1', 6), ('conv2', 400), ('fc3', 120), ('fc4', 84)]
    """
    order, widths = _trace_calls(model)
    points: dict[str, CutPoint] = {}
    for name, path in _find_candidate_layers(model):
        indices = [index for index, leaf in enumerate(order) if f"{leaf}.".startswith(f"{path}.")]
        consumer = _find_first_consumer(model.network, order[indices[-1] + 1 :]) if indices else None
        if consumer in widths:
            points.setdefault(consumer, CutPoint(name, consumer, widths[consumer]))
    if not points:
        raise ModelError(f"{model.name} has a single layer and cannot be split: use --freeze none")
    return tuple(points.values())


class FeatureHooks:
    """Context manager that records the pooled features at all cut points during a forward pass.

    Examples:
        >>> import torch
        >>> from mlimages.networks import FeatureHooks, build_model, find_cut_points
        >>> model = build_model("lenet5", classes=10, weights="none")
        >>> with FeatureHooks(model.network, find_cut_points(model)) as hooks, torch.inference_mode():
        ...     logits = model.network(torch.zeros(2, 1, 28, 28))
        ...     features = hooks.collect_features()
        >>> features.shape  # 6 + 400 + 120 + 84
        torch.Size([2, 610])
    """

    def __init__(self, network: nn.Module, cut_points: tuple[CutPoint, ...]) -> None:
        self._inputs: dict[str, Tensor] = {}
        self._consumers = [point.consumer for point in cut_points]
        modules = {path: network.get_submodule(path) for path in self._consumers}
        self._hooks = _hook_inputs(modules, self._inputs)
        self._hooks.enter_context(network.register_forward_pre_hook(self._record_batch_size))

    def __enter__(self) -> FeatureHooks:
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def collect_features(self) -> Tensor:
        """Return the features of the last batch, concatenated in the order of the cut points, and clear them.

        The shape is `(N, D)`, float32, where D is the sum of `num_features`.
        """
        inputs = [self._inputs[path] for path in self._consumers]
        by_image = [x.reshape(self._batch_size, -1, x.shape[1]).mean(dim=1) for x in inputs]  # a layer may see windows
        self._inputs.clear()
        return torch.cat(by_image, dim=1)

    def _record_batch_size(self, network: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._batch_size = len(args[0])


def _hook_inputs(modules: Mapping[str, nn.Module], pooled_inputs: dict[str, Tensor]) -> ExitStack:
    """Record the pooled inputs of modules by path, until the returned stack is closed."""

    def record(path: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # If a layer is used twice, the first use counts; some layers take lists.
        if path not in pooled_inputs and args and isinstance(args[0], Tensor):
            pooled_inputs[path] = _pool(module, args[0].float())

    hooks = ExitStack()
    for path, module in modules.items():
        hooks.enter_context(module.register_forward_pre_hook(partial(record, path)))
    return hooks


def _pool(module: nn.Module, x: Tensor) -> Tensor:
    """Average the input of a module over positions, to `(N, C)`; channels are the second dimension for a convolution,
    otherwise the last."""
    if isinstance(module, nn.Conv2d):
        return x.mean(dim=(2, 3))
    return x.flatten(1, -2).mean(dim=1) if x.ndim > 2 else x


def _find_candidate_layers(model: Model) -> list[tuple[str, str]]:
    """Return names and module paths of the layers or stages after which the network may be cut."""
    if not model.layers:
        return [(path, path) for path in _find_stages(model)]
    by_path = {path: name for name, path in reversed([*model.layers.items()])}  # conv1_1 before conv1
    return sorted(((name, path) for path, name in by_path.items() if not model.is_head(path)), key=_sort_key)


def _sort_key(layer: tuple[str, str]) -> tuple[str, int]:
    container, _, index = layer[1].rpartition(".")
    return ("" if container == "features" else container), int(index)


def _find_stages(model: Model) -> list[str]:
    """Return the paths of modules with parameters, without the head and single normalization layers.

    The largest module is replaced by its children until there are MIN_CUT_POINTS.
    """
    paths = _list_children(model.network, "")
    while len(stages := [path for path in paths if not _is_head_or_norm(model, path)]) < MIN_CUT_POINTS:
        modules = {path: model.network.get_submodule(path) for path in paths}
        divisible = [path for path, module in modules.items() if len(_list_children(module, path)) > 1]
        if not divisible:
            break
        largest = max(divisible, key=lambda path: _count_parameters(modules[path]))
        index = paths.index(largest)
        paths[index : index + 1] = _list_children(modules[largest], largest)
    return stages


def _list_children(module: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}" if path else name for name, child in module.named_children() if _count_parameters(child)]


def _is_head_or_norm(model: Model, path: str) -> bool:
    contains_head = any(is_inside(head, {path}) for head in model.heads)
    return contains_head or isinstance(model.network.get_submodule(path), _NORMS)


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _find_first_consumer(network: nn.Module, leaf_layers: list[str]) -> str | None:
    """Return the first of these layers that has weights and is not a normalization."""
    modules = ((path, network.get_submodule(path)) for path in leaf_layers)
    return next(
        (path for path, module in modules if _count_parameters(module) and not isinstance(module, _NORMS)), None
    )


def _trace_calls(model: Model) -> tuple[list[str], dict[str, int]]:
    """Return the leaf modules in order of execution, and the number of pooled features in the input of each by path.

    Layers whose input does not have a row for each image have no such number.
    """
    order: dict[str, None] = {}
    modules = {path: module for path, module in model.network.named_modules() if path}
    with ExitStack() as hooks:
        for path, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(lambda *_, path=path: order.setdefault(path)))
        one, two = (_compute_pooled_inputs(model, modules, batch_size) for batch_size in (1, 2))
    # Parents are found by their paths: attention may use the weights of its children without calling them.
    parents = {path[:end] for path in order for end, char in enumerate(path) if char == "."}
    # The input of a layer may also be a table of positions, which does not depend on the images.
    widths = {path: x.shape[1] for path, x in one.items() if len(two[path]) == 2 * len(x)}
    return [path for path in order if path not in parents], widths


def _compute_pooled_inputs(model: Model, modules: Mapping[str, nn.Module], batch_size: int) -> dict[str, Tensor]:
    pooled_inputs: dict[str, Tensor] = {}
    image = model.preprocessing.image
    layers = {path: module for path, module in modules.items() if _count_parameters(module)}
    with _hook_inputs(layers, pooled_inputs), torch.inference_mode():
        model.network(torch.zeros(batch_size, image.channels, image.height, image.width))
    return pooled_inputs
