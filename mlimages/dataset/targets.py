"""Training targets of multi-label files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def multi_hot(labels: Sequence[Sequence[int]], class_count: int) -> NDArray[np.float32]:
    """Return the targets of images with any number of classes: float32 `(N, C)`, 1 for each class of an image, else 0.

    Args:
        labels: the class indices of each image (`LabeledPath.labels`).
        class_count: C.

    Examples:
        >>> from mlimages.dataset import multi_hot
        >>> multi_hot([(0, 2), (), (1,)], 3).tolist()
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    targets = np.zeros((len(labels), class_count), np.float32)
    for row, classes in zip(targets, labels, strict=True):
        row[list(classes)] = 1
    return targets
