"""Images decoded in background threads, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.core import BrokenImage, ImageError, ImageProperty, LabeledPath
from mlimages.images import load_pixels, reading_threads


def iter_pixels(
    items: Iterable[LabeledPath], prop: ImageProperty, *, workers: int | None = None
) -> Iterator[tuple[LabeledPath, NDArray[np.uint8] | BrokenImage]]:
    """Each image with its pixels, uint8 `(H, W, C)`, or the reason why it has none; decoded ahead by `workers` threads.

    By default there is one thread per CPU core.
    """
    listed = iter(items)
    first = list(islice(listed, 1))
    threads = reading_threads(first[0].path if first else None, workers)
    return threads.map(lambda item: (item, try_load_pixels(item.path, prop)), chain(first, listed))


def try_load_pixels(path: Path, prop: ImageProperty) -> NDArray[np.uint8] | BrokenImage:
    """An image's pixels, uint8 `(H, W, C)`, or the reason why it has none."""
    try:
        return load_pixels(path, prop)
    except ImageError as error:
        return BrokenImage(str(path), error.fault, error.detail)
