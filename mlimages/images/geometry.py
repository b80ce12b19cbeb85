"""Load images as 8-bit pixels, resized and cropped to the network's input size."""

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
from mlimages.images.decoding import decode, require_type, reraise_as_image_error
from mlimages.images.reading import make_reader_pool
from mlimages.images.sizes import compute_crop_offset, compute_resized_size, covers_crop


def require_image_property(value: object) -> None:
    """Raise a TypeError, with an example, unless `value` is an ImageProperty."""
    require_type(value, ImageProperty, "an ImageProperty, such as ImageProperty(224)")


@reraise_as_image_error
def load_pixels(
    source: str | os.PathLike[str] | bytes, image_property: ImageProperty, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Load an image, resized and cropped to the network's input size: uint8 `(H, W, C)`, RGB or grayscale.

    With the resize methods `shorter`, `squash` and `letterbox`, a JPEG that is to be resized to a quarter of its width
    and height or less is decoded at a scale of 1/2, 1/4 or 1/8: the sides are still at least twice as long as needed.

    Raises:
        ImageError: the image cannot be decoded; `fault` is the reason.
        TypeError: `source` is neither a path nor bytes, or `image_property` is not an ImageProperty.
    """
    require_image_property(image_property)
    decoded = decode(
        source, max_pixels=max_pixels, options=partial(_choose_decode_options, image_property=image_property)
    )
    return prepare_pixels(decoded.image, image_property, size=decoded.size)


def iter_pixels(
    items: Iterable[LabeledPath], image_property: ImageProperty, *, workers: int | None = None
) -> Iterator[tuple[LabeledPath, NDArray[np.uint8] | BrokenImage]]:
    """Yield each item, in order, with its pixels, uint8 `(H, W, C)`, or with a BrokenImage if it cannot be decoded.

    Images are decoded in advance by `workers` threads, by default one per CPU core. For remote images, at least 16
    threads are used, even if `workers` is lower.
    """
    listed = iter(items)
    first = list(islice(listed, 1))
    threads = make_reader_pool(first[0].path if first else None, workers)
    return threads.map(lambda item: (item, try_load_pixels(item.path, image_property)), chain(first, listed))


def try_load_pixels(path: Path, image_property: ImageProperty) -> NDArray[np.uint8] | BrokenImage:
    """Load an image as `load_pixels` does; return a BrokenImage if it cannot be decoded."""
    try:
        return load_pixels(path, image_property)
    except ImageError as error:
        return BrokenImage(str(path), error.fault, error.detail)


def prepare_pixels(
    image: Image.Image, image_property: ImageProperty, *, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Resize and crop an upright RGB image; return uint8 `(H, W, C)`.

    Args:
        size: width and height at full scale, needed if `image` was decoded at a reduced scale; by default `image.size`.

    Raises:
        ImageError: as for `resize_and_crop`.
        TypeError: `image` is not a PIL image, or `image_property` is not an ImageProperty.
    """
    require_type(image, Image.Image, "a PIL image")
    require_image_property(image_property)
    source = image.convert("L") if image_property.gray_scale else image
    return np.atleast_3d(np.asarray(resize_and_crop(source, image_property, size=size)))  # (H, W) or (H, W, 3)


def resize_and_crop(
    image: Image.Image, image_property: ImageProperty, *, size: tuple[int, int] | None = None
) -> Image.Image:
    """Resize and crop an image as `image_property` specifies; the mode is kept.

    Args:
        size: width and height at full scale, needed if `image` was decoded at a reduced scale; by default `image.size`.

    Raises:
        ImageError: the resized image would have too many pixels, since the image is very elongated.
    """
    if image_property.resize == "downscale":
        image = image.crop(_compute_central_box(*image.size, image_property))
        size = image.size
    resized_size = compute_resized_size(*(size or image.size), image_property)
    return _crop(_resize(image, image_property, resized_size), image_property)


def _compute_central_box(width: int, height: int, image_property: ImageProperty) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the largest central box with the aspect ratio of the crop.

    If the image is smaller than the crop in either direction, the box is the whole image.
    """
    inner_width, inner_height = width, height
    if covers_crop(width, height, image_property):
        inner_width = min(width, height * image_property.width // image_property.height)
        inner_height = min(height, width * image_property.height // image_property.width)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height


def _resize(image: Image.Image, image_property: ImageProperty, resized_size: tuple[int, int]) -> Image.Image:
    """Resize an image to `resized_size` (width, height); raise an ImageError if that would be too many pixels."""
    width, height = resized_size
    if resized_size == image.size:
        return image
    if width * height > max(MAX_PIXELS, image_property.width * image_property.height):
        detail = f"{image.width} x {image.height} scaled to {width} x {height} is more than {MAX_PIXELS} pixels"
        raise ImageError(Fault.TOO_MANY_PIXELS, detail)
    return image.resize(resized_size, Image.Resampling[image_property.interpolation.upper()])


def _crop(image: Image.Image, image_property: ImageProperty) -> Image.Image:
    """Crop a resized image to the width and height of `image_property`; pixels outside the image are black."""
    width, height = image.size
    if image_property.resize == "position":
        left, top = image_property.position
    else:
        left, top = compute_crop_offset(width, image_property.width), compute_crop_offset(height, image_property.height)
    box = left, top, left + image_property.width, top + image_property.height
    return image if box == (0, 0, width, height) else image.crop(box)


def _choose_decode_options(header: ImageHeader, image_property: ImageProperty) -> DecodeOptions:
    if image_property.resize not in ("shorter", "squash", "letterbox"):
        return DecodeOptions()
    width, height = header.size
    longer = max(image_property.width, image_property.height)
    shorter = image_property.shorter_px if image_property.resize == "shorter" else longer
    scale = 2 * shorter / min(width, height)
    return DecodeOptions(min_size=(int(width * scale) + 1, int(height * scale) + 1) if scale <= 0.5 else None)
