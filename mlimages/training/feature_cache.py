"""Cache the frozen features of a run, and compare bfloat16 features with float32 features."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mlimages.core import Progress, format_percent
from mlimages.networks import unflatten_features
from mlimages.training import distributed
from mlimages.training.compute_backend import MAX_PRECISION_CHECK_IMAGES, ComputeBackend
from mlimages.training.feature_extractor import ConversionError
from mlimages.training.features import FeatureSource, select_local_indices
from mlimages.training.head import fit_ridge
from mlimages.training.image_set import ImageSet

logger = logging.getLogger(__name__)

MAX_RELATIVE_DIFFERENCE = 0.02
"""Maximum root mean square difference between bfloat16 and float32 features, relative to the root mean square of the
float32 features."""

MIN_AGREEMENT = 0.97
"""Minimum share of the validation images for which two classifiers must predict the same class. The classifiers are
fitted by ridge regression (`fit_ridge`), one on bfloat16 features, the other on float32 features."""

MAX_DISAGREEMENTS = 2
"""Number of validation images for which the two classifiers of MIN_AGREEMENT may predict different classes even if the
share for which they agree is then too low, as in a small validation set."""


def cache_features(
    create_features: Callable[[ComputeBackend], FeatureSource],
    backend: ComputeBackend,
    *,
    is_resumed: bool,
    train_set: ImageSet,
    num_views: int,
    val_set: ImageSet,
    cache_bytes: int,
    progress: Progress,
) -> tuple[FeatureSource | None, ComputeBackend]:
    """Compute and cache the frozen features of the training and validation images.

    If OpenVINO cannot convert the network, or its outputs differ from those of PyTorch, PyTorch computes the features
    in float32. If the bfloat16 features of a new run, or heads fitted on them, differ too much from float32, they are
    recomputed in float32.

    Args:
        create_features: creates the source of features for a library and precision.
        backend: library and precision to try first.
        is_resumed: whether the run is resumed; its precision is then not checked again.
        train_set: the training set.
        num_views: number of fixed augmented views of each training image.
        val_set: the validation set.
        cache_bytes: maximum size of the cache in bytes.
        progress: shows the number of images processed.

    Returns:
        The features, or None if they do not fit into the cache; and the library and precision that computed them.
    """
    while True:
        features, fallback, problem = None, replace(backend, library="torch", frozen_precision="fp32"), ""
        try:
            features = create_features(backend)
            if not features.fits_in_cache(len(train_set) * num_views + len(val_set), cache_bytes):
                return None, fallback
            features.compute_missing_features(val_set, 1, cache_bytes=cache_bytes, progress=progress)
            if backend.frozen_precision == "bf16" and not is_resumed and distributed.is_main_process():
                problem = _describe_precision_mismatch(features, backend, val_set, progress)
                fallback = replace(backend, frozen_precision="fp32")
            if not problem:
                features.compute_missing_features(train_set, num_views, cache_bytes=cache_bytes, progress=progress)
        except ConversionError as error:
            problem = str(error)
        found = [result for result in distributed.all_gather((problem, fallback)) if result[0]]
        if not found:
            if features:
                features.close()
            return features, backend
        problem, fallback = found[0]
        logger.warning("the frozen layers run with %s instead of %s: %s", fallback, backend, problem)
        backend = fallback


def _describe_precision_mismatch(
    features: FeatureSource, backend: ComputeBackend, val_set: ImageSet, progress: Progress
) -> str:
    """Compare features of validation images in float32 and in `backend.frozen_precision`.

    Return a message if they differ too much, else "".
    """
    own = select_local_indices(range(len(val_set)))
    chosen = np.sort(np.random.default_rng(0).permutation(own)[:MAX_PRECISION_CHECK_IMAGES]).tolist()
    squares, labels = np.zeros(2), []
    pooled: tuple[list[Tensor], list[Tensor]] = [], []
    progress.start("precision", len(chosen), "img")
    for indices, *parts in features.compute_features_in_both_precisions(chosen, progress):
        labels += val_set.labels[indices].tolist()
        squares += [float((parts[1] - parts[0]).square().sum()), float(parts[0].square().sum())]
        difference = float(np.sqrt(squares[0] / max(squares[1], 1e-30)))
        if not difference <= MAX_RELATIVE_DIFFERENCE:
            progress.close()
            return f"features in {backend.frozen_precision} differ by {format_percent(difference)} from fp32"
        for rows, kept in zip(parts, pooled, strict=True):
            maps = unflatten_features(rows, features.shapes)
            kept.append(torch.cat([part.mean((2, 3)) if part.ndim == 4 else part.flatten(1) for part in maps], dim=1))
    progress.close()
    if not labels:
        return ""
    targets = np.array(labels)
    classes = targets.max() + 1 if targets.ndim == 1 else targets.shape[1]
    exact, rounded = (fit_ridge(torch.cat(rows).numpy(), targets, classes).loo_probabilities for rows in pooled)
    same = int((exact.argmax(axis=1) == rounded.argmax(axis=1)).sum())
    text = (
        f"{backend.frozen_precision} features differ by {format_percent(difference)} from fp32 features; ridge "
        f"classifiers fitted on the two predict the same class for {same} of {len(labels)} validation images"
    )
    if len(labels) - same > max(MAX_DISAGREEMENTS, (1 - MIN_AGREEMENT) * len(labels)):
        return text
    logger.warning("%s: %s", backend, text)  # shown, since nobody asked for bfloat16
    return ""
