"""Data augmentation: random views of an image that depend only on the settings, the image and the view number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

Strength = Literal["none", "flip", "light", "strong"]

NUM_CACHED_VIEWS = {"none": 4, "flip": 2, "light": 6, "strong": 10}
"""For each strength, the number of views per image whose features are cached and trained on if layers are frozen.
View 0 is the unchanged image. With `none`, the other views differ from it only by the rotation that is set separately,
`Augmenter.max_rotation_deg`."""


@dataclass(frozen=True, slots=True)
class _AugmentationLimits:
    """The largest random changes that augmentation of a given strength makes.

    Attributes:
        min_crop_area: minimum area of a crop, as a share of the image's area, 0..1; 1 disables cropping.
        max_aspect_change: maximum factor by which the aspect ratio of a crop changes.
        max_color_change: maximum relative change of brightness, contrast and saturation.
        max_rotation_deg: maximum rotation in either direction, in degrees.
        max_erased_side: maximum side of the erased rectangle, as a share of the image's side, 0..1.
    """

    min_crop_area: float = 1.0
    max_aspect_change: float = 1.0
    max_color_change: float = 0.0
    max_rotation_deg: float = 0.0
    max_erased_side: float = 0.0


_LIMITS = {
    "none": _AugmentationLimits(),
    "flip": _AugmentationLimits(),
    "light": _AugmentationLimits(min_crop_area=0.6, max_aspect_change=1.15, max_color_change=0.2),
    "strong": _AugmentationLimits(
        min_crop_area=0.35, max_aspect_change=1.33, max_color_change=0.4, max_rotation_deg=15.0, max_erased_side=0.4
    ),
}


@dataclass(frozen=True, slots=True)
class Augmenter:
    """Makes random views of images; the same settings, image and view number give the same view on every machine.

    Attributes:
        strength: preset of random changes. `none`: no change; `flip`: views with odd numbers are mirrored; `light`: as
            `flip`, and views are cropped and their colours slightly changed; `strong`: as `light`, but with larger
            changes, an erased rectangle and a rotation.
        max_rotation_deg: views are rotated by a random angle of at most this many degrees in either direction, with any
            strength, even `none`. With `strong`, the limit is at least 15.
        seed: random seed.

    >>> pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> Augmenter("flip", max_rotation_deg=0, seed=1).make_view(pixels, bytes(32), view_number=1)[0].tolist()
    [[3, 4, 5], [0, 1, 2]]
    """

    strength: Strength
    max_rotation_deg: float
    seed: int

    @property
    def cache_key(self) -> str:
        """The settings as text, used in the keys of cached features."""
        return f"v1 {self.strength} {self.max_rotation_deg:g} {self.seed}"

    @property
    def num_cached_views(self) -> int:
        """Number of views per image whose features are cached and trained on if layers are frozen."""
        return NUM_CACHED_VIEWS[self.strength]

    def make_view(self, pixels: NDArray[np.uint8], image_digest: bytes, view_number: int) -> NDArray[np.uint8]:
        """Return an augmented view of a preprocessed image.

        Args:
            pixels: uint8 `(H, W, C)`.
            image_digest: SHA-256 of the image's file.
            view_number: number of the view; 0 is the unchanged image. Odd views are mirrored, except with strength
                `none`.

        Returns:
            uint8 `(H, W, C)`.
        """
        if view_number == 0:
            return pixels
        rng = np.random.default_rng([self.seed, view_number, int.from_bytes(image_digest[:16])])
        limits = _LIMITS[self.strength]
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        if view_number % 2 and self.strength != "none":
            image = transforms.horizontal_flip(image)
        image = _rotate_randomly(image, max(limits.max_rotation_deg, self.max_rotation_deg), rng)
        image = _crop_randomly(image, limits, rng)
        view = np.array(_change_color_randomly(image, limits, rng), dtype=np.uint8)
        return _erase_rectangle(view.reshape(pixels.shape), limits, rng)


def _rotate_randomly(image: Image.Image, max_rotation_deg: float, rng: np.random.Generator) -> Image.Image:
    if not max_rotation_deg:
        return image
    angle = rng.uniform(-max_rotation_deg, max_rotation_deg)
    rotated: Image.Image = transforms.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
    return rotated


def _crop_randomly(image: Image.Image, limits: _AugmentationLimits, rng: np.random.Generator) -> Image.Image:
    if limits.min_crop_area == 1.0:
        return image
    area, aspect = rng.uniform(limits.min_crop_area, 1.0), np.exp(rng.uniform(-1, 1) * np.log(limits.max_aspect_change))
    width = min(image.width, round(image.width * np.sqrt(area * aspect)))
    height = min(image.height, round(image.height * np.sqrt(area / aspect)))
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    size = [image.height, image.width]
    cropped: Image.Image = transforms.resized_crop(image, int(top), int(left), height, width, size)
    return cropped


def _change_color_randomly(image: Image.Image, limits: _AugmentationLimits, rng: np.random.Generator) -> Image.Image:
    if limits.max_color_change:
        for adjust in (transforms.adjust_brightness, transforms.adjust_contrast, transforms.adjust_saturation):
            image = adjust(image, 1 + rng.uniform(-limits.max_color_change, limits.max_color_change))
    return image


def _erase_rectangle(
    pixels: NDArray[np.uint8], limits: _AugmentationLimits, rng: np.random.Generator
) -> NDArray[np.uint8]:
    if limits.max_erased_side:
        height, width = pixels.shape[:2]
        erased_height, erased_width = (round(side * rng.uniform(0, limits.max_erased_side)) for side in (height, width))
        top, left = rng.integers(height - erased_height + 1), rng.integers(width - erased_width + 1)
        pixels[top : top + erased_height, left : left + erased_width] = 128
    return pixels
