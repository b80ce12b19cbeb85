"""What is asked of an image, and what is found: values between the run and its decoding processes."""

from __future__ import annotations

from dataclasses import dataclass

from mlimages.core import MAX_PIXELS, Reason


@dataclass(frozen=True, slots=True)
class Checks:
    """What an image must satisfy, and the shorter side at which it is stored (None: as it came).

    Attributes:
        ignore_opt_out: take an image although its XMP prohibits data mining.
    """

    max_pixels: int = MAX_PIXELS
    min_size: int = 1
    resize: int | None = None
    ignore_opt_out: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """A verified image: what goes into its manifest row, and the suffix that its bytes ask for."""

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
    """Bytes that are no usable image; `sha256` and `bytes` where they were read."""

    reason: Reason
    detail: str = ""
    bytes: int | None = None
    sha256: str | None = None


def begins_as_html(data: bytes) -> bool:
    """Whether a body is a web page, by its first bytes."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or b"<html" in head
