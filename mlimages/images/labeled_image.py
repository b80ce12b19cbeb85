"""One picture and its class, changed step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import ImageProperty, as_path
from mlimages.images.arrays import to_pixels
from mlimages.images.decoding import WHITE, load_rgb
from mlimages.images.geometry import fit, load_pixels, prepare


class LabeledImage:
    """One picture and its class number; each step changes the picture in hand and returns it.

    Args:
        path: the picture file; may be empty where the picture comes from an array.
        label: its class number; -1 where it is not known.
    """

    def __init__(self, path: str | Path = "", label: int = -1) -> None:
        self.path = as_path(path)
        self.label = label
        self._image: Image.Image | None = None

    @property
    def image(self) -> Image.Image:
        """The picture in hand, 8-bit RGB or grey; loaded when first asked for."""
        if self._image is None:
            self._image = load_rgb(self.path)
        return self._image

    def load(self, *, background: tuple[int, int, int] = WHITE) -> Self:
        """Read the file anew: upright by EXIF, 8-bit RGB, laid over `background`, an animation's first frame.

        Raises:
            ImageError: with the picture's `Fault`.
        """
        self._image = load_rgb(self.path, background=background)
        return self

    def to_grayscale(self) -> Self:
        """One channel (ITU-R 601-2 luma)."""
        self._image = self.image.convert("L")
        return self

    def downscale(self, width: int, height: int = 0) -> Self:
        """Halve while both sides stay at least `width` and `height`, then crop the centre (height 0: as width)."""
        return self._prepared(ImageProperty(width, height, resize="downscale"))

    def crop_from_lefttop(self, left: int, top: int, width: int, height: int = 0) -> Self:
        """Crop `width` x `height` pixels at `left`, `top`; black where that lies outside."""
        self._image = self.image.crop((left, top, left + width, top + (height or width)))
        return self

    def crop_from_center(self, width: int, height: int = 0) -> Self:
        """Crop `width` x `height` pixels from the centre; black where the picture is smaller."""
        return self._prepared(ImageProperty(width, height, resize="crop"))

    def convert(self, prop: ImageProperty) -> Self:
        """The picture as the network sees it; bit for bit, if it was not loaded before (see `load_pixels`)."""
        loaded = self._image is not None
        pixels = prepare(self.image.convert("RGB"), prop) if loaded else load_pixels(self.path, prop)
        self._image = _from_pixels(pixels)
        return self

    def to_array(self, *, color: bool = True, bgr: bool = False) -> NDArray[np.float32]:
        """float32 `(C, H, W)` in 0..255: RGB or BGR with `color` (grey is repeated), else one channel of luma."""
        pixels = np.asarray(self.image.convert("RGB" if color else "L"), dtype=np.float32)  # (H, W[, 3])
        array = pixels.transpose(2, 0, 1) if color else pixels[None]  # (C, H, W)
        return np.ascontiguousarray(array[::-1] if bgr else array)

    @classmethod
    def from_array(cls, array: NDArray[np.floating[Any]], label: int = -1, *, bgr: bool = False) -> Self:
        """A picture from `(C, H, W)` in 0..255, C 1 or 3; values are rounded and clipped, never wrapped."""
        made = cls("", label)
        pixels = to_pixels(array[::-1] if bgr else array)  # (C, H, W)
        made._image = _from_pixels(pixels.transpose(1, 2, 0))
        return made

    def _prepared(self, prop: ImageProperty) -> Self:
        self._image = fit(self.image, prop)
        return self


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    """uint8 `(H, W, C)` as a picture."""
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
