"""A network's order of execution, read by symbolic tracing."""

from __future__ import annotations

import logging
import sys
from typing import Any

from torch import fx, nn

logger = logging.getLogger(__name__)

_CHANCE = ("DropPath", "StochasticDepth")  # residual branches dropped at random, by timm and torchvision


class _Tracer(fx.Tracer):
    """Keeps modules whole that the plain tracer would look into and lose the mode (train or eval) of."""

    def __init__(self) -> None:
        self._whole: tuple[type[nn.Module], ...] = ()
        functions: tuple[Any, ...] = ()
        if "timm" in sys.modules:
            from mlimages.networks.timm_family import traced_whole  # only where the network is timm's

            self._whole, functions = traced_whole()
        super().__init__(autowrap_functions=functions)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = is_chance(m) or isinstance(m, self._whole) or not list(m.children())
        return whole or super().is_leaf_module(m, module_qualified_name)


def is_chance(module: nn.Module) -> bool:
    """Whether a module does something at random while training."""
    return isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _CHANCE


def trace(network: nn.Module) -> fx.Graph | None:
    """The network's graph in eval mode, nodes in the order of execution; None where Python decides too much."""
    was_training = network.training
    try:
        return _Tracer().trace(network.eval())
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        logger.info("this network cannot be traced (%s: %s)", type(error).__name__, error)
        return None
    finally:
        network.train(was_training)


def executed(graph: fx.Graph) -> list[str]:
    """Paths of the modules and parameters that the graph uses, in the order of execution."""
    return [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
