"""Recognize files that are neither images nor models, such as web pages."""

from __future__ import annotations

_BASE64_IMAGE_PREFIXES = (b"data:image/", b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR")
"""The first bytes of a data URL, and of JPEG, PNG, GIF and WebP files encoded in base64."""


def describe_unsupported_content(first_bytes: bytes) -> str:
    """Return what a file contains instead of an image or model, and what to do about it; "" if it is not recognized.

    Args:
        first_bytes: the beginning of the file; a few hundred bytes suffice.
    """
    text = first_bytes.lstrip()
    if text.startswith(b"version https://git-lfs"):
        return "the file is a Git LFS pointer; fetch the file with `git lfs pull`"
    if text.startswith(_BASE64_IMAGE_PREFIXES):
        return "the file is base64 text; decode it to the bytes of the image file"
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "the file is an SVG drawing; convert it to PNG"
    if text.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "the file is a web page; download the image or model file instead"
    return ""
