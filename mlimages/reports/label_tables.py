"""Captions of multi-label results."""

from __future__ import annotations

from collections.abc import Iterable

from mlimages.core import ClassScore, format_percent


def mistake_caption(labels: Iterable[str], predicted_classes: Iterable[ClassScore]) -> str:
    """Return the caption of a wrong prediction: the true classes, then the predicted classes with their probabilities.

    >>> mistake_caption(["cats"], [ClassScore("dogs", 1, 0.9)])
    'cats, predicted dogs (90 %)'
    """
    scores = ", ".join(f"{each.class_name} ({format_percent(each.probability, 0)})" for each in predicted_classes)
    return f"{' and '.join(labels) or 'none'}, predicted {scores or 'none'}"
