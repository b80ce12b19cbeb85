"""Encoded bytes become 8-bit RGB pixels, or an `ImageError` with a code: the only place where they do.

`decode` identifies the format, reads the header, decodes, flattens to 8-bit RGB and turns the image upright. Pillow's
plugins raise whatever they like on odd files (RuntimeError, NotImplementedError, AssertionError, struct.error ...),
some of them only when an attribute is asked for: no Pillow image that is not yet decoded leaves this module.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from PIL import Image

from mlimages.core import MAX_PIXELS, Fault, ImageError, install_hint
from mlimages.images.decoded_image import WHITE, DecodedImage, DecodeOptions, ImageHeader
from mlimages.images.reading import read_bytes

PIXELS_VERSION = 3
"""Version of the prepared pixels, which caches note: raised when the same bytes give other pixels."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What turns an image upright, by EXIF orientation (Exif 2.32, tag 274)."""

_ORIENTATION = 0x0112
_SWAPS_SIDES = 5  # EXIF orientations from here on swap width and height

_REFUSED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"}
"""Run a program to decode (Ghostscript), are recognised but never decoded, or may hold one that does (IPTC)."""

_UNKNOWN_FORMAT = (SyntaxError, IndexError, TypeError, struct.error)
"""How a plugin says that these bytes are not its format (see `PIL.Image.open`)."""

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

_DEFAULTS = DecodeOptions()

P = ParamSpec("P")
T = TypeVar("T")


def raises_image_error(function: Callable[P, T]) -> Callable[P, T]:
    """Turn every exception of a function that works on one image into an `ImageError` with its code."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ImageError:
            raise
        except Exception as error:  # see the top of this module
            raise _image_error(error) from error

    return guarded


def _image_error(error: Exception) -> ImageError:
    text = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(Fault.TOO_MANY_PIXELS, "an image inside it has more pixels than Pillow decodes")
    if isinstance(error, MemoryError):
        return ImageError(Fault.UNREADABLE, "not enough memory to decode it")
    if isinstance(error, NotImplementedError | ImportError) or text.endswith("not available"):
        return ImageError(Fault.UNREADABLE, f"this Pillow cannot decode this variant of the format ({text})")
    if "truncated" in text.lower() or "unrecognized data stream" in text or isinstance(error, EOFError):
        return ImageError(Fault.TRUNCATED, f"the data ends too early ({text})")
    return ImageError(Fault.CORRUPT, f"the data cannot be decoded ({text})")


@raises_image_error
def identify(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Read an image's header; nothing is decoded.

    Raises:
        ImageError: missing, unreadable (a format that needs another package, too), empty, not-an-image, truncated or
            corrupt within the header, or too-many-pixels.
    """
    return _header(_opened(_bytes(source), max_pixels))


@raises_image_error
def decode(
    source: Path | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    options: DecodeOptions | Callable[[ImageHeader], DecodeOptions] = _DEFAULTS,
) -> DecodedImage:
    """Decode an image to its last byte (an animation's first frame).

    Args:
        max_pixels: an image of more (width x height) is refused before it is decoded.
        options: or what makes them of the header.

    Raises:
        ImageError: with the image's `Fault`, whatever exception the decoder raised.
    """
    data = _bytes(source)
    file = _opened(data, max_pixels)
    header = _header(file)
    chosen = options(header) if callable(options) else options
    stored = _orientation(getattr(file, "tag_v2", {}))  # Pillow turns a TIFF as it loads it and forgets this
    image, irregular = _loaded(file, data, chosen)
    size = header.size if file.format in ("JPEG", "MPO") else file.size  # those alone may be at a scale
    _demand_pixels(size, max_pixels)  # an icon's header may lie about what is inside
    turn = _exif_orientation(file)
    image, transparent = _flattened(image, chosen)
    if chosen.upright and turn != 1:
        image = image.transpose(UPRIGHT[turn])
    return DecodedImage(
        image,
        header,
        size[::-1] if turn >= _SWAPS_SIDES else size,
        orientation=max(stored, turn),
        turn=1 if chosen.upright else turn,
        animated=_is_animated(file),
        transparent=transparent,
        irregular=irregular,
    )


def load_rgb(
    source: Path | bytes, *, max_pixels: int = MAX_PIXELS, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Open, decode and convert one image: upright, 8-bit RGB, full size; what is transparent shows `background`.

    Raises:
        ImageError: with the image's `Fault`.
    """
    return decode(source, max_pixels=max_pixels, options=DecodeOptions(background=background)).image


@raises_image_error
def from_pillow(image: Image.Image) -> Image.Image:
    """Convert an image that Pillow has opened: upright, 8-bit RGB, white where it is transparent.

    Raises:
        ImageError: with the image's `Fault`.
    """
    image.load()
    turn = _exif_orientation(image)
    flat, _ = _flattened(image, DecodeOptions())
    return flat if turn == 1 else flat.transpose(UPRIGHT[turn])


def _bytes(source: Path | bytes) -> bytes:
    data = source if isinstance(source, bytes) else read_bytes(source)
    if not data:
        raise ImageError(Fault.EMPTY, "the file has no bytes")
    return data


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """The image by the first format that knows its header, common formats first.

    Not `Image.open`: that warns of large images on the terminal, fails above twice that size whatever
    `max_pixels` says, and hands EPS to Ghostscript.
    """
    missing = claimed = ""
    for load_plugins in (Image.preinit, load_all_plugins):
        load_plugins()
        for name in Image.ID:
            factory, accepts = Image.OPEN[name]
            try:
                known = accepts is None or accepts(data[:16])
                if isinstance(known, str):  # says what this Pillow was built without
                    missing = known
                elif known and name not in _REFUSED_FORMATS:
                    claimed = claimed or (name if accepts else "")
                    file = factory(io.BytesIO(data), "")
                    _demand_pixels(file.size, max_pixels)
                    return file
            except _UNKNOWN_FORMAT:
                continue
    raise _unknown_format(data, missing, claimed)


def _unknown_format(data: bytes, missing: str, claimed: str) -> ImageError:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in Image.OPEN:
        return ImageError(Fault.UNREADABLE, f"HEIC needs an optional package: `{install_hint('heic')}`")
    if missing:
        return ImageError(Fault.UNREADABLE, f"this Pillow cannot decode the format ({missing})")
    if claimed:
        return ImageError(Fault.NOT_AN_IMAGE, f"starts like a {claimed} file, but its header cannot be read")
    begin = data[:12]
    seen = f'"{begin.decode()}"' if begin.isascii() and begin.decode().isprintable() else begin.hex(" ")
    return ImageError(Fault.NOT_AN_IMAGE, f"begins with {seen}")


@cache
def load_all_plugins() -> None:
    """Have Pillow know every format it can, an iPhone's too where pillow-heif is installed (the extra `heic`)."""
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # 17 ms that most runs never need

        register_heif_opener(thumbnails=False)


def _demand_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(Fault.TOO_MANY_PIXELS, f"{width} x {height} is more than {max_pixels} pixels")
    if width < 1 or height < 1:
        raise ImageError(Fault.CORRUPT, f"{width} x {height} pixels")


def _header(file: Image.Image) -> ImageHeader:
    """Before decoding, which forgets the tiles: PNG and TIFF name their bits there."""
    raw = str(file.tile[0].args) if getattr(file, "tile", None) else ""  # type: ignore[attr-defined]
    deep = file.mode[:1] in "IF" or ("16" in raw and file.format in ("PNG", "TIFF", "PPM", "JPEG2000"))
    return ImageHeader(file.format or "", file.mode, file.size, deep)


def _loaded(file: Image.Image, data: bytes, options: DecodeOptions) -> tuple[Image.Image, bool]:
    """Decoded pixels, and whether the file is irregular."""
    irregular, damage = False, ""
    if options.strict and file.format == "JPEG":
        from mlimages.images import strict_jpeg  # numpy: 70 ms that most decoding processes never need

        try:
            if strict_jpeg.STRICT_JPEG:
                image, irregular = strict_jpeg.decode_strictly(data, options.least or file.size)
                if image is not None:
                    return image, irregular
        except strict_jpeg.ScanError as error:
            damage = str(error)
    mode = None if options.mode == "YCbCr" and "jfif" not in file.info else options.mode  # JFIF promises YCbCr
    if mode or options.least:
        file.draft(mode, options.least)
    file.load()
    if damage:  # after what Pillow says by itself
        raise ImageError(Fault.CORRUPT, damage)
    return file, irregular


def _flattened(image: Image.Image, options: DecodeOptions) -> tuple[Image.Image, bool]:
    """RGB pixels (or `options.mode`), reduced, and whether some show the background."""
    if image.mode == "P" and image.palette is None:  # of an icon: `has_transparency_data` fails, `convert` does not
        image = image.convert("RGBA")
    clear = image.has_transparency_data
    if image.mode == options.mode and not clear:
        return image, False
    factor = max(1, min(image.size) // options.reduce_to) if options.reduce_to else 1
    early = factor > 1 and image.mode in ("RGB", "RGBX", "L") and not clear
    image, transparent = _flat(image.reduce(factor) if early else image, options.background)
    return image if early or factor == 1 else image.reduce(factor), transparent


def _flat(image: Image.Image, background: tuple[int, int, int]) -> tuple[Image.Image, bool]:
    if image.mode.startswith("I") or image.mode == "F":
        from mlimages.images.deep import to_eight_bits  # numpy: 70 ms that most decoding processes never need

        image = to_eight_bits(image)
    if not image.has_transparency_data:
        return image if image.mode in ("RGB", "RGBX") else image.convert("RGB"), False
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, background)
    flat.paste(rgba, mask=rgba)
    return flat, rgba.getchannel("A").getextrema()[0] != 255


def _exif_orientation(file: Image.Image) -> int:
    """Of a decoded file: before, a PNG would decode, and swallow the error, to look for EXIF behind its pixels."""
    try:
        return _orientation(file.getexif())
    except Exception:  # odd EXIF is no fault of the pixels
        return 1


def _orientation(tags: object) -> int:
    value = tags.get(_ORIENTATION, 1)  # type: ignore[attr-defined]
    return int(value) if value in range(1, 9) else 1


def _is_animated(file: Image.Image) -> bool:
    """Asked for last: some plugins read on to find out, and raise there."""
    try:
        return file.format not in ("JPEG", "MPO") and bool(getattr(file, "is_animated", False))
    except Exception:  # what follows the first frame is no fault of it
        return False
