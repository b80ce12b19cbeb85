"""The cut between the frozen lower part of a network and the trainable upper part."""

from __future__ import annotations

import difflib
import functools
import hashlib
from dataclasses import dataclass

from torch import nn

from mlimages.core import ModelError
from mlimages.networks.models import Model
from mlimages.networks.tracing import executed, trace


@dataclass(frozen=True, slots=True)
class FrozenPart:
    """What of a network does not learn.

    Attributes:
        parameters: names of the frozen parameters.
        modules: paths of the modules pinned to eval mode.
    """

    parameters: frozenset[str]
    modules: frozenset[str]

    def digest(self, network: nn.Module) -> str:
        """SHA-256 of the frozen parameters and of the pinned modules' buffers, by name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            if name in self.parameters or name.rpartition(".")[0] in self.modules:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).numpy())
        return f"sha256:{digest.hexdigest()}"


def freeze(model: Model, upto: str = "head") -> FrozenPart:
    """Freeze everything up to and including the layer `upto`, in the order of execution.

    Frozen parameters take no gradient; frozen modules, batch norm and dropout among them, stay in eval mode even
    after `.train()`. So do all batch norms of a pretrained network: their scale and shift may learn, but the statistics
    of a few hundred pictures are worse than those it came with. Freezing again replaces an earlier cut.

    Args:
        model: its network is changed in place.
        upto: a module path or well-known name; `head` freezes all but the last layer, `none` nothing.

    Raises:
        ModelError: there is no such layer, or nothing would be left to train.
    """
    network = model.network
    layers = _up_to(model, upto)
    parameters = {name for name, _ in network.named_parameters() if _is_in(name, layers)}
    if all(name in parameters for name, _ in network.named_parameters()):
        raise ModelError(f"with {upto!r} frozen nothing of {model.name} is left to train: freeze less")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in parameters)
    modules = {path for path, module in network.named_modules() if path and _all_in(path, module, layers)}
    for path, module in network.named_modules():
        module.__dict__.pop("train", None)
        if path in modules or (model.pretrained and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            module.eval()
            module.__dict__["train"] = functools.partial(_stay_in_eval, module)
    return FrozenPart(frozenset(parameters), frozenset(modules))


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """What `.train()` does to a frozen module."""
    return module


def _up_to(model: Model, upto: str) -> set[str]:
    """Leaf modules and lone parameters up to the end of a layer."""
    if upto == "none":
        return set()
    order = _order(model.network)
    if upto == "head":
        return {path for path in order if not f"{path}.".startswith(f"{model.head}.")}
    path = model.layers.get(upto, upto)
    inside = [place for place, name in enumerate(order) if name == path or name.startswith(f"{path}.")]
    if not inside:
        raise ModelError(_unknown(upto, model))
    return set(order[: inside[-1] + 1])


def _order(network: nn.Module) -> list[str]:
    graph = trace(network)
    if graph is not None:
        return executed(graph)
    lone = [name for name, _ in network.named_parameters(recurse=False)]
    return [*lone, *(path for path, module in network.named_modules() if path and not list(module.children()))]


def _is_in(name: str, layers: set[str]) -> bool:
    """Whether a parameter is one of `layers` or lies inside one."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in layers for length in range(1, len(parts) + 1))


def _all_in(path: str, module: nn.Module, layers: set[str]) -> bool:
    """Whether a module lies in one of `layers`, or all of its parts do."""
    if _is_in(path, layers):
        return True
    parts = list(module.named_children())
    own = [name for name, _ in module.named_parameters(recurse=False)]
    return (
        bool(parts)
        and all(_all_in(f"{path}.{name}", part, layers) for name, part in parts)
        and all(_is_in(f"{path}.{name}", layers) for name in own)
    )


def _unknown(upto: str, model: Model) -> str:
    paths = [path for path, _ in model.network.named_modules() if path]
    names = [*model.layers, *(name for name, _ in model.network.named_children())]
    near = difflib.get_close_matches(upto, [*model.layers, *paths], n=3)
    return (
        f"{model.name} has no layer {upto!r}"
        + (f"; near it: {', '.join(near)}" if near else "")
        + f": take one of {', '.join([*names, 'head', 'none'])}, or a module path such as {paths[len(paths) // 2]}"
    )
