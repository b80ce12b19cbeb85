"""Convert 8-bit pixels to the network's input and back, and images of more than 8 bits to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import Fault, ImageError, Normalization


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
    normalization.check_mean_image(mean_image)
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
    """Scale a grayscale image of more than 8 bits to 8 bits.

    White is 1 in floating-point images, as in scikit-image, and 65535 in others.

    If the file marks a pixel value as transparent, the result has an alpha channel.

    Raises:
        ImageError: a pixel value is not between 0 and white. Such an image is not scaled by its own maximum, because
            equal pixel values of two images would then become different.
    """
    levels, is_float = np.asarray(image, dtype=np.float32), image.mode == "F"  # (H, W)
    white = 1.0 if is_float else 65535.0
    with np.errstate(all="ignore"):  # the floats of a damaged file may have any value
        if not (levels.min() >= 0 and levels.max() <= white):  # NaN is neither
            raise ImageError(
                Fault.UNREADABLE,
                f"{'floating-point ' * is_float}pixel values outside 0..{white:g} are not supported: convert the image "
                "to 8 bits, or to 16 bits without negative values",
            )
    pixels = to_uint8(levels * (255.0 / white))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(pixels)
    return Image.fromarray(np.dstack([pixels, np.where(levels == transparent, 0, 255).astype(np.uint8)]))
