"""A closed-form linear classifier: ridge regression whose penalty is chosen by exact leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    x = np.asarray(features, np.float64)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread < 1e-6] = 1.0
    x = (x - mean) / spread  # (N, D)
    targets = np.eye(classes)[labels]  # (N, classes)
    base = targets.mean(axis=0)  # (classes,)
    values, vectors = _eigen(x)  # (K,), (N, K)
    turned = vectors.T @ (targets - base)  # (K, classes)
    unit = values.sum() / len(x)
    scores = [_left_out(values, vectors, turned, targets, base, penalty * unit) for penalty in PENALTIES]
    best = int(np.argmin([np.square(score - targets).mean() for score in scores]))
    penalty = PENALTIES[best] * unit
    weight = x.T @ (vectors @ (turned / (values + penalty)[:, None]))  # (D, classes)
    scale = _softmax_scale(scores[best], labels)
    weight = scale * weight / spread[:, None]
    right = scores[best].argmax(axis=1) == labels
    return RidgeHead(weight.T, scale * base - mean @ weight, float(PENALTIES[best]), float(right.mean()))


def _eigen(x: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues and left singular vectors of `x`, through its smaller Gram matrix."""
    count, width = x.shape
    values, vectors = np.linalg.eigh(x @ x.T if count <= width else x.T @ x)
    kept = values > 1e-9 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return values, vectors if count <= width else (x @ vectors) / np.sqrt(values)


def _left_out(values: Floats, vectors: Floats, turned: Floats, targets: Floats, base: Floats, penalty: float) -> Floats:
    """What the fit without a picture says of it: `(N, classes)`."""
    shrink = values / (values + penalty)  # (K,)
    fitted = base + vectors @ (shrink[:, None] * turned)
    leverage = 1 / len(targets) + np.square(vectors) @ shrink  # (N,)
    return targets - (targets - fitted) / np.maximum(1 - leverage, 1e-9)[:, None]


def _softmax_scale(scores: Floats, labels: NDArray[np.int64]) -> float:
    """The factor under which the softmax of `scores` gives the labels the highest likelihood."""

    def loss(scale: float) -> float:
        logits = scale * scores
        top = logits.max(axis=1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        return float((total - logits[np.arange(len(labels)), labels]).mean())

    return float(min(np.logspace(-0.5, 2, 60), key=loss))
