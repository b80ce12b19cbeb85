"""Batches for the trainable part: cached features of the frozen part, or pixels."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mlimages.core import Preprocessing, Progress, cache_dir
from mlimages.images import PIXELS_VERSION
from mlimages.networks import (
    Model,
    Normalize,
    SplitNetwork,
    flatten_features,
    to_channels_last,
    unflatten_features,
)
from mlimages.training import distributed
from mlimages.training.cache import RowStore
from mlimages.training.computation import Computation, Precision
from mlimages.training.frozen_runtime import FrozenRuntime
from mlimages.training.image_set import ImageSet, chunks

logger = logging.getLogger(__name__)

View = Callable[[int], int]
"""Maps an image's index in its set to the number of its augmented view."""

EVALUATION_BATCH = 64
"""Batch size without gradients: validation and the inputs of the head."""

CHUNK = 8
"""Batch size of the frozen part: 16 are no faster on a CPU, and take 0.4 GB more of memory with VGG-16."""


def return_original_view(image_index: int) -> int:
    """Return view 0, the image without augmentation."""
    return 0


def _return_view_number(view_number: int, image_index: int) -> int:
    return view_number


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch for the trainable part.

    Attributes:
        inputs: arguments of `BatchSource.logits`, each `(N, ...)`; one row of zeros if the batch has no image.
        labels: rows of `ImageSet.labels`.
        indices: index of each image in its set.
        rows: index of each image in the global batch.
        size: number of images in the global batch.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    indices: tuple[int, ...]
    rows: tuple[int, ...]
    size: int


class BatchSource(Protocol):
    """Yields batches and computes their logits."""

    def batches(
        self, images: ImageSet, order: Sequence[int], *, size: int, view: View = return_original_view
    ) -> Iterator[Batch]:
        """Batch the images in the order of the indices `order`, and yield this process's share of each batch."""

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Compute logits `(N, classes)` for the inputs of one batch."""


def _make_batch(
    inputs: tuple[Tensor, ...],
    images: ImageSet,
    indices: tuple[int, ...],
    chunk: Sequence[int],
    device: torch.device,
) -> Batch:
    """Move a batch to the device."""
    if device.type == "cuda":
        inputs = tuple(tensor.pin_memory() for tensor in inputs)  # allows an asynchronous copy to the GPU
    row_of = {index: row for row, index in enumerate(chunk)}
    return Batch(
        tuple(tensor.to(device, non_blocking=True) for tensor in inputs),
        images.labels[list(indices)].to(device),
        indices,
        tuple(row_of[index] for index in indices),
        len(chunk),
    )


def is_local(image_index: int) -> bool:
    """Return whether this process computes the features of the image at `image_index`, whatever batch it is in."""
    return image_index % distributed.world_size() == distributed.rank()


class PixelSource:
    """Runs the full network on pixels.

    Args:
        network: maps normalized float32 `(N, C, H, W)` to logits.
        normalize: maps pixels to the network's input.
        device: device to compute on.
    """

    def __init__(self, network: nn.Module, normalize: Normalize, device: torch.device) -> None:
        self._network, self._normalize, self._device = network, normalize, device

    def batches(
        self, images: ImageSet, order: Sequence[int], *, size: int, view: View = return_original_view
    ) -> Iterator[Batch]:
        whole = chunks(order, size)
        for chunk, batch in zip(whole, images.batches([*map(distributed.shard, whole)], view=view), strict=True):
            pixels = batch.pixels if batch.indices else batch.pixels.new_zeros(1, *batch.pixels.shape[1:])
            yield _make_batch((pixels,), images, batch.indices, chunk, self._device)

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self._network(to_channels_last(self._normalize(inputs[0])))
        return logits


def features_key(
    model: Model, normalize: Normalize, *, layers: object, digest: str, preprocessing: Preprocessing, precision: str
) -> str:
    """Return the cache key of a feature extractor, which depends on everything that affects the features.

    Weights do not suffice: networks with equal tensors may differ in padding, activations or skip connections.

    Args:
        model: its name and the version of its library are part of the key.
        normalize: the values of the mean are part of the key, since a mean image may change.
        layers: the layers whose outputs are the features, as JSON values.
        digest: SHA-256 of the weights.
        preprocessing: preprocessing of the images.
        precision: library and precision of the computation.

    Returns:
        32 hexadecimal digits.
    """
    parts = ["v2", PIXELS_VERSION, model.name, model.library, layers, digest, asdict(preprocessing), precision]
    mean = normalize.mean.cpu().numpy().tobytes()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode() + mean).hexdigest()[:32]


class FrozenFeatures:
    """Outputs of the frozen part, computed once per image and view and cached on disk for all runs.

    Rows are stored by the image's digest and view in a folder named by `features_key`. Features of the
    validation set are computed in float32, like the exported file, whatever the precision of the others.

    Args:
        model: the network with its metadata.
        split: the network, split into a frozen and a trainable part.
        normalize: maps pixels to the network's input.
        digest: SHA-256 of the frozen weights.
        preprocessing: preprocessing of the images.
        device: device to compute on.
        computation: library and precision.
        validation: the validation set.
    """

    def __init__(
        self,
        model: Model,
        split: SplitNetwork,
        *,
        normalize: Normalize,
        digest: str,
        preprocessing: Preprocessing,
        device: torch.device,
        computation: Computation,
        validation: ImageSet,
    ) -> None:
        self._split, self._normalize, self._device = split, normalize, device
        self._precision, self._validation = computation.frozen, validation
        self._runtime = FrozenRuntime(split.lower, computation.library, device)
        width = sum(int(np.prod(shape)) for shape in split.shapes)

        def open_store(precision: Precision) -> RowStore:
            key = features_key(
                model,
                normalize,
                layers=[split.outputs, split.shapes],
                digest=digest,
                preprocessing=preprocessing,
                precision=self._runtime.cache_key(precision),
            )
            return RowStore(cache_dir("features") / key, (width,), np.float32)

        self._stores = {precision: open_store(precision) for precision in {"fp32", self._precision}}

    def fits(self, num_images: int, cache_bytes: int) -> bool:
        """Return whether the features of this many images fit into half of the cache of `cache_bytes` bytes."""
        store = self._stores["fp32"]
        if not store.fits(num_images, cache_bytes):
            logger.warning(
                "the frozen features need %.1f GB, more than half of --cache-gb: they are recomputed in each epoch; "
                "a larger --cache-gb avoids that",
                num_images * store.row_bytes / 1e9,
            )
            return False
        return True

    def compute_missing(self, images: ImageSet, num_views: int, *, cache_bytes: int, progress: Progress) -> None:
        """Compute the missing features of views 0 to `views - 1`; `cache_bytes` is the size of the cache in bytes."""
        store, missing = self._stores["fp32"], self._find_uncached_views(images, num_views)
        if missing:
            store.trim(cache_bytes, needed_bytes=len(missing) * store.row_bytes)
            progress.start("frozen part", len(missing), "img")
            self._compute(images, missing, self._precision_of(images), progress)
            progress.close()

    def features_in_both_precisions(
        self, indices: Sequence[int], progress: Progress
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield the features of cached validation images in float32 and in the precision of training images.

        Yields:
            The indices of some images, and their features `(n, D)` in both precisions.
        """
        stores = self._stores["fp32"], self._stores[self._precision]
        for chunk in chunks(indices, CHUNK):
            keys = {index: self._key(self._validation, index, 0) for index in chunk}
            missing = [(index, 0) for index, key in keys.items() if key not in stores[1]]
            self._compute(self._validation, missing, self._precision, progress)
            found = [index for index, key in keys.items() if all(key in store for store in stores)]
            if found:
                exact, rounded = (store.rows([keys[index] for index in found]) for store in stores)
                yield found, torch.from_numpy(exact), torch.from_numpy(rounded)

    def close(self) -> None:
        """Free the network that computes the features."""
        self._runtime.close()

    def _precision_of(self, images: ImageSet) -> Precision:
        return "fp32" if images is self._validation else self._precision

    def _compute(
        self, images: ImageSet, missing_views: Sequence[tuple[int, int]], precision: Precision, progress: Progress
    ) -> None:
        store = self._stores[precision]
        for number in sorted({view for _, view in missing_views}):
            indices = [index for index, view in missing_views if view == number]
            for batch in images.batches(chunks(indices, CHUNK), view=functools.partial(_return_view_number, number)):
                if batch.indices:
                    keys = [self._key(images, index, number) for index in batch.indices]
                    store.append(keys, self._compute_features(batch.pixels, precision))
                    progress.advance(len(batch.indices))
        store.refresh()

    def batches(
        self, images: ImageSet, order: Sequence[int], *, size: int, view: View = return_original_view
    ) -> Iterator[Batch]:
        store = self._stores[self._precision_of(images)]
        for chunk in chunks(order, size):
            keys = {index: self._key(images, index, view(index)) for index in chunk if is_local(index)}
            indices = tuple(index for index, key in keys.items() if key in store)
            found = store.rows([keys[index] for index in indices]) if indices else np.zeros((1, *store.shape))
            rows = torch.from_numpy(found.astype(np.float32, copy=False))  # (N, D)
            yield _make_batch(unflatten_features(rows, self._split.shapes), images, indices, chunk, self._device)

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self._split.upper(*map(to_channels_last, inputs))
        return logits

    def _compute_features(self, pixels: Tensor, precision: Precision) -> np.ndarray:
        with torch.inference_mode():
            x = self._normalize(pixels.to(self._device))  # (N, C, H, W)
            return flatten_features(self._runtime(x, precision)).cpu().numpy()  # (N, D)

    def _find_uncached_views(self, images: ImageSet, num_views: int) -> list[tuple[int, int]]:
        store = self._stores[self._precision_of(images)]
        all_views = ((index, view) for view in range(num_views) for index in filter(is_local, range(len(images))))
        keys: set[bytes] = set()
        missing = []
        for index, view in all_views:
            key = self._key(images, index, view)
            if key not in store and key not in keys:
                keys.add(key)
                missing.append((index, view))
        return missing

    def _key(self, images: ImageSet, index: int, view: int) -> bytes:
        digest = images.images[index].digest
        if view == 0 or images.augment is None:
            return digest
        return hashlib.sha256(digest + f"{images.augment.name} {view}".encode()).digest()
