"""Decode the images of a run and check its training and validation sets."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlimages.checks import split_labels
from mlimages.core import BrokenImage, InputError, Progress, pluralize
from mlimages.images import raise_for_unavailable_images, raise_if_most_images_missing
from mlimages.labels import ClassNames, open_splits
from mlimages.training import distributed
from mlimages.training.array_store import ArrayStore, open_pixel_store
from mlimages.training.config import FineTuneConfig
from mlimages.training.image_set import DecodableImage, decode_images_distributed
from mlimages.training.inputs import TrainingInputs, require_enough_images

logger = logging.getLogger(__name__)

MAX_LISTED_IMAGES = 3
"""Maximum number of images that an error message lists."""

_SPLIT_ADVICE = (
    "there are too few images, or they are near-duplicates, which stay together in one split; add other images, or "
    "pass a validation set with --val"
)


@dataclass(frozen=True, slots=True)
class DecodedSplits:
    """The decoded images of a run.

    Attributes:
        train: training set.
        val: validation set.
        broken_images: images that could not be decoded.
        pixel_store: cache of the decoded pixels; None without a cache, or if the images do not fit into it.
    """

    train: tuple[DecodableImage, ...]
    val: tuple[DecodableImage, ...]
    broken_images: tuple[BrokenImage, ...]
    pixel_store: ArrayStore | None


def decode_splits(config: FineTuneConfig, inputs: TrainingInputs, progress: Progress) -> DecodedSplits:
    """Decode every image once, split off a validation set if none was passed, and check both sets.

    Raises:
        InputError: a class has no training image; there is no validation image; an image is in both sets; a remote
            image cannot be downloaded; or more than half of the images are missing. If a validation set is split off a
            single-label dataset, also: a class has only one image.
    """
    labeled, image = inputs.splits, inputs.model.preprocessing.image
    items = [*labeled.train, *(labeled.val or [])]
    pixels = open_pixel_store(image)
    store = pixels if config.cache and pixels.fits_in_cache(len(items), config.cache_bytes) else None
    found = decode_images_distributed(items, image, store=store, progress=progress)
    if store is not None:
        store.evict_files(config.cache_bytes)
    broken = tuple(each for each in found if isinstance(each, BrokenImage))
    raise_for_unavailable_images(broken, skip=config.skip_unavailable)
    if inputs.is_resumed:
        advice = (
            f"train.txt and val.txt in {config.out} contain paths relative to that folder: move it back to where "
            "it was, or move the images along with it"
        )
        raise_if_most_images_missing(broken, len(items), advice=advice)
    raise_if_most_images_missing(broken, len(items))
    for each in broken:
        logger.info("skipped: %s (%s: %s)", each.path, each.fault, each.detail)
    train, val = (
        tuple(each for each in part if isinstance(each, DecodableImage))
        for part in (found[: len(labeled.train)], found[len(labeled.train) :])
    )
    if labeled.val is None:
        require_enough_images(
            train, labeled.class_names, min_images=1 if labeled.is_multi_label else 2, image_kind="usable "
        )
        train, val = _hold_out_validation_images(train, config)
    require_enough_images(train, labeled.class_names, min_images=1, image_kind="usable ")
    if not val and labeled.val is None:
        raise InputError(f"no validation images: {_SPLIT_ADVICE}")
    if not val:
        raise InputError("no usable validation images: add some, or pass another label file with --val")
    if distributed.is_main_process():
        if labeled.is_multi_label:
            _warn_about_rare_classes(train, labeled.class_names, "training", rare_counts=(1,))
        advice = f": {_SPLIT_ADVICE}" if labeled.val is None else ""
        _warn_about_rare_classes(val, labeled.class_names, "validation", rare_counts=(0, 1), absence_advice=advice)
        _warn_about_conflicting_labels((*train, *val), is_multi_label=labeled.is_multi_label)
    _require_disjoint_splits(train, val)
    return DecodedSplits(train, val, broken, store)


def _hold_out_validation_images(
    images: Sequence[DecodableImage], config: FineTuneConfig
) -> tuple[tuple[DecodableImage, ...], tuple[DecodableImage, ...]]:
    """Split into training and validation images, in the same way as `mlimages label --split`.

    In a multi-label dataset, a validation image goes back to the training set if one of its classes would otherwise be
    absent there.
    """
    paths: list[Path] = []
    if distributed.is_main_process():
        parts = open_splits(config.labels, config)
        fractions = (1 - config.val_share, config.val_share)
        paths = [item.path for item in split_labels(parts.get("train") or parts[""], fractions, config.seed)[1]]
    val = set(distributed.broadcast(paths))
    used = {label for one in images if one.path not in val for label in one.class_indices}
    val -= {one.path for one in images if one.labels is not None and not used.issuperset(one.labels)}
    return tuple(one for one in images if one.path not in val), tuple(one for one in images if one.path in val)


def _warn_about_rare_classes(
    images: Iterable[DecodableImage],
    class_names: ClassNames,
    split_name: str,
    *,
    rare_counts: Sequence[int],
    absence_advice: str = "",
) -> None:
    """Warn about the classes whose number of images is in `rare_counts`, which contains 0, 1 or both."""
    found = Counter(label for image in images for label in image.class_indices)
    for count in rare_counts:
        if rare := [name for label, name in enumerate(class_names) if found[label] == count]:
            what, advice = ("only one image", "") if count else ("no image", absence_advice)
            logger.warning(
                "the %s set has %s of %s%s", split_name, what, "each of " * (len(rare) > 1) + ", ".join(rare), advice
            )


def _warn_about_conflicting_labels(images: Iterable[DecodableImage], *, is_multi_label: bool) -> None:
    """Warn about identical files with different labels."""
    found = defaultdict[bytes, dict[tuple[int, ...], Path]](dict)
    for image in images:
        found[image.digest].setdefault(image.class_indices, image.path)
    if twice := [list(paths.values()) for paths in found.values() if len(paths) > 1]:
        message = (
            "%s with different labels (%s%s): merge their labels with `mlimages label LABELS --multi-label`"
            if is_multi_label
            else "%s in several classes (%s%s): exclude such images with `mlimages check`, or use --multi-label if an "
            "image may have several classes"
        )
        same_paths = " and ".join(map(str, dict.fromkeys(twice[0][:2])))  # the same path on two rows once
        logger.warning(message, pluralize(len(twice), "image"), same_paths, "; ..." if len(twice) > 1 else "")


def _require_disjoint_splits(train_images: Iterable[DecodableImage], val_images: Sequence[DecodableImage]) -> None:
    """Raise InputError if a file, or a copy of it, is in both sets."""
    known = {image.digest: image.path for image in train_images}
    shared = [(known[image.digest], image.path) for image in val_images if image.digest in known]
    if len(shared) == len(val_images):
        raise InputError(
            "all validation images are also training images: leave out --val to split off a validation set, "
            "or pass other validation images"
        )
    if shared:
        shown = "; ".join(" and ".join(map(str, dict.fromkeys(pair))) for pair in shared[:MAX_LISTED_IMAGES])
        raise InputError(
            f"{len(shared)} image{'s' * (len(shared) > 1)} in both the training and the validation set ({shown}): "
            "exclude them with `mlimages check TRAIN VAL`"
        )
