"""Describe the preprocessing of a network: in words, and as Python code with Pillow and NumPy."""

from __future__ import annotations

from collections.abc import Iterator

from mlimages.core import ImageProperty, Normalization, Preprocessing

OPEN_IMAGE = 'image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")'
"""Python code that opens an image, makes it upright by its EXIF orientation, and converts it to RGB."""

_DEFINE_OFFSET = """\

def offset(size, crop):
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)

"""


def describe_preprocessing(preprocessing: Preprocessing) -> str:
    """Return a sentence on the preprocessing: resizing, channels and normalization."""
    image, normalization = preprocessing.image, preprocessing.normalization
    size, by = f"{image.width} x {image.height}", f"with Pillow's {image.interpolation} filter"
    resize = {
        "shorter": f"resize the shorter side to {image.shorter_px} pixels {by} and crop {size} at the centre",
        "crop": f"crop {size} at the centre",
        "downscale": f"if the image is at least {size}, crop its largest central part with this aspect ratio "
        f"and resize it {by}; otherwise crop or pad it at the centre, without resizing",
        "position": f"crop {size} at the position {image.position[0]}, {image.position[1]}",
        "squash": f"resize to {size} {by}",
        "letterbox": f"resize {by} to fit into {size}, and centre on black",
    }[image.resize]
    channels = "grayscale" if image.gray_scale else "BGR" if normalization.bgr else "RGB"
    return f"{resize}; {channels}; {_describe_normalization(normalization)}"


def _describe_normalization(normalization: Normalization) -> str:
    std = ", ".join(f"{value:g}" for value in normalization.std)
    if normalization.mean_image:
        return f"(pixels - mean image {normalization.mean_image}) / {normalization.scale:g} / std with std {std}"
    mean = ", ".join(f"{value:g}" for value in normalization.mean)
    return f"(pixels / {normalization.scale:g} - mean) / std with mean {mean} and std {std}"


def format_preprocessing_code(preprocessing: Preprocessing) -> str:
    """Return Python code that opens an image with Pillow and converts it to `x`, the input `(1, C, H, W)`."""
    image = preprocessing.image
    lines = [OPEN_IMAGE, *(['image = image.convert("L")'] if image.gray_scale else []), *_iter_resize_lines(image)]
    if image.resize != "squash":
        lines.append(f"image = image.crop((left, top, left + {image.width}, top + {image.height}))")
    code = "\n".join([*lines, *_iter_normalization_lines(preprocessing)])
    return f"{_DEFINE_OFFSET}{code}" if "offset(" in code else code


def _iter_resize_lines(image_property: ImageProperty) -> Iterator[str]:
    """Yield lines of code that resize the variable `image`, and set `left, top`, the position of the crop."""
    width, height = image_property.width, image_property.height
    resampling = f"Image.Resampling.{image_property.interpolation.upper()}"
    offsets = f"left, top = offset(image.width, {width}), offset(image.height, {height})"
    match image_property.resize:
        case "shorter":
            sides = ", ".join(f"{image_property.shorter_px} * image.{side} // shorter" for side in ("width", "height"))
            yield f"shorter = min(image.size)\nimage = image.resize(({sides}), {resampling})"
            yield f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)"
        case "squash":
            yield f"image = image.resize(({width}, {height}), {resampling})"
        case "letterbox":
            yield f"scale = min({width} / image.width, {height} / image.height)"
            yield "size = [max(1, round(side * scale)) for side in image.size]"
            yield f"image = image.resize(size, {resampling})\n{offsets}"
        case "downscale":
            yield f"if image.width >= {width} and image.height >= {height}:"
            yield f"    w = min(image.width, image.height * {width} // {height})"
            yield f"    h = min(image.height, image.width * {height} // {width})"
            yield "    left, top = (image.width - w) // 2, (image.height - h) // 2"
            yield f"    image = image.crop((left, top, left + w, top + h)).resize(({width}, {height}), {resampling})"
            yield offsets
        case "position":
            yield f"left, top = {image_property.position[0]}, {image_property.position[1]}"
        case _:
            yield offsets


def _iter_normalization_lines(preprocessing: Preprocessing) -> Iterator[str]:
    normalization = preprocessing.normalization
    axes = "[None, None]" if preprocessing.image.gray_scale else ".transpose(2, 0, 1)[None]"
    yield f"x = np.asarray(image, np.float32){axes}"
    yield f"std = np.array({list(normalization.std)}).reshape(1, -1, 1, 1)"
    if normalization.mean_image:
        yield f"mean_image = np.load({normalization.mean_image!r}, allow_pickle=False)"
        yield f"x = (x - mean_image) / {normalization.scale:g} / std"
    else:
        yield f"mean = np.array({list(normalization.mean)}).reshape(1, -1, 1, 1)"
        yield f"x = (x / {normalization.scale:g} - mean) / std"
    yield f"x = np.ascontiguousarray(x{'[:, ::-1]' if normalization.bgr else ''}, np.float32)"
