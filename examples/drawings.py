"""Drawn images for the examples, free of anybody's rights: vessels of a museum, and a fish.

python examples/drawings.py data/vessels data/creatures
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

VESSELS = {
    "bowl": [(0.00, 0.30), (0.10, 0.32), (0.35, 0.55), (0.55, 0.95)],
    "jar": [(0.00, 0.45), (0.30, 0.75), (0.65, 0.70), (0.85, 0.45), (0.95, 0.50)],
    "vase": [(0.00, 0.40), (0.30, 0.65), (0.60, 0.45), (0.85, 0.22), (1.00, 0.40)],
}
"""Height above the foot, and width there, as shares of the height."""


def draw_vessel(kind: str, rng: np.random.Generator, *, size: int = 160) -> Image.Image:
    """A vessel on a plain ground; clay, proportions and stripes are random."""
    ground, clay, stripe = (tuple(map(int, rng.integers(*span, 3))) for span in ((170, 240), (60, 170), (20, 255)))
    image = Image.new("RGB", (size, size), ground)
    draw = ImageDraw.Draw(image)
    height, width = size * rng.uniform(0.6, 0.8), size * rng.uniform(0.55, 0.8)
    heights, widths = zip(*VESSELS[kind], strict=True)
    for row in range(int(height * heights[-1])):
        half = width / 2 * np.interp(row / height, heights, widths)
        is_striped = int(row / height * 12) % 4 == 2
        y = size * 0.9 - row
        draw.line([(size / 2 - half, y), (size / 2 + half, y)], fill=stripe if is_striped else clay)
    return image


def draw_fish(*, size: int = 160) -> Image.Image:
    """A fish in water."""
    image = Image.new("RGB", (size, size), (150, 200, 225))
    draw = ImageDraw.Draw(image)
    draw.ellipse([size * 0.2, size * 0.33, size * 0.75, size * 0.67], fill=(235, 125, 50))
    draw.polygon(
        [(size * x, size * y) for x, y in ((0.70, 0.5), (0.92, 0.32), (0.86, 0.5), (0.92, 0.68))], fill=(225, 95, 40)
    )
    draw.polygon([(size * x, size * y) for x, y in ((0.40, 0.36), (0.55, 0.18), (0.60, 0.36))], fill=(225, 95, 40))
    draw.line([(size * 0.52, size * 0.34), (size * 0.52, size * 0.66)], fill="white", width=size // 20)
    draw.ellipse([size * 0.28, size * 0.43, size * 0.34, size * 0.49], fill="black")
    return image


def write_vessels(folder: Path, *, each: int = 12) -> None:
    """Write `folder/KIND/NUMBER.png`."""
    rng = np.random.default_rng(0)
    for kind in VESSELS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            draw_vessel(kind, rng).save(folder / kind / f"{number:02}.png")


if __name__ == "__main__":
    vessels, creatures = map(Path, sys.argv[1:])
    write_vessels(vessels)
    (creatures / "fish").mkdir(parents=True, exist_ok=True)
    draw_fish().save(creatures / "fish" / "0.png")
