"""Images of a run: decoded once before training, then read in batches from the pixel cache."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlimages.checks import decodable_images
from mlimages.core import BrokenImage, ImageError, ImageProperty, LabeledPath, Progress, Threads, available_cores
from mlimages.dataset import multi_hot
from mlimages.images import load_pixels, read_bytes, reading_threads
from mlimages.training import distributed
from mlimages.training.augmentation import Augment
from mlimages.training.cache import RowStore

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

AHEAD = 32
"""Number of images each thread decodes ahead."""


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An image that could be decoded.

    Attributes:
        path: path of the file.
        label: class index; -1 in a multi-label run.
        digest: SHA-256 of the file, 32 bytes.
        labels: class indices in a multi-label run, else None.
    """

    path: Path
    label: int
    digest: bytes
    labels: tuple[int, ...] | None = None

    @property
    def class_indices(self) -> tuple[int, ...]:
        """Indices of all classes of the image."""
        return (self.label,) if self.labels is None else self.labels


@dataclass(frozen=True, slots=True)
class PixelBatch:
    """A batch of images at the network's input size, before normalization.

    Attributes:
        pixels: uint8 `(N, H, W, C)`.
        labels: rows of `ImageSet.labels`.
        indices: index of each image in its set; images that can no longer be read are missing.
    """

    pixels: Tensor
    labels: Tensor
    indices: tuple[int, ...]


def num_decoding_threads() -> int:
    """Return the number of decoding threads: available cores divided by the number of local processes of torchrun."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def chunks(indices: Sequence[int], chunk_size: int) -> list[Sequence[int]]:
    """Split `indices` into parts of `chunk_size`; a single last index joins the previous part, since batch
    norm needs two."""
    ends = [*range(chunk_size, len(indices), chunk_size), len(indices)] if indices else []
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]
    return [indices[start:end] for start, end in itertools.pairwise([0, *ends])]


def decode_all(
    items: Sequence[LabeledPath], geometry: ImageProperty, *, store: RowStore | None, progress: Progress
) -> list[TrainingImage | BrokenImage]:
    """Decode every image once and store its pixels in `store`; return images and broken images, in order.

    Images that `check` has decoded, and whose pixels are in `store` if there is one, are not decoded again.
    """
    known = decodable_images(item.path for item in items)

    def decode(item: LabeledPath) -> tuple[TrainingImage | BrokenImage, Pixels | None]:
        digest = known.get(item.path)
        if digest and (store is None or digest in store):
            return TrainingImage(item.path, item.label, digest, item.labels), None
        try:
            data = read_bytes(item.path)
            image = TrainingImage(item.path, item.label, hashlib.sha256(data).digest(), item.labels)
            is_stored = store is not None and image.digest in store
            return image, None if is_stored else load_pixels(data, geometry)
        except ImageError as error:
            return BrokenImage(str(item.path), error.fault, error.detail), None

    found: list[TrainingImage | BrokenImage] = []
    fresh: dict[bytes, Pixels] = {}
    progress.start("decode", len(items), "img")
    for number, (result, pixels) in enumerate(_decoding_threads(items, AHEAD).map(decode, items), start=1):
        progress.advance()
        found.append(result)
        if store is None:
            continue
        if pixels is not None and isinstance(result, TrainingImage):
            fresh[result.digest] = pixels
        if fresh and (len(fresh) == AHEAD or number == len(items)):
            store.append(list(fresh), np.stack(list(fresh.values())))
            fresh.clear()
    progress.close()
    if store is not None:
        store.refresh()
    return found


def decode_distributed(
    items: Sequence[LabeledPath], geometry: ImageProperty, *, store: RowStore | None, progress: Progress
) -> list[TrainingImage | BrokenImage]:
    """Run `decode_all` on this process's part of the images; return the results of all processes."""
    own = decode_all(distributed.shard(items), geometry, store=store, progress=progress)
    parts = distributed.all_gather(own)
    if store is not None and len(parts) > 1:
        store.refresh()
    return [parts[index % len(parts)][index // len(parts)] for index in range(len(items))]


def _decoding_threads(items: Sequence[LabeledPath | TrainingImage], num_ahead: int) -> Threads:
    threads = reading_threads(items[0].path if items else None, num_decoding_threads())
    return replace(threads, ahead=num_ahead)


class ImageSet:
    """Images in a fixed order, read in batches.

    Args:
        images: decodable images, from `decode_all`.
        geometry: input size, channels and resize method.
        store: cache of their pixels; None decodes them each time.
        augment: data augmentation; None for none.
        num_classes: number of classes in a multi-label run; None for one class per image.

    Attributes:
        labels: class indices, int64 `(N,)`; in a multi-label run, 1.0 for each class, else 0.0, float32 `(N, classes)`.
    """

    def __init__(
        self,
        images: Sequence[TrainingImage],
        geometry: ImageProperty,
        *,
        store: RowStore | None = None,
        augment: Augment | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.images, self.geometry, self._store, self.augment = tuple(images), geometry, store, augment
        self._shape = (geometry.height, geometry.width, geometry.channels)
        self.labels = _targets(images, num_classes)

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, parts: Sequence[Sequence[int]], *, view: Callable[[int], int] = lambda index: 0
    ) -> Iterator[PixelBatch]:
        """Yield one batch per sequence of indices in `parts`, with prefetching.

        Args:
            view: maps an image index to the index of the augmented view to use; 0 is the unaugmented image.
        """
        pool = _decoding_threads(self.images, max(AHEAD, *map(len, parts), 0))
        views = pool.map(lambda index: self._load_view(index, view(index)), itertools.chain(*parts))
        for part in parts:
            found = {index: pixels for index in part if (pixels := next(views)) is not None}
            stacked = np.stack(list(found.values())) if found else np.zeros((0, *self._shape), np.uint8)
            yield PixelBatch(torch.from_numpy(stacked), self.labels[list(found)], tuple(found))

    def _load_view(self, index: int, view: int) -> Pixels | None:
        image = self.images[index]
        try:
            if self._store is not None and image.digest in self._store:
                pixels: Pixels = self._store.rows([image.digest])[0]
            else:
                pixels = load_pixels(image.path, self.geometry)
        except ImageError as error:
            logger.warning("%s can no longer be decoded and is skipped: %s", image.path, error)
            return None
        return self.augment.view(pixels, image.digest, view) if self.augment and view else pixels


def _targets(images: Sequence[TrainingImage], num_classes: int | None) -> Tensor:
    labels = [image.labels for image in images if image.labels is not None]
    if not labels:
        return torch.tensor([image.label for image in images], dtype=torch.long)  # (N,)
    count = num_classes or 1 + max(itertools.chain(*labels), default=0)
    return torch.from_numpy(multi_hot(labels, count))  # (N, classes)
