"""Summarize an .onnx file, its layers and metadata, without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlimages.core import (
    BundleError,
    Layer,
    MissingExtraError,
    NetworkSummary,
    Window,
    format_examples,
    format_percent,
    pluralize,
    require_local_path,
)
from mlimages.inference import BundleSession, OnnxBundle, describe_load_errors

try:
    import onnx
except ModuleNotFoundError as error:
    raise MissingExtraError("summary of an .onnx file", "train") from error

_LAYER_TYPES = {
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


def summarize_onnx(path: str | os.PathLike[str]) -> NetworkSummary:
    """Summarize an .onnx file: its layers with parameters, its pooling layers, and notes on its metadata.

    Raises:
        BundleError: the file does not exist, is not an ONNX file, or has an empty graph.
    """
    path = require_local_path(path)
    with describe_load_errors(path):
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ValueError("No graph was found")  # as ONNX Runtime reports it
        model = onnx.shape_inference.infer_shapes(model)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
    graph = _GraphTensors(model.graph)
    layers = tuple(layer for node in model.graph.node if (layer := graph.make_layer(node)) is not None)
    return NetworkSummary(
        title=path.name,
        input=graph.find_image_shape(model.graph),
        layers=layers,
        parameters=sum(math.prod(shape) for shape in graph.weights.values() if len(shape) > 0),
        trained_parameters=None,
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        notes=(_describe_interface(model), *describe_bundle(path, metadata)),
    )


class _GraphTensors:
    """The shapes of a graph's activations (without the batch dimension) and weights, by name."""

    def __init__(self, graph: Any) -> None:
        values = (*graph.input, *graph.value_info, *graph.output)
        self.shapes: dict[str, Shape] = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[1:] for value in values
        }  # unknown dimensions are 0
        self.weights: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        # int8 weights reach their layer through a DequantizeLinear
        self.sources = {node.output[0]: node.input[0] for node in graph.node
                        if node.op_type == "DequantizeLinear" and node.input[0] in self.weights}  # fmt: skip

    def make_layer(self, node: Any) -> Layer | None:
        """Return a row of the summary for a node; None if it is neither pooling nor a layer with weights."""
        kind = _LAYER_TYPES.get(node.op_type)
        names = [self.sources.get(name, name) for name in node.input]
        held = [name for name in names[1:] if name in self.weights]
        held.sort(key=lambda name: -math.prod(self.weights[name]))  # QLinearConv has scales before the weight
        if kind is None or not (held or kind == "pool"):
            return None
        output, given = self.shapes.get(node.output[0], ()), self.shapes.get(node.input[0], ())
        window = _make_window(node, given, output)
        return Layer(
            name=_find_module_path(held[0] if held else node.name),
            kind=kind,
            output=output,
            parameters=sum(math.prod(self.weights[name]) for name in held),
            state="",
            multiply_adds=self._count_multiply_adds(kind, held, output),
            arithmetic=window.width_formula(given[-1]) if window else _describe_last_dim_change(given, output),
            even=window is None or window.exact_output_width(given[-1]).denominator == 1,
            lost_px=window.lost_px(given[-1]) if window else 0,
        )

    def find_image_shape(self, graph: Any) -> tuple[int, int, int]:
        """Return the shape `(C, H, W)` of the images: that of the first convolution's input.

        If the graph has no convolution, it is the shape of the graph's input; zeros if this is unknown.
        """
        for node in graph.node:
            if _LAYER_TYPES.get(node.op_type) == "conv" and len(given := self.shapes.get(node.input[0], ())) == 3:
                return given[0], given[1], given[2]
        first = self.shapes[graph.input[0].name] if graph.input else ()
        if len(first) != 3:
            return 0, 0, 0
        is_channels_last = first[2] in (1, 3) and first[0] not in (1, 3)
        return (first[2], first[0], first[1]) if is_channels_last else (first[0], first[1], first[2])

    def _count_multiply_adds(self, kind: str, weight_names: list[str], output_shape: Shape) -> int:
        if kind not in ("conv", "linear"):
            return 0
        positions = output_shape[1:] if kind == "conv" else output_shape[:-1]
        return math.prod((*self.weights[weight_names[0]], *positions))


def _find_module_path(weight_name: str) -> str:
    """Return the module path of a weight: network.features.0.weight_quantized -> features.0."""
    parts = [part for part in weight_name.split(".") if part != "network" and not part.startswith(("weight", "bias"))]
    return ".".join(parts)


def _make_window(node: Any, input_shape: Shape, output_shape: Shape) -> Window | None:
    """Return the sliding window of a convolution or pooling node along the image width.

    Return None if the node has no kernel, is not two-dimensional or has different padding on the left and right, or if
    its output width is not the one that `Window.output_width` computes.
    """
    own = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    if "kernel_shape" not in own or len(input_shape) != 3 or len(output_shape) != 3:
        return None
    size = (own["kernel_shape"][-1] - 1) * own.get("dilations", [1])[-1] + 1
    left, right = (own["pads"][1], own["pads"][3]) if len(own.get("pads", ())) == 4 else (0, 0)
    window = Window(size, own.get("strides", [1])[-1], left, ceil_mode=bool(own.get("ceil_mode", 0)))
    return window if left == right and window.output_width(input_shape[-1]) == output_shape[-1] else None


def _describe_last_dim_change(input_shape: Shape, output_shape: Shape) -> str:
    """Return the sizes of the last dimension before and after a layer, such as `56 -> 28`; empty if unknown or equal.

    The last dimension is the width of a feature map in pixels, or the number of features.
    """
    is_changed = input_shape and output_shape and input_shape[-1] != output_shape[-1]
    return f"{input_shape[-1]} -> {output_shape[-1]}" if is_changed else ""


def _describe_interface(model: Any) -> str:
    """Return names, types and shapes of the inputs and outputs, and the opset."""

    def describe_tensor(value: Any) -> str:
        tensor = value.type.tensor_type
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        return f"{value.name} {kind} ({', '.join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)})"

    opset = next((entry.version for entry in model.opset_import if not entry.domain), "?")
    ends = (", ".join(map(describe_tensor, values)) for values in (model.graph.input, model.graph.output))
    return f"{' -> '.join(ends)}; opset {opset}"


def describe_bundle(path: Path, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield notes on an exported file: classes, preprocessing, metrics, provenance and the result of its parity test.

    The parity test runs the file on the image in its metadata and compares the logits with those in the metadata.
    A file without readable mlimages metadata has one note, which says so.

    Args:
        path: the .onnx file.
        metadata: `metadata_props` of the file.
    """
    if "mlimages" not in metadata:
        yield "no mlimages metadata: classes and preprocessing are unknown"
        return
    try:
        bundle = OnnxBundle.from_metadata(path, metadata)
    except BundleError as error:  # from another version, or damaged
        yield str(error)
        return
    yield from _describe_network(bundle)
    yield from _describe_metrics(bundle)
    yield from _describe_provenance(bundle)
    others = sorted(metadata.keys() - {"mlimages"})
    yield f"metadata for other tools: {', '.join(others)}"
    yield f"parity test: {_describe_parity_test(bundle)}"


def _describe_network(bundle: OnnxBundle) -> Iterator[str]:
    image, names = bundle.preprocessing.image, bundle.class_names
    kind = "multi-label, " if bundle.multi_label else ""
    yield f"network: {bundle.model}, {kind}{pluralize(len(names), 'class')}: {format_examples(names, 8)}"
    size = f"{image.width} x {image.height} px" + (", gray" if image.gray_scale else "")
    resize = (
        f"shorter side to {image.shorter_px} px, centre crop" if image.resize == "shorter" else f"{image.resize} to"
    )
    where = "in the graph" if bundle.includes_preprocessing else "not in the graph"
    exact = ", resize bit-identical to Pillow" if bundle.exact_resize else ""
    yield f"preprocessing: {resize} {size}, {where}{exact}"


def _describe_metrics(bundle: OnnxBundle) -> Iterator[str]:
    provenance = bundle.provenance
    for name, score in (("accuracy", provenance.accuracy), ("mAP", provenance.mean_ap)):
        if score:
            value, low, high = (100 * part for part in score)
            images = pluralize(provenance.num_evaluated_images, "image")
            yield f"{name}: {value:.1f} % (95 % interval {low:.1f}-{high:.1f}) on {images}"
    if bundle.multi_label:
        shown = zip(bundle.class_names[:8], bundle.thresholds, strict=False)
        yield "thresholds: " + ", ".join(f"{name} {threshold:.3f}" for name, threshold in shown)
    if provenance.parity and not provenance.parity.num_images:
        yield "parity: not compared with the trained network"
    elif provenance.parity:
        num_near_ties = provenance.parity.num_near_ties
        ties = f" except for {pluralize(num_near_ties, 'near tie')}" if num_near_ties else ""
        compared = pluralize(provenance.parity.num_images, "image")
        difference = provenance.parity.max_relative_difference
        yield f"parity: same predictions for {compared}{ties}, logits differ by {difference:.1e} at most"
    if provenance.calibration_error:
        before, after = provenance.calibration_error
        yield f"temperature: {bundle.temperature:.3g}; calibration error {before:.3f} before, {after:.3f} after"
    if bundle.unknown_below:
        yield f'unknown: "none of these" is predicted below a probability of {bundle.unknown_below:.3g}'
    for row in provenance.quantization:
        accuracy, per_s, size = (float(row[key]) for key in ("accuracy", "images_per_s", "size_bytes"))
        score_text = f"{'mAP' if bundle.multi_label else 'accuracy'} {format_percent(accuracy)}"
        yield f"quantization: {row['name']}: {score_text}, {per_s:.1f} images/s, {size / 1e6:.1f} MB"


def _describe_provenance(bundle: OnnxBundle) -> Iterator[str]:
    provenance = bundle.provenance
    if provenance.split_sizes:
        yield "data: " + ", ".join(
            f"{name} {pluralize(size, 'image')} (label file: sha256 {provenance.data_sha256.get(name, '?')[:16]})"
            for name, size in provenance.split_sizes.items()
        )
    if provenance.weights_sha256:
        yield f"weights: sha256 {provenance.weights_sha256[:16]}"
    if provenance.created:
        versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
        yield f"created: {provenance.created}" + (f" with {versions}" if versions else "")


def _describe_parity_test(bundle: OnnxBundle) -> str:
    probe = bundle.parity_test_image
    best = max(range(len(probe.logits)), key=probe.logits.__getitem__)
    requirement = (
        f"the image stored in the metadata ({probe.width} x {probe.height} px) must yield a logit of "
        f"{probe.logits[best]:.3f} for {bundle.class_names[best]}; "
        f"logits may differ by {format_percent(probe.tolerance)} of the largest one"
    )
    if not bundle.includes_preprocessing:
        return f"{requirement}; not tested: the file does not include preprocessing"
    try:
        BundleSession(bundle)
    except BundleError as error:
        return f"{requirement}; FAILED: {error}"
    return f"{requirement}; passed"
