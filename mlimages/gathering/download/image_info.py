"""Requirements on images, and results of inspecting them, exchanged with the decoding processes."""

from __future__ import annotations

from dataclasses import dataclass

from mlimages.core import MAX_PIXELS, Reason


@dataclass(frozen=True, slots=True)
class ImageRequirements:
    """Requirements on an image.

    Attributes:
        max_pixels: maximum width x height.
        min_side_px: minimum length of the shorter side in pixels.
        target_shorter_px: length in pixels to which the shorter side is resized; None: the image is kept unchanged.
        ignore_opt_out: accept an image whose XMP prohibits data mining.
    """

    max_pixels: int = MAX_PIXELS
    min_side_px: int = 1
    target_shorter_px: int | None = None
    ignore_opt_out: bool = False


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Properties of a verified image: fields of its manifest row (see `FetchResult`), and its file suffix.

    Attributes:
        suffix: suffix of files in this format, such as `.jpg`.
        detail: notes for the manifest row, such as `resized: 256`, or that an opt-out was ignored.
    """

    bytes: int
    sha256: str
    dhash: str
    format: str
    width: int
    height: int
    orientation: int
    suffix: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a file is not stored as an image.

    Attributes:
        reason: code of the reason.
        detail: further information, in words.
        bytes, sha256: size and hash of the file; None if it was not read.
    """

    reason: Reason
    detail: str = ""
    bytes: int | None = None
    sha256: str | None = None


def is_html(data: bytes) -> bool:
    """Return whether the data, a file or its beginning, looks like an HTML page."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or b"<html" in head
