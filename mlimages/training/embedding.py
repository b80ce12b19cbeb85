"""Compute features of images, by which `check` finds near-duplicates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mlimages.core import DEFAULT_MODEL, LabeledPath, ModelError, NoProgress
from mlimages.networks import build_model, find_cut_points
from mlimages.training.image_set import DecodableImage, ImageSet, decode_images
from mlimages.training.probing import compute_pooled_features

TIMED_BATCH_SIZE = 8
"""Number of images in the batch on which `describe_time_and_memory` times the network."""

CHECK_TIME_RATIO = 2.0
"""Ratio of the total time (decoding, network, comparison) to the time of the network."""


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
        good = [index for index, each in enumerate(found) if isinstance(each, DecodableImage)]
        images = [each for each in found if isinstance(each, DecodableImage)]
        if good:
            rows[good] = compute_pooled_features(
                self._model, self._cut_points, ImageSet(images, self._image), NoProgress()
            )
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
