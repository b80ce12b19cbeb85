"""Split a network into a lower part, which depends only on frozen parameters, and an upper part that is trained."""

from __future__ import annotations

import logging
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from mlimages.networks.freezing import FrozenLayers, copy_with_shared_tensors, is_stochastic, trace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class NetworkParts:
    """Two parts that share the modules of one network: `upper_part(*lower_part(x))` equals `network(x)`.

    Attributes:
        lower_part: maps float32 `(N, C, H, W)` to a tuple of tensors, the features.
        upper_part: maps the features to logits `(N, classes)`.
        feature_shapes: shapes of the features without the batch dimension.
    """

    lower_part: fx.GraphModule
    upper_part: fx.GraphModule
    feature_shapes: tuple[tuple[int, ...], ...]

    def __repr__(self) -> str:
        return f"NetworkParts(features: {', '.join(map(str, self.feature_shapes))})"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features in the graph of the network."""
        return tuple(node.name for node in self.lower_part.graph.output_node().all_input_nodes)


def split_network(network: nn.Module, frozen_layers: FrozenLayers, example_input: Tensor) -> NetworkParts | None:
    """Split a network after its last frozen layer; return None if no layer is frozen, or if it cannot be split.

    A network cannot be split if it cannot be traced, or if no output of its frozen layers has one row per image; a
    warning is then logged. If the last frozen layer is in window attention (Swin), where each window is a row of the
    batch, the network is split earlier, before images are divided into windows. Deterministic layers without parameters
    that follow the last frozen layer (activation, pooling, flattening) belong to the lower part, which makes the
    features small.

    Args:
        network: a network after `freeze`.
        frozen_layers: the result of `freeze`.
        example_input: float32 `(N, C, H, W)`; only its shape matters.

    Examples:
        >>> import torch
        >>> from mlimages.networks import build_model, freeze, split_network
        >>> model = build_model("lenet5", num_classes=10, weights="none")
        >>> frozen = freeze(model, "conv2")
        >>> parts = split_network(model.network, frozen, torch.zeros(2, 1, 28, 28))
        >>> parts
        NetworkParts(features: (400,))
        >>> parts.upper_part(*parts.lower_part(torch.zeros(2, 1, 28, 28))).shape
        torch.Size([2, 10])
    """
    if not frozen_layers.parameter_names:
        return None
    graph = trace(network)
    features: list[fx.Node] = []
    if graph is not None and propagate_shapes(network, graph, example_input):
        cacheable = _find_cacheable_nodes(network, graph, frozen_layers)
        upper_nodes, features = _partition_nodes(graph, cacheable, len(example_input))
    if graph is None or not features or any(node.op == "placeholder" for node in features):
        logger.warning(
            "the outputs of this network's frozen layers cannot be cached: every epoch runs the whole network and "
            "takes longer"
        )
        return None
    shapes = tuple(tuple(node.meta["val"].shape[1:]) for node in features)
    lower, upper = _make_lower_part(network, graph, features), _make_upper_part(network, graph, upper_nodes, features)
    return NetworkParts(lower, upper, shapes)


def propagate_shapes(network: nn.Module, graph: fx.Graph, example_input: Tensor) -> bool:
    """Store a fake tensor of each node's output in `node.meta["val"]`; return False if that fails."""
    shape_mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        FakeTensorProp(fx.GraphModule(copy_with_shared_tensors(network), graph), shape_mode).propagate(example_input)
    except Exception as error:  # the network's code may raise any error on tensors without values
        logger.info(
            "cannot determine the shapes in this network without running it (%s: %s)", type(error).__name__, error
        )
        return False
    return True


def _find_cacheable_nodes(network: nn.Module, graph: fx.Graph, frozen_layers: FrozenLayers) -> set[fx.Node]:
    """Return the nodes whose value for an image does not change during training."""
    cacheable_nodes: set[fx.Node] = set()
    for node in graph.nodes:
        has_cacheable_inputs = cacheable_nodes.issuperset(node.all_input_nodes)
        if node.op != "output" and has_cacheable_inputs and _is_cacheable(network, node, frozen_layers):
            cacheable_nodes.add(node)
    return cacheable_nodes


def _is_cacheable(network: nn.Module, node: fx.Node, frozen_layers: FrozenLayers) -> bool:
    """Return whether the value of a node stays the same during training if its inputs do."""
    if node.op == "get_attr":
        return not getattr(operator.attrgetter(str(node.target))(network), "requires_grad", False)
    if node.op != "call_module" or str(node.target) in frozen_layers.module_paths:
        return True
    module = network.get_submodule(str(node.target))
    has_state = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
    return not (is_stochastic(module) or has_state)


def _partition_nodes(
    graph: fx.Graph, cacheable_nodes: set[fx.Node], batch_size: int
) -> tuple[set[fx.Node], list[fx.Node]]:
    """Return the nodes that the upper part runs, and the nodes of the lower part that output the features.

    A feature depends on the images and has one row per image, `batch_size` in all. The upper part may need other values
    of the lower part, such as sizes, constants and attention windows. Nodes that compute these run in both parts.
    """
    image_dependent: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in image_dependent for source in node.all_input_nodes):
            image_dependent.add(node)
    upper = {node for node in graph.nodes if node not in cacheable_nodes}
    features: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for source in node.all_input_nodes if node in upper else ():
            value = source.meta.get("val") if source in cacheable_nodes and source in image_dependent else None
            if isinstance(value, Tensor) and value.shape[:1] == (batch_size,):
                features.add(source)
            else:
                upper.add(source)
    return upper, [node for node in graph.nodes if node in features]


def _make_lower_part(network: nn.Module, graph: fx.Graph, features: list[fx.Node]) -> fx.GraphModule:
    """Return the part of the network that computes `features` from images."""
    nodes = set(features)
    for node in reversed(graph.nodes):
        if node in nodes:
            nodes.update(node.all_input_nodes)
    lower = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    _copy_nodes(graph, lower, nodes, copies)
    lower.output(tuple(copies[node] for node in features))
    return fx.GraphModule(network, lower)


def _make_upper_part(
    network: nn.Module, graph: fx.Graph, nodes: set[fx.Node], features: list[fx.Node]
) -> fx.GraphModule:
    """Return the part of the network that computes the logits from `features`, with the operations in `nodes`."""
    upper = fx.Graph()
    _copy_nodes(graph, upper, nodes, {node: upper.placeholder(f"feature{n}") for n, node in enumerate(features)})
    return fx.GraphModule(network, upper)


def _copy_nodes(graph: fx.Graph, target_graph: fx.Graph, nodes: set[fx.Node], copies: dict[fx.Node, fx.Node]) -> None:
    """Copy `nodes` of `graph` to `target_graph`, and add each copy to `copies` under its original node.

    Nodes that are already in `copies` are not copied again.
    """
    for node in graph.nodes:
        if node in nodes and node not in copies:
            copies[node] = target_graph.node_copy(node, lambda source: copies[source])


def flatten_features(features: tuple[Tensor, ...]) -> Tensor:
    """Return the features of `NetworkParts.lower_part` as one row per image: `(N, D)`.

    Examples:
        >>> import torch
        >>> from mlimages.networks import flatten_features
        >>> flatten_features((torch.zeros(2, 16, 5, 5), torch.zeros(2, 8))).shape
        torch.Size([2, 408])
    """
    return torch.cat([tensor.flatten(1) for tensor in features], dim=1)  # (N, D)


def unflatten_features(rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
    """Return the features for rows `(N, D)`: the inverse of `flatten_features`.

    Examples:
        >>> import torch
        >>> from mlimages.networks import unflatten_features
        >>> [tensor.shape for tensor in unflatten_features(torch.zeros(2, 408), ((16, 5, 5), (8,)))]
        [torch.Size([2, 16, 5, 5]), torch.Size([2, 8])]
    """
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parts = torch.split(rows, sizes, dim=1)
    return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))
