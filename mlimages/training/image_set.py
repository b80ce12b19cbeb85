"""The images of a run: decoded once before training, then read in batches from the pixel cache."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlimages.checks import find_decodable_images
from mlimages.core import (
    BrokenImage,
    ImageError,
    ImageProperty,
    LabeledPath,
    Progress,
    ThreadPool,
    count_available_cores,
)
from mlimages.dataset import multi_hot
from mlimages.images import load_pixels, make_reader_pool, read_bytes
from mlimages.training import distributed
from mlimages.training.array_store import ArrayStore
from mlimages.training.augmentation import Augmenter

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

ChooseView = Callable[[int], int]
"""Maps the index of an image in its set to the number of the view to use; view 0 is the image without augmentation."""

PREFETCH_FACTOR = 32
"""Number of images that each thread decodes ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodableImage(LabeledPath):
    """An image that can be decoded, with its labels.

    Attributes:
        digest: SHA-256 of the file, 32 bytes.
    """

    digest: bytes


def choose_original_view(_: int) -> int:
    """Return 0, the number of the view without augmentation, for every image."""
    return 0


def split_into_chunks(indices: Sequence[int], chunk_size: int) -> list[Sequence[int]]:
    """Split `indices` into chunks of `chunk_size`; a last chunk of a single index is merged with the one before, since
    batch norm needs two images."""
    ends = [*range(chunk_size, len(indices), chunk_size), len(indices)] if indices else []
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]
    return [indices[start:end] for start, end in itertools.pairwise([0, *ends])]


def decode_images(
    items: Sequence[LabeledPath], image_property: ImageProperty, *, store: ArrayStore | None, progress: Progress
) -> list[DecodableImage | BrokenImage]:
    """Decode every image once, write its pixels to `store`, and return a DecodableImage or BrokenImage for each item.

    Images whose pixels are in `store` are not decoded again. If `store` is None, no pixels are written, and images that
    `mlimages check` could decode, according to its cache, are not decoded again.
    """
    known = find_decodable_images(item.path for item in items)

    def decode(item: LabeledPath) -> tuple[DecodableImage | BrokenImage, Pixels | None]:
        digest = known.get(item.path)
        if digest and (store is None or digest in store):
            return DecodableImage(item.path, item.label, item.labels, digest=digest), None
        try:
            data = read_bytes(item.path)
            image = DecodableImage(item.path, item.label, item.labels, digest=hashlib.sha256(data).digest())
            is_stored = store is not None and image.digest in store
            return image, None if is_stored else load_pixels(data, image_property)
        except ImageError as error:
            return BrokenImage(str(item.path), error.fault, error.detail), None

    found: list[DecodableImage | BrokenImage] = []
    fresh: dict[bytes, Pixels] = {}
    progress.start("decode", len(items), "img")
    decoded = _make_decoding_threads(items, PREFETCH_FACTOR).map(decode, items)
    for number, (result, pixels) in enumerate(decoded, start=1):
        progress.advance()
        found.append(result)
        if store is None:
            continue
        if pixels is not None and isinstance(result, DecodableImage):
            fresh[result.digest] = pixels
        if fresh and (len(fresh) == PREFETCH_FACTOR or number == len(items)):
            store.append(list(fresh), np.stack(list(fresh.values())))
            fresh.clear()
    progress.close()
    if store is not None:
        store.refresh_index()
    return found


def decode_images_distributed(
    items: Sequence[LabeledPath], image_property: ImageProperty, *, store: ArrayStore | None, progress: Progress
) -> list[DecodableImage | BrokenImage]:
    """Run `decode_images` on this process's part of the images; return the results of all processes."""
    own = decode_images(distributed.local_shard(items), image_property, store=store, progress=progress)
    parts = distributed.all_gather(own)
    if store is not None and len(parts) > 1:
        store.refresh_index()
    return [parts[index % len(parts)][index // len(parts)] for index in range(len(items))]


def _make_decoding_threads(items: Sequence[LabeledPath], prefetch_factor: int) -> ThreadPool:
    cores_per_process = count_available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = make_reader_pool(items[0].path if items else None, max(1, cores_per_process))
    return replace(threads, prefetch_factor=prefetch_factor)


class ImageSet:
    """Images in a fixed order, read in batches.

    Args:
        images: decodable images, from `decode_images`.
        image_property: input size, channels and resize method.
        store: cache of the pixels; None decodes the images each time.
        augmenter: data augmentation; None returns every view unchanged.
        num_classes: number of classes, used only in a multi-label run; by default the highest class index + 1.

    Attributes:
        labels: class indices, int64 `(N,)`; in a multi-label run, multi-hot, float32 `(N, classes)`.
    """

    def __init__(
        self,
        images: Sequence[DecodableImage],
        image_property: ImageProperty,
        *,
        store: ArrayStore | None = None,
        augmenter: Augmenter | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.images, self.image_property, self._store, self.augmenter = tuple(images), image_property, store, augmenter
        self._shape = (image_property.height, image_property.width, image_property.channels)
        self.labels = _make_targets(images, num_classes)

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, index_batches: Sequence[Sequence[int]], *, choose_view: ChooseView = choose_original_view
    ) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """Yield the pixels, uint8 `(N, H, W, C)`, and indices of the images of each batch, with prefetching.

        Images that can no longer be read are left out.
        """
        pool = _make_decoding_threads(self.images, max(PREFETCH_FACTOR, *map(len, index_batches), 0))
        views = pool.map(lambda index: self._load_view(index, choose_view(index)), itertools.chain(*index_batches))
        for indices in index_batches:
            found = {index: pixels for index in indices if (pixels := next(views)) is not None}
            stacked = np.stack(list(found.values())) if found else np.zeros((0, *self._shape), np.uint8)
            yield torch.from_numpy(stacked), tuple(found)

    def _load_view(self, index: int, view_number: int) -> Pixels | None:
        """Return a view of an image, uint8 `(H, W, C)`; None if the image can no longer be decoded."""
        image = self.images[index]
        try:
            if self._store is not None and image.digest in self._store:
                pixels: Pixels = self._store.read_rows([image.digest])[0]
            else:
                pixels = load_pixels(image.path, self.image_property)
        except ImageError as error:
            logger.warning("%s can no longer be decoded and is skipped: %s", image.path, error)
            return None
        return self.augmenter.make_view(pixels, image.digest, view_number) if self.augmenter and view_number else pixels


def _make_targets(images: Sequence[DecodableImage], num_classes: int | None) -> Tensor:
    """Return class indices `(N,)` or, in a multi-label run, multi-hot rows; `num_classes` as in `ImageSet`."""
    labels = [image.labels for image in images if image.labels is not None]
    if not labels:
        return torch.tensor([image.label for image in images], dtype=torch.long)  # (N,)
    count = num_classes or 1 + max(itertools.chain(*labels), default=0)
    return torch.from_numpy(multi_hot(labels, count))  # (N, classes)
