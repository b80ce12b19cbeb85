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

from mlimages.images import TRANSPOSE_BY_ORIENTATION, DecodeOptions, ImageHeader, decode, reraise_as_image_error

MEASUREMENTS_VERSION = 9
"""Version of the cached measurements; increase it when their meaning or the schema changes."""

MIN_REDUCED_SIDE_PX = 128
"""Images are reduced by an integer factor for measuring; the shorter side keeps at least this many pixels."""

MAX_GRAY_CHROMA = 2
"""Maximum distance of Cb and Cr from 128 in a grayscale image saved as a colour JPEG."""

MAX_ONE_THREAD_LENGTH = 10_000
"""Maximum length of vectors whose dot product OpenBLAS computes in one thread. For longer vectors, it uses threads that
busy-wait and take CPU time from the other workers."""

MAX_FLAT_DIFFERENCE = 6
"""Maximum difference from MID_GRAY of the levels in a uniformly gray area of a JPEG."""

MID_GRAY = 128
"""Level with which decoders fill the missing part of a truncated JPEG."""

_PACKED_FORMAT = struct.Struct("<8s8sIIB?????BBBfBfBBB256s")
_ROW_DTYPE = np.dtype([
    ("format", "S8"), ("mode", "S8"), ("width", "<u4"), ("height", "<u4"), ("orientation", "u1"), ("animated", "?"),
    ("high_bit_depth", "?"), ("irregular_jpeg", "?"), ("transparent", "?"), ("grayscale", "?"), ("luma_p2", "u1"),
    ("luma_p98", "u1"), ("luma_median", "u1"), ("two_level_fraction", "<f4"), ("gray_bottom_percent", "u1"),
    ("sharpness", "<f4"), ("red_mean", "u1"), ("green_mean", "u1"), ("blue_mean", "u1"), ("thumbnail", "u1", (256,)),
])  # fmt: skip


class Measurements(NamedTuple):
    """Measurements of one image.

    Attributes:
        format, mode: format and mode of the file, as named by Pillow.
        width, height: size of the upright image in pixels.
        orientation: EXIF orientation, 1 (upright) to 8.
        animated: whether the file has more than one frame, except MPO.
        high_bit_depth: whether the file has more than 8 bits per channel, as far as Pillow reports it.
        irregular_jpeg: whether the file is a JPEG with padding or unusual header values but intact pixels; false
            without simplejpeg.
        transparent: whether any pixel is at least partly transparent.
        grayscale: whether the image has no colour, even if it is stored as RGB.
        luma_p2, luma_p98: 2nd and 98th percentile of luma, 0..255.
        luma_median: median of luma, 0..255.
        two_level_fraction: fraction of the image that the two most frequent luma values cover, 0..1.
        gray_bottom_percent: percentage of the height, from the bottom, that is uniformly mid-gray. The EXIF orientation
            is not applied.
        sharpness: sum of squared differences between neighbouring pixels, divided by the sum of squared differences
            between pixels two apart. It is 0.25 for a smooth image, about 0.5 for sharp edges, and 1 for noise or if
            all pixels are equal. It does not depend on contrast.
        red_mean, green_mean, blue_mean: mean of each channel, 0..255.
        thumbnail: luma of the upright image at 16 x 16 pixels, row by row.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int
    animated: bool
    high_bit_depth: bool
    irregular_jpeg: bool
    transparent: bool
    grayscale: bool
    luma_p2: int
    luma_p98: int
    luma_median: int
    two_level_fraction: float
    gray_bottom_percent: int
    sharpness: float
    red_mean: int
    green_mean: int
    blue_mean: int
    thumbnail: bytes

    def pack(self) -> bytes:
        """Serialize the measurements to bytes; `make_measurement_table` reads them."""
        return _PACKED_FORMAT.pack(self.format.encode()[:8], self.mode.encode()[:8], *self[2:])


MeasurementTable = NDArray[Any]
"""Measurements of N images: a structured array `(N,)` with the attributes of `Measurements`, as in `table["width"]`."""


def make_measurement_table(packed_measurements: Iterable[bytes]) -> MeasurementTable:
    """Return a structured array with one row per image from the results of `Measurements.pack`."""
    return np.frombuffer(b"".join(packed_measurements), dtype=_ROW_DTYPE)


@reraise_as_image_error
def measure_image(data: bytes, *, max_pixels: int) -> Measurements:
    """Decode an image file completely, and return its measurements.

    A JPEG is decoded at a reduced scale, which still reads every byte, and by simplejpeg if that is installed.

    Raises:
        ImageError: the image cannot be decoded.
    """
    decoded = decode(data, max_pixels=max_pixels, options=_choose_decode_options)
    small = decoded.image
    luma = small.convert("L")
    thumbnail = luma.resize((16, 16), Image.Resampling.BOX)
    if decoded.remaining_orientation != 1:
        thumbnail = thumbnail.transpose(TRANSPOSE_BY_ORIENTATION[decoded.remaining_orientation])
    sample = small.resize((32, 32), Image.Resampling.NEAREST)  # 1024 pixels suffice for the colour
    red, green, blue, *_ = sample.reduce(32).getpixel((0, 0))  # type: ignore[misc]  # RGB
    low, high, typical, two_levels = _compute_luma_statistics(luma)
    width, height = decoded.size
    return Measurements(
        format=decoded.header.format,
        mode=decoded.header.mode,
        width=width,
        height=height,
        orientation=decoded.orientation,
        animated=decoded.animated,
        high_bit_depth=decoded.header.high_bit_depth,
        irregular_jpeg=decoded.irregular_jpeg,
        transparent=decoded.transparent,
        grayscale=_is_gray(sample),
        luma_p2=low,
        luma_p98=high,
        luma_median=typical,
        two_level_fraction=two_levels,
        gray_bottom_percent=_measure_gray_bottom_percent(small),
        sharpness=_measure_sharpness(luma),
        red_mean=red,
        green_mean=green,
        blue_mean=blue,
        thumbnail=thumbnail.tobytes(),
    )


def _choose_decode_options(header: ImageHeader) -> DecodeOptions:
    width, height = header.size
    factor = max(1, min(width, height) // MIN_REDUCED_SIDE_PX)
    return DecodeOptions(
        min_size=(width // factor, height // factor),
        min_reduced_side_px=MIN_REDUCED_SIDE_PX,
        strict=True,
        apply_orientation=False,  # decoders fill the bottom of a truncated JPEG, as stored, with gray
    )


def _is_gray(image: Image.Image) -> bool:
    """Whether the channels are equal except for JPEG artifacts."""
    ranges: Any = image.convert("YCbCr").getextrema()
    return all(low >= 128 - MAX_GRAY_CHROMA and high <= 128 + MAX_GRAY_CHROMA for low, high in ranges[1:])


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
    step = 18 if height >= MIN_REDUCED_SIDE_PX else 3  # a sixth of a large image suffices
    step = max(step, min(height, 3 * width * height // MAX_ONE_THREAD_LENGTH + 1))
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


def _measure_gray_bottom_percent(small_image: Image.Image) -> int:
    """Return the percentage of rows, from the bottom, that have the gray with which decoders fill a truncated JPEG."""
    corner: Any = small_image.getpixel((0, small_image.height - 1))
    if any(abs(level - MID_GRAY) > MAX_FLAT_DIFFERENCE for level in corner[:3]):  # the usual case
        return 0
    apart = np.abs(np.asarray(small_image)[::-1, :, :3].astype(np.int16) - MID_GRAY)  # (H, W, 3)
    flat = (apart <= MAX_FLAT_DIFFERENCE).all(axis=(1, 2))  # (H,), from the bottom
    return 100 * int(flat.cumprod().sum()) // small_image.height
