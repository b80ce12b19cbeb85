"""Encoded bytes become pixels, and pixels the network's array: the only place where they do."""

from mlimages.images.arrays import from_network, to_network, to_pixels
from mlimages.images.decoding import (
    MAX_BYTES,
    MAX_PIXELS,
    WHITE,
    decode,
    flatten,
    load_rgb,
    open_image,
    orientation,
    read_bytes,
    to_rgb,
)
from mlimages.images.geometry import centre_start, load_pixels, prepare, resized_size
from mlimages.images.labeled_image import LabeledImage

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "WHITE",
    "LabeledImage",
    "centre_start",
    "decode",
    "flatten",
    "from_network",
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
]
