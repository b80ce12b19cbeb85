"""Requirements on images and results of inspection, exchanged with the decoding processes."""

from __future__ import annotations

from dataclasses import dataclass

from mlimages.core import MAX_PIXELS, Reason


@dataclass(frozen=True, slots=True)
class ImageRequirements:
    """Requirements on an image, and the shorter side to which it is resized (None: not resized).

    Attributes:
        ignore_opt_out: accept an image even if its XMP prohibits data mining.
    """

    max_pixels: int = MAX_PIXELS
    min_size: int = 1
    resize: int | None = None
    ignore_opt_out: bool = False


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """A verified image: the values of its manifest row, and the suffix that matches its format."""

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
    """A file that is not a usable image; `sha256` and `bytes` are set if it was read."""

    reason: Reason
    detail: str = ""
    bytes: int | None = None
    sha256: str | None = None


def is_html(data: bytes) -> bool:
    """Whether a body is a web page, by its first bytes."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or b"<html" in head
