"""Views of a picture: small changes that do not change its class, each decided by seed, picture and number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as change

Strength = Literal["none", "flip", "light", "strong"]

FIXED_VIEWS = {"none": 4, "flip": 2, "light": 6, "strong": 10}
"""How many views of a picture pass through the frozen part, the unchanged one among them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How far a view may go.

    Attributes:
        area: least share of the picture that a crop keeps (1: no crop).
        aspect: largest factor by which the crop is stretched.
        light: how far brightness, contrast and saturation are scaled, either way.
        degrees: of rotation, either way.
        erase: largest side of a grey patch, as a share of the picture's.
    """

    area: float = 1.0
    aspect: float = 1.0
    light: float = 0.0
    degrees: float = 0.0
    erase: float = 0.0


_RECIPES = {
    "none": Recipe(),
    "flip": Recipe(),
    "light": Recipe(area=0.6, aspect=1.15, light=0.2),
    "strong": Recipe(area=0.35, aspect=1.33, light=0.4, degrees=15.0, erase=0.4),
}


@dataclass(frozen=True, slots=True)
class Augment:
    """Makes views; the same seed, picture and number give the same view on every machine and in every thread.

    Attributes:
        strength: `flip` mirrors; `light` also crops and lights a little; `strong` more so, with rotation and a patch.
        rotate_deg: rotation by up to so many degrees either way, beside `strength`.
        seed: of all chance.
    """

    strength: Strength
    rotate_deg: float
    seed: int

    @property
    def name(self) -> str:
        """What decides a view beside picture and number: a part of cache keys."""
        return f"v1 {self.strength} {self.rotate_deg:g} {self.seed}"

    @property
    def fixed_views(self) -> int:
        """How many views pass through the frozen part."""
        return FIXED_VIEWS[self.strength]

    def view(self, pixels: NDArray[np.uint8], digest: bytes, number: int) -> NDArray[np.uint8]:
        """View `number` of a prepared picture, uint8 `(H, W, C)`; 0 is the picture itself, odd ones are mirrored."""
        if number == 0:
            return pixels
        chance = np.random.default_rng([self.seed, number, int.from_bytes(digest[:16])])
        recipe = _RECIPES[self.strength]
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        if number % 2 and self.strength != "none":
            image = change.horizontal_flip(image)
        image = _turned(image, max(recipe.degrees, self.rotate_deg), chance)
        image = _cropped(image, recipe, chance)
        out = np.array(_lit(image, recipe, chance), dtype=np.uint8)
        return _erased(out.reshape(pixels.shape), recipe, chance)


def _turned(image: Image.Image, degrees: float, chance: np.random.Generator) -> Image.Image:
    if not degrees:
        return image
    angle = chance.uniform(-degrees, degrees)
    turned: Image.Image = change.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
    return turned


def _cropped(image: Image.Image, recipe: Recipe, chance: np.random.Generator) -> Image.Image:
    if recipe.area == 1.0:
        return image
    area, stretch = chance.uniform(recipe.area, 1.0), np.exp(chance.uniform(-1, 1) * np.log(recipe.aspect))
    width = min(image.width, round(image.width * np.sqrt(area * stretch)))
    height = min(image.height, round(image.height * np.sqrt(area / stretch)))
    left, top = chance.integers(image.width - width + 1), chance.integers(image.height - height + 1)
    size = [image.height, image.width]
    cropped: Image.Image = change.resized_crop(image, int(top), int(left), height, width, size)
    return cropped


def _lit(image: Image.Image, recipe: Recipe, chance: np.random.Generator) -> Image.Image:
    if recipe.light:
        for adjust in (change.adjust_brightness, change.adjust_contrast, change.adjust_saturation):
            image = adjust(image, 1 + chance.uniform(-recipe.light, recipe.light))
    return image


def _erased(pixels: NDArray[np.uint8], recipe: Recipe, chance: np.random.Generator) -> NDArray[np.uint8]:
    if recipe.erase:
        height, width = pixels.shape[:2]
        tall, wide = (round(side * chance.uniform(0, recipe.erase)) for side in (height, width))
        top, left = chance.integers(height - tall + 1), chance.integers(width - wide + 1)
        pixels[top : top + tall, left : left + wide] = 128
    return pixels
