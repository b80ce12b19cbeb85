"""Decode image files to 8-bit RGB; no other module decodes images.

`decode` identifies the format, reads the header, decodes, converts to 8-bit RGB and applies the EXIF orientation.
Pillow's plugins may raise any exception on a malformed file (RuntimeError, NotImplementedError, AssertionError,
struct.error ...). A lazily loaded image may raise it on any later access, so `decode` loads the pixels completely.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from typing import ParamSpec, TypeVar

from PIL import ExifTags, Image

from mlimages.core import MAX_PIXELS, Fault, ImageError, as_path, describe_unsupported_content, make_install_command
from mlimages.images.decoded_image import WHITE, DecodedImage, DecodeOptions, ImageHeader
from mlimages.images.format_checks import correct_tiff_pixels, require_complete_png
from mlimages.images.reading import read_bytes

PIXELS_VERSION = 5
"""Version of the decoded and resized pixels, part of cache keys; increase it when they change for the same file."""

TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""The transpose that makes an image upright, by EXIF orientation."""

_REJECTED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"}
"""Formats of Pillow that are rejected: EPS needs an external program (Ghostscript), IPTC may embed any format, such as
EPS, and Pillow cannot decode the others, except WMF on Windows."""

_WRONG_FORMAT_ERRORS = (SyntaxError, IndexError, TypeError, struct.error)
"""Exceptions that a plugin raises for data of another format (see `PIL.Image.open`)."""

_UNSUPPORTED_PIXEL_ERRORS = ("unknown pixel mode", "unknown data organization")
"""Messages of Pillow's TIFF plugin for an intact file that it cannot decode, such as one with 64-bit floats."""

_REPLACE_FILE_ADVICE = "copy or download the file again"

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
"""Brands of HEIC files (ISO/IEC 23008-12), which follow `ftyp`."""

_DEFAULT_OPTIONS = DecodeOptions()

P = ParamSpec("P")
T = TypeVar("T")


class ArgumentTypeError(TypeError):
    """An argument has the wrong type; unlike other exceptions, it is not converted to an `ImageError`."""


def require_type(value: object, types: type | tuple[type, ...], expected_type: str) -> None:
    """Raise an `ArgumentTypeError`, which names `expected_type`, unless the value has one of the types."""
    if not isinstance(value, types):
        raise ArgumentTypeError(f"expected {expected_type}, got {type(value).__name__}")


def reraise_as_image_error(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that it raises an `ImageError`, with the matching `Fault`, instead of any other exception.

    Only an `ArgumentTypeError`, and what is no `Exception` (such as KeyboardInterrupt), is raised unchanged.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (ImageError, ArgumentTypeError):
            raise
        except Exception as error:  # see the module docstring
            raise _to_image_error(error) from error

    return wrapper


def _to_image_error(error: Exception) -> ImageError:
    text = re.sub(r"\bb(['\"])(.*?)\1", r"\2", str(error)) or type(error).__name__  # without the repr of bytes
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(Fault.TOO_MANY_PIXELS, "an image inside the file has more pixels than Pillow supports")
    if isinstance(error, MemoryError):
        return ImageError(Fault.UNREADABLE, "not enough memory to decode the image")
    if isinstance(error, NotImplementedError | ImportError) or text.endswith("not available"):
        return ImageError(Fault.UNREADABLE, f"the installed Pillow cannot decode this variant of the format ({text})")
    if "truncated" in text.lower() or "unrecognized data stream" in text or isinstance(error, EOFError):
        return ImageError(Fault.TRUNCATED, f"the data is truncated: {_REPLACE_FILE_ADVICE} ({text})")
    return ImageError(Fault.CORRUPT, f"the data is damaged: {_REPLACE_FILE_ADVICE} ({text})")


@reraise_as_image_error
def identify(source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Read the format, mode and size of an image from its header, without decoding the pixels.

    Raises:
        ImageError: the file is missing, unavailable, unreadable (also if its format needs another package), empty or
            not an image; its header is truncated or corrupt; or it has too many pixels.
        TypeError: `source` is neither a path nor bytes.
    """
    return _read_header(_open_image(_read_source(source), max_pixels))


@reraise_as_image_error
def decode(
    source: str | os.PathLike[str] | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    options: DecodeOptions | Callable[[ImageHeader], DecodeOptions] = _DEFAULT_OPTIONS,
) -> DecodedImage:
    """Decode an image file completely; of an animation, only the first frame.

    Args:
        source: path, or the bytes of an image file.
        max_pixels: maximum number of pixels (width x height); larger images are rejected before decoding.
        options: the options, or a function that returns the options for a header.

    Raises:
        ImageError: the image cannot be decoded; `fault` is the reason.
        TypeError: `source` is neither a path nor bytes.
    """
    data = _read_source(source)
    file = _open_image(data, max_pixels)
    header = _read_header(file)
    options = options(header) if callable(options) else options
    stored = _parse_orientation(getattr(file, "tag_v2", {}))  # Pillow applies and drops it when it loads a TIFF
    image, irregular_jpeg = _decode_pixels(file, data, options)
    size = header.size if file.format in ("JPEG", "MPO") else file.size  # only these may be decoded at a reduced scale
    _check_pixel_count(size, max_pixels)  # the header of an icon may give another size
    turn = _read_exif_orientation(file)
    image, transparent = _convert_and_reduce(image, options)
    if options.apply_orientation and turn != 1:
        image = image.transpose(TRANSPOSE_BY_ORIENTATION[turn])
    return DecodedImage(
        image,
        header,
        size[::-1] if turn >= 5 else size,  # the orientations 5 to 8 swap width and height
        orientation=max(stored, turn),
        remaining_orientation=1 if options.apply_orientation else turn,
        animated=_is_animated(file),
        transparent=transparent,
        irregular_jpeg=irregular_jpeg,
    )


def load_rgb(source: str | os.PathLike[str] | bytes, *, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Load an image as 8-bit RGB at full size, with its EXIF orientation applied.

    Args:
        source: path, or the bytes of an image file.
        background: RGB colour behind transparent pixels.

    Raises:
        ImageError: the image cannot be decoded; `fault` is the reason.
        TypeError: `source` is neither a path nor bytes.
    """
    return decode(source, options=DecodeOptions(background=background)).image


@reraise_as_image_error
def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to upright 8-bit RGB; transparent pixels become white.

    Raises:
        ImageError: the image cannot be decoded; `fault` is the reason.
        TypeError: `image` is not a PIL image.
    """
    require_type(image, Image.Image, "a PIL image")
    image.load()
    turn = _read_exif_orientation(image)
    flat, _ = _convert_and_reduce(correct_tiff_pixels(image, getattr(image, "tag_v2", {})), DecodeOptions())
    return flat if turn == 1 else flat.transpose(TRANSPOSE_BY_ORIENTATION[turn])


def _read_source(source: str | os.PathLike[str] | bytes) -> bytes:
    if not hasattr(source, "open"):  # a path, local or remote
        require_type(source, (str, os.PathLike, bytes), "a path or the bytes of an image file")
    data = source if isinstance(source, bytes) else read_bytes(as_path(source))
    if not data:
        raise ImageError(Fault.EMPTY, "the file is empty")
    return data


def _open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header with the first plugin that accepts the data; common formats are tried first.

    `Image.open` is not used: it warns about images with more than `Image.MAX_IMAGE_PIXELS`, fails at more than twice
    this number regardless of `max_pixels`, and passes EPS files to Ghostscript.
    """
    missing = detected = ""
    for load_plugins in (Image.preinit, load_all_plugins):
        load_plugins()
        for name in Image.ID:
            factory, accepts = Image.OPEN[name]
            try:
                known = accepts is None or accepts(data[:16])
                if isinstance(known, str):  # names the library that Pillow was built without
                    missing = known
                elif known and name not in _REJECTED_FORMATS:
                    detected = detected or (name if accepts else "")
                    file = factory(io.BytesIO(data), "")
                    _check_pixel_count(file.size, max_pixels)
                    return file
            except _WRONG_FORMAT_ERRORS as error:
                if str(error) in _UNSUPPORTED_PIXEL_ERRORS:
                    missing = f"{name}: {error}"
    raise _make_unknown_format_error(data, missing, detected)


def _make_unknown_format_error(data: bytes, missing_feature: str, detected_format: str) -> ImageError:
    """Return the error for a file that no plugin opens.

    `missing_feature` names the library or variant of the format that the installed Pillow lacks; "" if unknown.
    """
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and "HEIF" not in Image.OPEN:
        return ImageError(Fault.UNREADABLE, f"HEIC needs an optional package: `{make_install_command('heic')}`")
    if missing_feature:
        return ImageError(Fault.UNREADABLE, f"the installed Pillow cannot decode the format ({missing_feature})")
    if detected_format:
        damage = f"the file begins like a {detected_format} file, but its header is damaged"
        return ImageError(Fault.NOT_AN_IMAGE, f"{damage}: {_REPLACE_FILE_ADVICE}")
    begin = data[:12]
    first_bytes = f'"{begin.decode()}"' if begin.isascii() and begin.decode().isprintable() else begin.hex(" ")
    content = describe_unsupported_content(data[:1000])
    return ImageError(Fault.NOT_AN_IMAGE, f"the file begins with {first_bytes}" + (f": {content}" if content else ""))


@cache
def load_all_plugins() -> None:
    """Register all formats of Pillow, and HEIC if pillow-heif is installed (the extra `heic`)."""
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # takes 17 ms, and most runs do not need it

        register_heif_opener(thumbnails=False)


def _check_pixel_count(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(Fault.TOO_MANY_PIXELS, f"{width} x {height} is more than {max_pixels} pixels")
    if width < 1 or height < 1:
        raise ImageError(Fault.CORRUPT, f"the header gives an invalid size: {width} x {height} pixels")


def _read_header(file: Image.Image) -> ImageHeader:
    """Read the header. Call this before decoding, in which Pillow discards the bit depth of PNG and TIFF files."""
    args = file.tile[0].args if getattr(file, "tile", None) else ()  # type: ignore[attr-defined]
    raw_mode, *others = args if isinstance(args, tuple) and args else (args,)
    high_bit_depth = (
        file.mode[:1] in "IF"
        or (file.format in ("PNG", "TIFF") and "16" in str(raw_mode))
        or (file.format == "PPM" and bool(others) and others[0] > 255)  # the level of white
    )
    return ImageHeader(file.format or "", file.mode, file.size, high_bit_depth)


def _decode_pixels(opened_image: Image.Image, data: bytes, options: DecodeOptions) -> tuple[Image.Image, bool]:
    """Decode the pixels; return the image, and the value of `DecodedImage.irregular_jpeg`."""
    irregular_jpeg, damage = False, ""
    if options.strict and opened_image.format == "JPEG":
        from mlimages.images import strict_jpeg  # imports NumPy in 70 ms, and most decoding processes do not need it

        try:
            if strict_jpeg.HAS_SIMPLEJPEG:
                image, irregular_jpeg = strict_jpeg.decode_strictly(data, options.min_size or opened_image.size)
                if image is not None:
                    return image, irregular_jpeg
        except strict_jpeg.JpegScanError as error:
            damage = str(error)
    # only JFIF files hold YCbCr
    mode = None if options.mode == "YCbCr" and "jfif" not in opened_image.info else options.mode
    if mode or options.min_size:
        opened_image.draft(mode, options.min_size)
    opened_image.load()
    if damage:  # Pillow's own error takes precedence
        raise ImageError(Fault.CORRUPT, damage)
    if opened_image.format == "PNG":
        require_complete_png(opened_image, data)
    return correct_tiff_pixels(opened_image, getattr(opened_image, "tag_v2", {})), irregular_jpeg


def _convert_and_reduce(image: Image.Image, options: DecodeOptions) -> tuple[Image.Image, bool]:
    """Convert an image to RGB (or `options.mode`) and downscale it; return it, and whether any pixel is transparent."""
    if image.mode == "P" and image.palette is None:  # in icons: `has_transparency_data` fails, `convert` does not
        image = image.convert("RGBA")
    clear = image.has_transparency_data
    if image.mode == options.mode and not clear:
        return image, False
    factor = max(1, min(image.size) // options.min_reduced_side_px) if options.min_reduced_side_px else 1
    early = factor > 1 and image.mode in ("RGB", "RGBX", "L") and not clear
    image, transparent = _composite_onto_background(image.reduce(factor) if early else image, options.background)
    return image if early or factor == 1 else image.reduce(factor), transparent


def _composite_onto_background(image: Image.Image, background: tuple[int, int, int]) -> tuple[Image.Image, bool]:
    """Convert an image to 8-bit RGB on the colour `background`; return it, and whether any pixel is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        from mlimages.images.arrays import scale_to_8_bits  # imports NumPy, as above

        image = scale_to_8_bits(image)
    if not image.has_transparency_data:
        return image if image.mode in ("RGB", "RGBX") else image.convert("RGB"), False
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, background)
    flat.paste(rgba, mask=rgba)
    return flat, rgba.getchannel("A").getextrema()[0] != 255


def _read_exif_orientation(file: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8.

    Call this after decoding: `getexif` decodes an undecoded PNG, and errors in its pixels would be ignored here.
    """
    try:
        return _parse_orientation(file.getexif())
    except Exception:  # malformed EXIF does not affect the pixels
        return 1


def _parse_orientation(exif_tags: object) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is missing or invalid."""
    value = exif_tags.get(ExifTags.Base.Orientation, 1)  # type: ignore[attr-defined]
    return int(value) if value in range(1, 9) else 1


def _is_animated(file: Image.Image) -> bool:
    """Whether the file has more than one frame, except MPO, whose other frames are not an animation.

    Call this last: some plugins read more data, and may raise an exception.
    """
    try:
        return file.format not in ("JPEG", "MPO") and bool(getattr(file, "is_animated", False))
    except Exception:  # damage after the first frame does not affect it
        return False
