"""Grey images of more than 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FULL_SCALES = {"F": (1.0, 255.0, 65535.0), "I": (65535.0,)}
"""White, by mode, in the order tried: a file does not say which of them it means."""

OVERSHOOT = 1.5
"""How far above white values may lie (sharpening, interpolation); they are clipped."""


def to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey divided by 257; float and 32-bit grey by what is white there (see `white_level`) times 255.

    A colour marked as transparent becomes an alpha channel.
    """
    deep = np.asarray(image, dtype=np.float32)  # (H, W)
    with np.errstate(all="ignore"):  # a damaged float may be anything
        levels = np.nan_to_num(deep * (255.0 / white_level(deep, image.mode)))
    eight = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(eight)
    return Image.fromarray(np.dstack([eight, np.where(deep == transparent, 0, 255).astype(np.uint8)]))


def white_level(deep: NDArray[np.float32], mode: str) -> float:
    """The value that is shown as 255: the first full scale that holds the largest value, else that value."""
    if mode not in FULL_SCALES:
        return 65535.0
    finite: NDArray[Any] = deep[np.isfinite(deep)]
    largest = float(finite.max(initial=0.0))
    return next((scale for scale in FULL_SCALES[mode] if largest <= OVERSHOOT * scale), largest)
