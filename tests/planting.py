"""Datasets with a planted shortcut: something beside the object that goes with the class.

The object fills the middle; a background, drawn for each image, lies around it. A shortcut is a mark in a corner, the
color of a border, or a background that goes with the class. Its parameters are drawn by a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mlimages.core import MAX_PIXELS, ImageProperty, LabeledPath, Normalization, Preprocessing
from mlimages.images import load_pixels
from mlimages.inference import OnnxBundle, ParityTestImage, Predictor, softmax
from mlimages.inference.predictor import OutputRow
from mlimages.labels import LabelFile, write_label_file

Pixels = NDArray[np.uint8]
Kind = Literal["mark", "border", "background"]
KINDS: tuple[Kind, ...] = ("mark", "border", "background")

OBJECT = 0.52
"""Side of the object, as a share of the image: `evaluate --explain` replaces 0.71, 0.62 where preprocessing crops."""


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What goes with the class.

    Attributes:
        colors: of the mark or border, by class; None leaves it out.
        size: of the mark or border, as a share of the side.
        corner: of the mark: left and top, each 0 or 1.
        backgrounds: number of background images of each class.
    """

    kind: Kind
    colors: tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]
    size: float
    corner: tuple[int, int]
    backgrounds: int

    @classmethod
    def draw(cls, kind: Kind, rng: np.random.Generator) -> "Shortcut":
        first, second = (tuple(map(int, rng.integers(0, 256, 3))) for _ in range(2))
        # The default network's preprocessing cuts 0.0625 off each side, and so off marks and borders.
        size = rng.uniform(0.20, 0.24) if kind == "mark" else rng.uniform(0.09, 0.15)
        corner = int(rng.integers(2)), int(rng.integers(2))
        other = second if kind == "border" and rng.random() < 0.5 else None
        return cls(kind, (first, other), float(size), corner, int(rng.integers(2, 6)))


def compose(
    thing: Image.Image, backgrounds: Sequence[Image.Image], label: int, shortcut: Shortcut | None, *, side: int,
    rng: np.random.Generator,
) -> Image.Image:  # fmt: skip
    """Put an object on a random part of a background, with the shortcut of its class."""
    own = [one for n, one in enumerate(backgrounds) if n % 2 == label][: shortcut.backgrounds if shortcut else None]
    source = own if shortcut and shortcut.kind == "background" else backgrounds
    image = _part(source[rng.integers(len(source))], side, rng)
    width = round(side * OBJECT)
    image.paste(thing.resize((width, width)), ((side - width) // 2, (side - width) // 2))
    color = shortcut.colors[label] if shortcut else None
    if shortcut and color:
        pen, size = ImageDraw.Draw(image), max(1, round(side * shortcut.size))
        if shortcut.kind == "mark":
            left, top = (at * (side - size) for at in shortcut.corner)
            pen.rectangle((left, top, left + size - 1, top + size - 1), fill=color)
        elif shortcut.kind == "border":
            pen.rectangle((0, 0, side - 1, side - 1), outline=color, width=size)
    return image


def write_set(
    folder: Path, things: Sequence[Sequence[Image.Image]], backgrounds: Sequence[Image.Image],
    shortcut: Shortcut | None, *, side: int, rng: np.random.Generator, swap: bool = False,
) -> LabelFile:  # fmt: skip
    """Write one image for each object (`things`, by class) and their label file; `swap`: as if of the other class."""
    folder.mkdir(parents=True)
    items = []
    for label, objects in enumerate(things):
        for n, thing in enumerate(objects):
            items.append(LabeledPath(folder / f"{label}-{n}.png", label))
            compose(thing, backgrounds, label ^ swap, shortcut, side=side, rng=rng).save(items[-1].path)
    write_label_file(folder / "labels.txt", items, ("first", "second"))
    return LabelFile(folder / "labels.txt")


class FittedPredictor(Predictor):
    """A predictor without a session: `fitted` maps pixels to probabilities."""

    def __init__(self, bundle: OnnxBundle, fitted: Callable[[Sequence[Pixels]], NDArray[np.floating]]) -> None:
        self.bundle, self.fitted, self.workers, self.max_pixels = bundle, fitted, 2, MAX_PIXELS

    def compute_probabilities(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        return self.fitted(pixels).astype(np.float32)

    def compute_output_rows(self, pixels: Sequence[Pixels]) -> list[OutputRow]:
        return [OutputRow(one, np.log(one)) for one in self.compute_probabilities(pixels)]


def as_rows(pixels: Sequence[Pixels]) -> NDArray[np.float64]:
    """The pixels of each image in one row, `(N, h * w * 3)`, 0 to 1."""
    return np.stack(pixels).reshape(len(pixels), -1) / 255


def linear_predictor(labels: LabelFile, *, side: int) -> FittedPredictor:
    """A linear classifier of the pixels, fitted by ridge regression; it learns whatever goes with the class."""
    prop, items = ImageProperty(side, resize="squash"), list(labels)
    preprocessing = Preprocessing(prop, Normalization(255.0, (0.0,), (1.0,)))
    x = as_rows([load_pixels(item.path, prop) for item in items])
    mean, centred = x.mean(axis=0), x - x.mean(axis=0)
    kernel = centred @ centred.T  # (N, N)
    penalty = 0.1 * np.trace(kernel) / len(x)
    targets = np.eye(2)[[item.label for item in items]] - 0.5
    weight = centred.T @ np.linalg.solve(kernel + penalty * np.eye(len(x)), targets)  # (D, 2)
    bundle = OnnxBundle(labels.path, ("first", "second"), preprocessing, "linear", ParityTestImage(0, 0, b"", ()))
    return FittedPredictor(bundle, lambda pixels: softmax((as_rows(pixels) - mean) @ weight))


def _part(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A random square of a background, between half and all of its shorter side."""
    shorter = min(image.size)
    size = int(rng.integers(max(1, shorter // 2), shorter + 1))
    left, top = (int(rng.integers(0, whole - size + 1)) for whole in image.size)
    return image.convert("RGB").resize((side, side), box=(left, top, left + size, top + size))
