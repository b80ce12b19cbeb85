"""What is fed to the trainable part: cached outputs of the frozen part, or pixels anew."""

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
from mlimages.networks import Model, Normalize, Split, channels_last, frozen_precision, joined, parted
from mlimages.training import distributed
from mlimages.training.frozen_runtime import open_frozen
from mlimages.training.image_cache import PictureSet, chunks
from mlimages.training.row_store import RowStore, make_room

logger = logging.getLogger(__name__)

View = Callable[[int], int]
"""Place of a picture in its set to the number of the view wanted."""

CHUNK = 32
"""How many pictures pass through the frozen part at once."""


def plain(place: int) -> int:
    """Every picture as it is."""
    return 0


def _same(number: int, place: int) -> int:
    return number


@dataclass(frozen=True, slots=True)
class Fed:
    """One batch for the trainable part.

    Attributes:
        inputs: what `Feed.logits` takes: a row a picture, or one row of zeros that stands in where there is none.
        labels: int64 `(N,)`.
        places: where in their set the pictures stand.
        rows: where in the batch they stand that all processes share.
        size: of that batch.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    places: tuple[int, ...]
    rows: tuple[int, ...]
    size: int


class Feed(Protocol):
    """Gives batches, and carries them on to logits."""

    def batches(self, pictures: PictureSet, order: Sequence[int], *, size: int, view: View = plain) -> Iterator[Fed]:
        """Of each batch of the pictures at the places `order`, what falls to this process."""

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Logits `(N, classes)` of one batch's inputs."""


def _fed(
    inputs: tuple[Tensor, ...],
    pictures: PictureSet,
    places: tuple[int, ...],
    chunk: Sequence[int],
    device: torch.device,
) -> Fed:
    """What was found of a batch, sent to where it is computed."""
    if device.type == "cuda":
        inputs = tuple(tensor.pin_memory() for tensor in inputs)  # from there the GPU fetches it by itself
    standing = {place: row for row, place in enumerate(chunk)}
    return Fed(
        tuple(tensor.to(device, non_blocking=True) for tensor in inputs),
        pictures.labels[list(places)].to(device),
        places,
        tuple(standing[place] for place in places),
        len(chunk),
    )


def _is_own(place: int) -> bool:
    """Whether this process keeps the features of the picture at a place: a fixed share, whatever the batch."""
    return place % distributed.world_size() == distributed.rank()


class PixelFeed:
    """Feeds pixels through the whole network, each time.

    Args:
        network: normalised float32 `(N, C, H, W)` to logits.
        normalize: the network's first layer.
        device: where to compute.
    """

    def __init__(self, network: nn.Module, normalize: Normalize, device: torch.device) -> None:
        self._network, self._normalize, self._device = network, normalize, device

    def batches(self, pictures: PictureSet, order: Sequence[int], *, size: int, view: View = plain) -> Iterator[Fed]:
        whole = chunks(order, size)
        for chunk, batch in zip(whole, pictures.batches([*map(distributed.shard, whole)], view=view), strict=True):
            pixels = batch.pixels if batch.places else batch.pixels.new_zeros(1, *batch.pixels.shape[1:])
            yield _fed((pixels,), pictures, batch.places, chunk, self._device)

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self._network(channels_last(self._normalize(inputs[0])))
        return logits


def features_key(
    model: Model, normalize: Normalize, *, cut: object, digest: str, preprocessing: Preprocessing, precision: str
) -> str:
    """Name of the cache of one function from image bytes to features; nothing that decides the numbers is left out.

    Weights alone do not name a function: networks of equal tensors pad, activate or skip in other ways.

    Args:
        model: of its name and its library's version.
        normalize: of the mean image, which is known by its numbers and not by its path.
        cut: where the features are taken, as JSON takes it.
        digest: SHA-256 of the weights.
        preprocessing: what makes the pixels.
        precision: of the computation, as `frozen_precision` says it.
    """
    parts = ["v2", PIXELS_VERSION, model.name, model.library, cut, digest, asdict(preprocessing), precision]
    mean = normalize.mean.cpu().numpy().tobytes()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode() + mean).hexdigest()[:32]


class FrozenFeatures:
    """The frozen part's outputs, computed once per picture and view, kept on disk and reused by every run.

    A row is kept under the picture's bytes and its view, in the folder that `features_key` names.

    Args:
        model: whose frozen part this is.
        split: its network in two halves.
        normalize: the network's first layer.
        digest: of the frozen weights.
        preprocessing: what makes the pixels.
        budget: bytes of disk that all cached features may take.
        device: where to compute.
    """

    def __init__(
        self,
        model: Model,
        split: Split,
        *,
        normalize: Normalize,
        digest: str,
        preprocessing: Preprocessing,
        budget: int,
        device: torch.device,
    ) -> None:
        self._split, self._normalize, self._device = split, normalize, device
        self._lower: Callable[[Tensor], tuple[Tensor, ...]] | None = None
        key = features_key(
            model,
            normalize,
            cut=[split.outputs, split.shapes],
            digest=digest,
            preprocessing=preprocessing,
            precision=frozen_precision(device),
        )
        width = sum(int(np.prod(shape)) for shape in split.shapes)
        self._root, self._budget = cache_dir("features"), budget
        self.store = RowStore(self._root / key, (width,), np.float32)

    def fill(self, *wanted: tuple[PictureSet, int], progress: Progress) -> bool:
        """Compute what is missing of each set's views 0 to N - 1; an interrupted one goes on where it was.

        Returns False, and computes nothing, where they would take more disk than there is budget for.
        """
        total = sum(len(pictures) * views for pictures, views in wanted) * self.store.row_bytes
        if total > self._budget:
            logger.warning(
                "the frozen part's outputs would take %.1f GB, more than half of --cache-gb: they are computed anew "
                "in each epoch",
                total / 1e9,
            )
            return False
        missing = [(pictures, self._missing(pictures, views)) for pictures, views in wanted]
        count = sum(len(places) for _, places in missing)
        if count:
            needed = count * self.store.row_bytes
            make_room(self._root, needed=needed, budget=self._budget, keep=self.store.folder)
            progress.start("frozen part", count, "img")
            for pictures, places in missing:
                self._compute(pictures, places, progress)
            progress.close()
            self.store.refresh()
        return True

    def _compute(self, pictures: PictureSet, missing: Sequence[tuple[int, int]], progress: Progress) -> None:
        for number in sorted({view for _, view in missing}):
            places = [place for place, view in missing if view == number]
            for batch in pictures.batches(chunks(places, CHUNK), view=functools.partial(_same, number)):
                if batch.places:
                    keys = [self._key(pictures, place, number) for place in batch.places]
                    self.store.append(keys, self._rows(batch.pixels))
                    progress.advance(len(batch.places))

    def batches(self, pictures: PictureSet, order: Sequence[int], *, size: int, view: View = plain) -> Iterator[Fed]:
        for chunk in chunks(order, size):
            keys = {place: self._key(pictures, place, view(place)) for place in chunk if _is_own(place)}
            places = tuple(place for place, key in keys.items() if key in self.store)
            found = self.store.rows([keys[place] for place in places]) if places else np.zeros((1, *self.store.shape))
            rows = torch.from_numpy(found.astype(np.float32, copy=False))  # (N, D)
            yield _fed(parted(rows, self._split.shapes), pictures, places, chunk, self._device)

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self._split.upper(*map(channels_last, inputs))
        return logits

    def _rows(self, pixels: Tensor) -> np.ndarray:
        with torch.inference_mode():
            x = self._normalize(pixels.to(self._device))  # (N, C, H, W)
            if self._lower is None:
                faster = open_frozen(self._split.lower, x[:1]) if self._device.type == "cpu" else None
                self._lower = faster or self._split.lower
            return joined(self._lower(x)).cpu().numpy()  # (N, D)

    def _missing(self, pictures: PictureSet, views: int) -> list[tuple[int, int]]:
        wanted = ((place, view) for view in range(views) for place in filter(_is_own, range(len(pictures))))
        seen: set[bytes] = set()
        missing = []
        for place, view in wanted:
            key = self._key(pictures, place, view)
            if key not in self.store and key not in seen:
                seen.add(key)
                missing.append((place, view))
        return missing

    def _key(self, pictures: PictureSet, place: int, view: int) -> bytes:
        digest = pictures.pictures[place].digest
        if view == 0 or pictures.augment is None:
            return digest
        return hashlib.sha256(digest + f"{pictures.augment.name} {view}".encode()).digest()
