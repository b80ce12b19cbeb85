"""A label file as arrays: mean image, batches, and arrays back to images."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.errors import ImageError, InputError
from mlimages.files import replacing, write_text
from mlimages.images import LabeledImage, from_network, load_pixels, load_rgb, to_network
from mlimages.labels import LabelFile, write_label_file
from mlimages.progress import NoProgress, Progress
from mlimages.records import BrokenImage, ImageProperty, LabeledPath, Normalization

logger = logging.getLogger(__name__)

AHEAD = 8
"""Pictures decoded ahead of the one asked for, per worker."""


@dataclass(frozen=True, slots=True)
class MeanImage:
    """The mean of a set of pictures, and the figures of its channels.

    Attributes:
        mean: float32 `(C, H, W)` in 0..255.
        channel_mean, channel_std: over all pixels of all pictures, in 0..255, by channel.
        count: how many pictures went in.
        prop: how they were prepared.
        broken: those that could not be used.
    """

    mean: NDArray[np.float32]
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    count: int
    prop: ImageProperty
    broken: tuple[BrokenImage, ...] = ()

    def write(self, path: Path) -> None:
        """Write `.png` to look at, `.npy` to compute with and `.json` with the figures, beside each other."""
        with replacing(path.with_suffix(".png")) as part:
            LabeledImage.from_array(self.mean).image.save(part, "PNG")
        with replacing(path.with_suffix(".npy")) as part, part.open("wb") as out:
            np.save(out, self.mean, allow_pickle=False)
        figures = {"v": 1, "mean": self.channel_mean, "std": self.channel_std, "count": self.count}
        write_text(path.with_suffix(".json"), json.dumps({**figures, "image": asdict(self.prop)}, indent=2) + "\n")


class TrainingData:
    """The pictures of a label file as the network's arrays; a broken picture is left out and logged.

    Args:
        labels: which pictures, of which classes.
        prop: their size and how they get it.
        normalization: from pixels to the network's numbers; by default to 0..1.
        mean_image: subtracted before scaling: a .npy or .png file, or float32 `(C, H, W)` in 0..255.
    """

    def __init__(
        self,
        labels: LabelFile,
        prop: ImageProperty,
        *,
        normalization: Normalization | None = None,
        mean_image: str | Path | NDArray[np.float32] | None = None,
    ) -> None:
        self.labels = labels
        self.prop = prop
        self.normalization = normalization or Normalization()
        self.mean_image = load_mean_image(mean_image) if isinstance(mean_image, str | Path) else mean_image

    def shuffle(self, seed: int) -> TrainingData:
        """The same pictures in an order that depends on `seed` alone."""
        return TrainingData(
            self.labels.shuffle(seed), self.prop, normalization=self.normalization, mean_image=self.mean_image
        )

    def make_mean_image(self, path: str | Path, *, progress: Progress | None = None) -> MeanImage:
        """Compute and write the mean (`.png`, `.npy`, `.json`); subtract it from now on.

        The pictures that really went in are listed in `NAME_used_in_mean.txt` beside the label file.

        Raises:
            InputError: no picture could be used.
        """
        made = compute_mean(self.labels, self.prop, progress=progress)
        made.write(Path(path))
        source = self.labels.path
        broken = {item.path for item in made.broken}
        used = self.labels.filter(lambda item: str(item.path) not in broken)
        write_label_file(source.with_name(f"{source.stem}_used_in_mean.txt"), used, self.labels.class_names)
        self.mean_image = made.mean
        return made

    def generate(self) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Each picture in order: float32 `(C, H, W)` and its class number."""
        for x, y in self.generate_batches(1, workers=1):
            yield x[0], int(y[0])

    def generate_batches(
        self, size: int, *, workers: int | None = None
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Batches in order: x float32 `(N, C, H, W)`, y int64 `(N,)`; N is `size`, less in the last.

        Decoding runs ahead in `workers` threads (default: one per core).
        """
        pixels: list[NDArray[np.uint8]] = []
        labels: list[int] = []
        for item, loaded in load_in_order(self.labels, self.prop, workers=workers):
            if isinstance(loaded, BrokenImage):
                logger.warning("left out %s: %s (%s)", loaded.path, loaded.fault, loaded.detail)
                continue
            pixels.append(loaded)
            labels.append(item.label)
            if len(pixels) == size:
                yield self._batch(pixels, labels)
                pixels, labels = [], []
        if pixels:
            yield self._batch(pixels, labels)

    def data_to_image(self, array: NDArray[np.float32], label: int = -1) -> LabeledImage:
        """The picture that `array`, one of those generated, `(C, H, W)`, was made from: what the network saw."""
        pixels = from_network(array[None], self.normalization, self.mean_image)[0]  # (H, W, C)
        return LabeledImage.from_array(pixels.transpose(2, 0, 1).astype(np.float32), label)

    def _batch(
        self, pixels: list[NDArray[np.uint8]], labels: list[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        x = to_network(np.stack(pixels), self.normalization, self.mean_image)  # (N, C, H, W)
        return x, np.asarray(labels, dtype=np.int64)


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


def compute_mean(
    items: Iterable[LabeledPath],
    prop: ImageProperty,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> MeanImage:
    """The mean of the pictures as the network sees them.

    Sums are whole numbers, so that the result does not depend on the workers or on the order.

    Raises:
        InputError: no picture could be used.
    """
    sums = np.zeros((prop.height, prop.width, prop.channels), dtype=np.uint64)
    histogram = np.zeros((prop.channels, 256), dtype=np.uint64)
    broken: list[BrokenImage] = []
    count = 0
    shown = progress or NoProgress()
    shown.start("mean", None, "pictures")
    for _, loaded in load_in_order(items, prop, workers=workers):
        shown.advance(1, broken=len(broken))
        if isinstance(loaded, BrokenImage):
            broken.append(loaded)
            continue
        sums += loaded
        histogram += _histogram(loaded)
        count += 1
    shown.close()
    if not count:
        raise InputError(f"no mean: none of the {len(broken)} pictures could be used ({_first(broken)})")
    mean = (sums / count).astype(np.float32).transpose(2, 0, 1)  # (C, H, W)
    return MeanImage(np.ascontiguousarray(mean), *_moments(histogram), count, prop, tuple(broken))


def load_mean_image(path: str | Path) -> NDArray[np.float32]:
    """A mean image from a `.npy` or a picture file: float32 `(C, H, W)` in 0..255.

    Raises:
        InputError: no such file, or not an array of three axes.
        ImageError: a picture that cannot be decoded.
    """
    path = Path(path)
    if path.suffix != ".npy":
        return np.asarray(load_rgb(path), dtype=np.float32).transpose(2, 0, 1).copy()
    try:
        mean = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a mean image: {error}") from error
    if mean.ndim != 3 or not np.issubdtype(mean.dtype, np.floating):
        raise InputError(f"{path}: a mean image is float32 (C, H, W), this is {mean.dtype} {mean.shape}")
    made: NDArray[np.float32] = mean.astype(np.float32)
    return made


def _load(path: Path, prop: ImageProperty) -> NDArray[np.uint8] | BrokenImage:
    try:
        return load_pixels(path, prop)
    except ImageError as error:
        return BrokenImage(str(path), error.fault, error.detail)


def _histogram(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Counts of each level by channel, `(C, 256)`: the exact sums of x and of x squared at a tenth of their cost."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    counts: NDArray[np.uint64] = np.asarray(image.histogram(), dtype=np.uint64)
    return counts.reshape(-1, 256)


def _moments(histogram: NDArray[np.uint64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel."""
    levels = np.arange(256, dtype=np.float64)
    weights = histogram / histogram.sum(axis=1, keepdims=True)  # (C, 256)
    mean = weights @ levels
    spread = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(spread.tolist())


def _first(broken: list[BrokenImage]) -> str:
    return f"first: {broken[0].path}: {broken[0].fault}" if broken else "the label file is empty"
