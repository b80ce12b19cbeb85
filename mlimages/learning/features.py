"""What is fed to the trainable part: cached outputs of the frozen part, or pixels anew."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mlimages.learning.normalize import Normalize
from mlimages.learning.pictures import PictureSet, chunks
from mlimages.learning.splitting import Split, joined, parted
from mlimages.learning.store import RowStore
from mlimages.progress import Progress
from mlimages.records import Preprocessing

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
        inputs: what `Feed.logits` takes.
        labels: int64 `(N,)`.
        places: where in their set the pictures stand.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    places: tuple[int, ...]


class Feed(Protocol):
    """Gives batches, and carries them on to logits."""

    def batches(self, pictures: PictureSet, order: Sequence[int], *, size: int, view: View = plain) -> Iterator[Fed]:
        """Batches of the pictures at the places `order`."""

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Logits `(N, classes)` of one batch's inputs."""


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
        for batch in pictures.batches(order, size=size, view=view):
            pixels = batch.pixels.to(self._device, non_blocking=True)
            yield Fed((pixels,), batch.labels.to(self._device), batch.places)

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self._network(self._normalize(inputs[0]))
        return logits


class FrozenFeatures:
    """The frozen part's outputs, computed once per picture and view, kept on disk and reused by every run.

    A row is kept under the picture's bytes and its view, in a folder for the preprocessing, the frozen weights
    and the place of the cut.

    Args:
        split: the network in two halves.
        normalize: the network's first layer.
        root: the folder of all such folders.
        digest: of the frozen weights.
        preprocessing: what makes the pixels.
        device: where to compute.
    """

    def __init__(
        self,
        split: Split,
        normalize: Normalize,
        *,
        root: Path,
        digest: str,
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        self._split, self._normalize, self._device = split, normalize, device
        said = json.dumps(["v1", digest, split.shapes, asdict(preprocessing)], sort_keys=True)
        mean = normalize.mean.cpu().numpy().tobytes()  # a mean image is known by its numbers, not by its path
        name = hashlib.sha256(said.encode() + mean).hexdigest()[:32]
        width = sum(int(np.prod(shape)) for shape in split.shapes)
        self.store = RowStore(root / name, (width,), np.float32)

    def bytes_for(self, pictures: PictureSet, views: int) -> int:
        """How much disk the features still missing would take."""
        return len(self._missing(pictures, views)) * self.store.row_bytes

    def fill(self, pictures: PictureSet, *, views: int, progress: Progress) -> None:
        """Compute what is missing of views 0 to `views - 1`; an interrupted one goes on where it was."""
        missing = self._missing(pictures, views)
        if missing:
            progress.start("frozen part", len(missing), "img")
            for number in sorted({view for _, view in missing}):
                places = [place for place, view in missing if view == number]
                for batch in pictures.batches(places, size=CHUNK, view=functools.partial(_same, number)):
                    keys = [self._key(pictures, place, number) for place in batch.places]
                    self.store.append(keys, self._rows(batch.pixels))
                    progress.advance(len(batch.places))
            progress.close()
            self.store.refresh()

    def batches(self, pictures: PictureSet, order: Sequence[int], *, size: int, view: View = plain) -> Iterator[Fed]:
        for chunk in chunks(order, size):
            keys = {place: self._key(pictures, place, view(place)) for place in chunk}
            places = tuple(place for place, key in keys.items() if key in self.store)
            if places:
                rows = torch.from_numpy(self.store.rows([keys[place] for place in places])).to(self._device)  # (N, D)
                yield Fed(parted(rows, self._split.shapes), pictures.labels[list(places)].to(self._device), places)

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self._split.upper(*inputs)
        return logits

    def _rows(self, pixels: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return joined(self._split.lower(self._normalize(pixels.to(self._device)))).cpu().numpy()  # (N, D)

    def _missing(self, pictures: PictureSet, views: int) -> list[tuple[int, int]]:
        wanted = ((place, view) for view in range(views) for place in range(len(pictures)))
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
