"""Convert 8-bit pixels to the network's input and back, and deeper images to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import Normalization

FULL_SCALES = {"F": (1.0, 255.0, 65535.0), "I": (65535.0,)}
"""Possible white levels by mode, in the order tried; the file does not say which one it uses."""

OVERSHOOT = 1.5
"""Factor by which values may exceed white (sharpening, interpolation); they are clipped."""


def to_network(
    pixels: NDArray[np.uint8], normalization: Normalization, mean_image: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Convert prepared pixels `(N, H, W, C)` to the network's input, float32 `(N, C, H, W)`.

    The result is bitwise equal to that of `networks.Normalize` and of the exported file.

    Args:
        pixels: stacked results of `load_pixels`.
        normalization: mean, standard deviation and scale; see `Normalization` for the formula.
        mean_image: float32 `(C, H, W)` in 0..255, used instead of `normalization.mean`.
    """
    scale = np.float32(normalization.scale)
    mean = _reshape_per_channel(normalization.mean) * scale if mean_image is None else mean_image  # (C, H or 1, W or 1)
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")  # (N, C, H, W)
    x = (x - mean) / (_reshape_per_channel(normalization.std) * scale)
    return x[:, ::-1] if normalization.bgr else x


def from_network(
    x: NDArray[np.float32], normalization: Normalization, mean_image: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Invert `to_network`; the result is rounded and clipped to uint8 `(N, H, W, C)`."""
    scale = np.float32(normalization.scale)
    mean = _reshape_per_channel(normalization.mean) * scale if mean_image is None else mean_image  # (C, H or 1, W or 1)
    x = x[:, ::-1] if normalization.bgr else x
    return to_pixels((x * (_reshape_per_channel(normalization.std) * scale) + mean).transpose(0, 2, 3, 1))


def _reshape_per_channel(channel_values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.asarray(channel_values, dtype=np.float32)[:, None, None]  # (C, 1, 1)


def to_pixels(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Convert values in 0..255 to uint8, rounded and clipped."""
    pixels: NDArray[np.uint8] = np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8)
    return pixels


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert a grayscale image of more than 8 bits to 8 bits, scaled so that its `white_level` becomes 255.

    A level marked as transparent becomes an alpha channel.
    """
    deep = np.asarray(image, dtype=np.float32)  # (H, W)
    with np.errstate(all="ignore"):  # the floats of a damaged file may have any value
        levels = np.nan_to_num(deep * (255.0 / white_level(deep, image.mode)))
    eight = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(eight)
    return Image.fromarray(np.dstack([eight, np.where(deep == transparent, 0, 255).astype(np.uint8)]))


def white_level(levels: NDArray[np.float32], mode: str) -> float:
    """Return the level that becomes 255: the smallest full scale that covers the largest value, else that value."""
    if mode not in FULL_SCALES:
        return 65535.0
    finite: NDArray[Any] = levels[np.isfinite(levels)]
    largest = float(finite.max(initial=0.0))
    return next((scale for scale in FULL_SCALES[mode] if largest <= OVERSHOOT * scale), largest)
