"""Convert 8-bit pixels to the network's input and back, and images of more than 8 bits to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import Normalization

WHITE_LEVELS = {"F": (1.0, 255.0, 65535.0), "I": (65535.0,)}
"""Possible levels of white by mode of the image, in ascending order; the file does not say which one it uses."""

MAX_OVERSHOOT_FACTOR = 1.5
"""Levels may exceed white by at most this factor, for example after sharpening; they are clipped to white."""


def to_network_input(
    pixels: NDArray[np.uint8], normalization: Normalization, mean_image: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Normalize pixels `(N, H, W, C)` to the network's input, float32 `(N, C, H, W)`.

    The result is bitwise equal to that of `networks.Normalize` and of the exported file.

    Args:
        pixels: stacked results of `load_pixels`.
        normalization: mean, standard deviation and scale; see `Normalization` for the formula.
        mean_image: float32 `(C, H, W)` in 0..255, used instead of `normalization.mean`.
    """
    mean, std = _compute_mean_and_std(normalization, mean_image)
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")  # (N, C, H, W)
    x = (x - mean) / std
    return x[:, ::-1] if normalization.bgr else x


def from_network_input(
    x: NDArray[np.float32], normalization: Normalization, mean_image: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Convert the network's input `(N, C, H, W)` to pixels, uint8 `(N, H, W, C)`: the inverse of `to_network_input`."""
    mean, std = _compute_mean_and_std(normalization, mean_image)
    x = x[:, ::-1] if normalization.bgr else x
    return to_uint8((x * std + mean).transpose(0, 2, 3, 1))


def _compute_mean_and_std(
    normalization: Normalization, mean_image: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean `(C, 1, 1)`, or the mean image `(C, H, W)`, and standard deviation `(C, 1, 1)` in 0..255."""
    mean, std = (
        np.asarray(values, np.float32)[:, None, None] * np.float32(normalization.scale)
        for values in (normalization.mean, normalization.std)
    )
    return mean if mean_image is None else mean_image, std


def to_uint8(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Round and clip values in 0..255 to uint8; NaN becomes 0."""
    pixels: NDArray[np.uint8] = np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8)
    return pixels


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a grayscale image of more than 8 bits to 8 bits, so that white becomes 255 (see `find_white_level`).

    If the file marks a level as transparent, the result has an alpha channel.
    """
    levels = np.asarray(image, dtype=np.float32)  # (H, W)
    with np.errstate(all="ignore"):  # the floats of a damaged file may have any value
        pixels = to_uint8(levels * (255.0 / find_white_level(levels, image.mode)))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(pixels)
    return Image.fromarray(np.dstack([pixels, np.where(levels == transparent, 0, 255).astype(np.uint8)]))


def find_white_level(levels: NDArray[np.float32], mode: str) -> float:
    """Return the level of white of an image with these levels.

    It is the smallest of `WHITE_LEVELS[mode]` that the image does not exceed by more than `MAX_OVERSHOOT_FACTOR`. If
    the image exceeds them all, it is the image's largest level. It is 65535 for modes that are not in `WHITE_LEVELS`.
    """
    if mode not in WHITE_LEVELS:
        return 65535.0
    finite: NDArray[Any] = levels[np.isfinite(levels)]
    largest = float(finite.max(initial=0.0))
    return next((scale for scale in WHITE_LEVELS[mode] if largest <= MAX_OVERSHOOT_FACTOR * scale), largest)
