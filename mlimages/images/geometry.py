"""Load images as the network's input: resized, cropped, 8-bit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import MAX_PIXELS, BrokenImage, Fault, ImageError, ImageProperty, LabeledPath
from mlimages.images.decoded_image import DecodeOptions, ImageHeader
from mlimages.images.decoding import decode, raises_image_error, require_type
from mlimages.images.reading import reading_threads
from mlimages.images.sizes import centre_start, covers_crop, resized_size

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@raises_image_error
def load_pixels(
    source: str | os.PathLike[str] | bytes, prop: ImageProperty, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Load an image as the network's input: uint8 `(H, W, C)`, RGB or grayscale.

    A JPEG at least four times as large as the input is decoded at a reduced scale (1/2, 1/4, 1/8), at least twice as
    large as the input.

    Raises:
        ImageError: with the image's `Fault`.
        TypeError: `source` is neither a path nor bytes, or `prop` is no ImageProperty.
    """
    require_type(prop, ImageProperty, "an ImageProperty, such as ImageProperty(224)")
    decoded = decode(source, max_pixels=max_pixels, options=partial(_choose_decode_options, image_property=prop))
    return prepare(decoded.image, prop, size=decoded.size)


def iter_pixels(
    items: Iterable[LabeledPath], prop: ImageProperty, *, workers: int | None = None
) -> Iterator[tuple[LabeledPath, NDArray[np.uint8] | BrokenImage]]:
    """Yield each item with its pixels, uint8 `(H, W, C)`, or with a BrokenImage if it cannot be decoded, in order.

    Images are decoded ahead in `workers` threads, by default one per CPU core.
    """
    listed = iter(items)
    first = list(islice(listed, 1))
    threads = reading_threads(first[0].path if first else None, workers)
    return threads.map(lambda item: (item, try_load_pixels(item.path, prop)), chain(first, listed))


def try_load_pixels(path: Path, prop: ImageProperty) -> NDArray[np.uint8] | BrokenImage:
    """Return the pixels of an image, uint8 `(H, W, C)`, or a BrokenImage if it cannot be decoded."""
    try:
        return load_pixels(path, prop)
    except ImageError as error:
        return BrokenImage(str(path), error.fault, error.detail)


def prepare(image: Image.Image, prop: ImageProperty, *, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Resize and crop an upright RGB image; return uint8 `(H, W, C)`.

    Args:
        size: width and height at full scale, if `image` was decoded at a reduced scale.

    Raises:
        TypeError: `image` is no PIL image, or `prop` is no ImageProperty.
    """
    require_type(image, Image.Image, "a PIL image")
    require_type(prop, ImageProperty, "an ImageProperty, such as ImageProperty(224)")
    source = image.convert("L") if prop.gray_scale else image
    pixels = np.asarray(resize_and_crop(source, prop, size=size))  # (H, W) or (H, W, 3)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def resize_and_crop(
    image: Image.Image, image_property: ImageProperty, *, size: tuple[int, int] | None = None
) -> Image.Image:
    """Resize and crop an image as `image_property` specifies; the mode is kept.

    Raises:
        ImageError: too-many-pixels, if an elongated image would become too large to resize.
    """
    if image_property.resize == "downscale":
        image = image.crop(_central_box(*image.size, image_property))
        size = image.size
    return _crop(_resize(image, image_property, resized_size(*(size or image.size), image_property)), image_property)


def _central_box(width: int, height: int, image_property: ImageProperty) -> tuple[int, int, int, int]:
    """Return the largest central box with the aspect ratio of the crop; the whole image if the crop is larger."""
    inner_width, inner_height = width, height
    if covers_crop(width, height, image_property):
        inner_width = min(width, height * image_property.width // image_property.height)
        inner_height = min(height, width * image_property.height // image_property.width)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height


def _resize(image: Image.Image, image_property: ImageProperty, size: tuple[int, int]) -> Image.Image:
    width, height = size
    if size == image.size:
        return image
    if width * height > max(MAX_PIXELS, image_property.width * image_property.height):
        detail = f"{image.width} x {image.height} scaled to {width} x {height} is more than {MAX_PIXELS} pixels"
        raise ImageError(Fault.TOO_MANY_PIXELS, detail)
    return image.resize(size, _RESAMPLING[image_property.interpolation])


def _crop(image: Image.Image, image_property: ImageProperty) -> Image.Image:
    width, height = image.size
    if image_property.resize == "position":
        left, top = image_property.position
    else:
        left, top = centre_start(width, image_property.width), centre_start(height, image_property.height)
    box = left, top, left + image_property.width, top + image_property.height
    return image if box == (0, 0, width, height) else image.crop(box)


def _choose_decode_options(header: ImageHeader, image_property: ImageProperty) -> DecodeOptions:
    if image_property.resize not in ("shorter", "squash", "letterbox"):
        return DecodeOptions()
    width, height = header.size
    shorter = (
        image_property.shorter_px
        if image_property.resize == "shorter"
        else max(image_property.width, image_property.height)
    )
    scale = 2 * shorter / min(width, height)
    return DecodeOptions(min_size=(int(width * scale) + 1, int(height * scale) + 1) if scale <= 0.5 else None)
