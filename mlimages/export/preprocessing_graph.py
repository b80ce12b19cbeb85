"""An ONNX graph that prepares pixels as `images.prepare` does, number for number, whatever the picture's size.

The graphs are written in ONNX's own text form (https://onnx.ai/onnx/repo-docs/Syntax.html). Sizes are vectors
`(height, width)` of int64.
"""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx.parser

from mlimages.core import ImageProperty
from mlimages.inference import INPUT

PIXELS = "pixels"
"""Name of the graph's output, which is the network's input: uint8 `(N, h, w, C)`."""

PREFIX = "prepare/"
"""Begins the names of everything inside."""


def prepare_graph(prop: ImageProperty, *, opset: int, ir_version: int, exact: bool = False) -> onnx.ModelProto:
    """uint8 `image` `(N, H, W, 3)` to uint8 `pixels` `(N, h, w, C)`.

    Args:
        exact: resize by Pillow's own integer weights in two matrix products; else by the operator `Resize`, one level
            off on few values (two, where bicubic enlarges) and several times faster.
    """
    gray = _GRAY if prop.gray_scale else "source = Identity(image)"
    resize, functions = (_RESIZE_EXACT, _FUNCTIONS) if exact else (_RESIZE, "")
    text = f"""
    <ir_version: {ir_version}, opset_import: ["": {opset}, "pillow": 1]>
    prepare (uint8[N, H, W, 3] {INPUT}) => (uint8[N, {prop.height}, {prop.width}, {prop.channels}] {PIXELS})
    <int64[2] crop = {{{prop.height}, {prop.width}}}, int64[2] position = {{{prop.position[1]}, {prop.position[0]}}},
     int64[1] shorter = {{{prop.shorter_px}}}, int64[17, 1] powers = {{{", ".join(str(2**k) for k in range(17))}}},
     int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] last = {{-1}}, int64[2] zeros = {{0, 0}},
     int64[2] axes = {{1, 2}}, int64 row = {{0}}, int64 column = {{1}}, int64 two = {{2}}, double half = {{0.5}},
     int32[3] luma = {{19595, 38470, 7471}}, int32 luma_half = {{32768}}, int32 luma_unit = {{65536}}>
    {{ {gray} {_SIZE} {_TARGET[prop.resize]} {resize} {_CUT[prop.resize]} }}
    {functions}"""
    for word, values in (("OPSET", str(opset)), *((word, by[prop.interpolation]) for word, by in _KERNEL.items())):
        text = text.replace(word, values)
    model = onnx.inliner.inline_local_functions(onnx.parser.parse_model(text))
    _drop_unused(model)
    _prefix(model.graph)
    onnx.checker.check_model(model)
    return model


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in _names_used(node)}
    kept = [constant for constant in model.graph.initializer if constant.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    domains = [opset for opset in model.opset_import if opset.domain != "pillow"]
    del model.opset_import[:]
    model.opset_import.extend(domains)


def _names_used(node: onnx.NodeProto) -> set[str]:
    inside = {name for attribute in node.attribute for inner in attribute.g.node for name in _names_used(inner)}
    return inside | set(node.input)


def _prefix(graph: onnx.GraphProto) -> None:
    """Name everything but the input and the output `prepare/...` (onnx.compose forgets what inner graphs use)."""
    for node in graph.node:
        node.input[:] = map(_prefixed, node.input)
        node.output[:] = map(_prefixed, node.output)
        node.name = f"{PREFIX}{node.output[0].removeprefix(PREFIX)}"
        for attribute in node.attribute:
            _prefix(attribute.g)
    for value in (*graph.initializer, *graph.output, *graph.value_info):
        value.name = _prefixed(value.name)


def _prefixed(name: str) -> str:
    return name if name in (INPUT, PIXELS, "") else f"{PREFIX}{name}"


# ITU-R 601-2 luma in Pillow's 16-bit fixed point (libImaging/Convert.c), before the resize as in images.prepare.
_GRAY = """
    levels = Cast<to = 6>(image)
    weighted = Mul(levels, luma)
    summed = ReduceSum<keepdims = 1>(weighted, last)
    rounded = Add(summed, luma_half)
    shifted = Div(rounded, luma_unit)
    source = Cast<to = 2>(shifted)"""

_SIZE = "size = Shape<start = 1, end = 3>(image)"

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
    fitted_even = Round(fitted)
    fitted_whole = Cast<to = 7>(fitted_even)
    target = Max(fitted_whole, one)""",
    "downscale": """
    halved = Div(size, powers)
    holds = GreaterOrEqual(halved, crop)
    holds_count = Cast<to = 7>(holds)
    holds_both = ReduceMin<keepdims = 1>(holds_count, last)
    powers_held = Mul(powers, holds_both)
    greatest = ReduceMax<keepdims = 0>(powers_held)
    factor = Max(greatest, one)
    target = Div(size, factor)""",
    "crop": "target = Identity(size)",
    "position": "target = Identity(size)",
}

# Pillow resizes vertically first where the height falls by more than twice what the width does
# (ImagingResampleInner in libImaging/Resample.c).
_TALL = """
    fall = Sub(size, target)
    fall_height = Gather(fall, row)
    fall_width = Gather(fall, column)
    fall_width_twice = Mul(fall_width, two)
    falls_more = Greater(fall_height, fall_width_twice)
    falls = Greater(fall_height, row)
    tall = And(falls, falls_more)"""

_OPERATOR = """Resize<mode = "MODE", antialias = 1, exclude_outside = 1, cubic_coeff_a = -0.5,
                   coordinate_transformation_mode = "half_pixel">"""

# The operator works along the width first; a transposed picture makes that the height.
_RESIZE = f"""{_TALL}
    count = Shape<start = 0, end = 1>(source)
    channels = Shape<start = 3, end = 4>(source)
    resized = If(tall) <
      then_branch = vertical_first () => (uint8[N, h, w, C] vertical_first_out) {{
        turned = Transpose<perm = [0, 2, 1, 3]>(source)
        target_height = Gather(target, zero)
        target_width = Gather(target, one)
        turned_sizes = Concat<axis = 0>(count, target_width, target_height, channels)
        turned_resized = {_OPERATOR}(turned, , , turned_sizes)
        vertical_first_out = Transpose<perm = [0, 2, 1, 3]>(turned_resized)
      }},
      else_branch = horizontal_first () => (uint8[N, h, w, C] horizontal_first_out) {{
        sizes = Concat<axis = 0>(count, target, channels)
        horizontal_first_out = {_OPERATOR}(source, , , sizes)
      }}>"""

_RESIZE_EXACT = f"""{_TALL}
    same_sides = Equal(size, target)
    same_count = Cast<to = 7>(same_sides)
    same_both = ReduceMin<keepdims = 0>(same_count)
    same = Cast<to = 9>(same_both)
    target_height = Gather(target, row)
    target_width = Gather(target, column)
    resized = If(same) <
      then_branch = as_it_is () => (uint8[N, h, w, C] as_it_is_out) {{ as_it_is_out = Identity(source) }},
      else_branch = resample () => (uint8[N, h, w, C] resample_out) {{
        planes = Transpose<perm = [0, 3, 1, 2]>(source)
        planes_real = Cast<to = 11>(planes)
        done = If(tall) <
          then_branch = vertical_first () => (double[N, C, h, w] vertical_first_out) {{
            rows_first = pillow.resample_height(planes_real, target_height)
            vertical_first_out = pillow.resample_width(rows_first, target_width)
          }},
          else_branch = horizontal_first () => (double[N, C, h, w] horizontal_first_out) {{
            columns_first = pillow.resample_width(planes_real, target_width)
            horizontal_first_out = pillow.resample_height(columns_first, target_height)
          }}>
        levels_out = Cast<to = 2>(done)
        resample_out = Transpose<perm = [0, 2, 3, 1]>(levels_out)
      }}>"""

# images.centre_start; the start is negative where the picture is smaller than the crop.
_CENTRE = """
    room = Sub(target, crop)
    room_real = Cast<to = 11>(room)
    room_half = Mul(room_real, half)
    start_even = Round(room_half)
    start_up = Ceil(room_half)
    has_room = GreaterOrEqual(room, zeros)
    start_real = Where(has_room, start_even, start_up)
    start = Cast<to = 7>(start_real)"""

_SLICE = """
    stop = Add(start, crop)
    pixels = Slice(resized, start, stop, axes)"""

_PAD_AND_SLICE = """
    lacking = Neg(start)
    before = Max(lacking, zeros)
    end = Add(start, crop)
    beyond = Sub(end, target)
    after = Max(beyond, zeros)
    pads = Concat<axis = 0>(zero, before, zero, zero, after, zero)
    padded = Pad(resized, pads)
    first = Add(start, before)
    stop = Add(first, crop)
    pixels = Slice(padded, first, stop, axes)"""

_CUT = {
    "shorter": _CENTRE + _SLICE,
    "crop": _CENTRE + _PAD_AND_SLICE,
    "downscale": _CENTRE + _PAD_AND_SLICE,
    "letterbox": _CENTRE + _PAD_AND_SLICE,
    "position": "start = Identity(position)" + _PAD_AND_SLICE,
    "squash": "pixels = Identity(resized)",
}

_WEIGHT = {
    # 1 - |t| within 1
    "bilinear": """
    falling = Sub(unit, distance)
    weight = Max(falling, nothing)""",
    # Keys' cubic with a = -0.5, in the order of operations of libImaging/Resample.c
    "bicubic": """
    near_slope = Constant<value = double {1.5}>()
    near_offset = Constant<value = double {2.5}>()
    far_five = Constant<value = double {5.0}>()
    far_eight = Constant<value = double {8.0}>()
    far_four = Constant<value = double {4.0}>()
    far_a = Constant<value = double {-0.5}>()
    reach = Constant<value = double {2.0}>()
    n1 = Mul(near_slope, distance)
    n2 = Sub(n1, near_offset)
    n3 = Mul(n2, distance)
    n4 = Mul(n3, distance)
    near = Add(n4, unit)
    f1 = Sub(distance, far_five)
    f2 = Mul(f1, distance)
    f3 = Add(f2, far_eight)
    f4 = Mul(f3, distance)
    f5 = Sub(f4, far_four)
    far = Mul(f5, far_a)
    is_near = Less(distance, unit)
    is_far = Less(distance, reach)
    far_or_none = Where(is_far, far, nothing)
    weight = Where(is_near, near, far_or_none)""",
}

_KERNEL = {
    "MODE": {"bilinear": "linear", "bicubic": "cubic"},
    "REACH": {"bilinear": "1.0", "bicubic": "2.0"},
    "WEIGHT": _WEIGHT,
}

# precompute_coeffs, normalize_coeffs_8bpc and the two passes of libImaging/Resample.c: weights of 22 bits, sums in
# whole numbers (exact in float64), each pass rounded to 8 bits.
_FUNCTIONS = """
    <domain: "pillow", opset_import: ["": OPSET, "pillow": 1]>
    resample_height (x, target) => (y) {
      turned = Transpose<perm = [0, 1, 3, 2]>(x)
      turned_y = pillow.resample_width(turned, target)
      y = Transpose<perm = [0, 1, 3, 2]>(turned_y)
    }
    <domain: "pillow", opset_import: ["": OPSET, "pillow": 1]>
    resample_width (x, target) => (y) {
      nothing = Constant<value = double {0.0}>()
      half = Constant<value = double {0.5}>()
      unit = Constant<value = double {1.0}>()
      white = Constant<value = double {255.0}>()
      fixed_point = Constant<value = double {4194304.0}>()
      support_px = Constant<value = double {REACH}>()
      start = Constant<value = int64 {0}>()
      step = Constant<value = int64 {1}>()
      last = Constant<value = int64[1] {-1}>()
      width_axis = Constant<value = int64[1] {3}>()
      width_shape = Shape<start = 3, end = 4>(x)
      width = Squeeze(width_shape)
      width_real = Cast<to = 11>(width)
      target_real = Cast<to = 11>(target)
      scale = Div(width_real, target_real)
      filter_scale = Max(scale, unit)
      support = Mul(filter_scale, support_px)
      outs = Range(start, target, step)
      outs_real = Cast<to = 11>(outs)
      outs_column = Unsqueeze(outs_real, last)
      outs_middle = Add(outs_column, half)
      centre = Mul(outs_middle, scale)
      ins = Range(start, width, step)
      ins_real = Cast<to = 11>(ins)
      low_edge = Sub(centre, support)
      low_half = Add(low_edge, half)
      low = Floor(low_half)
      high_edge = Add(centre, support)
      high_half = Add(high_edge, half)
      high = Floor(high_half)
      from_low = GreaterOrEqual(ins_real, low)
      to_high = Less(ins_real, high)
      inside = And(from_low, to_high)
      off = Sub(ins_real, centre)
      off_middle = Add(off, half)
      inverse_scale = Div(unit, filter_scale)
      scaled = Mul(off_middle, inverse_scale)
      distance = Abs(scaled)
      WEIGHT
      kept = Where(inside, weight, nothing)
      total = ReduceSum<keepdims = 1>(kept, last)
      share = Div(kept, total)
      fixed = Mul(share, fixed_point)
      size = Abs(fixed)
      size_half = Add(size, half)
      size_whole = Floor(size_half)
      sign = Sign(fixed)
      whole = Mul(sign, size_whole)
      weights = Transpose<perm = [1, 0]>(whole)
      sums = MatMul(x, weights)
      levels = Div(sums, fixed_point)
      levels_half = Add(levels, half)
      levels_whole = Floor(levels_half)
      above = Max(levels_whole, nothing)
      y = Min(above, white)
    }"""
