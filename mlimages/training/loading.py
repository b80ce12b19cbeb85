"""Pictures decoded ahead, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.errors import ImageError
from mlimages.images import load_pixels
from mlimages.records import BrokenImage, ImageProperty, LabeledPath

AHEAD = 8
"""Pictures decoded ahead of the one asked for, per worker."""


def load_in_order(
    items: Iterable[LabeledPath], prop: ImageProperty, *, workers: int | None = None
) -> Iterator[tuple[LabeledPath, NDArray[np.uint8] | BrokenImage]]:
    """Each picture's pixels, uint8 `(H, W, C)`, in order, decoded ahead in threads; or why there are none."""
    count = workers or os.cpu_count() or 1
    pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
    waiting: deque[tuple[LabeledPath, Future[NDArray[np.uint8] | BrokenImage]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(_load, item.path, prop)))
            if len(waiting) > AHEAD * count:
                first, loaded = waiting.popleft()
                yield first, loaded.result()
        for first, loaded in waiting:
            yield first, loaded.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load(path: Path, prop: ImageProperty) -> NDArray[np.uint8] | BrokenImage:
    try:
        return load_pixels(path, prop)
    except ImageError as error:
        return BrokenImage(str(path), error.fault, error.detail)
