"""Bytes become verified facts of an image, or a reason why they are none."""

from __future__ import annotations

import codecs
import hashlib
import io
import re
from dataclasses import replace
from functools import partial
from operator import gt
from pathlib import Path

from PIL import Image

from mlimages.core import Fault, ImageError, ImageProperty, Reason
from mlimages.gathering.download.image_facts import Checks, Facts, Rejection, begins_as_html
from mlimages.gathering.download.opt_outs import find_xmp_opt_out
from mlimages.images import DecodedImage, DecodeOptions, ImageHeader, decode, resized_size

SUFFIXES = {
    "AVIF": ".avif", "BMP": ".bmp", "GIF": ".gif", "HEIF": ".heic", "ICO": ".ico", "JPEG": ".jpg",
    "JPEG2000": ".jp2", "MPO": ".jpg", "PNG": ".png", "PPM": ".ppm", "TIFF": ".tif", "WEBP": ".webp",
}  # fmt: skip
"""The formats that are kept; others (EPS starts Ghostscript) are not decoded at all."""

_REASONS = {
    Fault.EMPTY: Reason.EMPTY,
    Fault.TRUNCATED: Reason.TRUNCATED,
    Fault.CORRUPT: Reason.CORRUPT,
    Fault.TOO_MANY_PIXELS: Reason.TOO_MANY_PIXELS,
    Fault.NOT_AN_IMAGE: Reason.NOT_AN_IMAGE,
    Fault.UNREADABLE: Reason.NOT_AN_IMAGE,
}
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd8]")
"""Any marker but stuffed zeros and restarts, which stand within a scan."""
_HASHED_PX = 32  # of a side at least: of thumbnails at an eighth, four points a row, half looked alike
_JPEG_QUALITY = 95
_JPEG_MOST_PX = 65_500  # of a side, in libjpeg


def inspect_file(path: Path, checks: Checks) -> Facts | Rejection:
    """Decode the file to its last byte; with `checks.resize`, replace it by the resized image."""
    data = path.read_bytes()
    opt_out = find_xmp_opt_out(data)
    if opt_out and not checks.ignore_opt_out:
        return Rejection(Reason.OPT_OUT, opt_out, len(data), hashlib.sha256(data).hexdigest())
    facts = _inspect(path, data, checks)
    if opt_out and isinstance(facts, Facts):
        return replace(facts, detail="; ".join(filter(None, (facts.detail, f"ignored: {opt_out}"))))
    return facts


def _inspect(path: Path, data: bytes, checks: Checks) -> Facts | Rejection:
    try:
        decoded = decode(data, max_pixels=checks.max_pixels, options=partial(_options, data=data, checks=checks))
        if checks.resize is None:
            return _facts(data, decoded)
        resized = _resized(decoded, checks.resize, most_pixels=checks.max_pixels)
        stored = _encoded(resized)
        with path.open("r+b") as file:  # over the bytes that came: cutting them off first costs .1 ms on ext4
            file.write(stored)
            file.truncate()
        return replace(_described(stored, resized, resized.size, "JPEG"), detail=f"resized: {checks.resize}")
    except _UnwantedError as error:
        reason, detail = error.reason, error.detail
    except ImageError as error:
        reason, detail = _reason(error.fault, data), error.detail
    return Rejection(reason, detail[:200], len(data), hashlib.sha256(data).hexdigest())


class _UnwantedError(ImageError):
    """An image, but not one that is kept."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(Fault.UNREADABLE, detail)
        self.reason = reason


def _reason(fault: Fault, data: bytes) -> Reason:
    reason = _REASONS.get(fault, Reason.CORRUPT)
    if reason is Reason.NOT_AN_IMAGE:
        return _kind_of_text(data)
    return Reason.TRUNCATED if reason is Reason.CORRUPT and _is_truncated(data) else reason


def _options(header: ImageHeader, data: bytes, checks: Checks) -> DecodeOptions:
    if header.format not in SUFFIXES:
        raise _UnwantedError(Reason.NOT_AN_IMAGE, f"the format {header.format} is not gathered")
    width, height = header.size
    if min(header.size) < checks.min_size:
        raise _UnwantedError(Reason.TOO_SMALL, f"{width} x {height} pixels")
    if _is_truncated(data):
        raise ImageError(Fault.TRUNCATED, "the end of the image is missing")
    if checks.resize is None:  # an eighth of the side still reads every byte
        return DecodeOptions(min_size=(max(_HASHED_PX, width // 8), max(_HASHED_PX, height // 8)), mode="L")
    mode = "YCbCr" if min(header.size) > checks.resize else None  # where it shrinks: nothing to convert and back
    return DecodeOptions(min_size=(2 * checks.resize, 2 * checks.resize), mode=mode)


def _facts(data: bytes, decoded: DecodedImage) -> Facts:
    size = decoded.size if decoded.orientation < 5 else decoded.size[::-1]  # as stored
    return _described(data, decoded.image, size, decoded.header.format, orientation=decoded.orientation)


def _described(
    stored: bytes, image: Image.Image, size: tuple[int, int], image_format: str, *, orientation: int = 1
) -> Facts:
    return Facts(
        bytes=len(stored),
        sha256=hashlib.sha256(stored).hexdigest(),
        dhash=difference_hash(image),
        format=image_format,
        width=size[0],
        height=size[1],
        orientation=orientation,
        suffix=SUFFIXES[image_format],
    )


def _is_truncated(data: bytes) -> bool:
    """Whether the mark that ends the image is absent: a decoder forgives that, a cut body must not be kept.

    Bytes after that mark (a motion photo's film, a second image) are not looked at.
    """
    if data.startswith(b"\xff\xd8"):
        return _is_truncated_jpeg(data)
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return data.startswith(_PNG) and _is_cut_png(data)


def _is_truncated_jpeg(data: bytes) -> bool:
    """Walk the segments, and through each scan to the next marker, up to the end of the image (ITU T.81, B.1)."""
    if data.endswith(b"\xff\xd9"):  # as most do; within a scan these bytes cannot stand, and the walk takes .4 ms
        return False
    at = 2
    while match := _JPEG_MARKER.search(data, at):
        at = match.end()
        marker = data[at - 1]
        if marker == 0xD9:
            return False
        if marker != 0x01:
            at += int.from_bytes(data[at : at + 2], "big")
    return True


def _is_cut_png(data: bytes) -> bool:
    """Walk the chunks up to IEND."""
    at = len(_PNG)
    while len(data) >= at + 12:
        if data[at + 4 : at + 8] == b"IEND":
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True


def _resized(decoded: DecodedImage, shorter_px: int, *, most_pixels: int) -> Image.Image:
    """The image upright, its shorter side at `shorter_px`; in 8-bit RGB, or YCbCr where a JPEG is made smaller."""
    size = resized_size(*decoded.size, ImageProperty(shorter_px))
    if size[0] * size[1] > most_pixels or max(size) > _JPEG_MOST_PX:
        raise _UnwantedError(Reason.TOO_MANY_PIXELS, f"{size[0]} x {size[1]} when resized")
    shrinks = min(decoded.size) > shorter_px
    resampling = Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR
    return decoded.image.resize(size, resampling, reducing_gap=2.0)


def _encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()


def difference_hash(image: Image.Image) -> str:
    """64 bits: whether each of 8 x 8 points is brighter than its right neighbour; 16 hexadecimal digits.

    Source: N. Krawetz, "Kind of Like That" (2013).
    """
    grey = image if image.mode == "L" else image.convert("L")
    points = grey.resize((9, 8), Image.Resampling.BOX, reducing_gap=4.0).tobytes()  # 72 bytes, row by row
    brighter = bytearray(map(gt, points, points[1:]))
    del brighter[8::9]  # a row's last point has no right neighbour
    return f"{int(brighter.hex()[1::2], 2):016x}"


def _kind_of_text(data: bytes) -> Reason:
    if begins_as_html(data):
        return Reason.HTML
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:1024])  # forgives a character cut at the end
    except UnicodeDecodeError:
        return Reason.NOT_AN_IMAGE
    return Reason.TEXT if all(char.isprintable() or char.isspace() for char in text) else Reason.NOT_AN_IMAGE
