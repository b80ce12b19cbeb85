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

from mlimages.core import BrokenImage, Prediction, ThreadPool, check_at_least
from mlimages.inference.bundle import OnnxBundle
from mlimages.inference.predictor import ImageInput, Predictor, get_input_path

GRID_SIZE = 7
"""Default number of positions of the masked square along each side of the image.

An explanation takes 50 forward passes: one for each position, and one for the unmasked image.
"""

MASK_SIDE_STEPS = 2
"""Side length of the masked square in steps.

A step is the distance between two neighbouring positions of the square. Neighbouring squares therefore overlap.
"""

NUM_CENTERS = 2
"""Number of images whose centres `run_background_test` pastes into every image, one at a time."""

SIGNIFICANCE_LEVEL = 0.01
"""Significance level of `BackgroundTest.is_significant`, that is, its rate of false positives."""

_NUM_PERMUTATIONS = 1999
_MIN_PROBABILITY = 1e-7
_BATCH_SIZE = 2  # more are no faster on a CPU, and take 0.1 GB each with VGG-16
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
        prediction: the prediction for the unmasked image.
        masked_probabilities: probability of the most probable class with one square of the preprocessed image masked,
            float32 `(grid_size, grid_size)`, by row and column of the square.
        pixels: the preprocessed image, uint8 `(h, w, C)`.
    """

    prediction: Prediction
    masked_probabilities: NDArray[np.float32]
    pixels: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"<Explanation {self.path}: {self}>"

    def __str__(self) -> str:
        before, after = f"{self.probability:.2f}", f"{self.min_probability:.2f}"
        is_none = self.known is False or self.prediction.labels == ()
        name, of = self.class_name, ""
        if is_none:
            name, of = f"none of these (nearest: {name})", f" of {name}"
        if after >= before:
            return f"{name}: probability{of} {before}; hiding a region does not lower it"
        return f"{name}: probability{of} falls from {before} to {after} if the {self.most_influential_region} is hidden"

    @property
    def path(self) -> str:
        """Path of the image; empty for an image that was passed in memory."""
        return self.prediction.path

    @property
    def class_name(self) -> str:
        """The most probable class of the unmasked image, even if the image is predicted as unknown."""
        return self.prediction.class_name

    @property
    def probability(self) -> float:
        """Probability (0..1) of the class `class_name` for the unmasked image."""
        return self.prediction.probability

    @property
    def known(self) -> bool | None:
        """Whether the unmasked image belongs to one of the classes, as `Prediction.known`."""
        return self.prediction.known

    @property
    def min_probability(self) -> float:
        """The lowest probability (0..1) of the class `class_name` when one region is masked."""
        return float(self.masked_probabilities.min())

    @property
    def most_influential_region(self) -> str:
        """The position of the region whose masking lowers the probability most, in a 3 x 3 grid.

        It is "centre", "left", "right", "top", "bottom", or a corner such as "top left".
        """
        grid_size = len(self.masked_probabilities)
        row, column = (
            3 * (2 * n + MASK_SIDE_STEPS) // (2 * _compute_image_side_steps(grid_size))
            for n in divmod(int(self.masked_probabilities.argmin()), grid_size)
        )
        return _REGION_NAMES[row][column]

    def draw_overlay(self) -> Image.Image:
        """Return the preprocessed image with a red overlay on the regions whose masking lowers the probability.

        It is an RGB image. A small image is enlarged by the largest integer factor with which its longer side is at
        most 224 pixels.
        """
        pixels = np.repeat(self.pixels, 3, axis=2) if self.pixels.shape[2] == 1 else self.pixels  # (h, w, 3)
        image = Image.fromarray(pixels)
        scale = max(1, 224 // max(image.size))
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        fall = np.clip(self.probability - self.masked_probabilities, 0, None)  # (grid, grid)
        strength = np.asarray(fall / max(float(fall.max()), 0.05) * 180, np.uint8)
        mask = Image.fromarray(strength).resize(image.size, Image.Resampling.BILINEAR)
        return Image.composite(Image.new("RGB", image.size, (220, 30, 30)), image, mask)


@dataclass(frozen=True, slots=True)
class BackgroundTest:
    """The result of a test of whether predictions depend on the background, that is, the area around the image centre.

    Attributes:
        num_images: number of images.
        accuracy: share of predictions (0..1) that are the class of the original image although its centre was replaced
            by that of another image.
        chance_accuracy: expected value of `accuracy` if the background had no relation to the class.
        p_value: p-value of a one-sided permutation test.
    """

    num_images: int
    accuracy: float
    chance_accuracy: float
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the predictions depend on the background, at a significance level of 1 %."""
        return self.p_value <= SIGNIFICANCE_LEVEL


def explain(
    predictor: Predictor | OnnxBundle | str | os.PathLike[str],
    image: ImageInput,
    *,
    workers: int | None = None,
    grid_size: int = GRID_SIZE,
) -> Explanation | BrokenImage:
    """Mask the regions of an image one at a time and compare the predictions.

    Masked regions are filled with the mean colour of the image.

    Args:
        predictor: a predictor, or a model that `Predictor` opens.
        image: an input of `Predictor`.
        workers: number of threads; by default those of the predictor, at most 4.
        grid_size: number of positions of the masked square along each side of the image. An explanation takes
            `1 + grid_size**2` forward passes.

    Returns:
        The probabilities of the most probable class, without and with each region masked. If the image cannot be
        decoded, a BrokenImage.

    Example:
        >>> print(explain(Predictor("model.onnx"), "a.jpg"))  # doctest: +SKIP
        ants: probability falls from 0.94 to 0.31 if the centre is hidden
    """
    check_at_least(1, workers=workers, grid=grid_size)
    predictor = predictor if isinstance(predictor, Predictor) else Predictor(predictor)
    pixels, _ = predictor.decode(image)
    if isinstance(pixels, BrokenImage):
        return pixels
    (row,) = predictor.compute_output_rows([pixels])
    prediction = predictor.make_prediction(get_input_path(image), row)
    label = prediction.top[0].label
    masked_images = list(_mask_regions(pixels, grid_size))
    batches = [masked_images[start : start + _BATCH_SIZE] for start in range(0, len(masked_images), _BATCH_SIZE)]
    threads = ThreadPool(workers or min(_MAX_WORKERS, predictor.workers))
    hidden = np.concatenate(list(threads.map(predictor.compute_probabilities, batches)))[:, label]  # (grid * grid,)
    return Explanation(prediction, hidden.reshape(grid_size, -1), pixels)


def run_background_test(
    predictor: Predictor, images: Sequence[NDArray[np.uint8]], labels: NDArray[np.int64]
) -> BackgroundTest:
    """Test whether predictions depend on the background, that is, the outer half of the image area.

    The centre of every image is replaced by the centres of the same `NUM_CENTERS` images, one at a time, so that
    predictions differ only because of the background. The p-value is that of a permutation test of the labels, whose
    statistic is the mean log-probability of the true class. A probability below 1e-7 counts as 1e-7, so that no single
    image decides.

    Args:
        predictor: the model.
        images: preprocessed images from `Predictor.decode`, each `(h, w, C)`; at least one.
        labels: class indices of the images, `(N,)`.
    """
    centers = [images[n * len(images) // NUM_CENTERS] for n in range(NUM_CENTERS)]
    threads = ThreadPool(min(_MAX_WORKERS, predictor.workers))
    batches = ([replace_center(image, center) for center in centers] for image in images)
    probabilities = np.stack(list(threads.map(predictor.compute_probabilities, batches)))  # (N, NUM_CENTERS, classes)
    predicted = probabilities.argmax(axis=2)  # (N, NUM_CENTERS)
    correct = float((predicted == labels[:, None]).mean())
    frequencies = [np.bincount(each.ravel(), minlength=probabilities.shape[2]) for each in (predicted, labels)]
    chance = float(frequencies[0] @ frequencies[1] / predicted.size / len(labels))
    log_probabilities = np.log(np.maximum(probabilities, _MIN_PROBABILITY)).mean(axis=1)  # (N, classes)
    return BackgroundTest(len(images), correct, chance, _compute_p_value(log_probabilities, labels))


def _compute_p_value(log_probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of random label permutations that fit the predictions at least as well as the actual labels.

    Labels fit well if the sum of their log-probabilities is high. The actual labels count as one of the permutations,
    so that the p-value is never 0.

    Args:
        log_probabilities: `(N, classes)`.

    Source: B. Phipson and G. K. Smyth, Permutation p-values should never be zero, SAGMB 9 (2010).
    """
    rows, rng = np.arange(len(labels)), np.random.default_rng(0)
    observed = log_probabilities[rows, labels].sum(dtype=np.float64) - 1e-6  # equal sums may differ by rounding
    totals = (log_probabilities[rows, rng.permutation(labels)].sum(dtype=np.float64) for _ in range(_NUM_PERMUTATIONS))
    return float((1 + sum(total >= observed for total in totals)) / (1 + _NUM_PERMUTATIONS))


_CENTER_MARGIN = (1 - 0.5**0.5) / 2
"""Width of the border around the image centre, as a fraction of the side: the centre is half of the area."""


def replace_center(image: NDArray[np.uint8], center_source: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image `(h, w, C)` whose centre is replaced by that of `center_source`, of the same size."""
    height, width = image.shape[:2]
    top, left = round(height * _CENTER_MARGIN), round(width * _CENTER_MARGIN)
    mixed = image.copy()
    mixed[top : height - top, left : width - left] = center_source[top : height - top, left : width - left]
    return mixed


def _mask_regions(pixels: NDArray[np.uint8], grid_size: int) -> Iterator[NDArray[np.uint8]]:
    """Yield copies of the image with one square masked, for each position of the square, row by row."""
    row_slices, column_slices = (_make_square_slices(side_px, grid_size) for side_px in pixels.shape[:2])
    for rows, columns in itertools.product(row_slices, column_slices):
        masked_image = pixels.copy()
        masked_image[rows, columns] = pixels.mean(axis=(0, 1)).round()
        yield masked_image


def _compute_image_side_steps(grid_size: int) -> int:
    """Return the side length of the image in steps from one mask position to the next: 8 for 7 positions."""
    return grid_size + MASK_SIDE_STEPS - 1


def _make_square_slices(side_px: int, grid_size: int) -> list[slice]:
    """Return the range of pixels along one side of the image that the masked square covers at each position."""
    step = side_px / _compute_image_side_steps(grid_size)
    return [
        slice(round(n * step), max(round(n * step) + 1, round((n + MASK_SIDE_STEPS) * step))) for n in range(grid_size)
    ]
