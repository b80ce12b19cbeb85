"""Decode an image once, and measure the properties that the checks use."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.images import TRANSPOSE_BY_ORIENTATION, DecodeOptions, ImageHeader, convert_to_image_error, decode

VERSION = 8
"""Version of the cached facts; increase it when their meaning or the schema changes."""

WORK_PX = 128
"""Images are reduced by an integer factor for measuring; the shorter side keeps at least this many pixels."""

GREY_CHROMA = 2
"""Maximum distance of Cb and Cr from 128 in a grayscale image saved as a colour JPEG."""

COLOURED = 9
"""If the means of red, green and blue differ by more than this, some Cb or Cr exceeds GREY_CHROMA (JFIF 1.02)."""

ONE_THREAD = 10_000
"""Maximum length of vectors that OpenBLAS multiplies in one thread; its other threads would busy-wait and take CPU time
from the other workers."""

FLAT_SPREAD = 6
"""Maximum difference from MID_GREY of the levels in a flat area of a JPEG."""

MID_GREY = 128

_LAYOUT = struct.Struct("<8s8sIIB?????BBBfBfBBB256s")
_ROW = np.dtype([
    ("format", "S8"), ("mode", "S8"), ("width", "<u4"), ("height", "<u4"), ("orientation", "u1"), ("animated", "?"),
    ("deep", "?"), ("irregular", "?"), ("transparent", "?"), ("grey", "?"), ("low", "u1"), ("high", "u1"),
    ("typical", "u1"), ("two_levels", "<f4"), ("flat_bottom", "u1"), ("sharpness", "<f4"), ("red", "u1"),
    ("green", "u1"), ("blue", "u1"), ("thumb", "u1", (256,)),
])  # fmt: skip


class Facts(NamedTuple):
    """Measurements of one image.

    Attributes:
        format, mode: format and mode of the file, as named by Pillow.
        width, height: size of the upright image in pixels.
        orientation: EXIF orientation, 1 (upright) to 8.
        animated: whether the file has more than one frame.
        deep: whether the file has more than 8 bits per channel.
        irregular: whether the file is a JPEG with padding or unusual header values but intact pixels.
        transparent: whether any pixel is at least partly transparent.
        grey: whether the image has no colour.
        low, high: 2nd and 98th percentile of the luma levels, 0..255.
        typical: median of the luma levels.
        two_levels: fraction of the image that the two most frequent luma levels cover.
        flat_bottom: percentage of the height, from the bottom, that is uniformly mid-gray.
        sharpness: sum of squared differences between neighbouring pixels, divided by the sum for pixels two apart: 0.25
            for a smooth image, about 0.5 for sharp edges, 1 for noise; independent of contrast.
        red, green, blue: mean of each channel, 0..255.
        thumb: luma of the upright image at 16 x 16 pixels, row by row.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int
    animated: bool
    deep: bool
    irregular: bool
    transparent: bool
    grey: bool
    low: int
    high: int
    typical: int
    two_levels: float
    flat_bottom: int
    sharpness: float
    red: int
    green: int
    blue: int
    thumb: bytes

    def pack(self) -> bytes:
        """Serialize the facts to bytes; `make_facts_table` reads them."""
        return _LAYOUT.pack(self.format.encode()[:8], self.mode.encode()[:8], *self[2:])


FactsTable = NDArray[Any]
"""Facts of many images as a structured array with the attributes as fields: `table["width"]` is `(N,)`."""


def make_facts_table(packed_facts: Iterable[bytes]) -> FactsTable:
    """Return a structured array with one row per image from the results of `Facts.pack`."""
    return np.frombuffer(b"".join(packed_facts), dtype=_ROW)


@convert_to_image_error
def examine(data: bytes, *, max_pixels: int) -> Facts:
    """Decode an image file completely, and return its measurements.

    A JPEG is decoded at a reduced scale, which still reads every byte, and by simplejpeg if that is installed.

    Raises:
        ImageError: the image cannot be decoded.
    """
    decoded = decode(data, max_pixels=max_pixels, options=_choose_decode_options)
    small, mode = decoded.image, decoded.header.mode
    luma = small.convert("L")
    thumb = luma.resize((16, 16), Image.Resampling.BOX)
    thumb = (
        thumb
        if decoded.image_orientation == 1
        else thumb.transpose(TRANSPOSE_BY_ORIENTATION[decoded.image_orientation])
    )
    sample = small.resize((32, 32), Image.Resampling.NEAREST)  # 1024 pixels suffice for the colour
    red, green, blue, *_ = sample.reduce(32).getpixel((0, 0))  # type: ignore[misc]  # RGB
    low, high, typical, two_levels = _compute_luma_statistics(luma)
    width, height = decoded.size
    return Facts(
        format=decoded.header.format,
        mode=mode,
        width=width,
        height=height,
        orientation=decoded.orientation,
        animated=decoded.animated,
        deep=decoded.header.high_bit_depth,
        irregular=decoded.irregular_jpeg,
        transparent=decoded.transparent,
        grey=mode in ("1", "L", "LA") or mode[:1] in "IF" or _is_grey(sample, (red, green, blue)),
        low=low,
        high=high,
        typical=typical,
        two_levels=two_levels,
        flat_bottom=_measure_flat_bottom(small),
        sharpness=_measure_sharpness(luma),
        red=red,
        green=green,
        blue=blue,
        thumb=thumb.tobytes(),
    )


def _choose_decode_options(header: ImageHeader) -> DecodeOptions:
    """Keep the stored orientation, since decoders fill the bottom of a truncated JPEG with gray."""
    width, height = header.size
    factor = max(1, min(width, height) // WORK_PX)
    return DecodeOptions(
        min_size=(width // factor, height // factor), min_reduced_side_px=WORK_PX, strict=True, apply_orientation=False
    )


def _is_grey(image: Image.Image, channel_means: tuple[int, ...]) -> bool:
    """Whether the channels are equal up to JPEG artifacts."""
    if max(channel_means) - min(channel_means) > COLOURED:
        return False
    ranges: Any = image.convert("YCbCr").getextrema()
    return all(low >= 128 - GREY_CHROMA and high <= 128 + GREY_CHROMA for low, high in ranges[1:])


def _compute_luma_statistics(luma_image: Image.Image) -> tuple[int, int, int, float]:
    """Return the 2nd, 98th and 50th percentile of luma, and the fraction that the two most frequent levels cover."""
    counts, pixels = luma_image.histogram(), luma_image.width * luma_image.height
    below = list(accumulate(counts))  # without NumPy, whose calls take about 5 us each between decodings
    low, typical, high = (bisect_left(below, share * pixels) for share in (0.02, 0.5, 0.98))
    most = max(counts)
    counts.remove(most)
    return low, high, typical, (most + max(counts)) / pixels


def _measure_sharpness(luma_image: Image.Image) -> float:
    width, height = luma_image.size
    step = 18 if height >= WORK_PX else 3  # a sixth of a large image suffices
    step = max(step, min(height, 3 * width * height // ONE_THREAD + 1))
    rows = np.frombuffer(luma_image.tobytes(), np.uint8).reshape(height, width)
    threes = rows[: height // step * step].reshape(-1, step, width)[:, :3].astype(np.float32)
    down, right = threes[:, 1:] - threes[:, :-1], threes[:, :, 1:] - threes[:, :, :-1]
    near = _compute_sum_of_squares(down) / 2 + _compute_sum_of_squares(right) / 3
    far = (
        _compute_sum_of_squares(threes[:, 2] - threes[:, 0])
        + _compute_sum_of_squares(threes[:, :, 2:] - threes[:, :, :-2]) / 3
    )
    return near / far if far else 1.0


def _compute_sum_of_squares(differences: NDArray[np.float32]) -> float:
    flat = differences.ravel()
    return float(flat @ flat)


def _measure_flat_bottom(small_image: Image.Image) -> int:
    """Return the percentage of rows, from the bottom, that are mid-gray, with which decoders fill a truncated JPEG."""
    corner: Any = small_image.getpixel((0, small_image.height - 1))
    if any(abs(level - MID_GREY) > FLAT_SPREAD for level in corner[:3]):  # the usual case
        return 0
    apart = np.abs(np.asarray(small_image)[::-1, :, :3].astype(np.int16) - MID_GREY)  # (H, W, 3)
    flat = (apart <= FLAT_SPREAD).all(axis=(1, 2))  # (H,), from the bottom
    return 100 * int(flat.cumprod().sum()) // small_image.height
