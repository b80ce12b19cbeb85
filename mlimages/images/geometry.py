"""A picture becomes the pixels that the network sees: resized, cropped, 8-bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import MAX_PIXELS, Fault, ImageError, ImageProperty
from mlimages.images.decoding import decode, open_image, to_rgb
from mlimages.images.sizes import centre_start, resized_size

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def load_pixels(source: Path | bytes, prop: ImageProperty, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """One picture as the network sees it: uint8 `(H, W, C)`, RGB or grey.

    A JPEG at least four times as large as it need be is decoded at a reduced scale (1/2, 1/4, 1/8) that leaves it at
    least twice as large.

    Raises:
        ImageError: with the picture's `Fault`.
    """
    image = open_image(source, max_pixels=max_pixels)
    _draft(image, prop)
    return prepare(to_rgb(decode(image)), prop)


def prepare(image: Image.Image, prop: ImageProperty) -> NDArray[np.uint8]:
    """An upright RGB picture resized and cropped: uint8 `(H, W, C)`."""
    pixels = np.asarray(fit(image.convert("L") if prop.gray_scale else image, prop))  # (H, W) or (H, W, 3)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def fit(image: Image.Image, prop: ImageProperty) -> Image.Image:
    """A picture resized and cropped as `prop` says; its channels stay as they are.

    Raises:
        ImageError: too-many-pixels, where a strip is so long that its scaled form would not fit in memory.
    """
    return _crop(_resize(image, prop), prop)


def _resize(image: Image.Image, prop: ImageProperty) -> Image.Image:
    width, height = resized_size(*image.size, prop)
    if (width, height) == image.size:
        return image
    if width * height > max(MAX_PIXELS, prop.width * prop.height):
        detail = f"{image.width} x {image.height} scaled to {width} x {height} is more than {MAX_PIXELS} pixels"
        raise ImageError(Fault.TOO_MANY_PIXELS, detail)
    return image.resize((width, height), _RESAMPLING[prop.interpolation])


def _crop(image: Image.Image, prop: ImageProperty) -> Image.Image:
    width, height = image.size
    if (width, height) == (prop.width, prop.height):
        return image
    if prop.resize == "position":
        left, top = prop.position
    else:
        left, top = centre_start(width, prop.width), centre_start(height, prop.height)
    return image.crop((left, top, left + prop.width, top + prop.height))


def _draft(image: Image.Image, prop: ImageProperty) -> None:
    if image.format != "JPEG" or prop.resize not in ("shorter", "squash", "letterbox"):
        return
    width, height = image.size
    shorter = prop.shorter_px if prop.resize == "shorter" else max(prop.width, prop.height)
    scale = 2 * shorter / min(width, height)
    if scale <= 0.5:
        image.draft(None, (int(width * scale) + 1, int(height * scale) + 1))
