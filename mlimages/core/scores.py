"""What a confusion matrix says: accuracy, and each class's precision, recall and F1, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mlimages.core.intervals import wilson_interval

Confusion = tuple[tuple[int, ...], ...]
"""Counts: `confusion[label][predicted]`."""


@dataclass(frozen=True, slots=True)
class Share:
    """A measured share in 0..1, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class: how many pictures it has, and how well they are told from the others.

    A share with nothing to count (a class never predicted, or without pictures) is 0 with the interval 0..1.
    """

    name: str
    count: int
    precision: Share
    recall: Share
    f1: Share


def share(successes: int, count: int) -> Share:
    """`successes / count` with its Wilson interval; 0 in 0..1 for no count."""
    return Share(successes / count if count else 0.0, *wilson_interval(successes, count))


def confusion_matrix(labels: Iterable[int], predicted: Iterable[int], classes: int) -> Confusion:
    """Count the pairs of true label and predicted label."""
    counts = [[0] * classes for _ in range(classes)]
    for label, guess in zip(labels, predicted, strict=True):
        counts[label][guess] += 1
    return tuple(map(tuple, counts))


def accuracy(confusion: Confusion) -> Share:
    """The share of pictures on the diagonal."""
    return share(sum(row[label] for label, row in enumerate(confusion)), sum(map(sum, confusion)))


def class_scores(confusion: Confusion, names: Sequence[str]) -> tuple[ClassScores, ...]:
    """Precision, recall and F1 of each class, in the order of `names`."""
    return tuple(_scores_of(label, confusion, name) for label, name in enumerate(names))


def sign_test(gained: int, lost: int) -> float:
    """How often chance alone would part two equal classifiers as far, of `gained + lost` pictures that they name
    differently: the two-sided p-value of McNemar's test in its exact form (Q. McNemar, Psychometrika 12, 1947).
    """
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def _scores_of(label: int, confusion: Confusion, name: str) -> ClassScores:
    hits = confusion[label][label]
    count = sum(confusion[label])
    predicted = sum(row[label] for row in confusion)
    # F1 = 2 J / (1 + J) grows with J = hits / (hits + missed + false), which is a share with an interval of its own.
    overlap = share(hits, count + predicted - hits)
    f1 = Share(*(2 * j / (1 + j) for j in (overlap.value, overlap.low, overlap.high)))
    return ClassScores(name, count, share(hits, predicted), share(hits, count), f1)
