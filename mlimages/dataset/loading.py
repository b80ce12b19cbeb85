"""Pictures decoded ahead, in order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.core import BrokenImage, ImageError, ImageProperty, LabeledPath, Threads
from mlimages.images import load_pixels


def load_in_order(
    items: Iterable[LabeledPath], prop: ImageProperty, *, workers: int | None = None
) -> Iterator[tuple[LabeledPath, NDArray[np.uint8] | BrokenImage]]:
    """Each picture's pixels, uint8 `(H, W, C)`, in order, decoded ahead in threads; or why there are none."""
    return Threads(workers or os.cpu_count() or 1).map(lambda item: (item, load_or_tell(item.path, prop)), items)


def load_or_tell(path: Path, prop: ImageProperty) -> NDArray[np.uint8] | BrokenImage:
    """A picture's pixels, uint8 `(H, W, C)`, or why there are none."""
    try:
        return load_pixels(path, prop)
    except ImageError as error:
        return BrokenImage(str(path), error.fault, error.detail)
