"""Encoded bytes become pixels, and pixels the network's array: the only place where they do."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlimages.images.arrays import from_network, to_network, to_pixels
    from mlimages.images.decoding import (
        MAX_BYTES,
        MAX_PIXELS,
        WHITE,
        decode,
        flatten,
        load_all_plugins,
        load_rgb,
        open_image,
        orientation,
        read_bytes,
        to_rgb,
        upright,
    )
    from mlimages.images.geometry import load_pixels, prepare
    from mlimages.images.labeled_image import LabeledImage
    from mlimages.images.sizes import centre_start, resized_size

_MODULE_OF = {
    "MAX_BYTES": "decoding",
    "MAX_PIXELS": "decoding",
    "WHITE": "decoding",
    "LabeledImage": "labeled_image",
    "centre_start": "sizes",
    "decode": "decoding",
    "flatten": "decoding",
    "from_network": "arrays",
    "load_all_plugins": "decoding",
    "load_pixels": "geometry",
    "load_rgb": "decoding",
    "open_image": "decoding",
    "orientation": "decoding",
    "prepare": "geometry",
    "read_bytes": "decoding",
    "resized_size": "sizes",
    "to_network": "arrays",
    "to_pixels": "arrays",
    "to_rgb": "decoding",
    "upright": "decoding",
}

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "WHITE",
    "LabeledImage",
    "centre_start",
    "decode",
    "flatten",
    "from_network",
    "load_all_plugins",
    "load_pixels",
    "load_rgb",
    "open_image",
    "orientation",
    "prepare",
    "read_bytes",
    "resized_size",
    "to_network",
    "to_pixels",
    "to_rgb",
    "upright",
]


def __getattr__(name: str) -> Any:  # lazy: the processes that only decode start without numpy
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
