"""Explain a prediction by occlusion: how much the probability of the class drops when a region is masked.

Occlusion (Zeiler and Fergus, ECCV 2014) needs only the outputs of the file: no gradients, no choice of a layer.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.core import BrokenImage, ThreadPool, check_at_least
from mlimages.inference.bundle import OnnxBundle
from mlimages.inference.predictor import ImageInput, Predictor

GRID = 7
"""Default number of positions along each side: with the whole image, 50 forward passes."""

WINDOW = 2
"""Side of the masked square, in steps of the grid: neighbouring squares overlap, so that every pixel is masked."""

CENTERS = 2
"""Number of images whose centres replace that of each image; more images are more informative than more centres."""

SIGNIFICANCE_LEVEL = 0.01
"""Highest p-value that `BackgroundUse.is_significant` accepts: its rate of false positives."""

_PERMUTATIONS = 1999
_MIN_PROBABILITY = 1e-7
_BATCH = 2  # more are no faster on a CPU, and take 0.1 GB each with VGG-16
_MAX_WORKERS = 4  # a batch each
_REGION_NAMES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Explanation:
    """How masking regions of an image changes the probability of its most probable class.

    Attributes:
        path: path of the image; empty for an image that was passed in memory.
        class_name: the most probable class of the unmasked image.
        probability: probability of this class for the unmasked image (0..1).
        hidden: probability of this class with one square of the preprocessed image masked, float32 `(grid, grid)`, by
            row and column of the square.
        pixels: the preprocessed image, uint8 `(h, w, C)`.
    """

    path: str
    class_name: str
    probability: float
    hidden: NDArray[np.float32]
    pixels: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"<Explanation {self.path}: {self}>"

    def __str__(self) -> str:
        if f"{self.lowest:.2f}" >= f"{self.probability:.2f}":
            return f"{self.class_name}: probability {self.probability:.2f}; hiding a region does not lower it"
        change = f"from {self.probability:.2f} to {self.lowest:.2f} when the {self.place} is hidden"
        return f"{self.class_name}: probability falls {change}"

    @property
    def lowest(self) -> float:
        """The lowest probability of the class with one region masked."""
        return float(self.hidden.min())

    @property
    def place(self) -> str:
        """Region of the `lowest` probability, in thirds of the image: from "top left" to "bottom right"."""
        grid = len(self.hidden)
        row, column = (
            3 * (2 * n + WINDOW) // (2 * _count_steps(grid)) for n in divmod(int(self.hidden.argmin()), grid)
        )
        return _REGION_NAMES[row][column]

    def overlay(self) -> Image.Image:
        """Return the preprocessed image with a red overlay on the regions whose masking lowers the probability."""
        pixels = np.repeat(self.pixels, 3, axis=2) if self.pixels.shape[2] == 1 else self.pixels  # (h, w, 3)
        image = Image.fromarray(pixels)
        scale = max(1, 224 // max(image.size))
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        fall = np.clip(self.probability - self.hidden, 0, None)  # (grid, grid)
        strength = np.asarray(fall / max(float(fall.max()), 0.05) * 180, np.uint8)
        mask = Image.fromarray(strength).resize(image.size, Image.Resampling.BILINEAR)
        return Image.composite(Image.new("RGB", image.size, (220, 30, 30)), image, mask)


@dataclass(frozen=True, slots=True)
class BackgroundUse:
    """How predictions depend on what surrounds the centre of the images, where most objects are.

    Attributes:
        count: number of images.
        correct: share of correct predictions (0..1) with the centre replaced by that of another image.
        chance: expected value of `correct` if the surroundings had no relation to the class.
        p_value: p-value of a one-sided permutation test.
    """

    count: int
    correct: float
    chance: float
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the surroundings predict the class, at a significance level of 1 %."""
        return self.p_value <= SIGNIFICANCE_LEVEL


def explain(
    predictor: Predictor | OnnxBundle | str | os.PathLike[str],
    image: ImageInput,
    *,
    workers: int | None = None,
    grid: int = GRID,
) -> Explanation | BrokenImage:
    """Mask the regions of an image one at a time and compare the predictions.

    Masked regions are filled with the mean colour of the image.

    Args:
        predictor: a predictor, or a model that `Predictor` opens.
        image: an input of `Predictor`.
        workers: number of threads; by default those of the predictor, at most 4.
        grid: positions of the masked region along each side; `1 + grid**2` forward passes.

    Returns:
        The probabilities of the most probable class, without and with each region masked; a BrokenImage if the image
        cannot be decoded.

    Example:
        >>> print(explain(Predictor("model.onnx"), "a.jpg"))  # doctest: +SKIP
        ants: probability falls from 0.94 to 0.31 when the centre is hidden
    """
    check_at_least(1, workers=workers, grid=grid)
    predictor = predictor if isinstance(predictor, Predictor) else Predictor(predictor)
    pixels, _ = predictor.decode(image)
    if isinstance(pixels, BrokenImage):
        return pixels
    whole = predictor.probabilities([pixels])[0]  # (classes,)
    label = int(whole.argmax())
    masked_images = list(_mask_regions(pixels, grid))
    batches = [masked_images[start : start + _BATCH] for start in range(0, len(masked_images), _BATCH)]
    threads = ThreadPool(workers or min(_MAX_WORKERS, predictor.workers))
    hidden = np.concatenate(list(threads.map(predictor.probabilities, batches)))[:, label]  # (grid * grid,)
    name = image if isinstance(image, str) else getattr(image, "__fspath__", lambda: "")()
    return Explanation(
        str(name), predictor.bundle.class_names[label], float(whole[label]), hidden.reshape(grid, grid), pixels
    )


def measure_background_use(
    predictor: Predictor, images: Sequence[NDArray[np.uint8]], labels: NDArray[np.int64]
) -> BackgroundUse:
    """Test whether predictions depend on what surrounds the centre of the images (half of their area).

    The centre of each image is replaced by those of the same few images, so that the predictions differ only because of
    the surroundings.
    A permutation test of the labels, whose statistic is the mean log-probability of the true class, gives the p-value.

    Args:
        predictor: the model.
        images: preprocessed images from `Predictor.decode`, each `(h, w, C)`; at least one.
        labels: class indices of the images, `(N,)`.
    """
    centers = [images[n * len(images) // CENTERS] for n in range(CENTERS)]
    threads = ThreadPool(min(_MAX_WORKERS, predictor.workers))
    batches = ([replace_center(image, center) for center in centers] for image in images)
    probabilities = np.stack(list(threads.map(predictor.probabilities, batches)))  # (N, CENTERS, classes)
    predicted = probabilities.argmax(axis=2)  # (N, CENTERS)
    correct = float((predicted == labels[:, None]).mean())
    frequencies = [np.bincount(each.ravel(), minlength=probabilities.shape[2]) for each in (predicted, labels)]
    chance = float(frequencies[0] @ frequencies[1] / predicted.size / len(labels))
    log_probabilities = np.log(np.maximum(probabilities, _MIN_PROBABILITY)).mean(axis=1)  # (N, classes)
    return BackgroundUse(len(images), correct, chance, _compute_p_value(log_probabilities, labels))


def _compute_p_value(log_probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of random permutations of the labels with at least as high a sum of log-probabilities.

    Args:
        log_probabilities: `(N, classes)`.

    Source: B. Phipson and G. K. Smyth, Permutation p-values should never be zero, SAGMB 9 (2010).
    """
    rows, rng = np.arange(len(labels)), np.random.default_rng(0)
    observed = log_probabilities[rows, labels].sum(dtype=np.float64) - 1e-6  # equal sums may differ by rounding
    totals = (log_probabilities[rows, rng.permutation(labels)].sum(dtype=np.float64) for _ in range(_PERMUTATIONS))
    return float((1 + sum(total >= observed for total in totals)) / (1 + _PERMUTATIONS))


_MARGIN = (1 - 0.5**0.5) / 2
"""Fraction of the height and width outside the centre on each side, so that half of the area lies within."""


def replace_center(image: NDArray[np.uint8], center_image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image `(h, w, C)` whose centre is replaced by that of `center_image`, of the same size."""
    height, width = image.shape[:2]
    top, left = round(height * _MARGIN), round(width * _MARGIN)
    mixed = image.copy()
    mixed[top : height - top, left : width - left] = center_image[top : height - top, left : width - left]
    return mixed


def _mask_regions(pixels: NDArray[np.uint8], grid: int) -> Iterator[NDArray[np.uint8]]:
    """Yield copies of the image with one square masked, by row and column."""
    row_slices, column_slices = (_slice_side(side_px, grid) for side_px in pixels.shape[:2])
    for rows, columns in itertools.product(row_slices, column_slices):
        masked_image = pixels.copy()
        masked_image[rows, columns] = pixels.mean(axis=(0, 1)).round()
        yield masked_image


def _count_steps(grid: int) -> int:
    """Return the number of steps that the positions of the masked square span: it is `WINDOW` steps wide."""
    return grid + WINDOW - 1


def _slice_side(side_px: int, grid: int) -> list[slice]:
    """Return the slices of the masked square along one side; the first and the last touch the borders."""
    step = side_px / _count_steps(grid)
    return [slice(round(n * step), max(round(n * step) + 1, round((n + WINDOW) * step))) for n in range(grid)]
