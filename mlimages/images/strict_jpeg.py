"""JPEGs decoded by a library that reports the damage that Pillow passes over (the extra `strict`).

libjpeg warns of all that is not as the standard says. Only some of that damages pixels:

- padding between the header's segments, or after the scan, and odd values in the header leave the pixels whole;
- everything else is damage to the scan.

libjpeg reports the last warning alone, so padding is removed and the rest decoded again.
"""

from __future__ import annotations

import re

from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

STRICT_JPEG = simplejpeg is not None
"""Whether simplejpeg is installed."""

_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_SCAN_DAMAGE = re.compile(
    r"extraneous|bad (Huffman|arithmetic)|premature end|instead of RST|progression", re.IGNORECASE
)
_HEADER_WARNING = re.compile(r"JFIF revision|Adobe color transform|SOS parameters|ICC marker")

_MAX_PADDINGS = 8
"""Paddings removed from one file before it is called damaged."""

_MIN_RUN = 4
"""Equal bytes after a scan that are padding; fewer may be the rest of a damaged scan, unless they are zeros."""


class ScanError(Exception):
    """The compressed pixels are damaged; the text says how."""


def decode_strictly(data: bytes, least: tuple[int, int]) -> tuple[Image.Image | None, bool]:
    """RGBX pixels (None: Pillow is to decode), and whether something was irregular that left them whole.

    Args:
        least: the size (width, height) to hold: the smallest scale of 1, 1/2, 1/4 and 1/8 is taken that does.

    Raises:
        ScanError: the compressed pixels are damaged.
    """
    rest = data
    for _ in range(_MAX_PADDINGS):
        try:
            pixels = simplejpeg.decode_jpeg(rest, "RGBX", min_width=least[0], min_height=least[1])  # (H, W, 4)
        except ValueError as error:
            warning = str(error)
        else:  # Pillow's own layout: not copied
            return Image.frombuffer("RGBX", pixels.shape[1::-1], pixels, "raw", "RGBX", 0, 1), rest is not data
        if not _SCAN_DAMAGE.search(warning):
            return None, bool(_HEADER_WARNING.search(warning))
        shorter = _without_padding(rest, warning)
        if shorter is None:
            break
        rest = shorter
    raise ScanError(warning)


def _without_padding(data: bytes, warning: str) -> bytes | None:
    found = _EXTRANEOUS.search(warning)
    if found is None:
        return None
    whole, scan = _without_header_padding(data)
    if len(whole) < len(data):
        return whole
    count, marker = int(found[1]), bytes([0xFF, int(found[2], 16)])
    end = data.rfind(marker, scan)
    while end >= scan + count:
        padding = data[end - count : end]
        if padding == bytes(count) or (count >= _MIN_RUN and len(set(padding)) == 1):
            return data[: end - count] + data[end:]
        end = data.rfind(marker, scan, end)
    return None


def _without_header_padding(data: bytes) -> tuple[bytes, int]:
    """The file without what lies between its segments up to the first scan, and where that begins."""
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
