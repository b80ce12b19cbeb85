"""Compute features of images: for another classifier, for clustering, or to find near-duplicates."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mlimages.core import (
    DEFAULT_MODEL,
    BrokenImage,
    InputError,
    LabeledPath,
    ModelError,
    NoProgress,
    Progress,
    as_path,
    pluralize,
    write_output,
)
from mlimages.images import raise_if_most_images_missing
from mlimages.labels import LabelFile, open_labels
from mlimages.networks import build_model, find_cut_points
from mlimages.training.array_store import open_pixel_store
from mlimages.training.image_set import DecodableImage, ImageSet, decode_images
from mlimages.training.probing import compute_pooled_features

logger = logging.getLogger(__name__)

TIMED_BATCH_SIZE = 8
"""Number of images in the batch on which `describe_time_and_memory` times the network."""

CHECK_TIME_RATIO = 2.0
"""Ratio of the total time (decoding, network, comparison) to the time of the network."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FeatureTable:
    """Features of images, one row per image.

    Attributes:
        features: float32 `(N, D)`: the output of `layer`, after the activation, pooling and normalization that follow
            it. Feature maps are averaged over positions or, if the network flattens them after `layer`, flattened.
        labels: class indices, int64 `(N,)`; for a multi-label file, 1 for each class of an image, else 0, int64
            `(N, classes)`.
        paths: paths of the images.
        class_names: names of the classes, by class index.
        model: name of the network.
        layer: name of the layer.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    paths: tuple[str, ...]
    class_names: tuple[str, ...]
    model: str
    layer: str

    def __repr__(self) -> str:
        rows, columns = self.features.shape
        return f"<FeatureTable: {rows} x {columns}, {self.model} up to {self.layer}>"

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a `.npz` file with the arrays `features`, `labels`, `paths` and `class_names`.

        Args:
            path: file to write.
            overwrite: also replace a file that mlimages did not write, or that was edited after mlimages wrote it.

        Raises:
            InputError: `path` does not end in `.npz`. If `overwrite` is false, also: the file exists and was not
                written by mlimages, or was edited after mlimages wrote it.
        """
        path = as_path(path)
        if path.suffix != ".npz":
            raise InputError(f"{path} is not a .npz file: features are written as .npz")
        paths, names = np.array(self.paths), np.array(self.class_names)
        with write_output(path, overwrite=overwrite) as part, part.open("wb") as out:
            np.savez(out, features=self.features, labels=self.labels, paths=paths, class_names=names)


def extract_features(
    labels: LabelFile | str | os.PathLike[str],
    *,
    model: str = DEFAULT_MODEL,
    weights: str | os.PathLike[str] = "default",
    layer: str | None = None,
    size: int | tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> FeatureTable:
    """Extract the features of images at one layer of a network.

    Features are cached by image and network, and reused.

    Args:
        labels: a label file, or the path of one or of a folder of class folders; images that cannot be decoded are
            skipped, and their number is logged.
        model: name of the network.
        weights: `default` (pretrained), `none` (random) or a file.
        layer: layer after which the features are computed, one of those that `probe` lists; by default the last one
            before the classifier.
        size: input width and height in pixels, one number for a square; None uses the network's native size.
        progress: shows the number of images processed.

    Raises:
        InputError: the labels cannot be read, most images are missing, or no image can be decoded.
        ModelError: the network cannot be built, or has no such layer.

    >>> table = extract_features("cats.txt")  # doctest: +SKIP
    >>> table.features.shape  # doctest: +SKIP
    (240, 1280)
    """
    labels = open_labels(labels)
    built = build_model(model, num_classes=len(labels.class_names), weights=weights, size=size)
    cut_points = find_cut_points(built)
    names = [cut.last_layer for cut in cut_points]
    if layer not in (None, *names):
        raise ModelError(f"{model} has no features at layer {layer!r}: use {', '.join(names)}")
    image = built.preprocessing.image
    store = open_pixel_store(image)
    progress = progress or NoProgress()
    found = decode_images(list(labels), image, store=store, progress=progress)
    raise_if_most_images_missing([each for each in found if isinstance(each, BrokenImage)], len(found))
    good = [each for each in found if isinstance(each, DecodableImage)]
    if not good:
        raise InputError(f"none of {pluralize(len(found), 'image')} can be decoded: run `mlimages check` to see why")
    if len(good) < len(found):
        logger.warning("skipped %s that cannot be decoded", pluralize(len(found) - len(good), "image"))
    images = ImageSet(good, image, store=store, num_classes=len(labels.class_names))
    parts = compute_pooled_features(built, cut_points, images, progress)
    at = names.index(layer) if layer else -1
    return FeatureTable(
        features=np.ascontiguousarray(parts[at]),
        labels=images.labels.numpy().astype(np.int64),
        paths=tuple(str(Path(each.path)) for each in good),
        class_names=tuple(labels.class_names),
        model=model,
        layer=names[at],
    )


class NetworkEmbedder:
    """Computes features of images with a pretrained network, and caches them by file content.

    The features are the inputs of the network's classifier. The whole image is resized to the network's input, without
    the usual centre crop, so that an image and crops of it have similar features.
    """

    def __init__(self, model: str) -> None:
        built = build_model(model, num_classes=2)
        if not built.pretrained:
            raise ModelError(
                f"{model} has no pretrained weights, without which features are random: use another network"
            )
        self._image = replace(built.preprocessing.image, resize="squash")
        self._model = replace(built, preprocessing=replace(built.preprocessing, image=self._image))
        self._cut_points = find_cut_points(self._model)[-1:]

    def __call__(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        rows = np.zeros((len(paths), self._cut_points[0].num_features), np.float32)
        items = [LabeledPath(path, 0) for path in paths]
        found = decode_images(items, self._image, store=None, progress=NoProgress())
        good = {index: each for index, each in enumerate(found) if isinstance(each, DecodableImage)}
        if good:
            images = ImageSet([*good.values()], self._image)
            (rows[[*good]],) = compute_pooled_features(self._model, self._cut_points, images, NoProgress())
        return rows

    def describe_time_and_memory(self, num_images: int) -> str:
        """Return a sentence on the time and memory that `check` needs to find near-duplicates among this many images.

        The network is run on one batch to estimate the time.
        """
        batch = torch.zeros(TIMED_BATCH_SIZE, *self._model.preprocessing.input_shape)
        with torch.inference_mode():
            self._model.network(batch[:1])
            began = time.perf_counter()
            self._model.network(batch)
        seconds = CHECK_TIME_RATIO * num_images * (time.perf_counter() - began) / TIMED_BATCH_SIZE
        megabytes = num_images * 2 * self._cut_points[0].num_features / 1e6
        return (
            f"features of {num_images:,} images with {self._model.name}: about {max(1, round(seconds / 60))} min, less "
            f"for images in the cache; {max(1, round(megabytes))} MB of memory"
        )


def embedder(model: str = DEFAULT_MODEL) -> NetworkEmbedder:
    """Load a pretrained network that computes features of images, for `check(..., embed=embedder())`.

    Args:
        model: name of a pretrained network; by default the one that is installed with mlimages.

    Raises:
        ModelError: the network is unknown, or has no pretrained weights, or they cannot be obtained.

    >>> check("cats.txt", embed=embedder()).feature_pairs  # doctest: +SKIP
    """
    return NetworkEmbedder(model)
