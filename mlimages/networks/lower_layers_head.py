"""A second head on the pooled outputs of the lower layers, whose logits are added to those of the network's head."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from mlimages.core import ModelError
from mlimages.networks.cut_points import find_cut_points
from mlimages.networks.freezing import trace
from mlimages.networks.models import Model
from mlimages.networks.splitting import propagate_shapes

logger = logging.getLogger(__name__)

LOWER_HEAD_PATH = "depths"
"""Module path of the LowerLayersHead in the network."""


class LowerLayersHead(nn.Linear):
    """Linear layer without bias on the pooled outputs of lower layers; its weight is initialized to zero.

    Args:
        layer_features: number of features of each lower layer, in the order of execution.
        num_classes: number of logits.
    """

    def __init__(self, layer_features: Sequence[int], num_classes: int) -> None:
        super().__init__(sum(layer_features), num_classes, bias=False)
        self.layer_features = tuple(layer_features)
        nn.init.zeros_(self.weight)


def find_lower_layers_head(network: nn.Module) -> LowerLayersHead | None:
    """Return the head that `add_lower_layers_head` added to a network; None if there is none.

    A custom network may have another module at the same path.
    """
    module = network._modules.get(LOWER_HEAD_PATH)
    return module if isinstance(module, LowerLayersHead) else None


def add_lower_layers_head(model: Model) -> Model | None:
    """Return a new model with a second linear head, on the outputs of its lower layers averaged over positions.

    The second head gets the layer outputs at all cut points (`find_cut_points`) except the last one, which is the input
    of the existing head. The logits of both heads are added. The new model shares layers and tensors with
    `model`; its state dict has one more tensor, `depths.weight` `(classes, D)` for D features. Based on Head2Toe
    (U. Evci et al., ICML 2022, arXiv 2201.03529).

    Returns:
        The new model; None if the network cannot be traced, already has a module or tensor `depths`, or has no cut
        point except the one before the existing head.

    Examples:
        >>> import torch
        >>> from mlimages.networks import add_lower_layers_head, build_model
        >>> model = build_model("lenet5", num_classes=10, weights="none")
        >>> extended = add_lower_layers_head(model)
        >>> extended.network.depths
        LowerLayersHead(in_features=142, out_features=10, bias=False)
        >>> x = torch.randn(2, 1, 28, 28)
        >>> torch.equal(extended.network(x), model.network(x))
        True
    """
    graph = trace(model.network)
    if graph is None or isinstance(getattr(model.network, LOWER_HEAD_PATH, None), nn.Module | Tensor):
        return None
    try:
        next_layers = [cut.next_layer for cut in find_cut_points(model) if not model.is_head(cut.next_layer)]
    except ModelError:
        return None
    parameter = next(model.network.parameters())
    example = torch.zeros(2, *model.preprocessing.input_shape, device=parameter.device)
    if not propagate_shapes(model.network, graph, example):
        return None
    taps: dict[fx.Node, tuple[int, ...]] = {}  # with the dimensions to average over
    for node in graph.nodes:
        if node.op == "call_module" and node.target in next_layers:
            source = node.all_input_nodes[0]
            maps = _find_node_before_flattening(model.network, source)
            is_convolution = maps is not source or isinstance(model.network.get_submodule(node.target), nn.Conv2d)
            positions = {2: (), 3: (1,), 4: (2, 3) if is_convolution else (1, 2)}
            if _count_dims(maps) in positions and maps.meta["val"].shape[0] == 2:  # attention windows have several rows
                taps.setdefault(maps, positions[_count_dims(maps)])
    if not taps:
        return None
    outputs = [(node.meta["val"], dim) for node, dim in taps.items()]
    layer_features = [output.mean(dim).shape[1] if dim else output.shape[1] for output, dim in outputs]
    head: Any = model.network.get_submodule(model.head)
    classes = head.out_channels if isinstance(head, nn.Conv2d) else head.out_features
    logits = graph.output_node().all_input_nodes[0]
    with graph.inserting_before(graph.output_node()):
        pooled = [graph.call_method("mean", (node, dim)) if dim else node for node, dim in taps.items()]
        added = graph.create_node("call_module", LOWER_HEAD_PATH, (graph.call_function(torch.cat, (pooled, 1)),))
        graph.output_node().args = (graph.call_function(operator.add, (logits, added)),)
    root = nn.Module()
    root.__dict__.update(model.network.__dict__)
    root.__dict__.pop(LOWER_HEAD_PATH, None)  # a number of blocks, as in timm's PVT, which would hide the module
    lower_head = LowerLayersHead(layer_features, classes).to(parameter.device)
    root._modules = {**model.network._modules, LOWER_HEAD_PATH: lower_head}
    network = fx.GraphModule(root, graph)
    paths = {path for path, _ in network.named_modules(remove_duplicate=False)}
    for path, module in model.network.named_modules():
        if path not in paths:  # layers used only in training
            network.add_submodule(path, module)
    if network.state_dict().keys() - {f"{LOWER_HEAD_PATH}.weight"} != model.network.state_dict().keys():
        return None
    return replace(model, network=network.eval())


def _find_node_before_flattening(network: nn.Module, node: fx.Node) -> fx.Node:
    """Return the last feature map before `node`, that is, before pooling and flattening.

    Return `node` if there is no feature map, or if a layer with weights is between it and `node`.
    """
    maps = node
    while _count_dims(maps) == 2 and len(maps.all_input_nodes) == 1:
        if maps.op == "call_module" and any(True for _ in network.get_submodule(str(maps.target)).parameters()):
            break
        maps = maps.all_input_nodes[0]
    return maps if _count_dims(maps) == 4 else node


def _count_dims(node: fx.Node) -> int:
    """Return the number of dimensions of a node's output; 0 if it is not a tensor."""
    value = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else 0
