"""Split label files: stratified by class, reproducible from a random seed, and stable when images are added.

1. Images that must stay together form a group; every other image is a group of its own.
2. The groups of each class are put in a random order: that of a hash of the seed and an identifier.
3. The boundaries between the splits are at fractions of this order: at 80 % and 90 % for the splits 0.8, 0.1 and 0.1.
4. If a boundary is inside a group, chance decides to which split the group belongs (`ImageGroup.rounding_offset`).
5. If a split then has too many or too few images, groups are moved across the boundary, the nearest first.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mlimages.core import InputError, LabeledPath, as_path, check_seed, is_remote, relative_name

COUNT_TOLERANCE = 1e-9
"""Tolerance for rounding errors when numbers of images are compared."""


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """A group of images that stay together in one split.

    Attributes:
        image_indices: indices of the images in the list that is split.
        fractional_rank: position of the group in the random order of its class: 0, 1, 2 ... if all groups have the same
            size. In general, the number of images before it, divided by the mean size of the class's other groups.
        rounding_offset: random number in [0, 1), the same for all groups of a class. It decides to which split a group
            belongs if the boundary between two splits is inside the group.
        num_class_groups: number of groups of the class.
        is_majority: whether more than half of the images of a class are in this group.
    """

    image_indices: tuple[int, ...]
    fractional_rank: float
    rounding_offset: float
    num_class_groups: int
    is_majority: bool = False

    def get_sort_key(self, boundary: float) -> tuple[int, float]:
        """Return a key that sorts the groups of later splits first, given the boundary between two splits.

        `boundary` is a fraction (0..1) of the class. The key of a group is (-1, x) after the boundary, (0, x) if it
        contains the boundary, (1, x) before the boundary, and (2, 0) if it is a majority group, which stays in the
        first split, for training. A group with (0, x) belongs to the later split if x <= 0.
        """
        if self.is_majority:
            return 2, 0.0
        needed = boundary * self.num_class_groups - self.fractional_rank
        return (needed >= 1) - (needed <= 0), needed - self.rounding_offset


def split(
    items: Sequence[LabeledPath],
    fractions: Sequence[float],
    *,
    seed: int,
    class_names: Sequence[str] = (),
    groups: Mapping[Path, object] | None = None,
    contents: Mapping[Path, str] | None = None,
    assigned: Mapping[Path, int] | None = None,
) -> list[list[LabeledPath]]:
    """Split `items` in the proportions `fractions`, stratified by class; the order of the images is kept.

    The result is the same on every machine. Adding an image moves about one other image to another split. Over all
    seeds, a group of any size is in a split with a probability equal to the fraction of that split. A split has at most
    one group too many or too few, in total and in each class. One exception: a group with more than half of the images
    of a class is in the first split, unless this split would then be too large.

    An image with several classes counts for its rarest class (compare the iterative stratification of
    https://doi.org/10.1007/978-3-642-23808-6_10), and a group of images of several classes for its most frequent class.

    Args:
        items: the images.
        fractions: fraction of the images in each split; they add up to 1.
        seed: random seed.
        class_names: class names by class index.
        groups: a value by image path; images with the same value stay in one split, others are groups of their own.
        contents: by image path, the text whose hash orders the images; by default the path from the class folder on
            (`cats/1.jpg`) or, without class folders, the path relative to the folder that contains all images.
        assigned: by image path, the index of the split of each image that is already split. All images of its group are
            put in that split, and the other images are split in the proportions `fractions`. The index
            `len(fractions)` means no split: the image and its group are left out.

    Raises:
        InputError: the fractions are not positive or do not add up to 1.
    """
    check_fractions(fractions)
    check_seed(seed)
    names = _map_indices_to_names(items, class_names)
    labels = _choose_stratification_classes(items, names)
    root, known = _find_common_folder(items), contents or {}
    image_ids = [
        known.get(item.path) or _make_image_id(item.path, names[label], root)
        for item, label in zip(items, labels, strict=True)
    ]
    split_numbers = _find_assigned_splits(items, assigned or {}, groups or {})
    new = [index for index in range(len(items)) if index not in split_numbers]
    split_numbers |= dict.fromkeys(new, 0)
    ordered = _order_groups(
        [items[index] for index in new],
        [labels[index] for index in new],
        [image_ids[index] for index in new],
        groups or {},
        names,
        seed,
    )
    for number, later_groups in enumerate(_iter_later_groups(ordered, fractions), start=1):
        split_numbers |= {new[index]: number for group in later_groups for index in group.image_indices}
    splits: list[list[LabeledPath]] = [[] for _ in range(len(fractions) + 1)]
    for index, item in enumerate(items):
        splits[split_numbers[index]].append(item)
    return splits[: len(fractions)]


def _find_assigned_splits(
    items: Sequence[LabeledPath], assigned: Mapping[Path, int], groups: Mapping[Path, object]
) -> dict[int, int]:
    """Return, by image index, the split of each image that is already split or whose group contains such an image."""
    by_group: dict[object, int] = {}
    for path, number in assigned.items():
        if path in groups:
            by_group.setdefault(groups[path], number)
    found = {}
    for index, item in enumerate(items):
        if item.path in assigned:
            found[index] = assigned[item.path]
        elif item.path in groups and groups[item.path] in by_group:
            found[index] = by_group[groups[item.path]]
    return found


def sample_per_class(
    items: Sequence[LabeledPath], limit: int, *, seed: int, class_names: Sequence[str] = ()
) -> list[LabeledPath]:
    """Return at most `limit` images of each class, in order, selected by a hash of the seed and the path."""
    check_seed(seed)
    names, root = _map_indices_to_names(items, class_names), _find_common_folder(items)
    image_ids = (_make_image_id(item.path, names[item.label], root) for item in items)
    counts: Counter[int] = Counter()
    chosen = []
    for _, index in sorted(
        (_hash_to_unit_interval(seed, "limit", image_id), index) for index, image_id in enumerate(image_ids)
    ):
        labels = items[index].labels or (items[index].label,)
        if all(counts[label] < limit for label in labels):
            counts.update(labels)
            chosen.append(index)
    return [items[index] for index in sorted(chosen)]


def shuffle(items: Iterable[LabeledPath], seed: int) -> list[LabeledPath]:
    """Return the images in a random order, which depends only on `seed` and the input order."""
    check_seed(seed)
    shuffled = list(items)
    random.Random(int(seed)).shuffle(shuffled)  # `random` does not accept NumPy integers
    return shuffled


def require_mask(mask: Iterable[object], num_images: int) -> list[bool]:
    """Return the values of a mask, which may be an array of NumPy or PyTorch: a boolean for each image.

    Raises:
        InputError: a value is not a boolean, as in an array of indices, or there are not as many values as images.
    """
    values = mask.tolist() if hasattr(mask, "tolist") else list(mask)
    if not all(type(value).__name__ in ("bool", "bool_") for value in values):
        raise InputError(
            "expected a mask of booleans, one per image, found other values: make a mask of indices with "
            "`np.isin(np.arange(num_images), indices)`"
        )
    if len(values) != num_images:
        raise InputError(f"expected a mask of {num_images} booleans, one per image, found {len(values)}")
    return list(map(bool, values))


def check_fractions(fractions: Sequence[float]) -> None:
    """Check that the fractions of a split are positive and add up to 1.

    Raises:
        InputError: the fractions are not positive or do not add up to 1.
    """
    if not fractions or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise InputError(
            f"split fractions {', '.join(map(str, fractions))}: expected numbers greater than 0 that add up to 1"
        )


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression.

    Raises:
        InputError: the regular expression is invalid.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}") from error


def match_pattern(pattern: re.Pattern[str], text: str) -> str | None:
    """Return the text that `pattern` or, if it has groups, its first group matches in `text`; None for no match."""
    match = pattern.search(text)
    return (match[pattern.groups and 1] or "") if match else None


def _map_indices_to_names(items: Iterable[LabeledPath], class_names: Sequence[str]) -> dict[int, str]:
    """Return the class names by class index; a class without a name is named by its index."""
    labels = chain.from_iterable((item.label, *(item.labels or ())) for item in items)
    return {label: str(label) for label in labels} | dict(enumerate(class_names))


def _find_common_folder(items: Sequence[LabeledPath]) -> Path | None:
    """Return the deepest folder that contains all images; None if there are no images, or no common folder."""
    folders = {item.path.parent for item in items}
    texts = [str(path) if is_remote(path) else os.path.abspath(path) for path in folders]  # noqa: PTH100
    try:
        return as_path(os.path.commonpath(texts))
    except ValueError:  # no images, or several drives
        return None


def _make_image_id(path: Path, class_name: str, root: Path | None) -> str:
    """Return the path from the class folder on: `cats/1.jpg`.

    If no folder has the name of the class, return CLASS/ and the path relative to `root` or, if that is None, the path.
    """
    whole = f"/{path.as_posix()}"
    if (start := whole.rfind(f"/{class_name}/")) >= 0:
        return whole[start + 1 :]
    return f"{class_name}/{relative_name(path, root) if root is not None else path.as_posix()}"


def _choose_stratification_classes(items: Sequence[LabeledPath], names: Mapping[int, str]) -> list[int]:
    """Return, for each image, the index of the class by which it is stratified: its rarest class, or -1 for none."""
    counts = Counter(chain.from_iterable(item.labels or () for item in items))
    return [
        item.label if item.labels is None else min(item.labels, key=lambda n: (counts[n], names[n]), default=-1)
        for item in items
    ]


def _order_groups(
    items: Sequence[LabeledPath],
    class_indices: Sequence[int],
    image_ids: Sequence[str],
    groups: Mapping[Path, object],
    names: Mapping[int, str],
    seed: int,
) -> list[ImageGroup]:
    """Return the groups of all classes, one class after the other, with the random rank of each in its class."""
    by_group: dict[object, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        by_group[("group", groups[item.path]) if item.path in groups else index].append(index)
    labels = [item.labels or (label,) for item, label in zip(items, class_indices, strict=True)]
    totals = Counter(chain.from_iterable(labels))
    by_class: dict[int, list[tuple[float, str, list[int], bool]]] = defaultdict(list)
    for indices in by_group.values():
        image_id = min(image_ids[index] for index in indices)
        counts = Counter(class_indices[index] for index in indices)
        label = min(counts, key=lambda label: (-counts[label], names[label]))
        occurring = Counter(chain.from_iterable(labels[index] for index in indices))
        is_majority = any(2 * occurring[label] > totals[label] for label in occurring)
        by_class[label].append((_hash_to_unit_interval(seed, "image", image_id), image_id, indices, is_majority))
    offsets = _compute_rounding_offsets([names[label] for label in by_class], seed)
    return [
        group
        for label, class_groups in by_class.items()
        for group in _iter_ranked_groups(
            [(indices, most) for _, _, indices, most in sorted(class_groups)], offsets[names[label]]
        )
    ]


def _compute_rounding_offsets(class_names: Sequence[str], seed: int) -> dict[str, float]:
    """Return a random `ImageGroup.rounding_offset` per class, evenly spread so that some round up and others down."""
    ordered = sorted(class_names, key=lambda name: _hash_to_unit_interval(seed, "class", name))
    return {
        name: (rank + _hash_to_unit_interval(seed, "offset", name)) / len(ordered) for rank, name in enumerate(ordered)
    }


def _iter_ranked_groups(groups: Sequence[tuple[Sequence[int], bool]], rounding_offset: float) -> Iterable[ImageGroup]:
    """Yield the groups of a class with their ranks, given pairs (image indices, `is_majority`) in random order.

    Groups with `is_majority` are moved to the front. Ranks (`ImageGroup.fractional_rank`) count groups of average size,
    not images, so that a large group is in a small split (such as `test`) with the same probability as a small group.
    """
    before, total, count = 0, sum(len(indices) for indices, _ in groups), len(groups)
    for indices, is_majority in sorted(groups, key=lambda group: not group[1]):
        mean_size = (total - len(indices)) / max(1, count - 1)
        yield ImageGroup(tuple(indices), before / mean_size if mean_size else 0.0, rounding_offset, count, is_majority)
        before += len(indices)


def _hash_to_unit_interval(seed: int, purpose: str, name: str) -> float:
    """Return a random number in [0, 1): a hash of the arguments, which is the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _iter_later_groups(groups: Sequence[ImageGroup], fractions: Sequence[float]) -> Iterable[list[ImageGroup]]:
    """Yield, for each boundary between two splits, the groups of all splits after it: two lists for three splits."""
    largest = max((len(group.image_indices) for group in groups), default=0)
    total = sum(len(group.image_indices) for group in groups)
    later, excess, boundary = list(groups), 0.0, 0.0
    for fraction in fractions[:-1]:
        boundary += fraction
        target = (1 - boundary) * total
        minimum, maximum = target + max(-largest, excess - largest), target + min(largest, excess + largest)
        later = _select_groups_after(later, boundary, minimum, maximum)
        excess = sum(len(group.image_indices) for group in later) - target
        yield later


def _select_groups_after(
    groups: Iterable[ImageGroup], boundary: float, min_images: float, max_images: float
) -> list[ImageGroup]:
    """Return the groups after `boundary`, a fraction (0..1) of each class: `min_images` to `max_images` images in all.

    To stay within these limits, the groups nearest to the boundary are moved across it.
    """
    ordered = sorted(groups, key=lambda group: group.get_sort_key(boundary))
    count = sum(group.get_sort_key(boundary) <= (0, 0.0) for group in ordered)
    images = sum(len(group.image_indices) for group in ordered[:count])
    while images > max_images + COUNT_TOLERANCE:
        count -= 1
        images -= len(ordered[count].image_indices)
    while images < min_images - COUNT_TOLERANCE and count < len(ordered):
        images += len(ordered[count].image_indices)
        count += 1
    return ordered[:count]
