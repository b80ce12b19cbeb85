"""Decode JPEGs with simplejpeg (the extra `strict`), which reports damage that Pillow ignores.

simplejpeg reports the last warning of libjpeg. Padding between header segments or after the scan, and unusual values in
the header, leave the pixels intact; any other warning means that the scan is damaged. Since padding may hide a second
warning, it is removed and the file is decoded again.
"""

from __future__ import annotations

import re

from PIL import Image

try:
    import simplejpeg
except ModuleNotFoundError:
    simplejpeg = None

HAS_SIMPLEJPEG = simplejpeg is not None
"""Whether simplejpeg is installed."""

_PADDING_WARNING = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_SCAN_DAMAGE_WARNING = re.compile(
    r"extraneous|bad (Huffman|arithmetic)|premature end|instead of RST|progression", re.IGNORECASE
)
_HEADER_WARNING = re.compile(r"JFIF revision|Adobe color transform|SOS parameters|ICC marker")

_MAX_DECODINGS = 8
"""Maximum number of times a file is decoded; if padding is still found, the file counts as damaged."""

_MIN_PADDING_BYTES = 4
"""Minimum length of padding after the header that repeats a nonzero byte; padding with zeros may have any length."""


class JpegScanError(Exception):
    """The compressed pixels are damaged; the message is the warning of libjpeg."""


def decode_strictly(data: bytes, min_size: tuple[int, int]) -> tuple[Image.Image | None, bool]:
    """Decode a JPEG with simplejpeg, and raise an error if its compressed pixels are damaged.

    Args:
        data: the JPEG file.
        min_size: minimum width and height in pixels; the image is decoded at the smallest scale of 1/8, 2/8 ... 8/8
            that keeps this size.

    Returns:
        The RGBX image, or None if Pillow has to decode it; and whether the file is irregular: it has padding or unusual
        header values, but intact pixels.

    Raises:
        JpegScanError: the compressed pixels are damaged.
    """
    rest = data
    for _ in range(_MAX_DECODINGS):
        try:
            pixels = simplejpeg.decode_jpeg(rest, "RGBX", min_width=min_size[0], min_height=min_size[1])  # (H, W, 4)
        except ValueError as error:
            warning = str(error)
        else:  # Pillow stores RGB as RGBX: no copy
            return Image.frombuffer("RGBX", pixels.shape[1::-1], pixels, "raw", "RGBX", 0, 1), rest is not data
        if not _SCAN_DAMAGE_WARNING.search(warning):
            return None, bool(_HEADER_WARNING.search(warning))
        shorter = _remove_reported_padding(rest, warning)
        if shorter is None:
            break
        rest = shorter
    raise JpegScanError(warning)


def _remove_reported_padding(data: bytes, warning: str) -> bytes | None:
    """Return the file without the padding that a warning of libjpeg reports; None if the bytes are not padding."""
    found = _PADDING_WARNING.search(warning)
    if found is None:
        return None
    unpadded, scan = _remove_header_padding(data)
    if len(unpadded) < len(data):
        return unpadded
    count, marker = int(found[1]), bytes([0xFF, int(found[2], 16)])
    end = len(data)
    while (end := data.rfind(marker, scan, end)) >= scan + count:
        padding = data[end - count : end]
        if padding == bytes(count) or (count >= _MIN_PADDING_BYTES and len(set(padding)) == 1):
            return data[: end - count] + data[end:]
    return None


def _remove_header_padding(data: bytes) -> tuple[bytes, int]:
    """Remove padding between the segments before the first scan; return the file and the offset of that scan."""
    kept, at = bytearray(data[:2]), 2
    while (start := data.find(b"\xff", at)) >= 0:
        marker = data[start + 1 : start + 2]
        if marker == b"\xff":  # a fill byte, which the standard allows
            at = start + 1
            continue
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == b"\x00" or end > len(data):
            at = start + 2
            continue
        if marker == b"\xda":
            scan = len(kept)
            return bytes(kept + data[start:]), scan
        kept += data[start:end]
        at = end
    return data, len(data)
