"""Parts of a label file: stratified by class, decided by a hash of the random seed, stable when images are added."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlimages.core import InputError, LabeledPath, relative_name

TOLERANCE = 1e-9
"""Of numbers of images, against rounding."""


@dataclass(frozen=True, slots=True)
class Group:
    """Images that stay together.

    Attributes:
        indices: of the images in the list that is split.
        position: among the groups of its class in random order, in units of their mean size: 0 for the first.
        offset: random in [0, 1), the same for all groups of a class: it rounds the class's share up or down.
        class_groups: how many groups the class has.
    """

    indices: tuple[int, ...]
    position: float
    offset: float
    class_groups: int

    def reluctance(self, share: float) -> tuple[int, float]:
        """How far from lying behind the first `share` of its class: it does by itself up to `(0, 0.0)`.

        Only groups at the cut, those with 0 first, lie behind it or not by the offset. The only image of a class stays
        in the first part: without it there is nothing to train on.
        """
        if self.class_groups == len(self.indices) == 1:
            return 1, -self.offset
        needed = share * self.class_groups - self.position
        return (needed >= 1) - (needed <= 0), needed - self.offset


def split(
    items: Sequence[LabeledPath],
    shares: Sequence[float],
    *,
    seed: int,
    root: Path | None = None,
    class_names: Sequence[str] = (),
    groups: Mapping[Path, object] | None = None,
    contents: Mapping[Path, str] | None = None,
) -> list[list[LabeledPath]]:
    """Parts of `items` in the proportions `shares`, each class in the same proportions, in the order given.

    The groups of a class are ordered by a hash of the seed and of what the group is, and this order is cut at the
    shares. So a group of any size is in each part for that share of the seeds, an image that is added later moves
    about one other, and the outcome is the same on every machine. Shares hold to within one group, those of a class to
    within one of its own (a group of several classes counts as of its most frequent one).

    Args:
        root: the paths of images outside a folder named like their class are taken below it.
        groups: images with the same value stay in one part; one without a value is a group of its own.
        contents: what identifies an image; else its path below the folder of its class.

    Raises:
        InputError: the shares are not positive or do not add up to 1.
    """
    demand_shares(shares)
    names = _ClassNames(class_names)
    identities = [
        (contents or {}).get(item.path) or _path_in_class(item.path, names[item.label], root) for item in items
    ]
    ordered = _ordered(items, identities, groups or {}, names, seed)
    part_of = [0] * len(items)
    for part, passed in enumerate(_cut(ordered, shares), start=1):
        for index in (index for group in passed for index in group.indices):
            part_of[index] = part
    parts: list[list[LabeledPath]] = [[] for _ in shares]
    for item, part in zip(items, part_of, strict=True):
        parts[part].append(item)
    return parts


def sample_per_class(
    items: Sequence[LabeledPath], limit: int, *, seed: int, root: Path | None = None, class_names: Sequence[str] = ()
) -> list[LabeledPath]:
    """At most `limit` images of each class, in the order given, chosen by a hash of the seed and of the path."""
    names = _ClassNames(class_names)
    of_class: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for index, item in enumerate(items):
        identity = _path_in_class(item.path, names[item.label], root)
        of_class[item.label].append((_random(seed, "limit", identity), index))
    chosen = sorted(index for found in of_class.values() for _, index in sorted(found)[:limit])
    return [items[index] for index in chosen]


def demand_shares(shares: Sequence[float]) -> None:
    """See that shares make parts.

    Raises:
        InputError: they are not positive or do not add up to 1.
    """
    if not shares or min(shares) <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise InputError(f"shares {', '.join(map(str, shares))}: expected positive numbers that add up to 1")


def groups_by_pattern(paths: Iterable[Path], pattern: str) -> dict[Path, str]:
    """Each path's group: what the regular expression finds in it (its first bracket, if it has one).

    Raises:
        InputError: not a regular expression.
    """
    expression = compiled(pattern)
    found = ((path, found_by(expression, path.as_posix())) for path in paths)
    return {path: text for path, text in found if text is not None}


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        InputError: it is not one.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}") from error


def found_by(expression: re.Pattern[str], text: str) -> str | None:
    """What it finds: its first group, if it has one; None where it does not match."""
    match = expression.search(text)
    return (match[expression.groups and 1] or "") if match else None


class _ClassNames(dict[int, str]):
    """Class names by number; a class without a name is called by its number."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(enumerate(names))

    def __missing__(self, number: int) -> str:
        return str(number)


def _path_in_class(path: Path, class_name: str, root: Path | None) -> str:
    """`cats/a/1.jpg` for `photos/cats/a/1.jpg` of the class cats, wherever `photos` lies."""
    whole, folder = f"/{path.as_posix()}", f"/{class_name}/"
    if (at := whole.rfind(folder)) >= 0:
        return whole[at + 1 :]
    return f"{class_name}/{relative_name(path, root) if root is not None else path.as_posix()}"


def _ordered(
    items: Sequence[LabeledPath],
    identities: Sequence[str],
    groups: Mapping[Path, object],
    names: _ClassNames,
    seed: int,
) -> list[Group]:
    """The groups with their positions, class by class."""
    together: dict[object, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        together[("group", groups[item.path]) if item.path in groups else index].append(index)
    of_class: dict[int, list[tuple[float, str, list[int]]]] = defaultdict(list)
    for indices in together.values():
        identity = min(identities[index] for index in indices)
        counts = Counter(items[index].label for index in indices)
        label = min(counts, key=lambda label: (-counts[label], names[label]))
        of_class[label].append((_random(seed, "image", identity), identity, indices))
    offsets = _offsets([names[label] for label in of_class], seed)
    return [
        group
        for label, found in of_class.items()
        for group in _positioned([indices for *_, indices in sorted(found)], offsets[names[label]])
    ]


def _offsets(class_names: Sequence[str], seed: int) -> dict[str, float]:
    """Random in [0, 1) for each class, and spread evenly over the classes: as many shares are rounded up as down."""
    ordered = sorted(class_names, key=lambda name: _random(seed, "class", name))
    return {name: (rank + _random(seed, "offset", name)) / len(ordered) for rank, name in enumerate(ordered)}


def _positioned(units: Sequence[Sequence[int]], offset: float) -> Iterable[Group]:
    """A group's position is the number of images before it over the mean size of all other groups.

    Over all orders it is then spread evenly, whatever the group's own size; with the plain number of images, large
    groups would hardly ever lie in a small part.
    """
    before, total, count = 0, sum(map(len, units)), len(units)
    for unit in units:
        others = (total - len(unit)) / max(1, count - 1)
        yield Group(tuple(unit), before / others if others else 0.0, offset, count)
        before += len(unit)


def _random(seed: int, kind: str, name: str) -> float:
    """In [0, 1): a hash, and so the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{kind}:{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _cut(groups: Sequence[Group], shares: Sequence[float]) -> Iterable[list[Group]]:
    """For each part but the first the groups of this part and of those after it."""
    largest = max((len(group.indices) for group in groups), default=0)
    total = sum(len(group.indices) for group in groups)
    passed, excess, share = list(groups), 0.0, 0.0
    for own in shares[:-1]:
        share += own
        target = (1 - share) * total
        fewest, most = target + max(-largest, excess - largest), target + min(largest, excess + largest)
        passed = _passing(passed, share, fewest, most)
        excess = sum(len(group.indices) for group in passed) - target
        yield passed


def _passing(groups: Iterable[Group], share: float, fewest: float, most: float) -> list[Group]:
    """The groups behind the first `share` of their class; where these have more or fewer images than wanted, those
    nearest to the cut change sides."""
    waiting = sorted(groups, key=lambda group: group.reluctance(share))
    count = sum(group.reluctance(share) <= (0, 0.0) for group in waiting)
    images = sum(len(group.indices) for group in waiting[:count])
    while images > most + TOLERANCE:
        count -= 1
        images -= len(waiting[count].indices)
    while images < fewest - TOLERANCE and count < len(waiting):
        images += len(waiting[count].indices)
        count += 1
    return waiting[:count]
