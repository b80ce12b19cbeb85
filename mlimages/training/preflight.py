"""Read the label files, decode every image once, hold out the validation set and check both sets."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mlimages.checks import split_labels
from mlimages.core import BrokenImage, ImageProperty, InputError, LabeledPath, Progress
from mlimages.labels import ClassNames, open_labels, open_parts, share_classes
from mlimages.training import distributed
from mlimages.training.config import FineTuneConfig
from mlimages.training.image_cache import TrainingImage, decode_all
from mlimages.training.row_store import RowStore

logger = logging.getLogger(__name__)

MAX_NAMES = 3
"""Number of names an error lists."""


@dataclass(frozen=True, slots=True)
class ImageSplit:
    """Training set, validation set, and the images that could not be decoded."""

    train: tuple[TrainingImage, ...]
    val: tuple[TrainingImage, ...]
    broken: tuple[BrokenImage, ...]


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """The images of the label files with their classes.

    Attributes:
        names: class names, by class number.
        train: images to train on.
        val: images to validate on; None if part of `train` is to be held out.
    """

    names: ClassNames
    train: list[LabeledPath]
    val: list[LabeledPath] | None


def read_label_files(config: FineTuneConfig) -> LabeledImages:
    """Read both label files or folders, whose classes are compared by name; of a folder train/ and val/ are taken.

    Raises:
        InputError: one of them cannot be read, a class of `val` is not one of `labels`, or there is only one class.
    """
    labels, val = config.labels, config.val
    parts = open_parts(labels, config)
    if not parts.keys() & {"", "train"}:
        raise InputError(f"{labels} holds the parts {', '.join(parts)} of a dataset, and none is named train")
    files = [parts.get("train", parts.get("")), open_labels(val, config) if val else parts.get("val")]
    names, own_names = share_classes([file for file in files if file])
    index_of = {name: index for index, name in enumerate(names)}
    found = [
        [LabeledPath(item.path, index_of[own[item.label]]) for item in file]
        for file, own in zip(filter(None, files), own_names, strict=True)
    ]
    used = {item.label for item in found[0]}
    if new := [names[label] for label in sorted({item.label for item in found[-1]} - used)]:
        raise InputError(f"{val or labels}: no image of {', '.join(new)} to train on in {labels}: leave the class out")
    if len(names) < 2:
        raise InputError(f"{labels}: one class only ({', '.join(names) or 'none'}): a classifier needs two")
    return LabeledImages(names, found[0], found[1] if len(found) > 1 else None)


def decode_and_split(
    train: Sequence[LabeledPath],
    val: Sequence[LabeledPath] | None,
    names: ClassNames,
    image: ImageProperty,
    *,
    split: Callable[[Sequence[TrainingImage]], tuple[list[TrainingImage], list[TrainingImage]]],
    store: RowStore | None,
    progress: Progress,
) -> ImageSplit:
    """Decode every image once and check that there are enough to train and to validate on.

    Args:
        split: splits off a validation set, if `val` is None.

    Raises:
        InputError: a class has fewer than two images to train on, there is nothing to validate on, or an image
            is in both sets.
    """
    found = _decode_in_shares([*train, *(val or [])], image, store=store, progress=progress)
    broken = [each for each in found if isinstance(each, BrokenImage)]
    for each in broken:
        logger.info("skipped: %s (%s: %s)", each.path, each.fault, each.detail)
    to_train, to_validate = (
        [each for each in part if isinstance(each, TrainingImage)]
        for part in (found[: len(train)], found[len(train) :])
    )
    if val is None:
        require_classes(to_train, names, kind="good ")
        to_train, to_validate = split(to_train)
    data = ImageSplit(tuple(to_train), tuple(to_validate), tuple(broken))
    require_classes(data.train, names, kind="good ")
    if not data.val:
        raise InputError("no image is left to validate on: gather more images, or give another --val")
    if distributed.is_main_process():
        _warn_of_rare_classes(data.val, names)
    _require_disjoint(data)
    return data


def _decode_in_shares(
    items: Sequence[LabeledPath], image: ImageProperty, *, store: RowStore | None, progress: Progress
) -> list[TrainingImage | BrokenImage]:
    """`decode_all` of a share in each process; every process gets all results."""
    own = decode_all(distributed.shard(items), image, store=store, progress=progress)
    if distributed.world_size() == 1:
        return own
    gathered = distributed.all_gather([_to_plain(each) for each in own])
    if store is not None:
        store.refresh()
    found: list[TrainingImage | BrokenImage] = []
    for index, item in enumerate(items):
        digest, fault, detail = gathered[index % len(gathered)][index // len(gathered)]
        good = TrainingImage(item.path, item.label, bytes.fromhex(digest))
        found.append(BrokenImage(str(item.path), fault, detail) if fault else good)
    return found


def _to_plain(found: TrainingImage | BrokenImage) -> tuple[str, str, str]:
    return (found.digest.hex(), "", "") if isinstance(found, TrainingImage) else ("", found.fault, found.detail)


def hold_out(
    images: Sequence[TrainingImage], config: FineTuneConfig
) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """Training and validation images: the same split of the whole label file as `mlimages label --split`."""
    val = set(distributed.broadcast(_validation_set(config) if distributed.is_main_process() else None))
    return [one for one in images if str(one.path) not in val], [one for one in images if str(one.path) in val]


def _validation_set(config: FineTuneConfig) -> list[str]:
    parts, shares = open_parts(config.labels, config), (1 - config.val_share, config.val_share)
    return [str(item.path) for item in split_labels(parts.get("train") or parts[""], shares, config.seed)[1]]


def require_classes(train: Iterable[TrainingImage | LabeledPath], names: ClassNames, *, kind: str = "") -> None:
    """Raise InputError where classes have fewer than two images (of a kind: "good ") to train on."""
    counts = Counter(image.label for image in train)
    few = [f"{name} ({counts[label]})" for label, name in enumerate(names) if counts[label] < 2]
    if few:
        raise InputError(
            f"fewer than 2 {kind}images to train on of {', '.join(few)}: gather more, or leave the class out"
        )


def _warn_of_rare_classes(val: Iterable[TrainingImage], names: ClassNames) -> None:
    counts = Counter(image.label for image in val)
    for count, what in ((0, "no image"), (1, "only one image")):
        if rare := [name for label, name in enumerate(names) if counts[label] == count]:
            logger.warning("the validation set has %s of %s", what, ", ".join(rare))


def _require_disjoint(data: ImageSplit) -> None:
    known = {image.digest: image.path for image in data.train}
    shared = [(known[image.digest], image.path) for image in data.val if image.digest in known]
    if shared:
        shown = "; ".join(f"{one} = {other}" for one, other in shared[:MAX_NAMES])
        raise InputError(
            f"{len(shared)} image{'s' * (len(shared) > 1)} to train on and to validate on are the same ({shown}): "
            "`mlimages check TRAIN VAL` writes both label files without them"
        )
