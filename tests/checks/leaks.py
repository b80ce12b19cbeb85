"""Plant edited copies of training images in a validation set, and measure which of them `check` finds.

The parameters of each edit are drawn from a range by the random seed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from mlimages.checks import CheckReport
from mlimages.core import LabeledPath
from mlimages.labels import LabelFile

TURNS = (
    Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE, Image.Transpose.FLIP_TOP_BOTTOM,
)  # fmt: skip


def mirrored(image: Image.Image, rng: random.Random) -> Image.Image:
    """Left and right swapped."""
    return ImageOps.mirror(image)


def turned(image: Image.Image, rng: random.Random) -> Image.Image:
    """One of the six orientations that are neither the original nor its mirror image."""
    return image.transpose(rng.choice(TURNS))


def cropped(image: Image.Image, rng: random.Random, low: float, high: float) -> Image.Image:
    """A part with `low` to `high` of both sides, anywhere."""
    width, height = (round(rng.uniform(low, high) * side) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def watermarked(image: Image.Image, rng: random.Random) -> Image.Image:
    """One to five lines of text across the image, half transparent."""
    layer = Image.new("RGBA", image.size)
    draw, size = ImageDraw.Draw(layer), min(image.size) * rng.uniform(0.08, 0.16)
    level, alpha, lines = rng.choice((0, 255)), rng.randint(90, 200), rng.randint(1, 5)
    for line in range(lines):
        at = rng.uniform(0, 0.2) * image.width, (line + rng.uniform(0.1, 0.6)) * image.height / lines
        draw.text(at, "© stock photo " * 4, (level, level, level, alpha), font_size=size)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def reencoded(image: Image.Image, rng: random.Random) -> Image.Image:
    """Smaller, with another brightness and saturation."""
    image = image.resize([round(rng.uniform(0.5, 1) * side) for side in image.size])
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15))
    return ImageEnhance.Color(image).enhance(rng.uniform(0.5, 1.5))


def tilted(image: Image.Image, rng: random.Random) -> Image.Image:
    """Rotated by 2 to 10 degrees, with the corners cropped off."""
    angle = rng.choice((-1, 1)) * rng.uniform(2, 10)
    share = 1 / (
        math.cos(math.radians(abs(angle))) + math.sin(math.radians(abs(angle))) * max(image.size) / min(image.size)
    )
    width, height = (share * side for side in image.size)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    rotated = image.rotate(angle, Image.Resampling.BICUBIC)
    return rotated.crop((round(left), round(top), round(left + width), round(top + height)))


def blended(image: Image.Image, rng: random.Random) -> Image.Image:
    """Covered by a gradient of another colour that is 15 to 40 percent opaque on average."""
    low, high = rng.uniform(0, 0.3), rng.uniform(0.3, 0.5)
    mask = Image.linear_gradient("L").rotate(90 * rng.randrange(4)).resize(image.size)
    mask = mask.point(lambda level: round(255 * low + (high - low) * level))
    color = tuple(rng.randrange(256) for _ in range(3))
    return Image.composite(Image.new("RGB", image.size, color), image, mask)


Edit = Callable[[Image.Image, random.Random], Image.Image]

EDITS: dict[str, Edit] = {
    "mirrored": mirrored,
    "turned": turned,
    "80 % crop": lambda image, rng: cropped(image, rng, 0.78, 0.82),
    "65 % crop": lambda image, rng: cropped(image, rng, 0.63, 0.67),
    "watermarked": watermarked,
    "re-encoded": reencoded,
    "tilted": tilted,
    "blended": blended,
}


@dataclass(frozen=True, slots=True)
class Plants:
    """Label files with leaks between them.

    Attributes:
        train, val: the label files.
        kinds: the name in `EDITS` of each planted image of `val`, and the image of `train` that it copies.
    """

    train: LabelFile
    val: LabelFile
    kinds: dict[Path, tuple[str, Path]]


def plant_leaks(
    images: Sequence[Path], folder: Path, *, count: int = 33, seed: int = 0, edits: Mapping[str, Edit] = EDITS
) -> Plants:
    """Write `count` copies of each kind to `folder`, of images drawn by `seed`; the other half of `images` is `val`."""
    rng = random.Random(seed)
    shuffled = rng.sample(images, len(images))
    train, val = shuffled[: len(images) // 2], shuffled[len(images) // 2 :]
    kinds = {}
    originals = iter(rng.sample(train, count * len(edits)))
    for kind, edit in edits.items():
        for number in range(count):
            original = next(originals)
            path = folder / f"{kind.replace(' ', '_')}_{number}.jpg"
            with Image.open(original) as image:
                edited = edit(ImageOps.exif_transpose(image).convert("RGB"), rng)
            edited.save(path, quality=rng.randint(40, 90))
            kinds[path] = kind, original
    return Plants(_label_file(folder / "train.txt", train), _label_file(folder / "val.txt", [*val, *kinds]), kinds)


def found_share(plants: Plants, report: CheckReport) -> dict[str, float]:
    """Share of the leaks of each kind that lie in one group with their original."""
    group_of = {path: number for number, group in enumerate(report.duplicate_groups) for path in group}
    found = Counter(
        kind for path, (kind, original) in plants.kinds.items() if group_of.get(path, -1) == group_of.get(original, -2)
    )
    planted = Counter(kind for kind, _ in plants.kinds.values())
    return {kind: found[kind] / planted[kind] for kind in planted}


def false_groups(plants: Plants, report: CheckReport) -> list[set[Path]]:
    """Groups that hold two images of which neither was planted as a copy of the other."""
    original = {path: original for path, (_, original) in plants.kinds.items()}
    sets = ({original.get(path, path) for path in group} for group in report.duplicate_groups)
    return [images for images in sets if len(images) > 1]


def _label_file(path: Path, images: Iterable[Path]) -> LabelFile:
    listed = [LabeledPath(image, 0) for image in images]
    return LabelFile(path, items=lambda: listed, class_names=("all",))
