"""Scores of a multi-label model: average precision, and precision and recall at its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlimages.core import (
    AveragePrecision,
    ClassScores,
    MultiLabelClassScores,
    Prediction,
    Proportion,
    average_precisions,
    combine_class_scores,
    estimate_proportion,
    multi_label_scores,
)
from mlimages.dataset import multi_hot


@dataclass(frozen=True, slots=True)
class MultiLabelScores:
    """Scores of a multi-label model on some images.

    Attributes:
        num_images: number of images.
        exact_match_ratio: share of images whose labels are all predicted correctly.
        average_precision: average precision of each class, and the mean over the classes (mAP).
        per_class: precision, recall and F1 of each class at its threshold.
        thresholds: minimum probability at which each class is predicted.
        mistakes: predictions with a wrong or missing label, each with the true class indices of the image; the most
            confident first.
    """

    num_images: int
    exact_match_ratio: Proportion
    average_precision: AveragePrecision
    per_class: tuple[ClassScores, ...]
    thresholds: tuple[float, ...]
    mistakes: tuple[tuple[Prediction, tuple[int, ...]], ...]

    @property
    def class_scores(self) -> tuple[MultiLabelClassScores, ...]:
        """All scores and the threshold of each class, by class index; a score is None if no image has the class."""
        return tuple(combine_class_scores(self.per_class, self.average_precision, self.thresholds))

    def to_dict(self) -> dict[str, object]:
        """Return the scores as JSON types; shares are in 0..1, each with its 95 % interval, or null if undefined."""
        mean, names = self.average_precision.mean, ("average_precision", "precision", "recall", "f1")
        return {
            "map": mean.value,
            "interval": [mean.low, mean.high],
            "accuracy": _proportion_to_list(self.exact_match_ratio),
            "per_class": {
                each.name: {
                    "count": each.count,
                    "threshold": each.threshold,
                    **{name: _proportion_to_list(getattr(each, name)) for name in names},
                }
                for each in self.class_scores
            },
        }


def score_multi_label_predictions(
    predictions: Sequence[Prediction],
    labels: Sequence[tuple[int, ...]],
    probabilities: NDArray[np.floating],
    *,
    thresholds: tuple[float, ...],
    class_names: Sequence[str],
) -> MultiLabelScores:
    """Score the predictions of a multi-label model.

    Args:
        predictions: the prediction for each image.
        labels: the true class indices of each image.
        probabilities: `(N, classes)`.
        thresholds: minimum probability to predict each class.
        class_names: names of the classes by class index.
    """
    targets = multi_hot(labels, len(class_names)) > 0  # (N, classes)
    predicted_labels = [tuple(score.label for score in prediction.labels or ()) for prediction in predictions]
    predicted_mask = multi_hot(predicted_labels, len(class_names)) > 0  # (N, classes)
    wrong = targets != predicted_mask
    certainty = np.where(wrong, np.abs(probabilities - np.array(thresholds)), -1).max(axis=1)  # (N,)
    order = [index for index in (-certainty).argsort(kind="stable").tolist() if wrong[index].any()]
    return MultiLabelScores(
        num_images=len(labels),
        exact_match_ratio=estimate_proportion(int((~wrong).all(axis=1).sum()), len(labels)),
        average_precision=average_precisions(probabilities, targets),
        per_class=multi_label_scores(targets, predicted_mask, class_names),
        thresholds=thresholds,
        mistakes=tuple((predictions[index], labels[index]) for index in order),
    )


def _proportion_to_list(proportion: Proportion | None) -> list[float] | None:
    return [proportion.value, proportion.low, proportion.high] if proportion else None
