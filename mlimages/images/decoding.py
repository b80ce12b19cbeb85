"""Encoded bytes become an upright 8-bit RGB picture."""

from __future__ import annotations

import io
import stat
import struct
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps

from mlimages.core import MAX_PIXELS, Fault, ImageError, install_hint, is_remote

MAX_BYTES = 1 << 30
"""Bound on a picture file's size: what MAX_PIXELS take up uncompressed at 12 bytes a pixel."""

WHITE = (255, 255, 255)

_REFUSED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
"""Run a program to decode (Ghostscript) or are recognised but never decoded."""

_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError,
                  AttributeError, OverflowError, MemoryError, struct.error, zlib.error)  # fmt: skip
_IDENTIFY_ERRORS = (SyntaxError, IndexError, TypeError, struct.error)
_ORIENTATION = 0x0112


def open_image(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture and read its header; nothing is decoded yet.

    Raises:
        ImageError: missing, unreadable (a format that needs another package, too), empty, not-an-image, truncated or
            corrupt within the header, or too-many-pixels.
    """
    data = source if isinstance(source, bytes) else read_bytes(source)
    if not data:
        raise ImageError(Fault.EMPTY, "the file has no bytes")
    try:
        image = _identify(data)
    except _DECODE_ERRORS as error:
        raise _damage(error) from error
    if image is None:
        if data[4:11] == b"ftyphei" and "HEIF" not in Image.OPEN:
            raise ImageError(Fault.UNREADABLE, f"`{install_hint('heic')}` opens HEIC")
        raise ImageError(Fault.NOT_AN_IMAGE, f"begins with {data[:12]!r}")
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(Fault.TOO_MANY_PIXELS, f"{width} x {height} is more than {max_pixels} pixels")
    return image


def _identify(data: bytes) -> Image.Image | None:
    """The picture by the first format that knows its header, common formats first; None if none does.

    Not `Image.open`: that warns of large pictures on the terminal, fails above twice that size whatever
    `max_pixels` says, and hands EPS to Ghostscript.
    """
    for load_plugins in (Image.preinit, load_all_plugins):
        load_plugins()
        for name in Image.ID:
            factory, accepts = Image.OPEN[name]
            try:
                known = accepts is None or accepts(data[:16])  # a text says why a plugin cannot
                if known and not isinstance(known, str) and name not in _REFUSED_FORMATS:
                    return factory(io.BytesIO(data), "")
            except _IDENTIFY_ERRORS:
                continue
    return None


@cache
def load_all_plugins() -> None:
    """Have Pillow know every format it can, an iPhone's too where pillow-heif is installed (the extra `heic`)."""
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # 17 ms that most runs never need

        register_heif_opener(thumbnails=False)


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        ImageError: missing or unreadable (a dangling link, no permission, not a regular file, larger than MAX_BYTES).
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(Fault.UNREADABLE, f"not a regular file ({path})")
        if found.st_size > MAX_BYTES:
            raise ImageError(Fault.UNREADABLE, f"{found.st_size} bytes are more than {MAX_BYTES} ({path})")
        return path.read_bytes()
    except FileNotFoundError as error:
        fault = Fault.UNREADABLE if path.is_symlink() else Fault.MISSING
        raise ImageError(fault, f"no file at {path}") from error
    except OSError as error:
        raise ImageError(Fault.UNREADABLE, f"{error.strerror or error} ({path})") from error
    except Exception as error:  # what an address's own library raises costs the picture, too
        if not is_remote(path) or isinstance(error, ImageError):
            raise
        raise ImageError(Fault.UNREADABLE, f"{error} ({path})") from error


def decode(image: Image.Image) -> Image.Image:
    """Decode an opened picture to its last byte (an animation's first frame).

    Raises:
        ImageError: truncated or corrupt.
    """
    try:
        image.load()
    except _DECODE_ERRORS as error:
        raise _damage(error) from error
    return image


def _damage(error: Exception) -> ImageError:
    text = str(error)
    cut = "truncated" in text.lower() or "unrecognized data stream" in text or isinstance(error, EOFError)
    return ImageError(Fault.TRUNCATED if cut else Fault.CORRUPT, f"{type(error).__name__}: {text}")


def to_rgb(image: Image.Image, *, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """A decoded picture upright by its EXIF orientation and in 8-bit RGB (see `flatten`)."""
    return flatten(upright(image), background=background)


def upright(image: Image.Image) -> Image.Image:
    """A decoded picture turned as its EXIF orientation says."""
    return ImageOps.exif_transpose(image) if orientation(image) != 1 else image


def flatten(image: Image.Image, *, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """A decoded picture in 8-bit RGB: 16-bit grey is scaled (divided by 257), transparency laid over `background`."""
    if image.mode.startswith("I") or image.mode == "F":
        from mlimages.images.deep import to_eight_bits  # numpy: 70 ms that most decoding processes never need

        image = to_eight_bits(image)
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, background)
        flat.paste(rgba, mask=rgba)
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def load_rgb(
    source: Path | bytes, *, max_pixels: int = MAX_PIXELS, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Open, decode and convert one picture: upright, 8-bit RGB, full size; what is transparent shows `background`.

    Raises:
        ImageError: with the picture's `Fault`.
    """
    return to_rgb(decode(open_image(source, max_pixels=max_pixels)), background=background)
