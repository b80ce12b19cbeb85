"""ONNX functions that resize and crop images like `images.prepare_pixels`, written in onnxscript's subset of Python.

Images are uint8 `(N, H, W, C)`, sizes and positions int64 vectors `(height, width)`. For the resize, an image is
converted to `planes`, floats `(N, C, H, W)` from 0 to 255.

`compose_preprocessing` combines one function per step:

1. Convert the channels.
2. Return the region of the image to resize, and its size after the resize, like `images.compute_resized_size`. There is
   a function `_get_..._region_and_size` for each resize method.
3. Resize the region.
4. Crop or pad it to the size of the network's input.
"""

from __future__ import annotations

import onnx
from onnxscript import opset18 as op
from onnxscript import script
from onnxscript.values import OnnxFunction, Opset

from mlimages.core import ImageProperty

UINT8, INT32, INT64 = onnx.TensorProto.UINT8, onnx.TensorProto.INT32, onnx.TensorProto.INT64
BOOL, FLOAT, DOUBLE = onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE

onnx_function = script(Opset("mlimages", 1), default_opset=op)


def compose_preprocessing(image_property: ImageProperty, resize_implementation: str) -> onnx.ModelProto:
    """Return a model that maps the input `image` to preprocessed pixels with the functions of this module."""
    convert_channels = _convert_to_gray if image_property.gray_scale else _keep_channels
    mode, interpolation = image_property.resize, image_property.interpolation
    get_region_and_size = (
        _make_shorter_side_function(image_property.shorter_px)
        if mode == "shorter"
        else _REGION_AND_SIZE_FUNCTIONS[mode]
    )
    crop = _make_position_crop(image_property.position) if mode == "position" else _CROP_FUNCTIONS[mode]
    if mode in ("crop", "position"):
        resize = _skip_resize
    elif resize_implementation == "operator":
        resize = _make_operator_resize("cubic" if interpolation == "bicubic" else "linear")
    elif resize_implementation == "exact":
        resize = _make_exact_resize(interpolation)
    else:
        resize = _make_portable_resize(interpolation)
    crop_size = [image_property.height, image_property.width]

    @onnx_function
    def preprocess(image):
        size = op.Constant(value_ints=crop_size)
        region, target = get_region_and_size(convert_channels(image), size)
        pixels = crop(resize(region, target), target, size)
        return pixels  # noqa: RET504  # the name of the output

    model: onnx.ModelProto = preprocess.to_model_proto()
    return model


@onnx_function
def _keep_channels(image):
    return op.Identity(image)


@onnx_function
def _convert_to_gray(image):
    """Return ITU-R 601-2 luma in Pillow's 16-bit fixed point (libImaging/Convert.c), like images.prepare_pixels.

    The remainder is subtracted before the division, since OpenVINO rounds the quotient of integers.
    """
    rounded = op.ReduceSum(op.Cast(image, to=INT32) * [19595, 38470, 7471], [-1], keepdims=1) + 32768
    return op.Cast((rounded - rounded % 65536) / 65536, to=UINT8)


def _make_shorter_side_function(shorter_px: int) -> OnnxFunction:
    """Return the function that returns the region to resize and its new size, for the resize method `shorter`."""

    @onnx_function
    def get_shorter_side_region_and_size(image, _crop_size):
        """For the method `shorter`: return the whole image, and its size scaled to a shorter side of `shorter_px`."""
        size = op.Shape(image, start=1, end=3)
        return op.Identity(image), size * shorter_px / op.ReduceMin(size, keepdims=1)

    return get_shorter_side_region_and_size


@onnx_function
def _get_squash_region_and_size(image, crop_size):
    """For the resize method `squash`: return the whole image, and the size of the crop."""
    return op.Identity(image), op.Identity(crop_size)


@onnx_function
def _get_letterbox_region_and_size(image, crop_size):
    """For the resize method `letterbox`: return the whole image, and its size scaled to fit into the crop."""
    size = op.Cast(op.Shape(image, start=1, end=3), to=DOUBLE)
    scale = op.ReduceMin(op.Cast(crop_size, to=DOUBLE) / size, keepdims=1)
    return op.Identity(image), op.Max(op.Cast(op.Round(size * scale), to=INT64), 1)


@onnx_function
def _get_downscale_region_and_size(image, crop_size):
    """For the method `downscale`: return the largest central region with the crop's aspect ratio, and the crop's size.

    If the width or height of the image is smaller than that of the crop, return the whole image, and its own size.
    """
    whole = op.Shape(image, start=1, end=3)
    is_larger = op.Cast(op.ReduceMin(op.Cast(whole >= crop_size, to=INT64), keepdims=1), to=BOOL)
    largest = op.Min(whole, op.Gather(whole, [1, 0]) * crop_size / op.Gather(crop_size, [1, 0]))
    size = op.Where(is_larger, largest, whole)
    start = (whole - size) / 2
    return op.Slice(image, start, start + size, [1, 2]), op.Where(is_larger, crop_size, size)


@onnx_function
def _get_original_region_and_size(image, _crop_size):
    """For the resize methods `crop` and `position`, which do not resize: return the whole image, and its own size."""
    return op.Identity(image), op.Shape(image, start=1, end=3)


_REGION_AND_SIZE_FUNCTIONS = {
    "squash": _get_squash_region_and_size,
    "letterbox": _get_letterbox_region_and_size,
    "downscale": _get_downscale_region_and_size,
    "crop": _get_original_region_and_size,
    "position": _get_original_region_and_size,
}


@onnx_function
def _find_crop_start(image_size, crop_size):
    """Return the top and left of a centred crop, like images.compute_crop_offset.

    They are negative where the image is smaller than the crop.
    """
    half_margin = op.Cast(image_size - crop_size, to=DOUBLE) * 0.5
    return op.Cast(op.Where(image_size >= crop_size, op.Round(half_margin), op.Ceil(half_margin)), to=INT64)


@onnx_function
def _crop_center(image, image_size, crop_size):
    """Crop the centre of an image that is at least as large as the crop."""
    start = _find_crop_start(image_size, crop_size)
    return op.Slice(image, start, start + crop_size, [1, 2])


@onnx_function
def _pad_and_crop(image, image_size, crop_size, start):
    """Crop an image from `start` (top, left); parts of the crop outside the image are black."""
    before = op.Max(0 - start, 0)
    after = op.Max(start + crop_size - image_size, 0)
    padded = op.Pad(image, op.Concat([0], before, [0], [0], after, [0], axis=0))
    return op.Slice(padded, start + before, start + before + crop_size, [1, 2])


@onnx_function
def _pad_and_crop_center(image, image_size, crop_size):
    return _pad_and_crop(image, image_size, crop_size, _find_crop_start(image_size, crop_size))


def _make_position_crop(position: tuple[int, int]) -> OnnxFunction:
    """Return a function that crops from `position`, which is (left, top) in pixels."""
    row_and_column = [position[1], position[0]]

    @onnx_function
    def crop_at_position(image, image_size, crop_size):
        return _pad_and_crop(image, image_size, crop_size, op.Constant(value_ints=row_and_column))

    return crop_at_position


@onnx_function
def _skip_crop(image, _image_size, _crop_size):
    return op.Identity(image)


_CROP_FUNCTIONS = {
    "shorter": _crop_center,
    "crop": _pad_and_crop_center,
    "downscale": _pad_and_crop_center,
    "letterbox": _pad_and_crop_center,
    "squash": _skip_crop,
}


@onnx_function
def _skip_resize(image, _target_size):
    return op.Identity(image)


@onnx_function
def _resizes_height_first(image, target_size):
    """Return whether Pillow resizes the height before the width (ImagingResampleInner in libImaging/Resample.c).

    It does if the height shrinks, and by more than twice as many pixels as the width. A width that grows counts as a
    negative number of pixels.
    """
    shrink = op.Shape(image, start=1, end=3) - target_size
    height = op.Gather(shrink, 0)
    return (height > 0) & (height > 2 * op.Gather(shrink, 1))


def _make_operator_resize(mode: str) -> OnnxFunction:
    """Return a resize with ONNX's operator `Resize` (see `ResizeImplementation`)."""

    @onnx_function
    def resize_width_first(image, target_size):
        size = op.Concat(op.Shape(image, start=0, end=1), target_size, op.Shape(image, start=3, end=4), axis=0)
        return op.Resize(
            image,
            None,
            None,
            size,
            mode=mode,
            antialias=1,
            exclude_outside=1,
            cubic_coeff_a=-0.5,
            coordinate_transformation_mode="half_pixel",
        )

    @onnx_function
    def resize_in_pillow_order(image, target_size):
        if _resizes_height_first(image, target_size):  # the operator resizes along the width first
            transposed = resize_width_first(op.Transpose(image, perm=[0, 2, 1, 3]), op.Gather(target_size, [1, 0]))
            resized = op.Transpose(transposed, perm=[0, 2, 1, 3])
        else:
            resized = resize_width_first(image, target_size)
        return resized

    return resize_in_pillow_order


@onnx_function
def _compute_bilinear_weight(distance):
    return op.Max(1.0 - distance, 0.0)


@onnx_function
def _compute_bicubic_weight(distance):
    """Return Keys' cubic kernel with a = -0.5, in the order of operations of libImaging/Resample.c."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5
    return op.Where(distance < 1.0, near, op.Where(distance < 2.0, far, 0.0))


def _make_exact_resize(interpolation: str) -> OnnxFunction:
    """Return a resize that is bit-identical to Pillow's."""
    compute_weight, radius = (
        (_compute_bicubic_weight, 2.0) if interpolation == "bicubic" else (_compute_bilinear_weight, 1.0)
    )

    @onnx_function
    def resample_width(planes, target_width):
        """Resample the width like one pass of libImaging/Resample.c.

        As in precompute_coeffs and normalize_coeffs_8bpc there, weights are rounded to 22 bits. The sums of integers
        are exact in float64, and are rounded to 8 bits.
        """
        width = op.Squeeze(op.Shape(planes, start=3, end=4))
        scale = op.Cast(width, to=DOUBLE) / op.Cast(target_width, to=DOUBLE)
        filter_scale = op.Max(scale, 1.0)
        support = filter_scale * radius
        center = (op.Unsqueeze(op.Cast(op.Range(0, target_width, 1), to=DOUBLE), [-1]) + 0.5) * scale
        index = op.Cast(op.Range(0, width, 1), to=DOUBLE)
        is_inside = (index >= op.Floor(center - support + 0.5)) & (index < op.Floor(center + support + 0.5))
        weight = op.Where(is_inside, compute_weight(op.Abs((index - center + 0.5) * (1.0 / filter_scale))), 0.0)
        fixed_point = weight / op.ReduceSum(weight, [-1], keepdims=1) * 4194304.0
        rounded = op.Sign(fixed_point) * op.Floor(op.Abs(fixed_point) + 0.5)
        levels = op.MatMul(planes, op.Transpose(rounded, perm=[1, 0])) / 4194304.0
        return op.Clip(op.Floor(levels + 0.5), 0.0, 255.0)

    @onnx_function
    def resample_height(planes, target_height):
        return op.Transpose(resample_width(op.Transpose(planes, perm=[0, 1, 3, 2]), target_height), perm=[0, 1, 3, 2])

    @onnx_function
    def resize(image, target_size):
        is_same_size = op.Cast(op.Shape(image, start=1, end=3) == target_size, to=INT64)
        if op.Cast(op.ReduceMin(is_same_size, keepdims=0), to=BOOL):
            resized = op.Identity(image)
        else:
            planes = op.Cast(op.Transpose(image, perm=[0, 3, 1, 2]), to=DOUBLE)
            height, width = op.Gather(target_size, 0), op.Gather(target_size, 1)
            if _resizes_height_first(image, target_size):
                resampled = resample_width(resample_height(planes, height), width)
            else:
                resampled = resample_height(resample_width(planes, width), height)
            resized = op.Transpose(op.Cast(resampled, to=UINT8), perm=[0, 2, 3, 1])
        return resized

    return resize


# The portable resize, for runtimes such as OpenVINO, whose antialiased `Resize` differs from ONNX Runtime's. Positions
# and weights are 32-bit integers: OpenVINO computes in bfloat16 on processors that support it, in which a position
# above 256 pixels is not exact. A distance is an integer in units of 1 / (2 * larger_width) of the filter's unit, where
# larger_width is the larger of the widths before and after. Sides of up to 32,000 pixels fit into 32 bits.


@onnx_function
def _compute_bilinear_integer_weight(distance, larger_width):
    """Return the triangle kernel max(1 - x, 0) at x = distance / (2 * larger_width), times 2 * larger_width.

    Arguments and result are integers. `larger_width` is the larger of the widths before and after the resize.
    """
    return op.Max(2 * larger_width - distance, 0)


@onnx_function
def _compute_bicubic_integer_weight(distance, larger_width):
    """Return Keys' cubic kernel with a = -0.5 at x = distance / (2 * larger_width), times 2^13, as an integer.

    The arguments are those of `_compute_bilinear_integer_weight`. All divisions round down to integers.
    """
    u = op.Min(distance, 4 * larger_width) * 512 / larger_width
    cube = u * u / 16 * u / 16384
    square = u * u * 5 / 256
    near = 3 * cube - square + 8192
    far = square - cube - 32 * u + 16384
    return op.Where(u < 1024, near, far)


def _make_portable_resize(interpolation: str) -> OnnxFunction:
    """Return a resize that gives the same pixels in runtimes such as OpenVINO as in ONNX Runtime."""
    compute_weight = _compute_bicubic_integer_weight if interpolation == "bicubic" else _compute_bilinear_integer_weight

    @onnx_function
    def resample_width(planes, target_width):
        width = op.Squeeze(op.Shape(planes, start=3, end=4))
        width_int, target_int = op.Cast(width, to=INT32), op.Cast(target_width, to=INT32)
        center = (2 * op.Unsqueeze(op.Cast(op.Range(0, target_width, 1), to=INT32), [-1]) + 1) * width_int
        position = (2 * op.Cast(op.Range(0, width, 1), to=INT32) + 1) * target_int
        weight = compute_weight(op.Abs(position - center), op.Max(width_int, target_int))
        total = op.ReduceSum(weight, [-1], keepdims=1)
        fixed_point = op.Cast((weight * 16384 + total / 2) / total, to=FLOAT)
        levels = op.MatMul(planes, op.Transpose(fixed_point, perm=[1, 0])) / 16384.0
        return op.Clip(op.Floor(levels + 0.5), 0.0, 255.0)

    @onnx_function
    def resize(image, target_size):
        planes = op.Cast(op.Transpose(image, perm=[0, 3, 1, 2]), to=FLOAT)
        columns = resample_width(planes, op.Gather(target_size, 1))
        rows = resample_width(op.Transpose(columns, perm=[0, 1, 3, 2]), op.Gather(target_size, 0))
        return op.Transpose(op.Cast(rows, to=UINT8), perm=[0, 3, 2, 1])

    return resize
