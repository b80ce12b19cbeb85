"""A closed-form linear classifier: ridge regression whose penalty is chosen by exact leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_SPREAD = 0.05
"""A feature that hardly varies is not blown up: its spread counts as this share of the usual one at least."""

SMOOTHING = 0.05
"""Share of each target spread over all classes: without it a few separable pictures call for boundless logits."""

Floats = NDArray[np.float64]

PENALTIES = np.logspace(-4, 3, 30)
"""Tried penalties, as multiples of the mean variance that a feature direction carries."""


@dataclass(frozen=True, slots=True)
class RidgeHead:
    """`logits = features @ weight.T + bias`.

    Attributes:
        weight: float64 `(classes, D)`.
        bias: float64 `(classes,)`.
        penalty: the multiple chosen.
        left_out_accuracy: share of the pictures that were named rightly by the fit without them.
    """

    weight: Floats
    bias: Floats
    penalty: float
    left_out_accuracy: float


def fit_ridge(features: NDArray[np.floating], labels: NDArray[np.int64], classes: int) -> RidgeHead:
    """Fit features `(N, D)` to one-hot targets; scale the scores so that their softmax is calibrated left out.

    One eigendecomposition of the smaller Gram matrix serves every penalty, and the left-out residual is
    residual / (1 - leverage) (Golub, Heath and Wahba, Generalized cross-validation, 1979).
    """
    solved = _solve(features, labels, classes)
    unit = solved.values.sum() / len(labels)
    weight = solved.x.T @ (solved.vectors @ (solved.turned / (solved.values + solved.penalty * unit)[:, None]))
    scale = _softmax_scale(solved.left_out, labels)
    weight = scale * weight / solved.spread[:, None]  # (D, classes)
    right = solved.left_out.argmax(axis=1) == labels
    return RidgeHead(weight.T, scale * solved.base - solved.mean @ weight, solved.penalty, float(right.mean()))


def out_of_fold(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: int, fold: NDArray[np.int64]
) -> Floats:
    """Probabilities `(N, classes)` of each picture by a fit on all folds but its own.

    The residuals of a fit without fold F are `(I - H_FF)^-1` times its residuals in the fit of all, H being the hat
    matrix: leave-one-out for blocks (R. D. Cook and S. Weisberg, Residuals and Influence in Regression, 1982, section
    2.2). Penalty and scale of the softmax are those that leave-one-out chose.

    Args:
        features: `(N, D)`.
        labels: `(N,)`.
        fold: `(N,)`, the number of each picture's fold.
    """
    solved = _solve(features, labels, classes)
    shrink = _shrink(solved.values, solved.penalty * solved.values.sum() / len(labels))
    residuals = solved.targets - solved.base - solved.vectors @ (shrink[:, None] * solved.turned)  # (N, classes)
    scores = np.empty_like(residuals)
    for number in np.unique(fold):
        members = fold == number
        own = solved.vectors[members]  # (F, K)
        hat = (own * shrink) @ own.T + 1 / len(labels)  # (F, F), the bias included
        scores[members] = solved.targets[members] - np.linalg.solve(np.eye(len(own)) - hat, residuals[members])
    logits = _softmax_scale(scores, labels) * scores
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def stratified_folds(labels: NDArray[np.int64], *, folds: int, seed: int) -> NDArray[np.int64]:
    """A fold number for each picture, each class spread evenly over the folds: `(N,)`."""
    chance = np.random.default_rng(seed)
    fold = np.empty(len(labels), np.int64)
    start = 0
    for label in np.unique(labels):
        members = chance.permutation(np.flatnonzero(labels == label))
        fold[members] = (start + np.arange(len(members))) % folds
        start += len(members)  # else the first folds would get all the remainders
    return fold


@dataclass(frozen=True, slots=True)
class _Solved:
    """The standardised features decomposed, and the penalty that leave-one-out chose."""

    x: Floats
    mean: Floats
    spread: Floats
    targets: Floats
    base: Floats
    values: Floats
    vectors: Floats
    turned: Floats
    penalty: float
    left_out: Floats


def _solve(features: NDArray[np.floating], labels: NDArray[np.int64], classes: int) -> _Solved:
    x = np.asarray(features, np.float64)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.maximum(spread, MIN_SPREAD * np.sqrt(np.square(spread).mean()) + 1e-12)
    x = (x - mean) / spread  # (N, D)
    targets = np.eye(classes)[labels]  # (N, classes)
    base = targets.mean(axis=0)  # (classes,)
    values, vectors = _eigen(x)  # (K,), (N, K)
    turned = vectors.T @ (targets - base)  # (K, classes)
    unit = values.sum() / len(x)
    shrinks = [_shrink(values, penalty * unit) for penalty in PENALTIES]
    leverages = 1 / len(x) + np.square(vectors) @ np.stack(shrinks, axis=1)  # (N, penalties)
    scores = [
        targets - (targets - base - vectors @ (shrink[:, None] * turned)) / np.maximum(1 - leverage, 1e-9)[:, None]
        for shrink, leverage in zip(shrinks, leverages.T, strict=True)
    ]  # what the fit without a picture says of it: (N, classes)
    best = int(np.argmin([np.square(score - targets).mean() for score in scores]))
    return _Solved(x, mean, spread, targets, base, values, vectors, turned, float(PENALTIES[best]), scores[best])


def _eigen(x: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues and left singular vectors of `x`, through its smaller Gram matrix."""
    count, width = x.shape
    values, vectors = np.linalg.eigh(x @ x.T if count <= width else x.T @ x)
    kept = values > 1e-9 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return values, vectors if count <= width else (x @ vectors) / np.sqrt(values)


def _shrink(values: Floats, penalty: float) -> Floats:
    """What a penalty leaves of each direction `(K,)`."""
    return values / (values + penalty)


def _softmax_scale(scores: Floats, labels: NDArray[np.int64]) -> float:
    """The factor under which the softmax of `scores` gives the labels the highest likelihood."""

    def loss(scale: float) -> float:
        logits = scale * scores
        top = logits.max(axis=1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        right = logits[np.arange(len(labels)), labels]
        return float((total - (1 - SMOOTHING) * right - SMOOTHING * logits.mean(axis=1)).mean())

    return float(min(np.logspace(-0.5, 2, 60), key=loss))
