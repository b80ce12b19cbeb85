"""Verify that downloaded files are complete images of a supported format, and resize them."""

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
from mlimages.gathering.download.image_info import ImageInfo, ImageRequirements, Rejection, is_html
from mlimages.gathering.download.opt_outs import find_xmp_opt_out
from mlimages.images import DecodedImage, DecodeOptions, ImageHeader, compute_resized_size, decode

SUFFIX_BY_FORMAT = {
    "AVIF": ".avif", "BMP": ".bmp", "GIF": ".gif", "HEIF": ".heic", "ICO": ".ico", "JPEG": ".jpg",
    "JPEG2000": ".jp2", "MPO": ".jpg", "PNG": ".png", "PPM": ".ppm", "TIFF": ".tif", "WEBP": ".webp",
}  # fmt: skip
"""File suffixes of the supported formats; others are not decoded (for EPS, Pillow would start Ghostscript)."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd8]")
"""Matches a JPEG marker, except restart markers (0xFFD0 to 0xFFD7), start of image (0xFFD8), and 0xFF00, which stands
for the byte 0xFF in a scan: so within a scan, there is no match."""
_MIN_HASHED_PX = 32  # minimum side: at 1/8 scale (four pixels per row), half of all thumbnails looked alike
_JPEG_QUALITY = 95
_MAX_JPEG_SIDE_PX = 65_500  # maximum side in libjpeg


def verify_and_resize(path: Path, requirements: ImageRequirements) -> ImageInfo | Rejection:
    """Verify an image file by decoding it completely; resize it in place if `target_shorter_px` is set.

    Returns:
        The properties of the image, or why it is rejected.
    """
    data = path.read_bytes()
    opt_out = find_xmp_opt_out(data)
    try:
        if opt_out and not requirements.ignore_opt_out:
            raise _UnsuitableImageError(Reason.OPT_OUT, opt_out)
        info = _verify_and_resize_data(path, data, requirements)
    except ImageError as error:
        reason = error.reason if isinstance(error, _UnsuitableImageError) else _classify_fault(error.fault, data)
        return Rejection(reason, error.detail[:200], len(data), hashlib.sha256(data).hexdigest())
    notes = (info.detail, f"ignored opt-out: {opt_out}" if opt_out else "")
    return replace(info, detail="; ".join(filter(None, notes)))


def _verify_and_resize_data(path: Path, data: bytes, requirements: ImageRequirements) -> ImageInfo:
    """Do what `verify_and_resize` does, but raise ImageError; `data` is the content of the file."""
    decoded = decode(
        data,
        max_pixels=requirements.max_pixels,
        options=partial(_choose_decode_options, data=data, requirements=requirements),
    )
    image, image_format, orientation, detail = decoded.image, decoded.header.format, decoded.orientation, ""
    size = decoded.size if orientation < 5 else decoded.size[::-1]  # as stored
    if requirements.target_shorter_px is not None:
        image = _resize(decoded, requirements.target_shorter_px, max_pixels=requirements.max_pixels)
        size, image_format, orientation = image.size, "JPEG", 1
        detail = f"resized: {requirements.target_shorter_px}"
        image.save(out := io.BytesIO(), "JPEG", quality=_JPEG_QUALITY)
        data = out.getvalue()
        with path.open("r+b") as file:  # overwrites in place: truncating first takes .1 ms on ext4
            file.write(data)
            file.truncate()
    return ImageInfo(
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        dhash=compute_difference_hash(image),
        format=image_format,
        width=size[0],
        height=size[1],
        orientation=orientation,
        suffix=SUFFIX_BY_FORMAT[image_format],
        detail=detail,
    )


class _UnsuitableImageError(ImageError):
    """Raised if an image does not meet the requirements, or opts out of training."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(Fault.UNREADABLE, detail)
        self.reason = reason


def _classify_fault(fault: Fault, data: bytes) -> Reason:
    """Return the reason to record for a file that cannot be decoded; `data`, its content, may be HTML or truncated."""
    if fault in (Fault.NOT_AN_IMAGE, Fault.UNREADABLE):
        return _classify_non_image(data)
    if fault in (Fault.EMPTY, Fault.TOO_MANY_PIXELS):
        return Reason(fault.value)
    return Reason.TRUNCATED if fault is Fault.TRUNCATED or _is_truncated(data) else Reason.CORRUPT


def _choose_decode_options(header: ImageHeader, data: bytes, requirements: ImageRequirements) -> DecodeOptions:
    """Return how an image is to be decoded, given its header; raise ImageError if it does not meet the requirements."""
    if header.format not in SUFFIX_BY_FORMAT:
        raise _UnsuitableImageError(Reason.NOT_AN_IMAGE, f"the format {header.format} is not supported")
    width, height = header.size
    if min(header.size) < requirements.min_side_px:
        raise _UnsuitableImageError(
            Reason.TOO_SMALL, f"{width} x {height} pixels, at least {requirements.min_side_px} required per side"
        )
    if _is_truncated(data):
        raise ImageError(Fault.TRUNCATED, "the image is truncated")
    if requirements.target_shorter_px is None:  # 1/8 scale still reads every byte
        return DecodeOptions(min_size=(max(_MIN_HASHED_PX, width // 8), max(_MIN_HASHED_PX, height // 8)), mode="L")
    is_downscaled = min(header.size) > requirements.target_shorter_px
    mode = "YCbCr" if is_downscaled else None  # without converting to RGB and back
    return DecodeOptions(min_size=(2 * requirements.target_shorter_px, 2 * requirements.target_shorter_px), mode=mode)


def _is_truncated(data: bytes) -> bool:
    """Return whether a JPEG, PNG or WebP file is truncated, which decoders may tolerate; False for other formats.

    Bytes after the end of the image (the video of a motion photo, a second image) are ignored.
    """
    if data.startswith(b"\xff\xd8"):
        return _is_truncated_jpeg(data)
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return data.startswith(_PNG_SIGNATURE) and _is_truncated_png(data)


def _is_truncated_jpeg(data: bytes) -> bool:
    """Return whether a JPEG lacks the end-of-image marker after its segments and scans (ITU T.81, B.1)."""
    if data.endswith(b"\xff\xd9"):  # the usual case: these bytes cannot occur within a scan, and the walk takes .4 ms
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


def _is_truncated_png(data: bytes) -> bool:
    """Return whether a PNG lacks its last chunk, IEND."""
    at = len(_PNG_SIGNATURE)
    while len(data) >= at + 12:
        if data[at + 4 : at + 8] == b"IEND":
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True


def _resize(decoded_image: DecodedImage, shorter_px: int, *, max_pixels: int) -> Image.Image:
    """Return the upright image with a shorter side of `shorter_px` pixels, in RGB.

    A JPEG that becomes smaller may be in YCbCr, to avoid converting it to RGB and back.
    """
    size = compute_resized_size(*decoded_image.size, ImageProperty(shorter_px))
    if size[0] * size[1] > max_pixels or max(size) > _MAX_JPEG_SIDE_PX:
        raise _UnsuitableImageError(Reason.TOO_MANY_PIXELS, f"too large after resizing: {size[0]} x {size[1]} pixels")
    shrinks = min(decoded_image.size) > shorter_px
    resampling = Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR
    return decoded_image.image.resize(size, resampling, reducing_gap=2.0)


def compute_difference_hash(image: Image.Image) -> str:
    """Return the 64-bit difference hash (dHash) of an image as 16 hexadecimal digits.

    Each bit says whether one of 8 x 8 points is brighter than its right neighbour.

    Source: N. Krawetz, "Kind of Like That" (2013).
    """
    grey = image if image.mode == "L" else image.convert("L")
    points = grey.resize((9, 8), Image.Resampling.BOX, reducing_gap=4.0).tobytes()  # 72 bytes, row by row
    brighter = bytearray(map(gt, points, points[1:]))
    del brighter[8::9]  # the last point of a row has no right neighbour
    return f"{int(brighter.hex()[1::2], 2):016x}"


def _classify_non_image(data: bytes) -> Reason:
    if is_html(data):
        return Reason.HTML
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:1024])  # tolerates a truncated character at the end
    except UnicodeDecodeError:
        return Reason.NOT_AN_IMAGE
    return Reason.TEXT if all(char.isprintable() or char.isspace() for char in text) else Reason.NOT_AN_IMAGE
