"""Pixels become the network's numbers, and numbers pixels again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.core import Normalization


def to_network(
    pixels: NDArray[np.uint8], normalization: Normalization, mean_image: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Prepared pixels `(N, H, W, C)` as the network's numbers: float32 `(N, C, H, W)`.

    Bit for bit what `learning.normalize.Normalize` and the exported file compute.

    Args:
        pixels: as `load_pixels` gives them, stacked.
        normalization: the figures; see there for the formula.
        mean_image: float32 `(C, H, W)` in 0..255, in place of `normalization.mean`.
    """
    scale = np.float32(normalization.scale)
    mean = _per_channel(normalization.mean) * scale if mean_image is None else mean_image  # (C, H or 1, W or 1)
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")  # (N, C, H, W)
    x = (x - mean) / (_per_channel(normalization.std) * scale)
    return x[:, ::-1] if normalization.bgr else x


def from_network(
    x: NDArray[np.float32], normalization: Normalization, mean_image: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """The inverse of `to_network`, rounded and clipped: uint8 `(N, H, W, C)`."""
    scale = np.float32(normalization.scale)
    mean = _per_channel(normalization.mean) * scale if mean_image is None else mean_image  # (C, H or 1, W or 1)
    x = x[:, ::-1] if normalization.bgr else x
    return to_pixels((x * (_per_channel(normalization.std) * scale) + mean).transpose(0, 2, 3, 1))


def _per_channel(figures: tuple[float, ...]) -> NDArray[np.float32]:
    return np.asarray(figures, dtype=np.float32)[:, None, None]  # (C, 1, 1)


def to_pixels(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Values in 0..255 as uint8: rounded and clipped, never wrapped."""
    pixels: NDArray[np.uint8] = np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8)
    return pixels
