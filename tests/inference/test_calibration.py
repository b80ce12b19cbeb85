"""Probabilities, their calibration and thresholds, against SciPy and brute force."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from mlimages.inference.calibration import (
    expected_calibration_error,
    find_confidence_threshold,
    fit_temperature,
    softmax,
)


def logits_and_labels(images: int, *, sharpness: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits of 4 classes of unequal frequency; those divided by `sharpness` would be calibrated."""
    rng = np.random.default_rng(images)
    logits = rng.normal(0, 1.5, (images, 4)) + np.array([1.0, 0.0, 0.0, -1.0])
    odds = np.exp(logits)
    labels = [rng.choice(4, p=row / row.sum()) for row in odds]
    return (sharpness * logits).astype(np.float32), np.array(labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_softmax_equals_scipys_also_where_exponentials_overflow(temperature: float) -> None:
    special = pytest.importorskip("scipy.special")
    logits = np.array([[1.0, 2.0, -3.0], [1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    expected = special.softmax(logits.astype(float) / temperature, axis=1)
    assert softmax(logits, temperature) == pytest.approx(expected, rel=1e-12)
    assert softmax(logits) == pytest.approx(special.softmax(logits.astype(float), axis=1), rel=1e-12)


def test_the_calibration_error_is_the_sum_over_15_bins() -> None:
    logits, labels = logits_and_labels(200, sharpness=2.0)
    probabilities = softmax(logits)
    edges, expected = np.arange(16) / 15, 0.0
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for low, high in itertools.pairwise(edges):
        own = (confidence >= low) & ((confidence < high) | (high == 1))
        if own.any():
            expected += own.mean() * abs(confidence[own].mean() - right[own].mean())
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)
    assert expected > 0.05
    assert expected_calibration_error(np.eye(2), np.array([0, 1])) == 0.0, "a probability of 1 is in the last bin"
    assert expected_calibration_error(np.array([[1.0, 0], [0.95, 0.05]]), np.array([1, 0])) == pytest.approx(0.475)
    neighbours = np.array([[0.9, 0.1], [0.95, 0.05]])  # of the last two bins
    assert expected_calibration_error(neighbours, np.array([1, 0])) == pytest.approx(0.475)
    assert expected_calibration_error(np.eye(2), np.array([1, 0])) == 1.0
    assert expected_calibration_error(np.empty((0, 2)), np.empty(0, dtype=int)) == 0.0


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 4.0, 15.0, 300.0])
def test_the_temperature_has_the_greatest_likelihood(sharpness: float) -> None:
    optimize, special = pytest.importorskip("scipy.optimize"), pytest.importorskip("scipy.special")
    logits, labels = logits_and_labels(300, sharpness=sharpness)

    def loss(temperature: float) -> float:
        return float(-special.log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())

    expected = optimize.minimize_scalar(lambda log_t: loss(np.exp(log_t)), bounds=(-3, 6.9), method="bounded")
    assert fit_temperature(logits, labels) == pytest.approx(np.exp(expected.x), rel=1e-3)


def test_the_temperature_stays_within_its_bounds() -> None:
    right = np.eye(3, dtype=np.float32)
    for margin in (1, 20, 1e6):
        assert fit_temperature(margin * right, np.arange(3)) == pytest.approx(0.05)
    assert fit_temperature(right, np.array([1, 2, 0])) == pytest.approx(1000.0)
    assert fit_temperature(1e6 * right, np.array([1, 2, 0])) == pytest.approx(1000.0), "probabilities of 0"
    assert fit_temperature(0 * right, np.arange(3)) == pytest.approx(1000.0), "no better than chance"
    assert fit_temperature(np.empty((0, 3), dtype=np.float32), np.empty(0, dtype=int)) == 1.0


@pytest.mark.parametrize(
    ("share", "threshold"),
    [(1.0, 0.5), (0.9, 0.5), (0.76, 0.5), (0.75, 0.6), (0.5, 0.7), (0.26, 0.7), (0.25, 0.8), (0.1, 0.8)],
)
def test_at_least_the_share_of_images_reaches_the_threshold(share: float, threshold: float) -> None:
    probabilities = np.array([[0.3, 0.7], [0.5, 0.5], [0.8, 0.2], [0.4, 0.6]])
    found = find_confidence_threshold(share, probabilities)
    assert found == threshold
    assert (probabilities.max(axis=1) >= found).mean() >= share
    assert find_confidence_threshold(share, np.empty((0, 2))) == 0.0
