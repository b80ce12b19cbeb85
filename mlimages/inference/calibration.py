"""Calibration of a classifier's probabilities: expected calibration error and temperature scaling."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
"""Number of confidence bins of equal width, as in Guo et al. 2017."""

COVERAGE_LEVELS = (0.8, 0.9, 0.95)
"""Coverage levels of the prediction sets, that is, probabilities with which a set includes the true class."""

MIN_CONFORMAL_IMAGES = 19
"""Minimum number of images from which a threshold for the level 0.95 can be computed.

With n images, this threshold is the ceil(0.95 (n + 1))-th largest probability of a true class; with fewer than 19
images, this rank is greater than n.
"""

TEMPERATURE_BOUNDS = (0.05, 1000.0)
"""Range of temperatures that are searched.

If all predictions are right, the likelihood has no maximum, and the temperature is the lower bound. The upper bound is
the temperature of predictions that are no better than chance.
"""

_INVERSE_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the softmax of `logits / temperature` over the classes; logits and result are `(N, classes)`."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]  # numpy's sum is Any


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.integer], temperature: float = 1.0) -> float:
    """Return the mean cross-entropy of `logits / temperature` in nats; finite even if a probability is 0.

    Args:
        logits: `(N, classes)`.
        labels: class indices, `(N,)`.
    """
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean())


def expected_calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the expected calibration error, 0..1; 0 without images.

    It is the absolute difference between mean confidence and accuracy in each bin, averaged over the bins with the
    number of their images as weights.

    Source: Naeini et al., AAAI 2015; Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    if not len(labels):
        return 0.0
    confidence = probabilities.max(axis=1)  # (N,)
    is_correct = probabilities.argmax(axis=1) == labels  # (N,)
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)  # (N,)
    gaps = np.bincount(bins, weights=confidence - is_correct, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.integer]) -> float:
    """Return the temperature within TEMPERATURE_BOUNDS that maximizes the likelihood of `labels`; 1 without images.

    The likelihood has a single maximum over 1 / temperature, found by golden-section search. Source: Guo et al. 2017.
    """
    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        return cross_entropy(logits, labels, math.exp(log_temperature))

    low, high = map(math.log, TEMPERATURE_BOUNDS)
    for _ in range(60):
        span = _INVERSE_GOLDEN_RATIO * (high - low)
        lower, upper = loss(high - span), loss(low + span)
        if lower < upper or lower == 0:  # both may be 0 if all predictions are right
            high = low + span
        else:
            low = high - span
    return math.exp((low + high) / 2)


def find_confidence_threshold(accepted_share: float, probabilities: NDArray[np.floating]) -> float:
    """Return the highest threshold at which at least `accepted_share` of the images are accepted.

    An image is accepted if its largest probability is at least the threshold. `accepted_share` is greater than 0, and
    at most 1. Without images, the threshold is 0.
    """
    best = np.sort(probabilities.max(axis=1))
    return float(best[math.floor((1 - accepted_share) * len(best))]) if len(best) else 0.0


def compute_conformal_thresholds(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the threshold of prediction sets for each coverage level.

    A prediction set contains the classes whose probability is at least the threshold.

    A threshold is a quantile of the true class's probability over n images that the classifier was not fitted on; the
    set then includes the true class of a new image with a probability of at least the level (V. Vovk, A. Gammerman and
    G. Shafer, Algorithmic Learning in a Random World, 2005). With leave-one-out predictions, this holds approximately,
    if a single image hardly changes the classifier (R. F. Barber et al., Predictive inference with the jackknife+,
    2021).

    Args:
        probabilities: `(n, classes)`, of images that the classifier was not fitted on.
        labels: int64 `(n,)`.

    Returns:
        The threshold for each of COVERAGE_LEVELS, with the level as text ("0.9"). If there are too few images for a
        level, its threshold is 0, which all classes reach.

    >>> compute_conformal_thresholds(np.linspace([0.0, 1.0], [1.0, 0.0], 101), np.zeros(101, np.int64))["0.9"]
    0.09
    """
    true_probabilities = np.sort(probabilities[np.arange(len(labels)), labels])
    ranks = {level: int((len(labels) + 1) * (1 - level) + 1e-9) for level in COVERAGE_LEVELS}
    return {
        f"{level:g}": round(float(true_probabilities[rank - 1]), 6) if rank else 0.0 for level, rank in ranks.items()
    }
