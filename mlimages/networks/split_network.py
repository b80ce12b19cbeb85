"""A network cut in two: what its input and frozen weights alone decide, and the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from mlimages.networks.freezing import FrozenPart
from mlimages.networks.tracing import is_chance, trace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Split:
    """Two halves that share the network's own modules: `upper(*lower(x))` is `network(x)`.

    Attributes:
        lower: float32 `(N, C, H, W)` to the tensors at the cut, a tuple.
        upper: those tensors to logits `(N, classes)`.
        shapes: of the tensors at the cut, without the batch.
    """

    lower: fx.GraphModule
    upper: fx.GraphModule
    shapes: tuple[tuple[int, ...], ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors at the cut, in the graph."""
        return tuple(node.name for node in self.lower.graph.output_node().all_input_nodes)


def split(network: nn.Module, frozen: FrozenPart, example: Tensor) -> Split | None:
    """Cut `network` as high as its frozen part alone decides; None where it cannot be cut.

    The cut lies behind everything that follows the last frozen layer without learning and without chance
    (activation, pooling, flattening), where the numbers are few.

    Args:
        network: as `freeze` left it.
        frozen: what `freeze` returned.
        example: float32 `(N, C, H, W)`, for its shape.
    """
    graph = trace(network)
    if graph is None or not frozen.parameters:
        return None
    shapes_only = FakeTensorMode(allow_non_fake_inputs=True)
    FakeTensorProp(fx.GraphModule(network, graph), shapes_only).propagate(example)
    fixed = _fixed(network, graph, frozen)
    needed, cut = _frontier(graph, fixed)
    if not cut or any(node.op == "placeholder" for node in cut):
        return None
    shapes = tuple(tuple(node.meta["val"].shape[1:]) for node in cut)
    return Split(_lower(network, graph, cut), _upper(network, graph, needed, cut), shapes)


def _fixed(network: nn.Module, graph: fx.Graph, frozen: FrozenPart) -> set[fx.Node]:
    """Nodes that give the same for the same picture however long is trained."""
    fixed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "output" and fixed.issuperset(node.all_input_nodes) and _is_still(network, node, frozen):
            fixed.add(node)
    return fixed


def _is_still(network: nn.Module, node: fx.Node, frozen: FrozenPart) -> bool:
    if node.op == "get_attr":
        return not getattr(_attribute(network, str(node.target)), "requires_grad", False)
    if node.op != "call_module" or str(node.target) in frozen.modules:
        return True
    module = network.get_submodule(str(node.target))
    return not (is_chance(module) or any(True for _ in module.parameters()) or any(True for _ in module.buffers()))


def _attribute(network: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    return getattr(network.get_submodule(owner), name)


def _frontier(graph: fx.Graph, fixed: set[fx.Node]) -> tuple[set[fx.Node], list[fx.Node]]:
    """The nodes of the upper half, and the nodes whose values it takes from the lower.

    Shapes, and constants that no picture decides, are computed again above rather than handed over.
    """
    seen_picture: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in seen_picture for source in node.all_input_nodes):
            seen_picture.add(node)
    needed: set[fx.Node] = set()
    cut: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node not in fixed]
    while waiting:
        node = waiting.pop()
        if node in needed:
            continue
        needed.add(node)
        for source in node.all_input_nodes:
            if source in fixed and source in seen_picture and isinstance(source.meta.get("val"), Tensor):
                cut.add(source)
            else:
                waiting.append(source)
    return needed, [node for node in graph.nodes if node in cut]


def _lower(network: nn.Module, graph: fx.Graph, cut: list[fx.Node]) -> fx.GraphModule:
    wanted, waiting = set(), list(cut)
    while waiting:
        node = waiting.pop()
        if node not in wanted:
            wanted.add(node)
            waiting.extend(node.all_input_nodes)
    half = fx.Graph()
    copies = _copied(graph, half, wanted, {})
    half.output(tuple(copies[node] for node in cut))
    return fx.GraphModule(network, half)


def _upper(network: nn.Module, graph: fx.Graph, needed: set[fx.Node], cut: list[fx.Node]) -> fx.GraphModule:
    half = fx.Graph()
    _copied(graph, half, needed, {node: half.placeholder(f"cut{n}") for n, node in enumerate(cut)})
    return fx.GraphModule(network, half)


def _copied(
    graph: fx.Graph, into: fx.Graph, wanted: Iterable[fx.Node], copies: dict[fx.Node, fx.Node]
) -> dict[fx.Node, fx.Node]:
    chosen = set(wanted)
    for node in graph.nodes:
        if node in chosen and node not in copies:
            copies[node] = into.node_copy(node, lambda source: copies[source])
    return copies


def joined(tensors: tuple[Tensor, ...]) -> Tensor:
    """The tensors at the cut as one row a picture: `(N, D)`."""
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)  # (N, D)


def parted(rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
    """The inverse of `joined`."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parts = torch.split(rows, sizes, dim=1)
    return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))
