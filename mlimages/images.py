"""Encoded bytes become pixels, and pixels the network's array: the only place where they do."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mlimages.errors import ImageError
from mlimages.records import Fault, ImageProperty

MAX_PIXELS = 89_478_485
"""Default bound on width x height, judged from the header: Pillow's own (1 GiB at 12 bytes a pixel)."""

WHITE = (255, 255, 255)

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError,
                  AttributeError, OverflowError, MemoryError, struct.error, zlib.error)  # fmt: skip


def open_image(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture and read its header; nothing is decoded yet.

    Raises:
        ImageError: missing, unreadable, empty, not-an-image or too-many-pixels.
    """
    data = source if isinstance(source, bytes) else read_bytes(source)
    if not data:
        raise ImageError(Fault.EMPTY, "the file has no bytes")
    try:
        image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(Fault.TOO_MANY_PIXELS, f"more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(Fault.NOT_AN_IMAGE, f"begins with {data[:12]!r}") from error
    except _DECODE_ERRORS as error:
        raise ImageError(Fault.CORRUPT, f"{type(error).__name__}: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(Fault.TOO_MANY_PIXELS, f"{width} x {height} is more than {max_pixels} pixels")
    return image


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        ImageError: missing or unreadable (a dangling link, no permission).
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        fault = Fault.UNREADABLE if path.is_symlink() else Fault.MISSING
        raise ImageError(fault, f"no file at {path}") from error
    except OSError as error:
        raise ImageError(Fault.UNREADABLE, f"{error.strerror} ({path})") from error


def decode(image: Image.Image) -> Image.Image:
    """Decode an opened picture to its last byte (an animation's first frame).

    Raises:
        ImageError: truncated or corrupt.
    """
    try:
        image.load()
    except _DECODE_ERRORS as error:
        text = str(error)
        cut = "truncated" in text or "unrecognized data stream" in text or isinstance(error, EOFError)
        fault = Fault.TRUNCATED if cut else Fault.CORRUPT
        raise ImageError(fault, f"{type(error).__name__}: {text}") from error
    return image


def to_rgb(image: Image.Image, *, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """A decoded picture upright by its EXIF orientation and in 8-bit RGB.

    16-bit grey is scaled (divided by 257), transparency is laid over `background`.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.asarray(image, dtype=np.float32)  # (H, W)
        eight = np.clip(np.rint(deep / 257.0 if image.mode != "F" else deep), 0, 255)
        image = Image.fromarray(eight.astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, background)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")


def load_rgb(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open, decode and convert one picture: upright, 8-bit RGB, full size.

    Raises:
        ImageError: with the picture's `Fault`.
    """
    return to_rgb(decode(open_image(source, max_pixels=max_pixels)))


def load_pixels(source: Path | bytes, prop: ImageProperty, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """One picture as the network sees it: uint8 `(H, W, C)`, RGB or grey.

    A JPEG more than twice as large as it need be is decoded at a reduced scale (1/2, 1/4, 1/8).

    Raises:
        ImageError: with the picture's `Fault`.
    """
    image = open_image(source, max_pixels=max_pixels)
    _draft(image, prop)
    return prepare(to_rgb(decode(image)), prop)


def prepare(image: Image.Image, prop: ImageProperty) -> NDArray[np.uint8]:
    """An upright RGB picture resized and cropped: uint8 `(H, W, C)`."""
    if prop.gray_scale:
        image = image.convert("L")
    image = _resize(image, prop)
    image = _crop(image, prop)
    pixels = np.asarray(image)  # (H, W) or (H, W, 3)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def resized_size(width: int, height: int, prop: ImageProperty) -> tuple[int, int]:
    """The size (width, height) to which a picture is scaled before the crop."""
    match prop.resize:
        case "shorter":
            shorter = min(width, height)
            return prop.shorter_px * width // shorter, prop.shorter_px * height // shorter
        case "squash":
            return prop.width, prop.height
        case "letterbox":
            scale = min(prop.width / width, prop.height / height)
            return max(1, round(width * scale)), max(1, round(height * scale))
        case "downscale":
            while width // 2 >= prop.width and height // 2 >= prop.height:
                width, height = width // 2, height // 2
            return width, height
        case _:
            return width, height


def centre_start(size: int, crop: int) -> int:
    """Where a centred crop begins: torchvision's rounding; negative where the picture is smaller."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def _resize(image: Image.Image, prop: ImageProperty) -> Image.Image:
    size = resized_size(*image.size, prop)
    return image if size == image.size else image.resize(size, _RESAMPLING[prop.interpolation])


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
