"""An .onnx file layer by layer, and what it says of itself; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlimages.core import BundleError, Layer, MissingExtraError, NetworkSummary, Window
from mlimages.reports.bundle_summary import bundle_notes

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("the layers of an .onnx file", "train") from error

_KINDS = {
    "Conv": "conv",
    "ConvInteger": "conv",
    "QLinearConv": "conv",
    "Gemm": "linear",
    "MatMul": "linear",
    "MaxPool": "pool",
    "AveragePool": "pool",
    "GlobalAveragePool": "pool",
    "BatchNormalization": "norm",
    "LayerNormalization": "norm",
    "LRN": "norm",
}

Shape = tuple[int, ...]


def summarize_onnx(path: Path) -> NetworkSummary:
    """The layers that hold parameters or pool, with what a bundle of ours says of itself.

    Raises:
        BundleError: it is not an ONNX file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
    except FileNotFoundError as error:
        raise BundleError(f"no file at {path}") from error
    except Exception as error:  # protobuf and onnx raise errors of many kinds on bytes that are no model
        raise BundleError(f"{path} is not an ONNX file ({str(error).splitlines()[0][:80]})") from error
    if not model.graph.node:
        raise BundleError(f"{path} holds no network")
    graph = _Graph.of(model.graph)
    layers = tuple(layer for node in model.graph.node if (layer := graph.layer(node)) is not None)
    return NetworkSummary(
        title=path.name,
        input=graph.first_shape(model.graph),
        layers=layers,
        parameters=sum(math.prod(shape) for shape in graph.weights.values() if len(shape) > 0),
        trained_parameters=None,
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        notes=(_interface(model), *bundle_notes(path, metadata)),
    )


@dataclass(frozen=True, slots=True)
class _Graph:
    """Shapes by name: of what flows (without the batch) and of the weights."""

    shapes: Mapping[str, Shape]
    weights: Mapping[str, Shape]
    sources: Mapping[str, str]

    @classmethod
    def of(cls, graph: Any) -> _Graph:
        shapes = {value.name: _dims(value) for value in (*graph.input, *graph.value_info, *graph.output)}
        weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        # int8 weights reach their layer through a DequantizeLinear
        sources = {node.output[0]: node.input[0] for node in graph.node
                   if node.op_type == "DequantizeLinear" and node.input[0] in weights}  # fmt: skip
        return cls(shapes, weights, sources)

    def layer(self, node: Any) -> Layer | None:
        names = [self.sources.get(name, name) for name in node.input]
        held = [name for name in names[1:] if name in self.weights]
        made, given = self.shapes.get(node.output[0], ()), self.shapes.get(node.input[0], ())
        if node.op_type not in _KINDS or not (held or _KINDS[node.op_type] == "pool"):
            return None
        window = _window(node, given, made)
        return Layer(
            name=_name(held[0] if held else node.name),
            kind=_KINDS[node.op_type],
            output=made,
            parameters=sum(math.prod(self.weights[name]) for name in held),
            state="",
            multiply_adds=self._multiply_adds(node.op_type, held, made),
            arithmetic=window.arithmetic(given[-1]) if window else _change(given, made),
            even=window is None or window.width(given[-1]).denominator == 1,
            lost_px=window.lost_px(given[-1]) if window else 0,
        )

    def first_shape(self, graph: Any) -> tuple[int, int, int]:
        """`(C, H, W)` of the first convolution's input; zeros where it is not known."""
        for node in graph.node:
            if node.op_type in ("Conv", "QLinearConv") and len(given := self.shapes.get(node.input[0], ())) == 3:
                return given[0], given[1], given[2]
        return 0, 0, 0

    def _multiply_adds(self, kind: str, held: list[str], made: Shape) -> int:
        if _KINDS[kind] not in ("conv", "linear"):
            return 0
        weight = self.weights[held[0]]
        positions = math.prod(made[1:]) if _KINDS[kind] == "conv" else math.prod(made[:-1])
        return math.prod(weight) * positions


def _dims(value: Any) -> Shape:
    """The shape without the batch; an unknown length counts 0."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[1:]


def _name(text: str) -> str:
    """network.features.0.weight_quantized -> features.0."""
    parts = [part for part in text.split(".") if part != "network" and not part.startswith(("weight", "bias"))]
    return ".".join(parts)


def _window(node: Any, given: Shape, made: Shape) -> Window | None:
    own = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    if "kernel_shape" not in own or len(given) != 3 or len(made) != 3:
        return None
    size = (own["kernel_shape"][-1] - 1) * own.get("dilations", [1])[-1] + 1
    left, right = (own["pads"][1], own["pads"][3]) if len(own.get("pads", ())) == 4 else (0, 0)
    window = Window(size, own.get("strides", [1])[-1], left, ceil=bool(own.get("ceil_mode", 0)))
    return window if left == right and window.rounded_width(given[-1]) == made[-1] else None


def _change(given: Shape, made: Shape) -> str:
    return f"{given[-1]} -> {made[-1]}" if given and made and given[-1] != made[-1] else ""


def _interface(model: Any) -> str:
    """What goes in and comes out, of which opset."""

    def told(value: Any) -> str:
        tensor = value.type.tensor_type
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        return f"{value.name} {kind} ({', '.join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)})"

    opset = next((entry.version for entry in model.opset_import if not entry.domain), "?")
    ends = (", ".join(map(told, values)) for values in (model.graph.input, model.graph.output))
    return f"{' -> '.join(ends)}; opset {opset}"
