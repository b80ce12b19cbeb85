"""A label file as the network's arrays, and arrays back as images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.core import BrokenImage, ImageProperty, Normalization, Pool, Progress, as_path
from mlimages.dataset.loading import load_in_order
from mlimages.dataset.mean_image import MeanImage, draw_class_means, load_mean_image, remembered_mean
from mlimages.images import LabeledImage, from_network, to_network
from mlimages.labels import LabelFile, write_label_file

logger = logging.getLogger(__name__)


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

    def make_mean_image(
        self, path: str | Path, *, per_class: bool = False, pool: Pool | None = None, progress: Progress | None = None
    ) -> MeanImage:
        """Compute and write the mean (`.png`, `.npy`, `.json`); subtract it from now on.

        With `per_class` each class's mean is drawn too: `NAME_per_class.png`. The pictures that really went in are
        listed in `NAME_used_in_mean.txt` beside the label file.

        Raises:
            InputError: no picture could be used.
        """
        path = as_path(path)
        made = remembered_mean(self.labels, self.prop, per_class=per_class, pool=pool, progress=progress)
        made.write(path)
        if per_class:
            draw_class_means(made, self.labels.class_names, path.with_name(f"{path.stem}_per_class.png"))
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
