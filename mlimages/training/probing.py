"""How many layers should be kept? Each cut's features, pooled, judged by a closed-form classifier."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mlimages.core import Z_95, InputError, LabeledPath, NoProgress, Progress, Share, cache_dir, share, sign_test
from mlimages.labels import LabelFile
from mlimages.networks import Cut, Model, Normalize, Tap, build_model, cuts_of, freeze, frozen_precision
from mlimages.reports import CurvePoint, CutScore, ProbeResult
from mlimages.training.features import features_key
from mlimages.training.image_cache import Picture, PictureSet, chunks, decode_all
from mlimages.training.preparation import pixel_store
from mlimages.training.ridge import fit_ridge, stratified_folds
from mlimages.training.row_store import RowStore

logger = logging.getLogger(__name__)

Labels = NDArray[np.int64]
Features = NDArray[np.float32]

MOST = 2000
"""More pictures are sampled: they would tell the cuts apart no better, and the classifier's cost grows faster."""

FOLDS = 10
BATCH = 32
REPEATS = 10
FIRST = 5
"""The learning curve begins with so many pictures of each class, and doubles."""

NOISE = 0.05


def probe_cuts(
    labels: LabelFile,
    *,
    model: str = "alexnet",
    weights: str | Path = "default",
    size: int | None = None,
    gray: bool | None = None,
    most: int = MOST,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeResult:
    """Score every place where `model` can be cut, on pooled features of one forward pass.

    Args:
        labels: at least two pictures of each of at least two classes.
        model, weights, size, gray: as `build_model` takes them.
        most: with more pictures, so many are chosen, class by class.
        seed: of the choice, the folds and the learning curve.

    Raises:
        InputError: too few pictures.
        ModelError: the network cannot be built or cut.
    """
    progress, names = progress or NoProgress(), labels.class_names
    built = build_model(model, classes=len(names), weights=weights, size=size, gray=gray, seed=seed)
    if not built.pretrained:
        logger.warning("%s starts at random: what its layers tell now says nothing of what they could learn", model)
    image = built.preprocessing.image
    store = pixel_store(image)
    found = decode_all(_some(labels, most, seed), image, store=store, progress=progress)
    good = _unique(found)
    _demand_enough(good, names)
    cuts = cuts_of(built)
    rows = _features(built, cuts, PictureSet(good, image, store=store), progress)
    truth = np.array([picture.label for picture in good])  # (N,)
    parts = np.split(rows, np.cumsum([cut.width for cut in cuts])[:-1], axis=1)
    scores, best = _score(cuts, parts, truth, len(names), seed)
    curve, gain = _learning_curve(parts[best], truth, len(names), seed)
    broken = sum(not isinstance(each, Picture) for each in found)
    return ProbeResult(model, len(good), len(names), broken, scores, cuts[best].name, curve, gain)


def _some(labels: LabelFile, most: int, seed: int) -> list[LabeledPath]:
    """At most `most` pictures, the same share of each class."""
    items = list(labels)
    if len(items) <= most:
        return items
    fold = stratified_folds(np.array([item.label for item in items]), folds=math.ceil(len(items) / most), seed=seed)
    return [item for item, number in zip(items, fold, strict=True) if number == 0]


def _unique(found: Sequence[object]) -> list[Picture]:
    """The good pictures, each once: a copy in another fold would know the answer."""
    return list({each.digest: each for each in reversed(found) if isinstance(each, Picture)}.values())[::-1]


def _demand_enough(pictures: Sequence[Picture], names: Sequence[str]) -> None:
    counts = np.bincount([picture.label for picture in pictures], minlength=len(names))
    if len(names) < 2 or (few := int(counts.min())) < 2:
        what = "one class" if len(names) < 2 else f"{few} good pictures of {names[int(counts.argmin())]!r}"
        raise InputError(f"a probe needs two classes and two pictures of each, and found {what}: gather more")


def _features(model: Model, cuts: tuple[Cut, ...], pictures: PictureSet, progress: Progress) -> Features:
    """The pooled features of all cuts side by side, `(N, D)`; computed once for a picture and a network."""
    normalize = Normalize(model.preprocessing.normalization)
    key = features_key(
        model,
        normalize,
        cut=[asdict(cut) for cut in cuts],
        digest=freeze(model, "head").digest(model.network),
        preprocessing=model.preprocessing,
        precision=frozen_precision(torch.device("cpu")),
    )
    store = RowStore(cache_dir("probe") / key, (sum(cut.width for cut in cuts),), np.float32)
    missing = [place for place, picture in enumerate(pictures.pictures) if picture.digest not in store]
    progress.start("forward", len(missing), "img")
    with Tap(model.network, cuts) as tap, torch.inference_mode():
        for batch in pictures.batches(chunks(missing, BATCH)):
            model.network(normalize(batch.pixels))
            store.append([pictures.pictures[place].digest for place in batch.places], tap.rows().numpy())
            progress.advance(len(batch.places))
    progress.close()
    store.refresh()
    return store.rows([picture.digest for picture in pictures.pictures])


def _score(
    cuts: Sequence[Cut], parts: Sequence[Features], labels: Labels, classes: int, seed: int
) -> tuple[tuple[CutScore, ...], int]:
    """Each cut's score, and the place of the recommended one."""
    fold = stratified_folds(labels, folds=min(FOLDS, len(labels)), seed=seed)
    right = [fit_ridge(part, labels, classes).out_of_fold(fold).argmax(axis=1) == labels for part in parts]
    best = max(right, key=lambda each: int(each.sum()))
    near = [sign_test(int((each & ~best).sum()), int((best & ~each).sum())) >= NOISE for each in right]
    scores = tuple(
        CutScore(cut.name, cut.width, share(int(each.sum()), len(labels)), within)
        for cut, each, within in zip(cuts, right, near, strict=True)
    )
    return scores, max(place for place, within in enumerate(near) if within)


def _learning_curve(
    features: Features, labels: Labels, classes: int, seed: int
) -> tuple[tuple[CurvePoint, ...], Share | None]:
    """The accuracy by pictures per class, each point on the same pictures aside; what the last doubling gained."""
    fewest = int(np.bincount(labels, minlength=classes).min())
    steps = list(_doublings(fewest))
    runs: dict[int, list[float]] = defaultdict(list)
    for repeat in range(REPEATS if steps else 0):
        ranked = _ranked(labels, seed + repeat)  # (N,): each picture's place in its class
        aside = ranked >= steps[-1]
        for step in steps:
            taken = ranked < step
            head = fit_ridge(features[taken], labels[taken], classes).head()
            said = head.probabilities(features[aside]).argmax(axis=1)
            runs[step].append(float((said == labels[aside]).mean()))
    count = int((_ranked(labels, seed) >= steps[-1]).sum()) if steps else 0
    points = tuple(CurvePoint(step, share(round(float(np.mean(runs[step])) * count), count)) for step in steps)
    return points, _gain(runs[steps[-2]], runs[steps[-1]]) if len(steps) > 1 else None


def _doublings(fewest: int) -> Iterator[int]:
    """5, 10, 20 ... while a fifth of the smallest class stays aside."""
    step = FIRST
    while step <= 0.8 * fewest:
        yield step
        step *= 2


def _ranked(labels: Labels, seed: int) -> Labels:
    chance = np.random.default_rng(seed)
    ranked = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranked[members] = chance.permutation(len(members))
    return ranked


def _gain(before: Sequence[float], after: Sequence[float]) -> Share:
    """The mean of the paired differences and its 95 % interval by their spread."""
    differences = np.subtract(after, before)
    half = Z_95 * float(differences.std(ddof=1)) / math.sqrt(len(differences))
    mean = float(differences.mean())
    return Share(mean, mean - half, mean + half)
