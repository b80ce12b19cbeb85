"""Before the first epoch: every picture decoded once, the split made, and what cannot be trained on refused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlimages.checks import split_labels
from mlimages.core import BrokenImage, ImageProperty, InputError, LabeledPath, Progress
from mlimages.labels import ClassNames, LabelFile
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


def class_names(train: Path, val: Path | None) -> ClassNames:
    """The names of the classes, the same in both label files.

    Raises:
        InputError: they differ, or a label number has no name.
    """
    names = LabelFile(train).class_names
    for path in filter(None, (train, val)):
        file = LabelFile(path)
        named = file.defined_class_names
        if named and tuple(named) != tuple(names):
            raise InputError(f"{path} and {train} name their classes differently: label both with the same --classes")
        beyond = next((item for item in file if item.label >= len(names)), None)
        if beyond:
            raise InputError(
                f"{path}: {beyond.path.name} has label {beyond.label}, but only {len(names)} classes have names: "
                f"add `{beyond.label} NAME` to the class definition"
            )
    return names


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
    return [str(item.path) for item in split_labels(labels, (1 - share, share), seed)[1]]


def demand_classes(train: Iterable[Picture | LabeledPath], names: ClassNames, *, kind: str = "") -> None:
    """Raise InputError where a class has fewer than two images (of a kind: "good ") to train on."""
    counts = Counter(picture.label for picture in train)
    for label, name in enumerate(names):
        if counts[label] < 2:
            raise InputError(
                f"class {name!r} has {counts[label] or 'no'} {kind}picture{'s' * (counts[label] != 1)} to train on and "
                "needs 2: gather more, or leave the class out"
            )


def _demand_apart(data: Data) -> None:
    known = {picture.digest: picture.path for picture in data.train}
    twice = [(known[picture.digest], picture.path) for picture in data.val if picture.digest in known]
    if twice:
        shown = "; ".join(f"{one} = {other}" for one, other in twice[:SHOWN])
        raise InputError(
            f"{len(twice)} picture{'s' * (len(twice) > 1)} to train on and to validate on are the same ({shown}): "
            "`mlimages check TRAIN VAL` writes both files without them"
        )
