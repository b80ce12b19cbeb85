"""Recognize files that are neither images nor models, such as web pages."""

from __future__ import annotations

_BASE64_IMAGES = (b"data:image/", b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR")
"""A data URL, and how JPEG, PNG, GIF and WebP files begin in base64."""


def describe_unsupported_content(first_bytes: bytes) -> str:
    """Return what a non-image file contains, judging by its first bytes, and what to do; "" if it is not recognized."""
    text = first_bytes.lstrip()
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file with `git lfs pull`"
    if text.startswith(_BASE64_IMAGES):
        return "it is base64 text; decode it to the bytes of the image file"
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "it is an SVG drawing; convert it to PNG"
    if text.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; download the file itself"
    return ""
