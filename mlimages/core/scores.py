"""Accuracy and per-class precision, recall and F1 from a confusion matrix, with 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""

ConfusionMatrix = tuple[tuple[int, ...], ...]
"""Number of images by true and predicted class: `confusion[label][predicted]`."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """A proportion, such as an accuracy, or the difference of two proportions, with its 95 % confidence interval.

    Attributes:
        value: the proportion, 0..1, or the difference, -1..1.
        low, high: bounds of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Precision, recall and F1 of one class, and the number of images of the class.

    A score without observations (the precision of a class that is never predicted, the recall of one without images)
    is 0 with the interval 0..1.

    Attributes:
        name: name of the class.
        count: number of images of the class.
    """

    name: str
    count: int
    precision: Proportion
    recall: Proportion
    f1: Proportion


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of `successes / count`, within 0..1; (0, 1) if `count` is 0.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if count == 0:
        return 0.0, 1.0
    share, z2 = successes / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    low = max(0.0, centre - half) if successes > 0 else 0.0  # exactly, in spite of rounding
    return low, min(1.0, centre + half) if successes < count else 1.0


def format_percent(value: float, digits: int = 1) -> str:
    """Format a fraction in 0..1 as a percentage, such as "87.5 %"."""
    return f"{100 * value:.{digits}f} %"


def format_interval(proportion: Proportion) -> str:
    """Format the interval of a proportion, such as "78 to 99 %"; an interval narrower than 2 % has one decimal."""
    digits = 0 if proportion.high - proportion.low >= 0.02 else 1
    return f"{100 * proportion.low:.{digits}f} to {100 * proportion.high:.{digits}f} %"


def estimate_proportion(successes: int, count: int) -> Proportion:
    """Return `successes / count` with its Wilson interval; 0 with the interval 0..1 if `count` is 0."""
    return Proportion(successes / count if count else 0.0, *wilson_interval(successes, count))


def confusion_matrix(labels: Iterable[int], predicted_labels: Iterable[int], num_classes: int) -> ConfusionMatrix:
    """Return the number of images by true class (rows) and predicted class (columns)."""
    counts = [[0] * num_classes for _ in range(num_classes)]
    for label, predicted in zip(labels, predicted_labels, strict=True):
        counts[label][predicted] += 1
    return tuple(map(tuple, counts))


def accuracy(confusion: ConfusionMatrix) -> Proportion:
    """Return the proportion of correctly predicted images."""
    return estimate_proportion(sum(row[label] for label, row in enumerate(confusion)), sum(map(sum, confusion)))


def class_scores(confusion: ConfusionMatrix, names: Sequence[str]) -> tuple[ClassScores, ...]:
    """Return precision, recall and F1 of each class, one element per class in the order of `names`.

    Args:
        confusion: number of images by true class (rows) and predicted class (columns).
        names: class names by class index.
    """
    return tuple(
        scores_from_counts(
            name,
            true_positives=confusion[label][label],
            support=sum(confusion[label]),
            num_predicted=sum(row[label] for row in confusion),
        )
        for label, name in enumerate(names)
    )


def mcnemar_test(num_gained: int, num_lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test for two classifiers on the same images.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions,
    Psychometrika 12 (1947).

    Args:
        num_gained: number of images that only the second classifier predicts correctly.
        num_lost: number of images that only the first classifier predicts correctly.
    """
    n = num_gained + num_lost
    tail = sum(math.comb(n, k) for k in range(min(num_gained, num_lost) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def scores_from_counts(name: str, *, true_positives: int, support: int, num_predicted: int) -> ClassScores:
    """Return precision, recall and F1 of a class.

    Args:
        name: name of the class.
        true_positives: number of images of the class for which the class is predicted.
        support: number of images of the class.
        num_predicted: number of images for which the class is predicted.
    """
    # F1 = 2 J / (1 + J) grows with J = hits / (hits + missed + false), which is a share with an interval of its own.
    overlap = estimate_proportion(true_positives, support + num_predicted - true_positives)
    f1 = Proportion(*(2 * j / (1 + j) for j in (overlap.value, overlap.low, overlap.high)))
    return ClassScores(
        name,
        support,
        estimate_proportion(true_positives, num_predicted),
        estimate_proportion(true_positives, support),
        f1,
    )
