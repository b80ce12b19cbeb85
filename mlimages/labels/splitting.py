"""Split label files: stratified by class, by a hash of the random seed, and stable when images are added."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mlimages.core import InputError, LabeledPath, as_path, is_remote, relative_name

TOLERANCE = 1e-9
"""Tolerance of numbers of images against rounding."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group of images that stay in the same split.

    Attributes:
        indices: indices of the images in the list that is split.
        position: position among the groups of its class in random order, in units of their mean size: 0 for the first.
        offset: random number in [0, 1), the same for all groups of a class: rounds the share of the class up or down.
        class_groups: number of groups of the class.
    """

    indices: tuple[int, ...]
    position: float
    offset: float
    class_groups: int

    def cut_key(self, share: float) -> tuple[int, float]:
        """Return a sort key for cutting a class after its first `share`: groups behind the cut have the lowest keys.

        The first element is -1 behind the cut, 0 for a group that contains it, and 1 before it; a group is behind the
        cut if its key is at most `(0, 0.0)`, so that `offset` decides for a group that contains it. The only image of
        a class stays in the first part, since a class without a training image cannot be learned.
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
    class_names: Sequence[str] = (),
    groups: Mapping[Path, object] | None = None,
    contents: Mapping[Path, str] | None = None,
) -> list[list[LabeledPath]]:
    """Split `items` in the proportions `shares`, stratified by class; the order is kept.

    The groups of a class are ordered by a hash of the seed and the group's identifier, and this order is cut at the
    shares. So the probability over seeds that a group, of any size, is in a part equals the share of that part, adding
    an image moves about one other, and the result is the same on every machine. Parts deviate from their share by at
    most one group, as does each class (a group of several classes belongs to its most frequent one).

    An image with several classes counts for the rarest of them, so that each class is split in these proportions
    (compare the iterative stratification of https://doi.org/10.1007/978-3-642-23808-6_10).

    Args:
        groups: images with the same value stay in one part; an image without a value is a group of its own.
        contents: identifier of each image; by default its path below the folder of its class, or below the folder that
            contains all images.

    Raises:
        InputError: the shares are not positive or do not add up to 1.
    """
    check_shares(shares)
    names = _NamesByIndex(class_names)
    labels = _choose_main_labels(items, names)
    root, known = _find_common_folder(items), contents or {}
    identities = [
        known.get(item.path) or _path_in_class(item.path, names[label], root)
        for item, label in zip(items, labels, strict=True)
    ]
    ordered = _order_groups(items, labels, identities, groups or {}, names, seed)
    part_of = [0] * len(items)
    for part, behind in enumerate(_split_groups(ordered, shares), start=1):
        for index in (index for group in behind for index in group.indices):
            part_of[index] = part
    parts: list[list[LabeledPath]] = [[] for _ in shares]
    for item, part in zip(items, part_of, strict=True):
        parts[part].append(item)
    return parts


def sample_per_class(
    items: Sequence[LabeledPath], limit: int, *, seed: int, class_names: Sequence[str] = ()
) -> list[LabeledPath]:
    """Return at most `limit` images of each class, in order, chosen by a hash of the seed and the path."""
    names, root = _NamesByIndex(class_names), _find_common_folder(items)
    identities = (_path_in_class(item.path, names[item.label], root) for item in items)
    counts: Counter[int] = Counter()
    chosen = []
    for _, index in sorted(
        (_hash_to_unit_interval(seed, "limit", identity), index) for index, identity in enumerate(identities)
    ):
        labels = items[index].labels or (items[index].label,)
        if all(counts[label] < limit for label in labels):
            counts.update(labels)
            chosen.append(index)
    return [items[index] for index in sorted(chosen)]


def check_shares(shares: Sequence[float]) -> None:
    """Raise an error if the shares are not valid.

    Raises:
        InputError: the shares are not positive or do not add up to 1.
    """
    if not shares or min(shares) <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise InputError(f"split fractions {', '.join(map(str, shares))}: expected positive numbers that add up to 1")


def groups_by_pattern(paths: Iterable[Path], pattern: str) -> dict[Path, str]:
    """Return the group of each path: the match of the regular expression, or of its first group if it has one.

    Raises:
        InputError: the regular expression is invalid.
    """
    expression = compile_pattern(pattern)
    found = ((path, match_group(expression, path.as_posix())) for path in paths)
    return {path: text for path, text in found if text is not None}


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression.

    Raises:
        InputError: it is invalid.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}") from error


def match_group(pattern: re.Pattern[str], text: str) -> str | None:
    """Return the match, or the match of the first group if there is one; None if `text` does not match."""
    match = pattern.search(text)
    return (match[pattern.groups and 1] or "") if match else None


class _NamesByIndex(dict[int, str]):
    """Class names by number; a class without a name is named by its number."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(enumerate(names))

    def __missing__(self, number: int) -> str:
        return str(number)


def _find_common_folder(items: Sequence[LabeledPath]) -> Path | None:
    """Return the folder that contains all images, which does not depend on where the label file is."""
    folders = {item.path.parent for item in items}
    try:
        return as_path(os.path.commonpath([str(one) if is_remote(one) else os.path.abspath(one) for one in folders]))  # noqa: PTH100
    except ValueError:  # no images, or several drives
        return None


def _path_in_class(path: Path, class_name: str, root: Path | None) -> str:
    """Return `cats/a/1.jpg` for `photos/cats/a/1.jpg` of the class cats, independent of the path of `photos`."""
    whole, folder = f"/{path.as_posix()}", f"/{class_name}/"
    if (at := whole.rfind(folder)) >= 0:
        return whole[at + 1 :]
    return f"{class_name}/{relative_name(path, root) if root is not None else path.as_posix()}"


def _choose_main_labels(items: Sequence[LabeledPath], names: _NamesByIndex) -> list[int]:
    """Return the class by which each image is stratified: the rarest of its classes; -1 for an image without
    classes."""
    counts = Counter(chain.from_iterable(item.labels or () for item in items))
    return [
        item.label if item.labels is None else min(item.labels, key=lambda n: (counts[n], names[n]), default=-1)
        for item in items
    ]


def _order_groups(
    items: Sequence[LabeledPath],
    labels: Sequence[int],
    identities: Sequence[str],
    groups: Mapping[Path, object],
    names: _NamesByIndex,
    seed: int,
) -> list[Group]:
    """Return the groups with their positions, class by class."""
    together: dict[object, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        together[("group", groups[item.path]) if item.path in groups else index].append(index)
    of_class: dict[int, list[tuple[float, str, list[int]]]] = defaultdict(list)
    for indices in together.values():
        identity = min(identities[index] for index in indices)
        counts = Counter(labels[index] for index in indices)
        label = min(counts, key=lambda label: (-counts[label], names[label]))
        of_class[label].append((_hash_to_unit_interval(seed, "image", identity), identity, indices))
    offsets = _compute_class_offsets([names[label] for label in of_class], seed)
    return [
        group
        for label, found in of_class.items()
        for group in _assign_positions([indices for *_, indices in sorted(found)], offsets[names[label]])
    ]


def _compute_class_offsets(class_names: Sequence[str], seed: int) -> dict[str, float]:
    """Return an offset in [0, 1) per class, random but evenly spread, so that half of the shares are rounded up."""
    ordered = sorted(class_names, key=lambda name: _hash_to_unit_interval(seed, "class", name))
    return {
        name: (rank + _hash_to_unit_interval(seed, "offset", name)) / len(ordered) for rank, name in enumerate(ordered)
    }


def _assign_positions(index_groups: Sequence[Sequence[int]], offset: float) -> Iterable[Group]:
    """Yield the groups; a group's position is the number of images before it over the mean size of all other groups.

    Over all orders this position is uniformly distributed for groups of any size; with the plain number of images,
    large groups would hardly ever be in a small part.
    """
    before, total, count = 0, sum(map(len, index_groups)), len(index_groups)
    for unit in index_groups:
        others = (total - len(unit)) / max(1, count - 1)
        yield Group(tuple(unit), before / others if others else 0.0, offset, count)
        before += len(unit)


def _hash_to_unit_interval(seed: int, purpose: str, name: str) -> float:
    """Return a random number in [0, 1) from a hash, so that it is the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _split_groups(groups: Sequence[Group], shares: Sequence[float]) -> Iterable[list[Group]]:
    """Yield for each split but the first the groups of that split and all later splits."""
    largest = max((len(group.indices) for group in groups), default=0)
    total = sum(len(group.indices) for group in groups)
    behind, excess, share = list(groups), 0.0, 0.0
    for own in shares[:-1]:
        share += own
        target = (1 - share) * total
        minimum, maximum = target + max(-largest, excess - largest), target + min(largest, excess + largest)
        behind = _groups_after_cut(behind, share, minimum, maximum)
        excess = sum(len(group.indices) for group in behind) - target
        yield behind


def _groups_after_cut(groups: Iterable[Group], share: float, minimum: float, maximum: float) -> list[Group]:
    """Return the groups behind the first `share` of their class.

    The groups nearest to the cut change sides until the number of images is from `minimum` to `maximum`.
    """
    waiting = sorted(groups, key=lambda group: group.cut_key(share))
    count = sum(group.cut_key(share) <= (0, 0.0) for group in waiting)
    images = sum(len(group.indices) for group in waiting[:count])
    while images > maximum + TOLERANCE:
        count -= 1
        images -= len(waiting[count].indices)
    while images < minimum - TOLERANCE and count < len(waiting):
        images += len(waiting[count].indices)
        count += 1
    return waiting[:count]
