"""Closed-form head: ridge regression whose penalty is chosen by leave-one-out cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.inference import MultiLabel, SingleLabel, Task, softmax

MIN_RELATIVE_STD = 0.05
"""Each feature is divided by its standard deviation, or by this fraction of the root mean square of all standard
deviations if that is larger. It prevents nearly constant features from being amplified."""

LABEL_SMOOTHING = 0.05
"""Label smoothing of the loss that calibrates the logits. Without it, separable classes would need unbounded logits."""

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
Targets = NDArray[Any]
"""Class indices, int64 `(N,)`; for multi-label data, multi-hot `(N, classes)`."""

Features = NDArray[np.floating]

PENALTIES = np.logspace(-4, 3, 30)
"""Candidate penalties, as multiples of the mean diagonal element of the Gram matrix `(N, N)`."""

LOWER_LAYERS_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Candidates for the weight w of the lower layers in the kernel matrix of the ridge regression, 0..1. The matrix is
(1 - w) K_last + w K_lower; each K holds the inner products of the features of all pairs of images."""

MAX_PENALTY_IMAGES = 4000
"""Maximum number of images on which the leave-one-out error is computed to choose the penalty."""

MAX_SHARE_IMAGES = 1000
"""Maximum number of images on which the leave-one-out error is computed to choose from LOWER_LAYERS_SHARES."""

LOGIT_SCALES = np.logspace(-0.5, 2, 60)
"""Candidates for the factor that converts leave-one-out scores to logits."""

CHUNK_IMAGES = 2048
"""Number of images read at once if there are more images than features."""


@dataclass(frozen=True, slots=True)
class RidgeHead:
    """Linear classifier fitted by ridge regression: `logits = features @ weight.T + bias`.

    Attributes:
        weight: float64 `(classes, D)`.
        bias: float64 `(classes,)`.
    """

    weight: Float64Array
    bias: Float64Array

    def compute_probabilities(self, features: NDArray[np.floating]) -> Float64Array:
        """Return the softmax of the logits, `(N, classes)`, for features `(N, D)` of images with one class each."""
        return softmax(features @ self.weight.T + self.bias)


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """A ridge regression with its leave-one-out predictions.

    Attributes:
        head: classifier fitted on all images. Its logits are scaled by the factor that calibrates `loo_probabilities`.
        loo_probabilities: leave-one-out probabilities, float32 `(N, classes)`: each image is predicted by a classifier
            that was fitted without this image.
        penalty: the penalty from PENALTIES with the smallest leave-one-out error.
        lower_layers_share: weight of the lower layers' features (see LOWER_LAYERS_SHARES); 0: they are not used.
    """

    head: RidgeHead
    loo_probabilities: NDArray[np.float32]
    penalty: float
    lower_layers_share: float


def fit_ridge(
    features: Features,
    labels: Targets,
    num_classes: int,
    *,
    lower_features: Sequence[Features] = (),
    share_candidates: Sequence[float] = LOWER_LAYERS_SHARES,
) -> RidgeFit:
    """Fit a ridge regression to one-hot or multi-hot targets.

    The penalty and the weight of the lower layers' features are chosen by leave-one-out cross-validation.
    One eigendecomposition of a Gram matrix suffices for all penalties, and the leave-one-out residual is
    residual / (1 - leverage) (Golub, Heath and Wahba, Generalized cross-validation, 1979). If there are more images
    than features, the rows are read in chunks; the result is then the only array of `(N, classes)` values in memory.

    Args:
        features: features of the last layer, `(N, D)`.
        labels: class indices, int64 `(N,)`; for multi-label data, multi-hot `(N, classes)`.
        num_classes: number of classes.
        lower_features: for each lower layer, its features `(N, L)`; in `RidgeHead.weight`, their columns follow
            those of `features`: `(classes, D + sum of all L)`.
        share_candidates: candidate weights of the lower layers (see LOWER_LAYERS_SHARES), in ascending order. A weight
            of 0 is preferred, since others require a second head: if the first candidate is 0, another is chosen only
            if its error is lower by more than two standard errors of the difference.

    >>> features = np.array([[0.0], [0.1], [0.9], [1.0]])
    >>> head = fit_ridge(features, np.array([0, 0, 1, 1]), num_classes=2).head
    >>> head.compute_probabilities(features).argmax(axis=1).tolist()
    [0, 0, 1, 1]
    """
    layers = [_StandardizedFeatures.compute(layer) for layer in (features, *lower_features)]
    if not lower_features:
        return _RidgeSolver(layers, labels, num_classes).fit()
    rows = np.sort(np.random.default_rng(0).permutation(len(labels))[:MAX_SHARE_IMAGES])
    is_all = len(rows) == len(labels)
    sample = layers if is_all else [_StandardizedFeatures.compute(layer.features[rows]) for layer in layers]
    last = sample[0].compute_kernel_matrix()
    below = sum((layer.compute_kernel_matrix() for layer in sample[1:]), np.zeros_like(last)) / len(lower_features)
    solvers: dict[int, _RidgeSolver] = {}
    highest = len(share_candidates) - 1
    indices = {0, highest // 2, highest}
    while indices := indices - solvers.keys():  # its neighbours suffice: the error had one minimum on all data tried
        for index in sorted(indices):
            share = share_candidates[index]
            solvers[index] = _RidgeSolver(
                sample if share else sample[:1],
                labels[rows],
                num_classes,
                lower_layers_share=share,
                kernel_matrix=(1 - share) * last + share * below,
            )
        best = min(solvers, key=lambda index: solvers[index].errors.mean())
        indices = {max(best - 1, 0), min(best + 1, highest)}
    gain = solvers[0].errors - solvers[best].errors  # of each image
    if not share_candidates[0] and gain.mean() <= 2 * gain.std() / np.sqrt(len(gain)):
        best = 0
    share = share_candidates[best]
    if is_all:
        return solvers[best].fit()
    return _RidgeSolver(layers if share else layers[:1], labels, num_classes, lower_layers_share=share).fit()


@dataclass(frozen=True, slots=True)
class _StandardizedFeatures:
    """Features of one layer, with the mean and the scaling factor that standardize them.

    Attributes:
        features: `(N, D)`.
        mean: mean of each feature, `(D,)`.
        scale: factor by which each centred feature is multiplied, `(D,)`. The squared length of an image's scaled
            feature vector is 1 on average.
    """

    features: Features
    mean: Float64Array
    scale: Float64Array

    @classmethod
    def compute(cls, features: Features) -> _StandardizedFeatures:
        """Compute the mean and the scaling factor of the features `(N, D)` of one layer."""
        mean, squares = features.mean(axis=0, dtype=np.float64), np.zeros(features.shape[1])
        for start in range(0, len(features), CHUNK_IMAGES):
            squares += np.square(features[start : start + CHUNK_IMAGES] - mean).sum(axis=0)
        spread = np.sqrt(squares / len(features))
        bounded = np.maximum(spread, MIN_RELATIVE_STD * np.sqrt(np.square(spread).mean()) + 1e-12)
        return cls(features, mean, np.sqrt(1 / max(1e-12, np.square(spread / bounded).sum())) / bounded)

    def compute_kernel_matrix(self) -> Float64Array:
        """Return the linear kernel `(N, N)`: the inner products of the standardized features of all pairs of images."""
        x = (self.features - self.mean) * self.scale
        return x @ x.T


class _RidgeSolver:
    """Solves a ridge regression by eigendecomposition, with the penalty that has the smallest leave-one-out error.

    The features of each layer are standardized and scaled so that the mean diagonal element of the layer's Gram matrix
    is the layer's share of the kernel matrix.

    The steps, with the singular value decomposition X = U diag(s) V' of the scaled features `(N, D)`:
    1. Compute the eigenvalues e = s ** 2 and eigenvectors U of X X'. Or, if N > D and `kernel_matrix` is not given,
       the eigenvalues e and eigenvectors V of X' X; U = X V / s is then computed in chunks of rows.
    2. fitted = mean of Y + U diag(e / (e + penalty)) U' Y;
    3. leverage of row i = 1 / N + sum over k of U_ik ** 2 e_k / (e_k + penalty);
    4. leave-one-out score of row i = y_i - (y_i - fitted_i) / (1 - leverage_i);
    5. weight = X' U diag(1 / (e + penalty)) U' Y.

    Args:
        layers: features of the last layer and, if `lower_layers_share` is not 0, of each lower layer.
        lower_layers_share: weight from LOWER_LAYERS_SHARES; it is divided equally among the lower layers.
        kernel_matrix: X X' `(N, N)`, if it has been computed.

    Attributes:
        errors: mean squared leave-one-out error of each image in a sample of at most MAX_PENALTY_IMAGES, `(n,)`.
    """

    def __init__(
        self,
        layers: Sequence[_StandardizedFeatures],
        labels: Targets,
        num_classes: int,
        *,
        lower_layers_share: float = 0.0,
        kernel_matrix: Float64Array | None = None,
    ) -> None:
        self._layers, self._labels, self._num_classes = layers, labels, num_classes
        self._lower_layers_share = lower_layers_share
        self._mean = np.concatenate([layer.mean for layer in layers])  # (D,)
        num_lower = len(layers) - 1
        layer_shares = [1 - lower_layers_share, *[lower_layers_share / max(1, num_lower)] * num_lower]
        self._factor = np.concatenate([layer.scale * np.sqrt(x) for layer, x in zip(layers, layer_shares, strict=True)])
        self._is_dual = kernel_matrix is not None or len(labels) <= len(self._mean)
        starts = range(0, len(labels), CHUNK_IMAGES)
        self._chunks = [np.arange(start, min(start + CHUNK_IMAGES, len(labels))) for start in starts]
        counts: Float64Array = np.sum([self._make_targets(rows).sum(axis=0) for rows in self._chunks], axis=0)
        self._base = counts / len(labels)
        self._decompose(kernel_matrix)
        self._choice = np.random.default_rng(0).permutation(len(labels))[:MAX_PENALTY_IMAGES]
        compute_loo_scores, targets = self._prepare_leave_one_out(self._choice), self._make_targets(self._choice)
        penalties = PENALTIES * self._values.sum() / len(labels)
        errors = [np.square(compute_loo_scores(penalty) - targets).mean(axis=1) for penalty in penalties]
        best = int(np.argmin([each.mean() for each in errors]))
        self.errors, self._penalty, self._relative_penalty = errors[best], penalties[best], float(PENALTIES[best])

    def fit(self) -> RidgeFit:
        """Return the classifier and the leave-one-out probabilities of all images."""
        task: Task = MultiLabel() if self._labels.ndim == 2 else SingleLabel()
        fit_scale = _fit_sigmoid_scaling if self._labels.ndim == 2 else _fit_softmax_scaling
        scores = self._prepare_leave_one_out(self._choice)(self._penalty)
        scale, offset = fit_scale(scores, self._labels[self._choice])
        coefficients = self._projected / (self._values + self._penalty)[:, None]  # (K, classes)
        if self._is_dual:
            weight = self._standardize_rows(slice(None)).T @ (self._vectors @ coefficients)
        else:
            weight = self._vectors @ (self._values[:, None] * coefficients)
        weight = scale * weight * self._factor[:, None]  # (D, classes)
        head = RidgeHead(weight.T, scale * self._base + offset - self._mean @ weight)
        left_out = np.empty((len(self._labels), self._num_classes), np.float32)
        for rows in self._chunks:
            scores = self._prepare_leave_one_out(rows)(self._penalty)
            left_out[rows] = task.compute_probabilities(scale * scores + offset)
        return RidgeFit(head, left_out, self._relative_penalty, self._lower_layers_share)

    def _decompose(self, kernel_matrix: Float64Array | None) -> None:
        """Do step 1 of the class docstring: set `_values` = e `(K,)`, `_projected` = U' Y `(K, classes)`, `_vectors`.

        `_vectors` is U `(N, K)` if `_is_dual`, otherwise V / s `(D, K)`, since rows of U are rows of X times V / s.
        """
        if self._is_dual:
            if kernel_matrix is None:
                x = self._standardize_rows(slice(None))
                kernel_matrix = x @ x.T
            self._values, self._vectors = _eigendecompose(kernel_matrix)
            self._projected = self._vectors.T @ (self._make_targets(np.arange(len(self._labels))) - self._base)
            return
        width = len(self._mean)
        gram_matrix, moments = np.zeros((width, width)), np.zeros((width, self._num_classes))
        for rows in self._chunks:
            x = self._standardize_rows(rows)
            gram_matrix += x.T @ x
            moments += x.T @ self._make_targets(rows)
        self._values, vectors = _eigendecompose(gram_matrix)
        self._vectors = vectors / np.sqrt(self._values)
        self._projected = self._vectors.T @ moments

    def _standardize_rows(self, rows: Int64Array | slice) -> Float64Array:
        """Return the scaled features `(n, D)` of the images at the indices `rows`."""
        x = np.concatenate([layer.features[rows] for layer in self._layers], axis=1, dtype=np.float64)
        x -= self._mean
        x *= self._factor
        return x

    def _make_targets(self, rows: Int64Array) -> Float64Array:
        """Return the one-hot or multi-hot targets `(n, classes)` of the images at the indices `rows`."""
        if self._labels.ndim == 2:
            return self._labels[rows].astype(np.float64)
        targets = np.zeros((len(rows), self._num_classes))
        targets[np.arange(len(rows)), self._labels[rows]] = 1
        return targets

    def _prepare_leave_one_out(self, rows: Int64Array) -> Callable[[float], Float64Array]:
        """Return a function that maps a penalty to the leave-one-out scores `(n, classes)` of the images at `rows`."""
        targets = self._make_targets(rows)
        left_vectors = self._vectors[rows] if self._is_dual else self._standardize_rows(rows) @ self._vectors  # (n, K)
        squares = np.square(left_vectors)

        def compute_loo_scores(penalty: float) -> Float64Array:
            shrink = self._values / (self._values + penalty)
            residuals = targets - self._base - left_vectors @ (shrink[:, None] * self._projected)
            leverage = 1 / len(self._labels) + squares @ shrink
            residuals /= np.maximum(1 - leverage, 1e-9)[:, None]
            return targets - residuals

        return compute_loo_scores


def assign_stratified_folds(labels: Int64Array, *, num_folds: int, seed: int) -> Int64Array:
    """Return the fold number of each image, int64 `(N,)`; each class is spread evenly over the folds."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), np.int64)
    start = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        fold[members] = (start + np.arange(len(members))) % num_folds
        start += len(members)  # otherwise the first folds would get all remainders
    return fold


def _eigendecompose(gram_matrix: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the eigenvalues `(K,)` above rounding error, and their eigenvectors `(N, K)`."""
    values, vectors = np.linalg.eigh(gram_matrix)
    kept = values > 1e-9 * values[-1]
    return values[kept], vectors[:, kept]


def _fit_softmax_scaling(scores: Float64Array, labels: Int64Array) -> tuple[float, float]:
    """Return the scale (inverse temperature) that maximizes the likelihood of the labels, and 0 as the offset."""

    def compute_cross_entropy(scale: float) -> float:
        logits = scale * scores
        top = logits.max(axis=1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        right = logits[np.arange(len(labels)), labels]
        return float((total - (1 - LABEL_SMOOTHING) * right - LABEL_SMOOTHING * logits.mean(axis=1)).mean())

    return float(min(LOGIT_SCALES, key=compute_cross_entropy)), 0.0


def _fit_sigmoid_scaling(scores: Float64Array, targets: Float64Array) -> tuple[float, float]:
    """Fit logits k (2 s - 1) of scores s, with one parameter k; return the scale 2 k and the offset -k.

    k maximizes the likelihood of the targets: Platt scaling in which the logit of the score 0.5 is 0.
    """
    smoothed = (1 - LABEL_SMOOTHING) * targets + LABEL_SMOOTHING / 2

    def compute_binary_cross_entropy(k: float) -> float:
        logits = k * (2 * scores - 1)
        return float((np.logaddexp(0, logits) - smoothed * logits).mean())

    k = float(min(LOGIT_SCALES, key=compute_binary_cross_entropy))
    return 2 * k, -k
