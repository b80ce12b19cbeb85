"""Batches of pixels for the full network, or of cached features for its trainable part."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mlimages.core import Preprocessing, Progress, cache_dir
from mlimages.images import PIXELS_VERSION
from mlimages.networks import (
    Model,
    NetworkParts,
    Normalize,
    flatten_features,
    to_channels_last,
    unflatten_features,
)
from mlimages.training import distributed
from mlimages.training.array_store import ArrayStore
from mlimages.training.compute_backend import ComputeBackend, Precision
from mlimages.training.feature_extractor import FrozenFeatureExtractor
from mlimages.training.image_set import ChooseView, ImageSet, choose_original_view, split_into_chunks

logger = logging.getLogger(__name__)

EVALUATION_BATCH_SIZE = 64
"""Batch size where no gradients are needed: to validate, and to compute the inputs of the head."""

MAX_FROZEN_BATCH_SIZE = 8
"""Maximum batch size of the frozen part: 16 is no faster on a CPU and needs 0.4 GB more memory with VGG-16."""

MAX_FROZEN_BATCH_GMACS = 128
"""Maximum multiply-adds of the frozen part per batch, in 10^9. It limits the memory that a batch needs. For example, a
mixture of experts with 626 * 10^9 multiply-adds per image needs 6 GB for one image, and 18 GB for eight."""


def choose_frozen_batch_size(gmacs: float) -> int:
    """Return the batch size for a frozen part that takes `gmacs` GMACs (10^9 multiply-adds) per image.

    >>> [choose_frozen_batch_size(gmacs) for gmacs in (0.7, 15.5, 61.0, 626.0)]  # the last: a mixture of experts
    [8, 8, 2, 1]
    """
    return max(1, min(MAX_FROZEN_BATCH_SIZE, int(MAX_FROZEN_BATCH_GMACS / max(gmacs, 1e-9))))


@dataclass(frozen=True, slots=True)
class Batch:
    """This process's part of a batch.

    Attributes:
        inputs: tensors `(N, ...)` for `BatchSource.compute_logits`; one row of zeros if this process has no image.
        labels: labels of the images, in the form of `ImageSet.labels`.
        image_indices: index of each image in its set.
        global_batch_positions: index of each image in the batch of all processes.
        global_batch_size: number of images in the batch of all processes.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    image_indices: tuple[int, ...]
    global_batch_positions: tuple[int, ...]
    global_batch_size: int


class BatchSource(Protocol):
    """Yields batches of an image set, and computes their logits."""

    def batches(
        self, images: ImageSet, order: Sequence[int], *, batch_size: int, choose_view: ChooseView = choose_original_view
    ) -> Iterator[Batch]:
        """Yield this process's part of each batch.

        Args:
            images: the image set.
            order: indices of the images, in the order of the batches.
            batch_size: number of images in the batch of all processes.
            choose_view: returns the view number for an image index.
        """

    def compute_logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Compute logits `(N, classes)` for the inputs of one batch."""


def _make_batch(
    inputs: tuple[Tensor, ...],
    images: ImageSet,
    image_indices: tuple[int, ...],
    global_batch: Sequence[int],
    device: torch.device,
) -> Batch:
    """Create this process's part of a batch on the device.

    `global_batch` are the indices of all images of the batch, `image_indices` those of this process.
    """
    if device.type == "cuda":
        inputs = tuple(tensor.pin_memory() for tensor in inputs)  # allows an asynchronous copy to the GPU
    row_of = {index: row for row, index in enumerate(global_batch)}
    return Batch(
        tuple(tensor.to(device, non_blocking=True) for tensor in inputs),
        images.labels[list(image_indices)].to(device),
        image_indices,
        tuple(row_of[index] for index in image_indices),
        len(global_batch),
    )


def select_local_indices(image_indices: Iterable[int]) -> list[int]:
    """Return those of the image indices that belong to this process; an image always belongs to the same process."""
    rank, world_size = distributed.rank(), distributed.world_size()
    return [index for index in image_indices if index % world_size == rank]


class PixelSource:
    """Batches of pixels for the full network.

    Args:
        network: maps normalized float32 `(N, C, H, W)` to logits.
        normalize: maps pixels to the network's input.
        device: device to compute on.
    """

    def __init__(self, network: nn.Module, normalize: Normalize, device: torch.device) -> None:
        self._network, self._normalize, self._device = network, normalize, device

    def batches(
        self, images: ImageSet, order: Sequence[int], *, batch_size: int, choose_view: ChooseView = choose_original_view
    ) -> Iterator[Batch]:
        whole = split_into_chunks(order, batch_size)
        shards = [*map(distributed.local_shard, whole)]
        for chunk, (pixels, indices) in zip(whole, images.batches(shards, choose_view=choose_view), strict=True):
            inputs = pixels if indices else pixels.new_zeros(1, *pixels.shape[1:])
            yield _make_batch((inputs,), images, indices, chunk, self._device)

    def compute_logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self._network(to_channels_last(self._normalize(inputs[0])))
        return logits


def make_feature_cache_key(
    model: Model,
    normalize: Normalize,
    *,
    layers: object,
    weights_digest: str,
    preprocessing: Preprocessing,
    precision: str,
) -> str:
    """Return the cache key of a feature extractor; it depends on everything that affects the features.

    The weights alone do not suffice: networks with equal tensors may differ in padding, activations or skip
    connections.

    Args:
        model: the network; its name and the version of its library are part of the key.
        normalize: maps pixels to the network's input; the values of the mean are part of the key, since a mean
            image may change.
        layers: the layers whose outputs are the features, as JSON values.
        weights_digest: SHA-256 of the weights.
        preprocessing: preprocessing of the images.
        precision: precision of the computation and, with OpenVINO, its version.

    Returns:
        32 hexadecimal digits.
    """
    parts = ["v2", PIXELS_VERSION, model.name, model.library, layers, weights_digest, asdict(preprocessing), precision]
    mean = normalize.mean.cpu().numpy().tobytes()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode() + mean).hexdigest()[:32]


class FeatureSource:
    """Batches of frozen features: outputs of the frozen part, computed once per image and view, and cached on disk.

    The folder of the cache is named by `make_feature_cache_key`; the key of a row depends on the image's digest and the
    view. Features of the validation set are always computed in float32, as in the exported file.

    Args:
        model: the network with its metadata.
        split: the network, split into a frozen and a trainable part.
        backend: library and precision.
        normalize: maps pixels to the network's input.
        frozen_digest: SHA-256 of the frozen weights.
        preprocessing: preprocessing of the images.
        device: device to compute on.
        validation: the validation set; methods recognize it by identity (`is`).
        gmacs: 10^9 multiply-adds of the frozen part per image.
    """

    def __init__(
        self,
        model: Model,
        split: NetworkParts,
        backend: ComputeBackend,
        *,
        normalize: Normalize,
        frozen_digest: str,
        preprocessing: Preprocessing,
        device: torch.device,
        validation: ImageSet,
        gmacs: float,
    ) -> None:
        self._batch_size = choose_frozen_batch_size(gmacs)
        self._split, self._normalize, self._device, self.shapes = split, normalize, device, split.feature_shapes
        self._precision, self._validation = backend.frozen_precision, validation
        self._extractor = FrozenFeatureExtractor(split.lower_part, backend.library, device)
        width = sum(int(np.prod(shape)) for shape in split.feature_shapes)

        def open_store(precision: Precision) -> ArrayStore:
            key = make_feature_cache_key(
                model,
                normalize,
                layers=[split.feature_names, split.feature_shapes],
                weights_digest=frozen_digest,
                preprocessing=preprocessing,
                precision=self._extractor.make_precision_key(precision),
            )
            return ArrayStore(cache_dir("features") / key, (width,), np.float32)

        self._stores = {precision: open_store(precision) for precision in {"fp32", self._precision}}

    def fits_in_cache(self, num_images: int, cache_bytes: int) -> bool:
        """Return whether the features of this many images fit into half of a cache of `cache_bytes`.

        If not, log a warning.
        """
        store = self._stores["fp32"]
        if not store.fits_in_cache(num_images, cache_bytes):
            logger.warning(
                "the frozen features need %.1f GB, more than half of --cache-gb, and are recomputed in each epoch: "
                "increase --cache-gb to cache them",
                num_images * store.row_bytes / 1e9,
            )
            return False
        return True

    def compute_missing_features(
        self, images: ImageSet, num_views: int, *, cache_bytes: int, progress: Progress
    ) -> None:
        """Cache the missing features of views 0 to `num_views - 1`; `cache_bytes` is the maximum size of the cache."""
        store, missing = self._stores["fp32"], self._find_uncached_views(images, num_views)
        if missing:
            store.evict_files(cache_bytes, reserved_bytes=len(missing) * store.row_bytes)
            progress.start("frozen part", len(missing), "img")
            self._compute_view_features(images, missing, self._choose_precision(images), progress)
            progress.close()

    def compute_features_in_both_precisions(
        self, indices: Sequence[int], progress: Progress
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield the features of validation images in float32 and in the precision of training images.

        Float32 features are read from the cache; images without them are left out. Features in the other precision that
        are not in the cache are computed.

        Args:
            indices: indices of the images in the validation set.

        Yields:
            For each chunk of images, their indices, their float32 features `(n, D)`, and those in the other precision.
        """
        stores = self._stores["fp32"], self._stores[self._precision]
        for chunk in split_into_chunks(indices, self._batch_size):
            keys = {index: self._make_row_key(self._validation, index, 0) for index in chunk}
            missing = [(index, 0) for index, key in keys.items() if key not in stores[1]]
            self._compute_view_features(self._validation, missing, self._precision, progress)
            found = [index for index, key in keys.items() if all(key in store for store in stores)]
            if found:
                exact, rounded = (store.read_rows([keys[index] for index in found]) for store in stores)
                yield found, torch.from_numpy(exact), torch.from_numpy(rounded)

    def close(self) -> None:
        """Free the network converted to OpenVINO, if any."""
        self._extractor.close()

    def _choose_precision(self, images: ImageSet) -> Precision:
        """Return fp32 for the validation set, the precision of the backend for the training set."""
        return "fp32" if images is self._validation else self._precision

    def _compute_view_features(
        self, images: ImageSet, uncached_views: Sequence[tuple[int, int]], precision: Precision, progress: Progress
    ) -> None:
        """Compute the features of views, each given as (image index, view number), and append them to the cache."""
        store = self._stores[precision]
        for number in sorted({view for _, view in uncached_views}):
            view_of = {index: view for index, view in uncached_views if view == number}
            chunks = split_into_chunks([*view_of], self._batch_size)
            for pixels, indices in images.batches(chunks, choose_view=view_of.__getitem__):
                if indices:
                    keys = [self._make_row_key(images, index, number) for index in indices]
                    store.append(keys, self._compute_features(pixels, precision))
                    progress.advance(len(indices))
        store.refresh_index()

    def batches(
        self, images: ImageSet, order: Sequence[int], *, batch_size: int, choose_view: ChooseView = choose_original_view
    ) -> Iterator[Batch]:
        store = self._stores[self._choose_precision(images)]
        for chunk in split_into_chunks(order, batch_size):
            own = select_local_indices(chunk)
            keys = {index: self._make_row_key(images, index, choose_view(index)) for index in own}
            indices = tuple(index for index, key in keys.items() if key in store)
            found = store.read_rows([keys[index] for index in indices]) if indices else np.zeros((1, *store.shape))
            rows = torch.from_numpy(found.astype(np.float32, copy=False))  # (N, D)
            yield _make_batch(unflatten_features(rows, self.shapes), images, indices, chunk, self._device)

    def compute_logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self._split.upper_part(*map(to_channels_last, inputs))
        return logits

    def _compute_features(self, pixels: Tensor, precision: Precision) -> np.ndarray:
        """Return the frozen features, float32 `(N, D)`, of pixels `(N, H, W, C)`."""
        with torch.inference_mode():
            x = self._normalize(pixels.to(self._device))  # (N, C, H, W)
            return flatten_features(self._extractor(x, precision)).cpu().numpy()  # (N, D)

    def _find_uncached_views(self, images: ImageSet, num_views: int) -> list[tuple[int, int]]:
        """Return the image index and view number of the views that this process must compute, without duplicates."""
        store = self._stores[self._choose_precision(images)]
        own = select_local_indices(range(len(images)))
        missing: dict[bytes, tuple[int, int]] = {}
        for view, index in itertools.product(range(num_views), own):
            key = self._make_row_key(images, index, view)
            if key not in store:
                missing.setdefault(key, (index, view))
        return list(missing.values())

    def _make_row_key(self, images: ImageSet, index: int, view_number: int) -> bytes:
        """Return the key of a view in the cache, 32 bytes.

        It is the digest of the image or, for an augmented view, a hash of that digest, the augmentation settings and
        the view number.
        """
        digest = images.images[index].digest
        if view_number == 0 or images.augmenter is None:
            return digest
        return hashlib.sha256(digest + f"{images.augmenter.cache_key} {view_number}".encode()).digest()
