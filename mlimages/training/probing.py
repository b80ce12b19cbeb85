"""Compare the layers of a network, to choose the last layer to freeze.

The score of a layer is the accuracy of a closed-form classifier on its pooled features.
"""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mlimages.core import (
    DEFAULT_MODEL,
    Z_95,
    BrokenImage,
    InputError,
    LabeledPath,
    NoProgress,
    Progress,
    Proportion,
    cache_dir,
    check_at_least,
    check_seed,
    estimate_proportion,
    mcnemar_test,
    pluralize,
    wilson_interval,
)
from mlimages.images import raise_if_most_images_missing
from mlimages.labels import LabelFile, open_labels
from mlimages.networks import (
    CutPoint,
    FeatureHooks,
    Model,
    Normalize,
    build_model,
    find_cut_points,
    find_float32_precision,
    freeze,
)
from mlimages.reports import LayerScore, LearningCurvePoint, ProbeResult
from mlimages.training.array_store import ArrayStore, open_pixel_store
from mlimages.training.features import make_feature_cache_key
from mlimages.training.head import assign_stratified_folds, fit_ridge
from mlimages.training.image_set import DecodableImage, ImageSet, decode_images, split_into_chunks

logger = logging.getLogger(__name__)

Labels = NDArray[np.int64]
Features = NDArray[np.float32]

MAX_IMAGES = 2000
"""Default maximum number of images. More images hardly change the ranking, but take disproportionately long."""

BATCH_SIZE = 32

NUM_CURVE_REPEATS = 10
"""Number of random splits over which each point of the learning curve is averaged."""

FIRST_CURVE_SIZE = 5
"""Images per class in the first point of the learning curve; each further point has twice as many."""

SIGNIFICANCE_LEVEL = 0.05
"""A layer counts as worse than the best one if the p-value of McNemar's test is below this."""


def probe_layers(
    labels: LabelFile | str | os.PathLike[str],
    *,
    model: str = DEFAULT_MODEL,
    weights: str | os.PathLike[str] = "default",
    size: int | tuple[int, int] | None = None,
    gray: bool | None = None,
    max_images: int = MAX_IMAGES,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeResult:
    """Score each layer by the accuracy of a linear probe on its pooled features, to choose the last layer to freeze.

    Args:
        labels: a label file, its path, or the path of a folder of class folders. There must be at least two classes,
            each with at least two images.
        model: name of the network.
        weights: `default` (pretrained), `none` (random) or a file.
        size: input width and height in pixels, one number for a square; None uses the network's native size.
        gray: whether to use one gray channel; None uses the channels of the pretrained weights.
        max_images: maximum number of images. Of a larger dataset, a stratified sample of at least `max_images / 2`
            images is used.
        seed: random seed of the sample, the learning curve and, with `weights="none"`, the weights.
        progress: shows the number of images processed.

    Returns:
        Accuracy by layer with its 95 % interval, the recommended layer, and the learning curve.

    Raises:
        InputError: there are too few images, the label file is multi-label, or an argument is out of range.
        ModelError: the network cannot be built, or has a single layer.

    >>> result = probe_layers("cats.txt", model="alexnet")  # doctest: +SKIP
    >>> result.recommended_freeze  # doctest: +SKIP
    'conv5'
    """
    check_at_least(1, max_images=max_images)
    check_seed(seed)
    labels = open_labels(labels)
    if labels.is_multi_label:
        raise InputError(
            f"probe does not support multi-label files, such as {labels.path}: compare networks and layers with "
            "short runs of `mlimages finetune` and with `mlimages compare`"
        )
    progress, names = progress or NoProgress(), labels.class_names
    built = build_model(model, num_classes=len(names), weights=weights, size=size, gray=gray, seed=seed)
    if not built.pretrained:
        logger.warning(
            "%s has random weights: the scores of its layers do not predict the accuracy after training", model
        )
    image = built.preprocessing.image
    store = open_pixel_store(image)
    found = decode_images(_draw_stratified_sample(labels, max_images, seed), image, store=store, progress=progress)
    raise_if_most_images_missing([each for each in found if isinstance(each, BrokenImage)], len(found))
    decoded = [each for each in found if isinstance(each, DecodableImage)]
    # of identical files only the first, since the same image could otherwise be used to train and to test
    good = list({each.digest: each for each in reversed(decoded)}.values())[::-1]
    _require_enough_images(good, names)
    cut_points = find_cut_points(built)
    parts = compute_pooled_features(built, cut_points, ImageSet(good, image, store=store), progress)
    targets = np.array([image.label for image in good])  # (N,)
    scores, best = _score_layers(cut_points, parts, targets, len(names))
    curve, gain = _compute_learning_curve(parts[best], targets, len(names), seed)
    num_broken = len(found) - len(decoded)
    return ProbeResult(model, len(good), len(names), num_broken, scores, cut_points[best].last_layer, curve, gain)


def _draw_stratified_sample(labels: LabelFile, max_images: int, seed: int) -> list[LabeledPath]:
    """Return a sample of at most `max_images` images, with the same proportions of the classes; all images if they fit.

    The images are divided into as few equal parts of at most `max_images` as possible; the sample is one of them.
    """
    items = list(labels)
    if len(items) <= max_images:
        return items
    fold = assign_stratified_folds(
        np.array([item.label for item in items]), num_folds=math.ceil(len(items) / max_images), seed=seed
    )
    return [item for item, number in zip(items, fold, strict=True) if number == 0]


def _require_enough_images(images: Sequence[DecodableImage], class_names: Sequence[str]) -> None:
    """Raise InputError unless there are two or more classes, each with two or more images."""
    counts = np.bincount([image.label for image in images], minlength=len(class_names))
    if len(class_names) < 2 or (few := int(counts.min())) < 2:
        what = (
            "one class"
            if len(class_names) < 2
            else f"{pluralize(few, 'usable image')} of {class_names[int(counts.argmin())]!r}"
        )
        raise InputError(f"a probe requires at least two classes with two images each, but found {what}: gather more")


def compute_pooled_features(
    model: Model, cut_points: tuple[CutPoint, ...], images: ImageSet, progress: Progress
) -> list[Features]:
    """Return the pooled features after each layer in `cut_points`, float32 `(N, D)`; cached on disk."""
    normalize = Normalize(model.preprocessing.normalization)
    key = make_feature_cache_key(
        model,
        normalize,
        layers=[
            {"name": cut.last_layer, "consumer": cut.next_layer, "num_features": cut.num_features} for cut in cut_points
        ],
        weights_digest=freeze(model, "head").digest(model.network),
        preprocessing=model.preprocessing,
        precision=find_float32_precision(torch.device("cpu")),
    )
    ends = np.cumsum([cut.num_features for cut in cut_points]).tolist()
    store = ArrayStore(cache_dir("probe") / key, (ends[-1],), np.float32)
    missing = [index for index, image in enumerate(images.images) if image.digest not in store]
    progress.start("forward", len(missing), "img")
    with FeatureHooks(model.network, cut_points) as hooks, torch.inference_mode():
        for pixels, indices in images.batches(split_into_chunks(missing, BATCH_SIZE)):
            model.network(normalize(pixels))
            store.append([images.images[index].digest for index in indices], hooks.collect_features().numpy())
            progress.advance(len(indices))
    progress.close()
    store.refresh_index()
    return np.split(store.read_rows([image.digest for image in images.images]), ends[:-1], axis=1)


def _score_layers(
    cut_points: Sequence[CutPoint], features_by_layer: Sequence[Features], labels: Labels, num_classes: int
) -> tuple[tuple[LayerScore, ...], int]:
    """Return the score of each layer up to which the network can be frozen, and the index of the recommended layer.

    The recommended layer is the one closest to the output whose accuracy is not significantly below the best.
    """
    fits = (fit_ridge(part, labels, num_classes) for part in features_by_layer)
    correct = [fit.loo_probabilities.argmax(axis=1) == labels for fit in fits]
    best = max(correct, key=lambda each: int(each.sum()))
    near = [
        mcnemar_test(int((each & ~best).sum()), int((best & ~each).sum())) >= SIGNIFICANCE_LEVEL for each in correct
    ]
    scores = tuple(
        LayerScore(cut.last_layer, cut.num_features, estimate_proportion(int(each.sum()), len(labels)), within)
        for cut, each, within in zip(cut_points, correct, near, strict=True)
    )
    return scores, max(index for index, within in enumerate(near) if within)


def _compute_learning_curve(
    features: Features, labels: Labels, num_classes: int, seed: int
) -> tuple[tuple[LearningCurvePoint, ...], Proportion | None]:
    """Return the learning curve on held-out images, and the accuracy gained by its last doubling of the images.

    Both are averaged over random splits; the interval of the gain follows from its standard deviation over these. If
    the smallest class has too few images, the curve is empty or has one point, and the gain is None.
    """
    steps = list(_iter_curve_sizes(int(np.bincount(labels, minlength=num_classes).min())))
    if not steps:
        return (), None
    runs: dict[int, list[float]] = defaultdict(list)
    for repeat in range(NUM_CURVE_REPEATS):
        ranked = _draw_ranks_within_class(labels, seed + repeat)  # (N,): random order of the images within each class
        held_out = ranked >= steps[-1]
        for step in steps:
            taken = ranked < step
            head = fit_ridge(features[taken], labels[taken], num_classes).head
            predicted = head.compute_probabilities(features[held_out]).argmax(axis=1)
            runs[step].append(float((predicted == labels[held_out]).mean()))
    count = int(held_out.sum())  # the same in each repeat
    means = {step: float(np.mean(runs[step])) for step in steps}
    points = tuple(
        LearningCurvePoint(step, Proportion(mean, *wilson_interval(round(mean * count), count)))
        for step, mean in means.items()
    )
    if len(steps) == 1:
        return points, None
    gains = np.subtract(runs[steps[-1]], runs[steps[-2]])  # of each random split
    gain, half = float(gains.mean()), Z_95 * float(gains.std(ddof=1)) / math.sqrt(len(gains))
    return points, Proportion(gain, gain - half, gain + half)


def _iter_curve_sizes(smallest_class_size: int) -> Iterator[int]:
    """Yield the numbers of training images per class: 5, 10, 20 ..., at most 80 % of the smallest class."""
    step = FIRST_CURVE_SIZE
    while step <= 0.8 * smallest_class_size:
        yield step
        step *= 2


def _draw_ranks_within_class(labels: Labels, seed: int) -> NDArray[np.int64]:
    """Return the rank of each image in a random order of the images of its class, int64 `(N,)`."""
    rng = np.random.default_rng(seed)
    ranked = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranked[members] = rng.permutation(len(members))
    return ranked
