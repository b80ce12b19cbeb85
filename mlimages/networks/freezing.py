"""Freeze the lower layers of a network, and trace its graph to find their order."""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import logging
import sys
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from mlimages.core import ModelError
from mlimages.networks.models import Model
from mlimages.networks.weights import is_in_modules

logger = logging.getLogger(__name__)


_STOCHASTIC_DEPTH_CLASS_NAMES = ("DropPath", "StochasticDepth")  # in timm and torchvision, without a common base class


@dataclass(frozen=True, slots=True, repr=False)
class FrozenLayers:
    """The frozen layers of a network.

    Attributes:
        parameter_names: names of the frozen parameters.
        module_paths: paths of the frozen modules, which stay in eval mode.
    """

    parameter_names: frozenset[str]
    module_paths: frozenset[str]

    def __repr__(self) -> str:
        return f"FrozenLayers({len(self.parameter_names)} parameters, {len(self.module_paths)} modules)"

    def digest(self, network: nn.Module) -> str:
        """Return the SHA-256 of the frozen parameters and of the frozen modules' buffers, with their names.

        Examples:
            >>> from mlimages.networks import build_model, freeze
            >>> model = build_model("lenet5", num_classes=10, weights="none", seed=0)
            >>> freeze(model, "conv2").digest(model.network).startswith("sha256:")
            True
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            if name in self.parameter_names or name.rpartition(".")[0] in self.module_paths:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).numpy())
        return f"sha256:{digest.hexdigest()}"


def freeze(model: Model, upto: str = "head") -> FrozenLayers:
    """Freeze every layer up to and including `upto` or, for `head`, every layer except the classifier.

    The layers are in order of execution or, if the network cannot be traced, in the order in which they are defined.

    Frozen parameters require no gradient. Frozen modules, such as batch norm and dropout, stay in eval mode even after
    `.train()`. So does every batch norm of a pretrained network: its scale and shift may be trained, but
    statistics of a few hundred images are worse than the pretrained statistics. A second call replaces the frozen
    layers of the first call.

    Args:
        model: a model, whose network is changed in place.
        upto: a module path or a layer alias (conv1 ... fc7), `head`, or `none` to freeze nothing.

    Raises:
        ModelError: there is no such layer, or no layer would be left to train.

    Examples:
        >>> from mlimages.networks import build_model, freeze
        >>> model = build_model("lenet5", num_classes=10, weights="none")
        >>> freeze(model, "conv2")
        FrozenLayers(4 parameters, 4 modules)
        >>> [name for name, p in model.network.named_parameters() if p.requires_grad][:2]
        ['fc3.weight', 'fc3.bias']
    """
    network = model.network
    layers = _find_layers_up_to(model, upto)
    parameters = {name for name, _ in network.named_parameters() if is_in_modules(name, layers)}
    if len(parameters) == len([*network.parameters()]):
        raise ModelError(f"freezing up to {upto!r} leaves no layer of {model.name} to train: freeze fewer layers")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in parameters)
    modules = {path for path, module in network.named_modules() if path and _is_frozen(path, module, layers)}
    for path, module in network.named_modules():
        module.__dict__.pop("train", None)
        if path in modules or (model.pretrained and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            module.eval()
            module.__dict__["train"] = functools.partial(_stay_in_eval_mode, module)
    return FrozenLayers(frozenset(parameters), frozenset(modules))


def _stay_in_eval_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replacement of `.train()` for a frozen module: ignore `mode` and return the module."""
    return module


def _find_layers_up_to(model: Model, layer_name: str) -> set[str]:
    """Return the layers up to and including `layer_name`, by the names that `_list_layers` returns.

    For `head`, return all layers except the classifiers, even layers that the forward pass does not use.
    """
    if layer_name == "none":
        return set()
    if layer_name == "head":
        return {name for name in _list_layers(model.network) if not model.is_head(name)}
    order, graph = _list_layers(model.network), trace(model.network)
    if graph is not None:  # the same layers, but in order of execution
        order = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    path = model.layer_aliases.get(layer_name, layer_name)
    indices = [index for index, name in enumerate(order) if is_in_modules(name, {path})]
    if not indices:
        raise ModelError(_format_unknown_layer_error(layer_name, model))
    return set(order[: indices[-1] + 1])


def _list_layers(network: nn.Module) -> list[str]:
    """Return the leaf modules and the parameters of other modules, by path, in order of definition.

    For example, `conv1` is a leaf module, and `cls_token` is a parameter.
    """
    names: list[str] = []
    for path, module in network.named_modules():
        if path and not list(module.children()):
            names.append(path)
        else:
            names += [f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)]
    return names


def _is_frozen(path: str, module: nn.Module, layers: set[str]) -> bool:
    """Return whether a module is frozen: it is one of the frozen `layers`, is part of one, or consists only of them."""
    if is_in_modules(path, layers):
        return True
    children = list(module.named_children())
    own_parameters = [name for name, _ in module.named_parameters(recurse=False)]
    return (
        bool(children)
        and all(_is_frozen(f"{path}.{name}", child, layers) for name, child in children)
        and all(is_in_modules(f"{path}.{name}", layers) for name in own_parameters)
    )


def _format_unknown_layer_error(layer_name: str, model: Model) -> str:
    paths = [path for path, _ in model.network.named_modules() if path]
    names = [*model.layer_aliases, *(name for name, _ in model.network.named_children())]
    similar = difflib.get_close_matches(layer_name, [*model.layer_aliases, *paths])
    return (
        f"{model.name} has no layer {layer_name!r}"
        + (f"; did you mean {' or '.join(similar)}?" if similar else ".")
        + f" Use {', '.join([*names, 'head', 'none'])}, or a module path such as {paths[len(paths) // 2]}"
    )


class _Tracer(fx.Tracer):
    """Tracer for which dropout, stochastic depth, and modules that timm marks as not traceable are leaf modules."""

    def __init__(self) -> None:
        self._leaf_types: tuple[type[nn.Module], ...] = ()
        functions: tuple[Any, ...] = ()
        if "timm" in sys.modules:
            # Import timm only for networks from timm.
            from timm.models._features_fx import get_notrace_functions, get_notrace_modules

            self._leaf_types, functions = tuple(get_notrace_modules()), tuple(get_notrace_functions())
        super().__init__(autowrap_functions=functions)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_leaf = is_stochastic(m) or isinstance(m, self._leaf_types) or not list(m.children())
        return is_leaf or super().is_leaf_module(m, module_qualified_name)


def is_stochastic(module: nn.Module) -> bool:
    """Return whether a module is dropout or stochastic depth, which are random in train mode.

    Examples:
        >>> from torch import nn
        >>> from mlimages.networks import is_stochastic
        >>> is_stochastic(nn.Dropout()), is_stochastic(nn.ReLU())
        (True, False)
    """
    return isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _STOCHASTIC_DEPTH_CLASS_NAMES


def trace(network: nn.Module) -> fx.Graph | None:
    """Return the graph of a network in eval mode, with nodes in order of execution; None if it cannot be traced.

    A copy that shares the tensors is traced, so that the forward pass cannot change attributes of `network`. The only
    change to `network`: the graph's constants are added as attributes (`_tensor_constant0` ...).
    """
    traced, base = copy_with_shared_tensors(network).eval(), type(network)
    # Arguments other than the images keep their defaults, such as `mask=None`, instead of becoming placeholders.
    traced.__class__ = type(base.__name__, (base,), {"forward": lambda self, x: base.forward(self, x)})
    try:
        graph = _Tracer().trace(traced)
    except Exception as error:  # tracing runs the network's code, which may raise any error
        logger.info("this network cannot be traced (%s: %s)", type(error).__name__, error)
        return None
    for name, value in vars(traced).items():
        if name.startswith("_tensor_constant"):  # used by the graph
            setattr(network, name, value)
    return graph


def copy_with_shared_tensors(network: nn.Module) -> nn.Module:
    """Return a copy of the network that shares its parameters and buffers."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
