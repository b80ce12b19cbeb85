"""The closed-form head: ridge regression whose penalty leave-one-out chooses, and the features it is fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlimages.inference import softmax
from mlimages.networks import Model
from mlimages.training import distributed
from mlimages.training.features import EVALUATION_BATCH, BatchSource
from mlimages.training.image_set import ImageSet

MIN_SPREAD = 0.05
"""Lower bound of a feature's standard deviation, as a share of their root mean square: constant features stay small."""

SMOOTHING = 0.05
"""Label smoothing of the softmax scale: without it a few separable images would need unbounded logits."""

Floats = NDArray[np.float64]

PENALTIES = np.logspace(-4, 3, 30)
"""Candidate penalties, as multiples of the mean variance along a singular vector."""


@dataclass(frozen=True, slots=True)
class RidgeHead:
    """`logits = features @ weight.T + bias`.

    Attributes:
        weight: float64 `(classes, D)`.
        bias: float64 `(classes,)`.
    """

    weight: Floats
    bias: Floats

    def probabilities(self, features: NDArray[np.floating]) -> Floats:
        """Of features `(N, D)`: `(N, classes)`."""
        return softmax(features @ self.weight.T + self.bias)


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """A ridge regression, decomposed so that fits without some of the images are cheap.

    Attributes:
        x: the features, standardised by `mean` and `spread`: `(N, D)`.
        targets: one-hot `(N, classes)`; their mean is `base` `(classes,)`.
        vectors: left singular vectors of `x` `(N, K)`.
        projected: the centred targets, projected on them `(K, classes)`.
        values: the variance along them, `penalized` with the penalty added `(K,)`.
        penalty: the one of PENALTIES that leave-one-out chose.
        leave_one_out: scores of each image by the fit without it `(N, classes)`.
    """

    x: Floats
    mean: Floats
    spread: Floats
    targets: Floats
    base: Floats
    vectors: Floats
    projected: Floats
    values: Floats
    penalized: Floats
    penalty: float
    leave_one_out: Floats

    def head(self) -> RidgeHead:
        """The classifier fitted on all images; the softmax of its scores is calibrated by leave-one-out."""
        scale = _softmax_scale(self.leave_one_out, self.targets.argmax(axis=1))
        weight = self.x.T @ (self.vectors @ (self.projected / self.penalized[:, None]))
        weight = scale * weight / self.spread[:, None]  # (D, classes)
        return RidgeHead(weight.T, scale * self.base - self.mean @ weight)

    def out_of_fold(self, fold: NDArray[np.int64]) -> Floats:
        """Probabilities `(N, classes)` of each image by a fit on all folds but its own.

        The residuals of a fit without fold F are `(I - H_FF)^-1` times its residuals in the fit of all, H being the
        hat matrix: leave-one-out for blocks (R. D. Cook and S. Weisberg, Residuals and Influence in Regression, 1982,
        section 2.2). Penalty and scale of the softmax are those that leave-one-out chose.

        Args:
            fold: `(N,)`, fold number of each image.
        """
        shrink = self.values / self.penalized
        residuals = self.targets - self.base - self.vectors @ (shrink[:, None] * self.projected)  # (N, classes)
        scores = np.empty_like(residuals)
        for number in np.unique(fold):
            members = fold == number
            own = self.vectors[members]  # (F, K)
            hat = (own * shrink) @ own.T + 1 / len(fold)  # (F, F), the bias included
            scores[members] = self.targets[members] - np.linalg.solve(np.eye(len(own)) - hat, residuals[members])
        return softmax(_softmax_scale(scores, self.targets.argmax(axis=1)) * scores)


def fit_ridge(features: NDArray[np.floating], labels: NDArray[np.int64], classes: int) -> RidgeFit:
    """Fit a ridge regression of one-hot targets; leave-one-out chooses its penalty.

    One eigendecomposition of the smaller Gram matrix serves every penalty, and the leave-one-out residual is
    residual / (1 - leverage) (Golub, Heath and Wahba, Generalized cross-validation, 1979).

    Args:
        features: `(N, D)`.
        labels: class numbers, int64 `(N,)`.
        classes: number of classes.

    >>> features = np.array([[0.0], [0.1], [0.9], [1.0]])
    >>> head = fit_ridge(features, np.array([0, 0, 1, 1]), classes=2).head()
    >>> head.probabilities(features).argmax(axis=1).tolist()
    [0, 0, 1, 1]
    """
    x = np.array(features, np.float64)  # (N, D)
    mean = x.mean(axis=0)
    x -= mean
    spread = np.sqrt(np.einsum("nd,nd->d", x, x) / len(x))
    spread = np.maximum(spread, MIN_SPREAD * np.sqrt(np.square(spread).mean()) + 1e-12)
    x /= spread
    targets = np.eye(classes)[labels]  # (N, classes)
    base = targets.mean(axis=0)  # (classes,)
    values, vectors = _eigen(x)  # (K,), (N, K)
    projected = vectors.T @ (targets - base)  # (K, classes)
    penalized = values + PENALTIES[:, None] * values.sum() / len(x)  # (penalties, K)
    leverages = 1 / len(x) + np.square(vectors) @ (values / penalized).T  # (N, penalties)
    scores = [
        targets - (targets - base - vectors @ (shrink[:, None] * projected)) / np.maximum(1 - leverage, 1e-9)[:, None]
        for shrink, leverage in zip(values / penalized, leverages.T, strict=True)
    ]  # (N, classes) of each penalty
    best = int(np.argmin([np.square(score - targets).mean() for score in scores]))
    return RidgeFit(
        x=x,
        mean=mean,
        spread=spread,
        targets=targets,
        base=base,
        vectors=vectors,
        projected=projected,
        values=values,
        penalized=penalized[best],
        penalty=float(PENALTIES[best]),
        leave_one_out=scores[best],
    )


def stratified_folds(labels: NDArray[np.int64], *, folds: int, seed: int) -> NDArray[np.int64]:
    """A fold number for each image, each class spread evenly over the folds: `(N,)`."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), np.int64)
    start = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        fold[members] = (start + np.arange(len(members))) % folds
        start += len(members)  # else the first folds would get all the remainders
    return fold


def _eigen(x: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues and left singular vectors of `x`, through its smaller Gram matrix."""
    count, width = x.shape
    values, vectors = np.linalg.eigh(x @ x.T if count <= width else x.T @ x)
    kept = values > 1e-9 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return values, vectors if count <= width else (x @ vectors) / np.sqrt(values)


def _softmax_scale(scores: Floats, labels: NDArray[np.int64]) -> float:
    """The factor under which the softmax of `scores` gives the labels the highest likelihood."""

    def loss(scale: float) -> float:
        logits = scale * scores
        top = logits.max(axis=1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        right = logits[np.arange(len(labels)), labels]
        return float((total - (1 - SMOOTHING) * right - SMOOTHING * logits.mean(axis=1)).mean())

    return float(min(np.logspace(-0.5, 2, 60), key=loss))


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """The inputs of a network's head, averaged over positions.

    Attributes:
        features: float32 `(N, D)`.
        labels: int64 `(N,)`.
        indices: position of each row's image in its dataset.
        lowest_output: smallest logit of the head as it was.
    """

    features: Tensor
    labels: Tensor
    indices: tuple[int, ...]
    lowest_output: float


def initialize_head(model: Model, source: BatchSource, images: ImageSet, head: RidgeHead) -> bool:
    """Give the network's head the weights of the closed-form head; False where it has no bias to hold its intercept."""
    layer = model.network.get_submodule(model.head)
    if not (isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None):
        return False
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight).view_as(layer.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))
        if isinstance(layer, nn.Conv2d):
            # SqueezeNet ends in a ReLU, which must not clip a logit; softmax ignores what is added to all of them.
            layer.bias += 2 * max(0.0, -compute_head_inputs(model, source, images).lowest_output)
    return True


def compute_head_inputs(model: Model, source: BatchSource, images: ImageSet) -> HeadInputs:
    """Run the images, without augmentation, through the network up to its head."""
    features: list[Tensor] = []
    lowest: list[Tensor] = []
    indices: list[int] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].float()
        features.append(x.mean(dim=(2, 3)) if x.ndim == 4 else x.flatten(1))  # (n, D)
        lowest.append(output.flatten(1).amin(dim=1))  # (n,)

    hook = model.network.get_submodule(model.head).register_forward_hook(record)
    model.network.eval()
    with torch.no_grad():
        for batch in source.batches(images, range(len(images)), size=EVALUATION_BATCH):
            source.logits(batch.inputs)
            count = len(batch.indices)
            features[-1], lowest[-1] = features[-1][:count], lowest[-1][:count]
            indices += batch.indices
    hook.remove()
    found, rows = distributed.gather_rows(indices, {"features": torch.cat(features), "lowest": torch.cat(lowest)})
    return HeadInputs(rows["features"], images.labels[found], tuple(found.tolist()), float(rows["lowest"].min()))
