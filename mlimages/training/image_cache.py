"""The pictures of a run: each decoded once before training, then read back as prepared pixels, in batches."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlimages.checks import decodable_images
from mlimages.core import BrokenImage, ImageError, ImageProperty, LabeledPath, Progress, Threads
from mlimages.images import load_pixels, read_bytes
from mlimages.training.row_store import RowStore
from mlimages.training.views import Augment

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

AHEAD = 32
"""How many pictures each thread decodes before they are asked for."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture that was decoded: where it lies, its class number, and the SHA-256 of its bytes."""

    path: Path
    label: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Some pictures as the network sees them.

    Attributes:
        pixels: uint8 `(N, H, W, C)`.
        labels: int64 `(N,)`.
        places: where in the set they stand; a picture that turned bad is left out.
    """

    pixels: Tensor
    labels: Tensor
    places: tuple[int, ...]


def workers() -> int:
    """How many threads decode: one for each core that this process may use, beside those that torchrun started."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def chunks(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """`order` in parts of `size`; a single left over joins the part before, as batch norm cannot train on one."""
    ends = [*range(size, len(order), size), len(order)] if order else []
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]
    return [order[start:end] for start, end in itertools.pairwise([0, *ends])]


def decode_all(
    items: Sequence[LabeledPath], image: ImageProperty, *, store: RowStore | None, progress: Progress
) -> list[Picture | BrokenImage]:
    """Decode every picture once, keeping its prepared pixels in `store`; what became of each, in order.

    What `check` has decoded, and `store` holds where there is one, is not read again.
    """
    sound = decodable_images(item.path for item in items)

    def look(item: LabeledPath) -> tuple[Picture | BrokenImage, Pixels | None]:
        digest = sound.get(item.path)
        if digest and (store is None or digest in store):
            return Picture(item.path, item.label, digest), None
        try:
            data = read_bytes(item.path)
            picture = Picture(item.path, item.label, hashlib.sha256(data).digest())
            known = store is not None and picture.digest in store
            return picture, None if known else load_pixels(data, image)
        except ImageError as error:
            return BrokenImage(str(item.path), error.fault, error.detail), None

    found: list[Picture | BrokenImage] = []
    fresh: dict[bytes, Pixels] = {}
    progress.start("decode", len(items), "img")
    for number, (seen, pixels) in enumerate(Threads(workers(), ahead=AHEAD).map(look, items), start=1):
        progress.advance()
        found.append(seen)
        if store is None:
            continue
        if pixels is not None and isinstance(seen, Picture):
            fresh[seen.digest] = pixels
        if fresh and (len(fresh) == AHEAD or number == len(items)):
            store.append(list(fresh), np.stack(list(fresh.values())))
            fresh.clear()
    progress.close()
    if store is not None:
        store.refresh()
    return found


class PictureSet:
    """Decoded pictures in a fixed order, ready to be read in batches.

    Args:
        pictures: as `decode_all` found them.
        image: the geometry.
        store: their prepared pixels; None decodes each time.
        augment: how a picture's views are made; None gives it as it is.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        image: ImageProperty,
        *,
        store: RowStore | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.pictures, self.image, self._store, self.augment = tuple(pictures), image, store, augment
        self._shape = (image.height, image.width, image.channels)
        self.labels = torch.tensor([picture.label for picture in pictures], dtype=torch.long)  # (N,)

    def __len__(self) -> int:
        return len(self.pictures)

    def batches(
        self, parts: Sequence[Sequence[int]], *, view: Callable[[int], int] = lambda place: 0
    ) -> Iterator[Batch]:
        """A batch of each part, the pictures at its places in their views; decoding runs ahead."""
        pool = Threads(workers(), ahead=max(AHEAD, *map(len, parts), 0))
        seen = pool.map(lambda place: self._view(place, view(place)), itertools.chain(*parts))
        for part in parts:
            found = {place: pixels for place in part if (pixels := next(seen)) is not None}
            stacked = np.stack(list(found.values())) if found else np.zeros((0, *self._shape), np.uint8)
            yield Batch(torch.from_numpy(stacked), self.labels[list(found)], tuple(found))

    def _view(self, place: int, view: int) -> Pixels | None:
        picture = self.pictures[place]
        try:
            if self._store is not None and picture.digest in self._store:
                pixels: Pixels = self._store.rows([picture.digest])[0]
            else:
                pixels = load_pixels(picture.path, self.image)
        except ImageError as error:
            logger.warning("%s turned bad since it was checked and is left out: %s", picture.path, error)
            return None
        return self.augment.view(pixels, picture.digest, view) if self.augment and view else pixels
