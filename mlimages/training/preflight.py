"""Before the first epoch: every picture decoded once, the split made, and what cannot be trained on refused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlimages.checks import split_labels
from mlimages.core import BrokenImage, ImageProperty, InputError, LabeledPath, Progress
from mlimages.labels import ClassNames, open_labels, open_parts, share_classes
from mlimages.training import distributed
from mlimages.training.image_cache import Picture, decode_all
from mlimages.training.row_store import RowStore

logger = logging.getLogger(__name__)

SHOWN = 3
"""How many names an error lists."""


@dataclass(frozen=True, slots=True)
class Data:
    """What a run trains and validates on; `broken` is left out."""

    train: tuple[Picture, ...]
    val: tuple[Picture, ...]
    broken: tuple[BrokenImage, ...]


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """The images of the label files with their classes.

    Attributes:
        names: of the classes, by class number.
        train: images to train on.
        val: images to validate on; None where some of `train` are to be set aside.
    """

    names: ClassNames
    train: list[LabeledPath]
    val: list[LabeledPath] | None


def read_label_files(labels: Path, val: Path | None) -> LabeledImages:
    """Read both label files or folders, whose classes are compared by name; of a folder train/ and val/ are taken.

    Raises:
        InputError: one of them cannot be read, a class of `val` is not one of `labels`, or there is only one class.
    """
    parts = open_parts(labels)
    if not parts.keys() & {"", "train"}:
        raise InputError(f"{labels} holds the parts {', '.join(parts)} of a dataset, and none is named train")
    files = [parts.get("train", parts.get("")), open_labels(val) if val else parts.get("val")]
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


def inspect(
    train: Sequence[LabeledPath],
    val: Sequence[LabeledPath] | None,
    names: ClassNames,
    image: ImageProperty,
    *,
    split: Callable[[Sequence[Picture]], tuple[list[Picture], list[Picture]]],
    store: RowStore | None,
    progress: Progress,
) -> Data:
    """Decode every picture once and see whether there is enough to train and to validate on.

    Args:
        split: sets some pictures aside to validate on, where `val` is None.

    Raises:
        InputError: a class has fewer than two pictures to train on, there is nothing to validate on, or a picture
            is in both sets.
    """
    found = _decode_shared([*train, *(val or [])], image, store=store, progress=progress)
    broken = [each for each in found if isinstance(each, BrokenImage)]
    for each in broken:
        logger.info("left out: %s (%s: %s)", each.path, each.fault, each.detail)
    to_train, to_validate = (
        [each for each in part if isinstance(each, Picture)] for part in (found[: len(train)], found[len(train) :])
    )
    if val is None:
        demand_classes(to_train, names, kind="good ")
        to_train, to_validate = split(to_train)
    data = Data(tuple(to_train), tuple(to_validate), tuple(broken))
    demand_classes(data.train, names, kind="good ")
    if not data.val:
        raise InputError("no picture is left to validate on: give more pictures, or another --val")
    if distributed.is_main_process():
        _warn_of_rare_classes(data.val, names)
    _demand_apart(data)
    return data


def _decode_shared(
    items: Sequence[LabeledPath], image: ImageProperty, *, store: RowStore | None, progress: Progress
) -> list[Picture | BrokenImage]:
    """`decode_all`, each process its share; all hear of all."""
    own = decode_all(distributed.shard(items), image, store=store, progress=progress)
    if distributed.world_size() == 1:
        return own
    said = distributed.all_gather([_facts(each) for each in own])
    if store is not None:
        store.refresh()
    found: list[Picture | BrokenImage] = []
    for place, item in enumerate(items):
        digest, fault, detail = said[place % len(said)][place // len(said)]
        good = Picture(item.path, item.label, bytes.fromhex(digest))
        found.append(BrokenImage(str(item.path), fault, detail) if fault else good)
    return found


def _facts(found: Picture | BrokenImage) -> tuple[str, str, str]:
    return (found.digest.hex(), "", "") if isinstance(found, Picture) else ("", found.fault, found.detail)


def set_aside(
    images: Sequence[Picture], share: float, *, labels: Path, seed: int
) -> tuple[list[Picture], list[Picture]]:
    """The images to train on and those to validate on: the split of the whole label file that `label --split` makes."""
    val = set(
        distributed.broadcast(_validation_set(labels, share, seed=seed) if distributed.is_main_process() else None)
    )
    return [one for one in images if str(one.path) not in val], [one for one in images if str(one.path) in val]


def _validation_set(labels: Path, share: float, *, seed: int) -> list[str]:
    parts = open_parts(labels)
    return [str(item.path) for item in split_labels(parts.get("train") or parts[""], (1 - share, share), seed)[1]]


def demand_classes(train: Iterable[Picture | LabeledPath], names: ClassNames, *, kind: str = "") -> None:
    """Raise InputError where classes have fewer than two images (of a kind: "good ") to train on."""
    counts = Counter(picture.label for picture in train)
    few = [f"{name} ({counts[label]})" for label, name in enumerate(names) if counts[label] < 2]
    if few:
        raise InputError(
            f"fewer than 2 {kind}images to train on of {', '.join(few)}: gather more, or leave the class out"
        )


def _warn_of_rare_classes(val: Iterable[Picture], names: ClassNames) -> None:
    counts = Counter(picture.label for picture in val)
    for count, what in ((0, "no image"), (1, "only one image")):
        if rare := [name for label, name in enumerate(names) if counts[label] == count]:
            logger.warning("the validation set has %s of %s", what, ", ".join(rare))


def _demand_apart(data: Data) -> None:
    known = {picture.digest: picture.path for picture in data.train}
    twice = [(known[picture.digest], picture.path) for picture in data.val if picture.digest in known]
    if twice:
        shown = "; ".join(f"{one} = {other}" for one, other in twice[:SHOWN])
        raise InputError(
            f"{len(twice)} picture{'s' * (len(twice) > 1)} to train on and to validate on are the same ({shown}): "
            "`mlimages check TRAIN VAL` writes both files without them"
        )
