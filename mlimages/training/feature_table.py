"""Extract features of images, for another classifier or for clustering."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.core import (
    DEFAULT_MODEL,
    BrokenImage,
    InputError,
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
    rows = compute_pooled_features(built, cut_points, images, progress)
    at = names.index(layer) if layer else len(cut_points) - 1
    start = sum(cut.num_features for cut in cut_points[:at])
    return FeatureTable(
        features=np.ascontiguousarray(rows[:, start : start + cut_points[at].num_features]),
        labels=images.labels.numpy().astype(np.int64),
        paths=tuple(str(Path(each.path)) for each in good),
        class_names=tuple(labels.class_names),
        model=model,
        layer=names[at],
    )
