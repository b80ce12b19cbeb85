"""Loss function and score of a run: one class per image, or any number of labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlimages.core import mean_average_precision
from mlimages.inference import MultiLabel, SingleLabel, Task
from mlimages.training.config import FineTuneConfig


@dataclass(frozen=True, slots=True)
class Metrics:
    """Loss and accuracy over a set of images.

    Attributes:
        loss: mean loss per image, in nats. In training with class weights, it is the weighted mean.
        num_correct: number of correctly predicted images. In a multi-label run, an image counts if all its labels are
            correct at a threshold of 0.5.
        num_images: number of images.
        mean_ap: mean average precision, 0..1; None with one class per image.

    >>> Metrics(0.5, num_correct=3, num_images=4).accuracy
    0.75
    """

    loss: float
    num_correct: int
    num_images: int
    mean_ap: float | None = None

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, 0..1."""
        return self.num_correct / max(1, self.num_images)

    @property
    def score(self) -> float:
        """Score by which the best epoch is chosen: the accuracy or, in a multi-label run, `mean_ap`."""
        return self.accuracy if self.mean_ap is None else self.mean_ap

    def __add__(self, other: Metrics) -> Metrics:
        """Return the metrics of both sets of images together; `mean_ap` is None, since it cannot be combined."""
        count = self.num_images + other.num_images
        loss = (self.loss * self.num_images + other.loss * other.num_images) / max(1, count)
        return Metrics(loss, self.num_correct + other.num_correct, count)


class CrossEntropy:
    """Cross-entropy loss and accuracy, for one class per image.

    Args:
        config: settings, of which label smoothing and class weights are used.
        targets: class index of each training image, int64 `(N,)`.
        num_classes: number of classes.
        device: device of the logits.
    """

    inference_task: Task = SingleLabel()

    def __init__(self, config: FineTuneConfig, targets: Tensor, num_classes: int, device: torch.device) -> None:
        weights = None
        if config.class_weights == "balanced":  # with mean 1 over the images
            class_counts = torch.bincount(targets, minlength=num_classes)
            weights = (class_counts.sum() / (num_classes * class_counts)).to(device)  # (classes,)
        self._loss = nn.CrossEntropyLoss(weights, label_smoothing=config.label_smoothing, reduction="sum")

    def sum_losses_and_weights(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """Return the sum of the weighted losses of the images, and the sum of the images' weights."""
        weights = self._loss.weight
        return self._loss(logits, targets), len(targets) if weights is None else float(weights[targets].sum())

    def count_correct(self, logits: Tensor, targets: Tensor) -> int:
        """Return the number of images that are predicted correctly."""
        return int((logits.argmax(1) == targets).sum())

    def compute_probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities `(N, classes)`."""
        return logits.softmax(1)

    def compute_metrics(self, logits: Tensor, targets: Tensor) -> Metrics:
        """Return the metrics of validation images, without class weights and label smoothing."""
        loss = float(functional.cross_entropy(logits, targets))
        return Metrics(loss, self.count_correct(logits, targets), len(targets))


class BinaryCrossEntropy:
    """Binary cross-entropy loss, averaged over the classes, and mean average precision, for any number of labels.

    Args:
        config: settings, of which label smoothing and class weights are used; the weights apply to positive targets.
        targets: whether each training image has each class, float32 `(N, classes)`.
        device: device of the logits.
    """

    inference_task: Task = MultiLabel()

    def __init__(self, config: FineTuneConfig, targets: Tensor, device: torch.device) -> None:
        self._smoothing, self._weights = config.label_smoothing, None
        if config.class_weights == "balanced":  # images with and without a class count the same
            positives = targets.sum(0)
            self._weights = ((len(targets) - positives) / positives).to(device)  # (classes,)

    def sum_losses_and_weights(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        smoothed = targets * (1 - self._smoothing) + self._smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(
            logits, smoothed, pos_weight=self._weights, reduction="none"
        )
        return losses.mean(1).sum(), len(targets)

    def count_correct(self, logits: Tensor, targets: Tensor) -> int:
        return int(((logits >= 0) == targets.bool()).all(1).sum())

    def compute_probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def compute_metrics(self, logits: Tensor, targets: Tensor) -> Metrics:
        loss = float(functional.binary_cross_entropy_with_logits(logits, targets))
        mean_ap = mean_average_precision(self.compute_probabilities(logits).numpy(), targets.bool().numpy())
        return Metrics(loss, self.count_correct(logits, targets), len(targets), mean_ap)


Objective = CrossEntropy | BinaryCrossEntropy
"""Loss function and score of a run; targets are labels in the form of `ImageSet.labels`."""


def make_objective(config: FineTuneConfig, targets: Tensor, num_classes: int, device: torch.device) -> Objective:
    """Return the objective for the targets of the training images: `(N,)`, or `(N, classes)` of multi-label data."""
    if targets.ndim == 2:
        return BinaryCrossEntropy(config, targets, device)
    return CrossEntropy(config, targets, num_classes, device)
