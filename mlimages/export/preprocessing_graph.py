"""An ONNX graph that resizes and crops images of any size like `images.prepare`.

The graphs are written in ONNX's text format (https://onnx.ai/onnx/repo-docs/Syntax.html). Sizes are int64 vectors
`(height, width)`.
"""

from __future__ import annotations

from typing import Literal

import onnx
import onnx.inliner
import onnx.parser

from mlimages.core import ImageProperty
from mlimages.export import portable_resize
from mlimages.inference import INPUT

PIXELS = "pixels"
"""Name of the graph's output, which is the network's input: uint8 `(N, h, w, C)`."""

PREFIX = "prepare/"
"""Prefix of all names inside the graph."""

ResizeForm = Literal["operator", "exact", "portable"]
"""How the graph resizes.

operator: ONNX's `Resize`, the fastest. ONNX Runtime rounds otherwise than Pillow in each of the two passes: few values
differ by one level, and by two where both passes do.
exact: Pillow's weights in two matrix products of 64-bit floats, bit for bit.
portable: two matrix products of 32-bit floats (see `portable_resize`), the width always first: few values differ by
more than one level, by up to three where a bicubic filter overshoots.
"""


def build_preprocessing_graph(
    prop: ImageProperty, *, opset: int, ir_version: int, resize_form: ResizeForm = "operator"
) -> onnx.ModelProto:
    """Return a model that maps uint8 `image` `(N, H, W, 3)` to uint8 `pixels` `(N, h, w, C)`."""
    gray = _GRAY if prop.gray_scale else "upright = Identity(image)"
    part = _CENTRAL_PART if prop.resize == "downscale" else _WHOLE
    resize, functions, kernel = _FORMS[resize_form]
    text = f"""
    <ir_version: {ir_version}, opset_import: ["": {opset}, "pillow": 1]>
    prepare (uint8[N, H, W, 3] {INPUT}) => (uint8[N, {prop.height}, {prop.width}, {prop.channels}] {PIXELS})
    <int64[2] crop = {{{prop.height}, {prop.width}}}, int64[2] position = {{{prop.position[1]}, {prop.position[0]}}},
     int64[1] shorter = {{{prop.shorter_px}}}, int64[2] swapped = {{1, 0}},
     int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] last = {{-1}}, int64[2] zeros = {{0, 0}},
     int64[2] axes = {{1, 2}}, int64 row = {{0}}, int64 column = {{1}}, int64 two = {{2}}, double half = {{0.5}},
     int32[3] luma = {{19595, 38470, 7471}}, int32 luma_half = {{32768}}, int32 luma_unit = {{65536}}>
    {{ {gray} {part} {_TARGET[prop.resize]} {resize} {_CROP[prop.resize]} }}
    {functions}"""
    for placeholder, by_interpolation in kernel.items():
        text = text.replace(placeholder, by_interpolation[prop.interpolation])
    text = text.replace("OPSET", str(opset))
    model = onnx.inliner.inline_local_functions(onnx.parser.parse_model(text))
    _remove_unused_nodes(model)
    _prefix_names(model.graph)
    onnx.checker.check_model(model)
    return model


def _remove_unused_nodes(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in _find_used_names(node)}
    constants = [constant for constant in model.graph.initializer if constant.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    domains = [opset for opset in model.opset_import if opset.domain != "pillow"]
    del model.opset_import[:]
    model.opset_import.extend(domains)


def _find_used_names(node: onnx.NodeProto) -> set[str]:
    in_subgraphs = {
        name for attribute in node.attribute for inner in attribute.g.node for name in _find_used_names(inner)
    }
    return in_subgraphs | set(node.input)


def _prefix_names(graph: onnx.GraphProto) -> None:
    """Prefix all names but those of the input and the output; onnx.compose.add_prefix skips names used in subgraphs."""
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


# ITU-R 601-2 luma in Pillow's 16-bit fixed point (libImaging/Convert.c), before the resize as in images.prepare.
# The remainder is subtracted, since OpenVINO rounds the quotient of integers.
_GRAY = """
    levels = Cast<to = 6>(image)
    weighted = Mul(levels, luma)
    summed = ReduceSum<keepdims = 1>(weighted, last)
    rounded = Add(summed, luma_half)
    remainder = Mod(rounded, luma_unit)
    multiple = Sub(rounded, remainder)
    shifted = Div(multiple, luma_unit)
    upright = Cast<to = 2>(shifted)"""

# The resized region: the whole image, or the part that images.geometry crops for `downscale`.
_WHOLE = """
    size = Shape<start = 1, end = 3>(image)
    source = Identity(upright)"""

_CENTRAL_PART = """
    whole = Shape<start = 1, end = 3>(image)
    fits = GreaterOrEqual(whole, crop)
    fits_int = Cast<to = 7>(fits)
    covered_int = ReduceMin<keepdims = 1>(fits_int)
    covered = Cast<to = 9>(covered_int)
    whole_swapped = Gather(whole, swapped)
    crop_swapped = Gather(crop, swapped)
    products = Mul(whole_swapped, crop)
    limits = Div(products, crop_swapped)
    part = Min(whole, limits)
    size = Where(covered, part, whole)
    outside = Sub(whole, size)
    part_start = Div(outside, two)
    part_stop = Add(part_start, size)
    source = Slice(upright, part_start, part_stop, axes)"""

# images.resized_size
_TARGET = {
    "shorter": """
    side = ReduceMin<keepdims = 1>(size)
    scaled = Mul(size, shorter)
    target = Div(scaled, side)""",
    "squash": "target = Identity(crop)",
    "letterbox": """
    size_real = Cast<to = 11>(size)
    crop_real = Cast<to = 11>(crop)
    scales = Div(crop_real, size_real)
    scale = ReduceMin<keepdims = 1>(scales)
    fitted = Mul(size_real, scale)
    fitted_rounded = Round(fitted)
    fitted_int = Cast<to = 7>(fitted_rounded)
    target = Max(fitted_int, one)""",
    "downscale": "target = Where(covered, crop, size)",
    "crop": "target = Identity(size)",
    "position": "target = Identity(size)",
}

# Pillow resizes vertically first if the height shrinks by more than twice as many pixels as the width
# (ImagingResampleInner in libImaging/Resample.c).
_PASS_ORDER = """
    shrink = Sub(size, target)
    shrink_height = Gather(shrink, row)
    shrink_width = Gather(shrink, column)
    shrink_width_twice = Mul(shrink_width, two)
    shrinks_more = Greater(shrink_height, shrink_width_twice)
    shrinks = Greater(shrink_height, row)
    height_first = And(shrinks, shrinks_more)"""

_OPERATOR = """Resize<mode = "MODE", antialias = 1, exclude_outside = 1, cubic_coeff_a = -0.5,
                   coordinate_transformation_mode = "half_pixel">"""

# The operator resizes along the width first; transpose the image to resize along the height first.
_RESIZE = f"""{_PASS_ORDER}
    count = Shape<start = 0, end = 1>(source)
    channels = Shape<start = 3, end = 4>(source)
    resized = If(height_first) <
      then_branch = vertical_first () => (uint8[N, h, w, C] vertical_first_out) {{
        transposed = Transpose<perm = [0, 2, 1, 3]>(source)
        target_height = Gather(target, zero)
        target_width = Gather(target, one)
        transposed_sizes = Concat<axis = 0>(count, target_width, target_height, channels)
        transposed_resized = {_OPERATOR}(transposed, , , transposed_sizes)
        vertical_first_out = Transpose<perm = [0, 2, 1, 3]>(transposed_resized)
      }},
      else_branch = horizontal_first () => (uint8[N, h, w, C] horizontal_first_out) {{
        sizes = Concat<axis = 0>(count, target, channels)
        horizontal_first_out = {_OPERATOR}(source, , , sizes)
      }}>"""

_RESIZE_EXACT = f"""{_PASS_ORDER}
    same_sizes = Equal(size, target)
    same_int = Cast<to = 7>(same_sizes)
    same_size_int = ReduceMin<keepdims = 0>(same_int)
    same_size = Cast<to = 9>(same_size_int)
    target_height = Gather(target, row)
    target_width = Gather(target, column)
    resized = If(same_size) <
      then_branch = unchanged () => (uint8[N, h, w, C] unchanged_out) {{ unchanged_out = Identity(source) }},
      else_branch = resample () => (uint8[N, h, w, C] resample_out) {{
        planes = Transpose<perm = [0, 3, 1, 2]>(source)
        planes_real = Cast<to = 11>(planes)
        resampled = If(height_first) <
          then_branch = vertical_first () => (double[N, C, h, w] vertical_first_out) {{
            rows_first = pillow.resample_height(planes_real, target_height)
            vertical_first_out = pillow.resample_width(rows_first, target_width)
          }},
          else_branch = horizontal_first () => (double[N, C, h, w] horizontal_first_out) {{
            columns_first = pillow.resample_width(planes_real, target_width)
            horizontal_first_out = pillow.resample_height(columns_first, target_height)
          }}>
        levels_out = Cast<to = 2>(resampled)
        resample_out = Transpose<perm = [0, 2, 3, 1]>(levels_out)
      }}>"""

# images.centre_start; the start is negative if the image is smaller than the crop.
_CENTER = """
    margin = Sub(target, crop)
    margin_real = Cast<to = 11>(margin)
    margin_half = Mul(margin_real, half)
    start_rounded = Round(margin_half)
    start_ceil = Ceil(margin_half)
    has_margin = GreaterOrEqual(margin, zeros)
    start_real = Where(has_margin, start_rounded, start_ceil)
    start = Cast<to = 7>(start_real)"""

_SLICE = """
    stop = Add(start, crop)
    pixels = Slice(resized, start, stop, axes)"""

_PAD_AND_SLICE = """
    missing = Neg(start)
    before = Max(missing, zeros)
    end = Add(start, crop)
    excess = Sub(end, target)
    after = Max(excess, zeros)
    pads = Concat<axis = 0>(zero, before, zero, zero, after, zero)
    padded = Pad(resized, pads)
    first = Add(start, before)
    stop = Add(first, crop)
    pixels = Slice(padded, first, stop, axes)"""

_CROP = {
    "shorter": _CENTER + _SLICE,
    "crop": _CENTER + _PAD_AND_SLICE,
    "downscale": _CENTER + _PAD_AND_SLICE,
    "letterbox": _CENTER + _PAD_AND_SLICE,
    "position": "start = Identity(position)" + _PAD_AND_SLICE,
    "squash": "pixels = Identity(resized)",
}

_RADIUS = {"bilinear": "1.0", "bicubic": "2.0"}
_WEIGHT = {
    # 1 - |t| for |t| < 1
    "bilinear": """
    triangle = Sub(one_real, distance)
    weight = Max(triangle, zero_real)""",
    # Keys' cubic with a = -0.5, in the order of operations of libImaging/Resample.c
    "bicubic": """
    near_slope = Constant<value = double {1.5}>()
    near_offset = Constant<value = double {2.5}>()
    far_five = Constant<value = double {5.0}>()
    far_eight = Constant<value = double {8.0}>()
    far_four = Constant<value = double {4.0}>()
    far_a = Constant<value = double {-0.5}>()
    radius = Constant<value = double {2.0}>()
    n1 = Mul(near_slope, distance)
    n2 = Sub(n1, near_offset)
    n3 = Mul(n2, distance)
    n4 = Mul(n3, distance)
    near = Add(n4, one_real)
    f1 = Sub(distance, far_five)
    f2 = Mul(f1, distance)
    f3 = Add(f2, far_eight)
    f4 = Mul(f3, distance)
    f5 = Sub(f4, far_four)
    far = Mul(f5, far_a)
    is_near = Less(distance, one_real)
    is_far = Less(distance, radius)
    far_or_zero = Where(is_far, far, zero_real)
    weight = Where(is_near, near, far_or_zero)""",
}

_HEIGHT = """
    <domain: "pillow", opset_import: ["": OPSET, "pillow": 1]>
    resample_height (x, target) => (y) {
      transposed = Transpose<perm = [0, 1, 3, 2]>(x)
      transposed_y = pillow.resample_width(transposed, target)
      y = Transpose<perm = [0, 1, 3, 2]>(transposed_y)
    }"""

# precompute_coeffs, normalize_coeffs_8bpc and the two passes of libImaging/Resample.c: 22-bit weights, integer sums
# (exact in float64), each pass rounded to 8 bits.
_EXACT_WIDTH = """
    <domain: "pillow", opset_import: ["": OPSET, "pillow": 1]>
    resample_width (x, target) => (y) {
      zero_real = Constant<value = double {0.0}>()
      half = Constant<value = double {0.5}>()
      one_real = Constant<value = double {1.0}>()
      max_level = Constant<value = double {255.0}>()
      fixed_point = Constant<value = double {4194304.0}>()
      support_px = Constant<value = double {RADIUS}>()
      start = Constant<value = int64 {0}>()
      step = Constant<value = int64 {1}>()
      last = Constant<value = int64[1] {-1}>()
      width_shape = Shape<start = 3, end = 4>(x)
      width = Squeeze(width_shape)
      width_real = Cast<to = 11>(width)
      target_real = Cast<to = 11>(target)
      scale = Div(width_real, target_real)
      filter_scale = Max(scale, one_real)
      support = Mul(filter_scale, support_px)
      out_indices = Range(start, target, step)
      out_indices_real = Cast<to = 11>(out_indices)
      out_column = Unsqueeze(out_indices_real, last)
      out_centers = Add(out_column, half)
      center = Mul(out_centers, scale)
      in_indices = Range(start, width, step)
      in_indices_real = Cast<to = 11>(in_indices)
      low_edge = Sub(center, support)
      low_half = Add(low_edge, half)
      low = Floor(low_half)
      high_edge = Add(center, support)
      high_half = Add(high_edge, half)
      high = Floor(high_half)
      above_low = GreaterOrEqual(in_indices_real, low)
      below_high = Less(in_indices_real, high)
      inside = And(above_low, below_high)
      offset = Sub(in_indices_real, center)
      offset_center = Add(offset, half)
      inverse_scale = Div(one_real, filter_scale)
      scaled = Mul(offset_center, inverse_scale)
      distance = Abs(scaled)
      WEIGHT
      masked = Where(inside, weight, zero_real)
      total = ReduceSum<keepdims = 1>(masked, last)
      share = Div(masked, total)
      fixed = Mul(share, fixed_point)
      magnitude = Abs(fixed)
      magnitude_half = Add(magnitude, half)
      magnitude_rounded = Floor(magnitude_half)
      sign = Sign(fixed)
      rounded_weights = Mul(sign, magnitude_rounded)
      weights = Transpose<perm = [1, 0]>(rounded_weights)
      sums = MatMul(x, weights)
      levels = Div(sums, fixed_point)
      levels_half = Add(levels, half)
      levels_rounded = Floor(levels_half)
      levels_clipped = Max(levels_rounded, zero_real)
      y = Min(levels_clipped, max_level)
    }"""

_FORMS: dict[ResizeForm, tuple[str, str, dict[str, dict[str, str]]]] = {
    "operator": (_RESIZE, "", {"MODE": {"bilinear": "linear", "bicubic": "cubic"}}),
    "exact": (_RESIZE_EXACT, _HEIGHT + _EXACT_WIDTH, {"RADIUS": _RADIUS, "WEIGHT": _WEIGHT}),
    "portable": (portable_resize.RESIZE, _HEIGHT + portable_resize.FUNCTION, {"WEIGHT": portable_resize.WEIGHT}),
}
"""For each form: the resize, the functions that it calls, and what replaces the placeholders, by interpolation."""
