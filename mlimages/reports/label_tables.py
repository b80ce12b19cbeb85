"""Tables and captions of multi-label results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mlimages.core import AveragePrecision, ClassScore, ClassScores, Share
from mlimages.reports.pages import percent


def label_rows(
    per_class: Sequence[ClassScores], average_precision: AveragePrecision, thresholds: Sequence[float]
) -> Iterator[tuple[ClassScores, Share, float]]:
    """Yield the scores of each class with its average precision and its threshold."""
    return zip(per_class, average_precision.per_class, thresholds, strict=True)


def label_text(labels: Iterable[str], predicted: Iterable[ClassScore]) -> str:
    """Return the caption of a wrong prediction: true classes, then predicted ones with their probabilities.

    >>> label_text(["cats"], [ClassScore("dogs", 1, 0.9)])
    'cats, predicted dogs (90 %)'
    """
    scores = ", ".join(f"{each.class_name} ({percent(each.probability, 0)})" for each in predicted)
    return f"{' and '.join(labels) or 'none'}, predicted {scores or 'none'}"
