"""Find the points at which a network can be split, and compute the pooled features at each of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mlimages.core import ModelError
from mlimages.networks.models import Model
from mlimages.networks.weights import is_in_modules

MIN_STAGES = 5
"""Minimum number of stages into which a network is divided, if it has enough modules; it can be split after each."""

_NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True, slots=True)
class CutPoint:
    """A point between two layers at which a network can be split into a frozen and a trained part.

    Attributes:
        last_layer: alias or module path of the last layer or stage before the point; `freeze` accepts it.
        next_layer: module path of the next layer with weights, other than normalization layers. The features are its
            input, averaged over positions (see `find_cut_points`).
        num_features: number of features.

    Examples:
        >>> from mlimages.networks import build_model, find_cut_points
        >>> model = build_model("lenet5", num_classes=10, weights="none")
        >>> find_cut_points(model)[0]
        CutPoint(last_layer='conv1', next_layer='conv2', num_features=6)
    """

    last_layer: str
    next_layer: str
    num_features: int


def find_cut_points(model: Model) -> tuple[CutPoint, ...]:
    """Return the points at which a network can be split into frozen and trained layers, in order of execution.

    The network can be split after each layer with an alias (conv1 ... fc7) or, if it has no aliases, after each stage.
    The features are the input of the next layer with weights, so that activation, pooling and normalization come first.
    A feature map is averaged over height and width, and tokens are averaged. A flattened input is used unchanged, such
    as the 16 * 5 * 5 = 400 features below, which fc3 gets.

    Raises:
        ModelError: the network has a single layer.

    Examples:
        >>> from mlimages.networks import build_model, find_cut_points
        >>> model = build_model("lenet5", num_classes=10, weights="none")
        >>> [(point.last_layer, point.num_features) for point in find_cut_points(model)]
        [('conv1', 6), ('conv2', 400), ('fc3', 120), ('fc4', 84)]
    """
    order, widths = _trace_layers(model)
    points: dict[str, CutPoint] = {}
    for name, path in _find_candidate_layers(model, order):
        indices = [index for index, leaf in enumerate(order) if f"{leaf}.".startswith(f"{path}.")]
        later = order[indices[-1] + 1 :] if indices else []
        next_layer = next((leaf for leaf in later if _has_weights(model.network.get_submodule(leaf))), None)
        if next_layer in widths:
            points.setdefault(next_layer, CutPoint(name, next_layer, widths[next_layer]))
    if not points:
        raise ModelError(f"{model.name} has a single layer and cannot be split: use --freeze none")
    return tuple(points.values())


class FeatureHooks:
    """Context manager that records the input of the layer after each of `cut_points`, averaged over positions.

    Each forward pass replaces the features of the previous one.

    Examples:
        >>> import torch
        >>> from mlimages.networks import FeatureHooks, build_model, find_cut_points
        >>> model = build_model("lenet5", num_classes=10, weights="none")
        >>> with FeatureHooks(model.network, find_cut_points(model)) as hooks, torch.inference_mode():
        ...     logits = model.network(torch.zeros(2, 1, 28, 28))
        ...     features = hooks.collect_features()
        >>> features.shape  # 6 + 400 + 120 + 84
        torch.Size([2, 610])
    """

    def __init__(self, network: nn.Module, cut_points: tuple[CutPoint, ...]) -> None:
        self._inputs: dict[str, Tensor] = {}
        self._next_layers = [point.next_layer for point in cut_points]
        modules = {path: network.get_submodule(path) for path in self._next_layers}
        self._hooks = _register_input_hooks(modules, self._inputs)
        self._hooks.enter_context(network.register_forward_pre_hook(self._start_batch))

    def __enter__(self) -> FeatureHooks:
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def collect_features(self) -> Tensor:
        """Return the features of the last batch, concatenated in the order of the cut points, and clear them.

        The shape is `(N, D)`, float32, where D is the sum of `num_features`.
        """
        inputs = [self._inputs[path] for path in self._next_layers]
        by_image = [x.reshape(self._batch_size, -1, x.shape[1]).mean(dim=1) for x in inputs]  # a layer may see windows
        self._inputs.clear()
        return torch.cat(by_image, dim=1)

    def _start_batch(self, network: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._inputs.clear()
        self._batch_size = len(args[0])


def _register_input_hooks(modules: Mapping[str, nn.Module], pooled_inputs: dict[str, Tensor]) -> ExitStack:
    """Register hooks that store the pooled input of each module in `pooled_inputs`.

    Return an ExitStack; closing it removes the hooks.
    """

    def record_input(path: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # If a layer is used twice, the first use counts; some layers take lists.
        if path not in pooled_inputs and args and isinstance(args[0], Tensor):
            pooled_inputs[path] = _global_avg_pool(args[0].float(), module)

    hooks = ExitStack()
    for path, module in modules.items():
        hooks.enter_context(module.register_forward_pre_hook(partial(record_input, path)))
    return hooks


def _global_avg_pool(x: Tensor, layer: nn.Module) -> Tensor:
    """Average the input of a layer over positions; return `(N, C)`.

    Channels are dimension 1 of the input of a convolution, and the last dimension of other inputs.
    """
    if isinstance(layer, nn.Conv2d):
        return x.mean(dim=(2, 3))
    return x.flatten(1, -2).mean(dim=1) if x.ndim > 2 else x


def _find_candidate_layers(model: Model, order: list[str]) -> list[tuple[str, str]]:
    """Return the name and module path of each layer or stage that may be the last frozen one.

    `order` are the paths of the leaf modules in order of execution.
    """
    if not model.layer_aliases:
        return [(path, path) for path in _find_stages(model)]
    by_path = {path: name for name, path in reversed([*model.layer_aliases.items()])}  # conv1_1 before conv1
    return [(by_path[path], path) for path in order if path in by_path and not model.is_head(path)]


def _find_stages(model: Model) -> list[str]:
    """Return the paths of the stages of a network, such as `layer1` of a ResNet.

    The stages are the top-level modules with parameters, except the head and normalization layers. The largest module
    is replaced by its children until there are MIN_STAGES stages, or no module can be divided.
    """
    paths = _list_child_paths(model.network, "")
    while len(stages := [path for path in paths if not _is_head_or_norm(model, path)]) < MIN_STAGES:
        modules = {path: model.network.get_submodule(path) for path in paths}
        divisible = [path for path, module in modules.items() if len(_list_child_paths(module, path)) > 1]
        if not divisible:
            break
        largest = max(divisible, key=lambda path: _count_parameters(modules[path]))
        index = paths.index(largest)
        paths[index : index + 1] = _list_child_paths(modules[largest], largest)
    return stages


def _list_child_paths(module: nn.Module, path: str) -> list[str]:
    """Return the paths of the children with parameters; `path` is that of `module`."""
    return [f"{path}.{name}" if path else name for name, child in module.named_children() if _count_parameters(child)]


def _is_head_or_norm(model: Model, path: str) -> bool:
    contains_head = any(is_in_modules(head, {path}) for head in model.heads)
    return contains_head or isinstance(model.network.get_submodule(path), _NORM_LAYERS)


def _has_weights(layer: nn.Module) -> bool:
    """Return whether a layer has parameters and is not a normalization layer."""
    return _count_parameters(layer) > 0 and not isinstance(layer, _NORM_LAYERS)


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trace_layers(model: Model) -> tuple[list[str], dict[str, int]]:
    """Return the paths of the leaf modules in order of execution, and the number of input channels of modules by path.

    The second value leaves out modules without parameters, and modules whose input does not depend on the images, such
    as a table of position embeddings.
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
    """Return the pooled input `(N, C)` of each module with parameters, by path, for a batch of zeros."""
    pooled_inputs: dict[str, Tensor] = {}
    layers = {path: module for path, module in modules.items() if _count_parameters(module)}
    with _register_input_hooks(layers, pooled_inputs), torch.inference_mode():
        model.network(torch.zeros(batch_size, *model.preprocessing.input_shape))
    return pooled_inputs
