"""Parts of a label file: stratified, seeded, the same on every machine."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mlimages.core import InputError, LabeledPath, relative_name

Unit = list[int]
"""Places in the list of pictures that must not be parted."""


def split(
    items: Sequence[LabeledPath],
    shares: Sequence[float],
    *,
    seed: int,
    root: Path | None = None,
    groups: Mapping[Path, object] | None = None,
) -> list[list[LabeledPath]]:
    """Parts of `items` in the proportions `shares`, each class in the same proportions, in the order given.

    Chance is a hash of the seed and of each picture's path below `root`: the same on every machine, and pictures
    added later leave most others where they were. Pictures of one group (`groups[path]`) stay in one part.

    Raises:
        InputError: the shares are not positive or do not add up to 1.
    """
    if not shares or min(shares) <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise InputError(f"shares {', '.join(map(str, shares))}: expected positive numbers that add up to 1")
    part_of = [0] * len(items)
    lacking_in_all = [share * len(items) for share in shares]
    for units in _units_by_class(items, groups or {}):
        names = {id(unit): _chance(items[unit[0]].path, root, seed) for unit in units}
        units.sort(key=lambda unit: (-len(unit), names[id(unit)]))
        _deal(units, shares, lacking_in_all, part_of)
    parts: list[list[LabeledPath]] = [[] for _ in shares]
    for item, part in zip(items, part_of, strict=True):
        parts[part].append(item)
    return parts


def groups_by_pattern(paths: Iterable[Path], pattern: str) -> dict[Path, str]:
    """Each path's group: what the regular expression finds in it (its first bracket, if it has one).

    Raises:
        InputError: not a regular expression.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}") from error
    found = ((path, expression.search(path.as_posix())) for path in paths)
    return {path: match[expression.groups and 1] or "" for path, match in found if match}


def _units_by_class(items: Sequence[LabeledPath], groups: Mapping[Path, object]) -> list[list[Unit]]:
    """Units by the class of their first picture, classes in order."""
    units: dict[object, Unit] = defaultdict(list)
    for place, item in enumerate(items):
        units[("group", groups[item.path]) if item.path in groups else place].append(place)
    classes: dict[int, list[Unit]] = defaultdict(list)
    for unit in units.values():
        classes[items[unit[0]].label].append(unit)
    return [classes[label] for label in sorted(classes)]


def _chance(path: Path, root: Path | None, seed: int) -> bytes:
    name = relative_name(path, root) if root is not None else path.as_posix()
    return hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()


def _deal(units: Sequence[Unit], shares: Sequence[float], lacking_in_all: list[float], part_of: list[int]) -> None:
    """Give each unit to the part that lacks most of this class; of equals, to the one that lacks most of all."""
    count = sum(map(len, units))
    lacking = [share * count for share in shares]
    for unit in units:
        part = max(range(len(shares)), key=lambda part: (round(lacking[part], 9), lacking_in_all[part], -part))
        lacking[part] -= len(unit)
        lacking_in_all[part] -= len(unit)
        for place in unit:
            part_of[place] = part
