"""Grey pictures of more than 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled (divided by 257), float clipped; a colour marked as transparent becomes an alpha channel."""
    deep = np.asarray(image, dtype=np.float32)  # (H, W)
    eight = np.clip(np.rint(deep if image.mode == "F" else deep / 257.0), 0, 255).astype(np.uint8)
    see_through = image.info.get("transparency")
    if not isinstance(see_through, int):
        return Image.fromarray(eight)
    return Image.fromarray(np.dstack([eight, np.where(deep == see_through, 0, 255).astype(np.uint8)]))
