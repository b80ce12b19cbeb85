"""Bytes become verified facts of a picture, or a reason why they are none."""

from __future__ import annotations

import codecs
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mlimages.errors import ImageError
from mlimages.images import MAX_PIXELS, decode, open_image, resized_size, to_rgb
from mlimages.records import Fault, ImageProperty, Reason

SUFFIXES = {
    "AVIF": ".avif", "BMP": ".bmp", "GIF": ".gif", "ICO": ".ico", "JPEG": ".jpg", "JPEG2000": ".jp2", "MPO": ".jpg",
    "PNG": ".png", "PPM": ".ppm", "TIFF": ".tif", "WEBP": ".webp",
}  # fmt: skip
"""The formats that are kept; others (EPS starts Ghostscript) are not decoded at all."""

_REASONS = {
    Fault.EMPTY: Reason.EMPTY,
    Fault.TRUNCATED: Reason.TRUNCATED,
    Fault.CORRUPT: Reason.CORRUPT,
    Fault.TOO_MANY_PIXELS: Reason.TOO_MANY_PIXELS,
    Fault.NOT_AN_IMAGE: Reason.NOT_AN_IMAGE,
}
_ORIENTATION = 0x0112
_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Checks:
    """What a picture must satisfy, and the shorter side at which it is stored (None: as it came)."""

    max_pixels: int = MAX_PIXELS
    min_size: int = 1
    resize: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """A verified picture: what goes into its manifest row, and the suffix that its bytes ask for."""

    bytes: int
    sha256: str
    dhash: str
    format: str
    width: int
    height: int
    orientation: int
    suffix: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """Bytes that are no usable picture; `sha256` and `bytes` where they were read."""

    reason: Reason
    detail: str = ""
    bytes: int | None = None
    sha256: str | None = None


def inspect_file(path: Path, checks: Checks) -> Facts | Rejection:
    """Decode the file to its last byte; with `checks.resize`, replace it by the resized picture."""
    data = path.read_bytes()
    try:
        if checks.resize is None:
            return _facts(data, data, checks)
        stored = _resized(data, checks)
        path.write_bytes(stored)
        return _facts(stored, data, checks)
    except ImageError as error:
        reason, detail = _reason(error.fault, data), error.detail
    except _UnwantedError as error:
        reason, detail = error.reason, str(error)
    return Rejection(reason, detail[:200], len(data), hashlib.sha256(data).hexdigest())


class _UnwantedError(Exception):
    """A picture, but not one that is kept."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _reason(fault: Fault, data: bytes) -> Reason:
    reason = _REASONS.get(fault, Reason.CORRUPT)
    if reason is Reason.NOT_AN_IMAGE:
        return _kind_of_text(data)
    return Reason.TRUNCATED if reason is Reason.CORRUPT and _is_cut(data) else reason


def _facts(stored: bytes, received: bytes, checks: Checks) -> Facts:
    image = _open(stored, checks if stored is received else Checks())
    width, height = image.size
    image_format = image.format or ""
    image.draft("L", (width // 8, height // 8))  # JPEG alone: an eighth of the side still reads every byte
    decode(image)
    return Facts(
        bytes=len(stored),
        sha256=hashlib.sha256(stored).hexdigest(),
        dhash=difference_hash(to_rgb(image)),
        format=image_format,
        width=width,
        height=height,
        orientation=_orientation(image),
        suffix=SUFFIXES[image_format],
    )


def _open(data: bytes, checks: Checks) -> Image.Image:
    image = open_image(data, max_pixels=checks.max_pixels)
    if image.format not in SUFFIXES:
        raise _UnwantedError(Reason.NOT_AN_IMAGE, f"the format {image.format} is not gathered")
    if min(image.size) < checks.min_size:
        raise _UnwantedError(Reason.TOO_SMALL, f"{image.width} x {image.height} pixels")
    if _is_cut(data):
        raise ImageError(Fault.TRUNCATED, "the end of the picture is missing")
    return image


def _is_cut(data: bytes) -> bool:
    """Whether the mark that ends the file is absent: a decoder forgives that, a cut body must not be kept."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")  # end of image; start of scan
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return data.startswith(b"\x89PNG") and b"IEND" not in data[-65536:]


def _resized(data: bytes, checks: Checks) -> bytes:
    """The picture upright, 8-bit RGB, its shorter side at `checks.resize` pixels, as JPEG."""
    assert checks.resize is not None
    image = _open(data, checks)
    image.draft(None, (2 * checks.resize, 2 * checks.resize))  # JPEG alone: at least twice the size wanted
    upright = to_rgb(decode(image))
    size = resized_size(*upright.size, ImageProperty(checks.resize))
    out = io.BytesIO()
    upright.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0).save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def difference_hash(image: Image.Image) -> str:
    """64 bits: whether each of 8 x 8 points is brighter than its right neighbour; 16 hexadecimal digits.

    Source: N. Krawetz, "Kind of Like That" (2013).
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()  # 72 bytes, row by row
    bits = 0
    for row in range(0, 72, 9):
        for left in range(row, row + 8):
            bits = bits << 1 | (grey[left] > grey[left + 1])
    return f"{bits:016x}"


def _kind_of_text(data: bytes) -> Reason:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or b"<html" in head:
        return Reason.HTML
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:1024])  # forgives a character cut at the end
    except UnicodeDecodeError:
        return Reason.NOT_AN_IMAGE
    return Reason.TEXT if all(char.isprintable() or char.isspace() for char in text) else Reason.NOT_AN_IMAGE
