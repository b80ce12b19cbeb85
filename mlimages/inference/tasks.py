"""Interpretation of a classifier's outputs: single-label or multi-label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.core import LabeledPath, Proportion, average_precisions, estimate_proportion
from mlimages.dataset import multi_hot
from mlimages.inference.calibration import cross_entropy, expected_calibration_error, softmax

FloatArray = NDArray[np.floating]
TargetArray = NDArray[Any]
ClassIndices = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SingleLabel:
    """The task of predicting one class per image: probabilities are a softmax, and the score is the accuracy.

    Attributes:
        score_name: name of the main score.
    """

    score_name = "accuracy"

    def compute_probabilities(self, logits: FloatArray, temperature: float = 1.0) -> FloatArray:
        """Return the softmax of `logits / temperature` over the classes, `(N, classes)`."""
        return softmax(logits, temperature)

    def make_targets(self, images: Iterable[LabeledPath], num_classes: int) -> TargetArray:
        """Return the class indices, int64 `(N,)`."""
        return np.array([image.label for image in images], np.int64)

    def score(self, probabilities: FloatArray, targets: TargetArray) -> Proportion:
        """Return the accuracy of probabilities `(N, classes)` with Wilson's 95 % interval."""
        return estimate_proportion(int((probabilities.argmax(axis=1) == targets).sum()), len(targets))

    def compute_loss(self, logits: FloatArray, targets: TargetArray, temperature: float = 1.0) -> float:
        """Return the mean cross-entropy of `logits / temperature` `(N, classes)` in nats, as in training."""
        return cross_entropy(logits, targets, temperature)

    def compute_calibration_error(self, probabilities: FloatArray, targets: TargetArray) -> float:
        """Return the calibration error, 0 to 1, with the highest probability of each image as its confidence."""
        return expected_calibration_error(probabilities, targets)

    def apply_thresholds(self, probabilities: FloatArray) -> None:
        """Return None, since a single-label task has no thresholds."""

    def predict_classes(self, logits: FloatArray) -> ClassIndices:
        """Return the index of the most probable class, as a tuple, from logits `(classes,)`."""
        return (int(logits.argmax()),)

    def compute_margin_over(self, logits: FloatArray, other_prediction: ClassIndices) -> float:
        """Return the probability of the most probable class minus that of `other_prediction`, from logits `(classes,)`.

        `other_prediction` is what another network predicts for the image.
        """
        odds = np.exp(logits - logits.max())
        return float((odds[logits.argmax()] - odds[other_prediction[0]]) / odds.sum())


@dataclass(frozen=True, slots=True)
class MultiLabel:
    """The task of predicting any number of labels per image, with a sigmoid; the score is the mean average precision.

    Attributes:
        thresholds: minimum probability at which each class is predicted; 0.5 for all classes if empty.
        score_name: name of the main score.
    """

    thresholds: tuple[float, ...] = ()

    score_name = "mAP"

    def compute_probabilities(self, logits: FloatArray, temperature: float = 1.0) -> FloatArray:
        """Return the sigmoid of `logits / temperature`, `(N, classes)`."""
        return sigmoid(logits / temperature)

    def make_targets(self, images: Iterable[LabeledPath], num_classes: int) -> TargetArray:
        """Return whether each image has each class, bool `(N, classes)`."""
        return multi_hot([image.class_indices for image in images], num_classes).astype(bool)

    def score(self, probabilities: FloatArray, targets: TargetArray) -> Proportion:
        """Return the mean average precision of probabilities `(N, classes)` with its 95 % interval."""
        return average_precisions(probabilities, targets.astype(bool)).mean

    def compute_loss(self, logits: FloatArray, targets: TargetArray, temperature: float = 1.0) -> float:
        """Return the mean binary cross-entropy of `logits / temperature` in nats, over all pairs of image and class."""
        scaled = logits.astype(np.float64) / temperature
        return float((np.logaddexp(0, scaled) - targets * scaled).mean())

    def compute_calibration_error(self, probabilities: FloatArray, targets: TargetArray) -> float:
        """Return the calibration error, 0 to 1, over all pairs of image and class."""
        both = np.stack([1 - probabilities.ravel(), probabilities.ravel()], axis=1)
        return expected_calibration_error(both, targets.ravel().astype(np.int64))

    def compute_label_mask(self, probabilities: FloatArray) -> NDArray[np.bool_]:
        """Return whether each class of each image reaches its threshold, `(N, classes)`."""
        thresholds = np.array(self.thresholds or [0.5], np.float64)
        return np.asarray(probabilities >= thresholds)

    def apply_thresholds(self, probabilities: FloatArray) -> ClassIndices:
        """Return the indices of the classes whose probability `(classes,)` is at least the threshold of the class."""
        return tuple(np.flatnonzero(self.compute_label_mask(probabilities)).tolist())

    def predict_classes(self, logits: FloatArray) -> ClassIndices:
        """Return the indices of the classes that reach their threshold, from logits `(classes,)`."""
        return self.apply_thresholds(sigmoid(logits))

    def compute_margin_over(self, logits: FloatArray, other_prediction: ClassIndices) -> float:
        """Return the largest `|probability - threshold|` of the classes on which the predictions disagree; 0 if none.

        All of these probabilities would have to cross their thresholds to give `other_prediction`, which is what
        another network predicts for the image.
        """
        others = np.array(sorted({*self.predict_classes(logits)} ^ {*other_prediction}), np.int64)
        thresholds = np.broadcast_to(self.thresholds or (0.5,), logits.shape)
        return float(np.abs(sigmoid(logits) - thresholds)[others].max(initial=0.0))


Task = SingleLabel | MultiLabel
"""Converts logits to probabilities and predicted classes, and scores them."""


def sigmoid(logits: FloatArray) -> NDArray[np.float64]:
    """Return the logistic function of logits, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(logits.astype(np.float64) / 2)))
