"""Handle what Pillow ignores in PNG and TIFF files: missing rows, 16-bit pixels in which 0 is white, signed bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import ExifTags, Image

from mlimages.core import Fault, ImageError

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Number of channels by color type (www.w3.org/TR/png-3, 11.2.1)."""

_SIGNED, _WHITE_IS_ZERO = 2, 0
"""Values of the TIFF tags SampleFormat and PhotometricInterpretation (TIFF 6.0, sections 19 and 8)."""


def require_complete_png(image: Image.Image, data: bytes) -> None:
    """Check that the compressed data of a decoded PNG has all rows; Pillow leaves missing rows black.

    The data is decompressed again only if all bytes of the last row are 0. Interlaced files are not checked.

    Raises:
        ImageError: rows are missing.
    """
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    if any(last_row.tobytes()) or data[12:16] != b"IHDR":
        return
    width, height, bits, color, *_, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if interlace or color not in _PNG_CHANNELS:
        return
    missing = height * (1 + (width * bits * _PNG_CHANNELS[color] + 7) // 8)
    inflate = zlib.decompressobj()
    for chunk in _iter_png_data(data):
        while chunk and missing > 0:
            missing -= len(inflate.decompress(chunk, 1 << 20))
            chunk = inflate.unconsumed_tail
    if missing > 0:
        raise ImageError(Fault.TRUNCATED, "the data ends before the last row: copy or download the file again")


def _iter_png_data(data: bytes) -> Iterator[bytes]:
    """Yield the contents of the IDAT chunks, which hold the compressed pixels."""
    at = 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            yield data[at + 8 : at + 8 + length]
        at += 12 + length


def correct_tiff_pixels(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Invert the pixels of a 16-bit TIFF in which 0 means white, since Pillow does not; return others unchanged.

    Raises:
        ImageError: the pixels are signed bytes, which Pillow reads as unsigned.
    """
    sample_formats = tags.get(ExifTags.Base.SampleFormat, ())
    if image.mode != "I" and _SIGNED in (sample_formats if isinstance(sample_formats, tuple) else (sample_formats,)):
        raise ImageError(
            Fault.UNREADABLE, "signed 8-bit pixel values are not supported: convert the image to unsigned 8 bits"
        )
    if tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO and image.mode.startswith("I;16"):
        import numpy as np  # takes 70 ms, and most decoding processes do not need it

        return Image.fromarray(65535 - np.asarray(image).astype(np.uint16))
    return image
