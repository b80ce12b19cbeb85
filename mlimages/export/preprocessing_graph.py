"""An ONNX graph that resizes and crops images of any size like `images.prepare_pixels`."""

from __future__ import annotations

from typing import Literal

import onnx
import onnx.inliner

from mlimages.core import ImageProperty
from mlimages.inference import INPUT

OPSET = 18
"""ONNX opset of every file: the first with antialiasing in `Resize`, and the lowest that torch.onnx writes. Files with
this opset use version 8 of the ONNX file format (IR version), which ONNX Runtime 1.14 and later can load."""

PIXELS = "pixels"
"""Name of the output of the graph, which is the input of the network: uint8 `(N, h, w, C)`."""

PREFIX = "prepare/"
"""Prefix of the names of the graph's nodes and tensors."""

ResizeImplementation = Literal["operator", "exact", "portable"]
"""Implementation of the resize in the graph.

operator: ONNX's `Resize`, the fastest. ONNX Runtime and Pillow round differently in each of the two passes, along the
width and along the height. A few pixel values thus differ from Pillow's by 1, or by 2 where both passes differ.
exact: two matrix products of 64-bit floats with Pillow's weights, bit-identical to Pillow.
portable: two matrix products of 32-bit floats, which always resize the width first. A few pixel values differ from
Pillow's by more than 1, and by up to 3 where a bicubic filter overshoots.
"""


def build_preprocessing_graph(
    image_property: ImageProperty, *, resize_implementation: ResizeImplementation = "operator"
) -> onnx.ModelProto:
    """Return a model that maps uint8 `image` `(N, H, W, 3)` to uint8 `pixels` `(N, h, w, C)`."""
    from mlimages.export.preprocessing_functions import compose_preprocessing  # onnxscript is slow to import

    model = onnx.inliner.inline_local_functions(compose_preprocessing(image_property, resize_implementation))
    del model.opset_import[1:]  # the domain of the functions
    shapes: list[list[str | int | None]] = [
        ["N", "H", "W", 3],
        ["N", image_property.height, image_property.width, image_property.channels],
    ]
    for value, shape in zip((*model.graph.input, *model.graph.output), shapes, strict=True):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.UINT8, shape))
    _prefix_names(model.graph)
    onnx.checker.check_model(model)
    return model


def _prefix_names(graph: onnx.GraphProto) -> None:
    """Prefix all names, except those of the input and the output.

    Names used in subgraphs, which onnx.compose.add_prefix skips, are included.
    """
    for node in graph.node:
        node.input[:] = map(_prefix_name, node.input)
        node.output[:] = map(_prefix_name, node.output)
        node.name = f"{PREFIX}{node.output[0].removeprefix(PREFIX)}"
        for attribute in node.attribute:
            _prefix_names(attribute.g)
    for value in (*graph.initializer, *graph.output, *graph.value_info):
        value.name = _prefix_name(value.name)


def _prefix_name(name: str) -> str:
    return name if name in (INPUT, PIXELS, "") else f"{PREFIX}{name}"
