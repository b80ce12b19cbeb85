"""Scores of multi-label classifiers: average precision, and thresholds of the classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlimages.core.scores import ClassScores, Share, class_score

RESAMPLES = 1000
"""Number of bootstrap resamples."""

CHUNK = 2**22
"""Number of counts held at once: resamples times images."""

Probabilities = NDArray[np.floating]
Targets = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """Average precision of each class, and its mean over the classes (mAP), with 95 % intervals.

    A class without a positive image has an average precision of 0 with the interval 0..1, and does not count in the
    mean.
    """

    mean: Share
    per_class: tuple[Share, ...]


def mean_average_precision(probabilities: Probabilities, targets: Targets) -> float:
    """Return the mean over the classes with a positive image of their average precision (0..1); 0 if there are none.

    Args:
        probabilities: `(N, classes)`; only their order matters.
        targets: whether each image has each class, `(N, classes)`.

    >>> mean_average_precision(np.array([[0.9, 0.1], [0.8, 0.9]]), np.array([[False, False], [True, True]]))
    0.75
    """
    whole = np.ones((1, len(targets)), np.int64)
    return float(_mean(_average_precisions(probabilities, targets, whole))[0])


def average_precisions(probabilities: Probabilities, targets: Targets) -> AveragePrecision:
    """Return the average precision of each class and its mean, with intervals by the percentile bootstrap.

    Average precision is the sum over the thresholds of precision times the gain in recall, without interpolation, as
    scikit-learn computes it. The images are resampled RESAMPLES times with replacement and a fixed random seed; the
    interval spans the quantiles 2.5 % to 97.5 % (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993,
    section 13.3). A resample without a positive image of a class does not count for that class.

    Args:
        probabilities: `(N, classes)`; only their order matters.
        targets: whether each image has each class, `(N, classes)`.
    """
    values = _average_precisions(probabilities, targets, np.ones((1, len(targets)), np.int64))
    found = np.concatenate([_average_precisions(probabilities, targets, counts) for counts in _resamples(len(targets))])
    per_class = tuple(_share(value, column) for value, column in zip(values[0], found.T, strict=True))
    return AveragePrecision(_share(_mean(values)[0], _mean(found)), per_class)


def difference_of_means(one: Probabilities, other: Probabilities, targets: Targets) -> tuple[Share, float]:
    """Return the mAP of `one` minus that of `other`, with its interval, and the two-sided p-value.

    Both are computed on the same resamples of the images; p is twice the smaller share of resamples in which the
    difference is not positive, or not negative.
    """
    whole = np.ones((1, len(targets)), np.int64)
    value, *resampled = (
        _mean(_average_precisions(one, targets, counts)) - _mean(_average_precisions(other, targets, counts))
        for counts in (whole, *_resamples(len(targets)))
    )
    found = np.concatenate(resampled)
    tails = (1 + (found <= 0).sum()) / (1 + len(found)), (1 + (found >= 0).sum()) / (1 + len(found))
    return _share(value[0], found), min(1.0, 2 * float(min(tails)))


def f1_thresholds(probabilities: Probabilities, targets: Targets) -> tuple[float, ...]:
    """Return the threshold of each class with the best F1: the minimum probability to predict the class.

    It is the midpoint between two neighbouring probabilities (or the lowest one and 0); 0.5 without a positive image.

    >>> f1_thresholds(np.array([[0.9], [0.75], [0.25], [0.125]]), np.array([[True], [True], [False], [False]]))
    (0.5,)
    """
    return tuple(_f1_threshold(*each) for each in zip(probabilities.T, targets.T, strict=True))


def label_scores(targets: Targets, predicted: Targets, names: Sequence[str]) -> tuple[ClassScores, ...]:
    """Return precision, recall and F1 of each class, in the order of `names`.

    Args:
        targets: whether each image has each class, `(N, classes)`.
        predicted: whether each class is predicted for each image, `(N, classes)`.
    """
    counts = (array.sum(axis=0).tolist() for array in (targets & predicted, targets, predicted))
    return tuple(
        class_score(name, hits=hits, count=count, predicted=predicted)
        for name, hits, count, predicted in zip(names, *counts, strict=True)
    )


def _average_precisions(probabilities: Probabilities, targets: Targets, counts: NDArray[np.int64]) -> Probabilities:
    """Return the average precision of each class, `(B, classes)`, if each image occurs `counts`, `(B, N)`, times.

    NaN where a class has no positive image.
    """
    columns = [_of_one_class(*each, counts) for each in zip(probabilities.T, targets.T, strict=True)]
    return np.stack(columns, axis=1)


def _of_one_class(scores: Probabilities, is_positive: Targets, counts: NDArray[np.int64]) -> Probabilities:
    order, ends = _groups(scores)
    counts = counts[:, order]
    hits = np.cumsum(counts * is_positive[order], axis=1)[:, ends]  # (B, G)
    precision = hits / np.maximum(np.cumsum(counts, axis=1)[:, ends], 1)
    gained = np.diff(hits, axis=1, prepend=0)
    positives = hits[:, -1].astype(np.float64)
    return (gained * precision).sum(axis=1) / np.where(positives, positives, np.nan)  # type: ignore[no-any-return]


def _groups(scores: Probabilities) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of decreasing scores `(N,)`, and in it the last place of each group of equal scores `(G,)`."""
    order = (-scores).argsort(kind="stable")
    return order, np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))


def _f1_threshold(scores: Probabilities, is_positive: Targets) -> float:
    if not is_positive.any():
        return 0.5
    order, ends = _groups(scores)
    f1 = 2 * np.cumsum(is_positive[order])[ends] / (ends + 1 + is_positive.sum())  # (G,)
    values = np.append(scores[order][ends].astype(np.float64), 0.0)  # (G + 1,)
    best = int(f1.argmax())
    return float((values[best] + values[best + 1]) / 2)


def _resamples(images: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image occurs in some of the resamples, `(B, N)`."""
    rng, size = np.random.default_rng(0), max(1, CHUNK // max(1, images))
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        drawn = rng.integers(0, images, (count, images)) + images * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images)


def _mean(values: Probabilities) -> Probabilities:
    """Return the mean over the classes that have a value, `(B,)`; 0 if none has."""
    has_value = ~np.isnan(values)
    return np.where(has_value, values, 0).sum(axis=1) / np.maximum(has_value.sum(axis=1), 1)  # type: ignore[no-any-return]


def _share(value: float, resampled: Probabilities) -> Share:
    found = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not len(found):
        return Share(0.0, 0.0, 1.0)
    low, high = np.quantile(found, (0.025, 0.975))
    return Share(float(value), float(low), float(high))
