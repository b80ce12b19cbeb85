"""Find duplicates, leaks between label files, and images in two classes."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.cache import CheckCache
from mlimages.checks.codes import CODES, Code, Thresholds
from mlimages.checks.feature_pairs import AlignedPair, find_pairs_by_features
from mlimages.checks.image_table import FINDING_DTYPE, ImageTable
from mlimages.checks.near_duplicates import (
    NEAR_DUPLICATES_VERSION,
    DisjointSets,
    compute_perceptual_hashes,
    find_near_duplicate_pairs,
)
from mlimages.checks.rules import is_blank, is_tiny
from mlimages.core import Embedder, Progress

Key = TypeVar("Key")

MIN_LINE_ART_FRACTION = 0.5
"""An image is line art if two luma values cover at least this fraction of it. Thumbnails of different drawings are
similar, so line art must correlate more strongly."""

MAX_SMOOTH_SHARPNESS = 0.26
"""Sharpness (see `Measurements`) below which an image has no detail. All but one of scikit-learn's 1797 digits,
enlarged from 8 to 56 pixels, are below it, and 13 of 1000 photographs of flowers, enlarged from 128 to 160 pixels."""

ImageRelation = tuple[int, Code, int]
"""Index of an image, its code, and index of the related image."""


def find_duplicate_groups(images: ImageTable, thresholds: Thresholds, cache: CheckCache) -> DisjointSets:
    """Return the groups of duplicates and near-duplicates, as sets of indices in `images`.

    Blank images are duplicates only if their bytes are equal. The result is cached for the set of images.
    """
    compared_indices = np.flatnonzero(images.decoded_mask & ~is_blank(images.measurements, thresholds)).astype(np.int32)
    plain = _find_plain_images(images, thresholds)[compared_indices]
    min_correlation = np.where(plain, thresholds.plain_correlation, thresholds.near_correlation).astype(np.float32)
    key = _make_cache_key(thresholds, images.digests, compared_indices, min_correlation)
    groups = DisjointSets(len(images))
    groups.merge_pairs(_find_equal_digests(images.digests))
    known = cache.find_duplicate_pairs(key)
    if known is not None:
        groups.merge_pairs(known.tolist())
        return groups
    thumbnails = images.measurements["thumbnail"]
    pairs = find_near_duplicate_pairs(
        lambda numbers: thumbnails[compared_indices[numbers]],
        compute_perceptual_hashes(thumbnails, compared_indices),
        max_bits=thresholds.near_bits,
        max_rotated_bits=thresholds.turned_bits,
        min_correlation_per_image=min_correlation,
        min_crop_correlation=thresholds.crop_correlation,
        find_groups=lambda numbers: groups.find_roots(compared_indices[numbers]),
    )
    groups.merge_pairs((int(compared_indices[one]), int(compared_indices[other])) for one, other in pairs)
    cache.store_duplicate_pairs(key, groups.list_parent_pairs())
    return groups


def merge_groups_by_features(
    images: ImageTable, thresholds: Thresholds, groups: DisjointSets, embed: Embedder, progress: Progress
) -> list[AlignedPair]:
    """Find near-duplicates by features, merge their groups, and return the pairs that were in different groups before.

    A pair is excluded if both images are tiny, have no detail or are line art: such images are similar even if they
    show different objects.
    """
    compared_indices = np.flatnonzero(images.decoded_mask & ~is_blank(images.measurements, thresholds)).tolist()
    plain = _find_plain_images(images, thresholds)
    paths = images.find_paths(set(compared_indices))
    found = find_pairs_by_features([paths[index] for index in compared_indices], embed, progress)
    pairs = [(compared_indices[a], compared_indices[b], correlation) for a, b, correlation in found]
    pairs = [(a, b, correlation) for a, b, correlation in pairs if not (plain[a] and plain[b])]
    new = [(a, b, correlation) for a, b, correlation in pairs if groups.find_root(a) != groups.find_root(b)]
    groups.merge_pairs((a, b) for a, b, _ in new)
    return new


def make_duplicate_findings(
    images: ImageTable, groups: Sequence[Sequence[int]], thresholds: Thresholds
) -> NDArray[np.void]:
    """Return the findings about the images of each group, as rows of `FINDING_DTYPE`."""
    relations = (
        (index, CODES.index(code), other) for index, code, other in _iter_image_relations(images, groups, thresholds)
    )
    return np.fromiter(relations, FINDING_DTYPE)


def describe_image_relation(code: Code, other_path: Path, class_name: str, *, is_identical: bool) -> str:
    """Return text such as "nearly the same as PATH of class NAME", or "the same as" for images with the same bytes.

    The class is given only for images in two classes.
    """
    kind = "the same as" if is_identical else "nearly the same as"
    of_class = f" of class {class_name}" if class_name else " of no class"
    return f"{kind} {other_path}" + of_class * (code in (Code.TWO_LABELS, Code.NEAR_TWO_LABELS))


def _find_plain_images(images: ImageTable, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Return whether each image is tiny, without detail, or line art, bool `(N,)`."""
    measurements = images.measurements
    return (
        is_tiny(measurements, thresholds)
        | (measurements["two_level_fraction"] >= MIN_LINE_ART_FRACTION)
        | (measurements["sharpness"] < MAX_SMOOTH_SHARPNESS)
    )


def _find_equal_digests(digests: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield pairs of indices with equal, nonzero digests `(N, 2)`."""
    order = np.lexsort(digests.T)
    ordered = digests[order]
    same = np.flatnonzero((ordered[:-1] == ordered[1:]).all(axis=1) & ordered[1:].any(axis=1))
    return zip(order[same].tolist(), order[same + 1].tolist(), strict=True)


def _make_cache_key(thresholds: Thresholds, *columns: NDArray[Any]) -> bytes:
    """Hash everything that determines which images are near-duplicates."""
    key = hashlib.sha256(
        f"{NEAR_DUPLICATES_VERSION} {thresholds.near_bits} {thresholds.turned_bits} "
        f"{thresholds.crop_correlation} ".encode()
    )
    for column in columns:
        key.update(column.data)
    return key.digest()


def _iter_image_relations(
    images: ImageTable, groups: Sequence[Sequence[int]], thresholds: Thresholds
) -> Iterator[ImageRelation]:
    """Yield an image, a code and the related image for every finding about the images of each group."""

    def find_label_file_index(image_index: int) -> int:
        return bisect_right(images.file_starts, image_index) - 1

    def get_label_index(image_index: int) -> int:
        return int(images.label_indices[image_index])

    def get_digest(image_index: int) -> bytes:
        return bytes(images.digests[image_index].data)

    # near-duplicates of a multi-label image may have other classes: a crop may show fewer of them
    get_class_key: Callable[[int], int] = (lambda _: 0) if images.is_multi_label else get_label_index
    for group in groups:
        by_file = _group_by(group, find_label_file_index)
        yield from _iter_leaks(by_file, images.file_starts)
        for same in _group_by(group, get_digest).values():
            yield from _iter_relations_of_identical_images(
                _group_by(same, get_label_index), _group_by(same, find_label_file_index)
            )
            if len(same) >= thresholds.placeholder_copies:
                yield from ((index, Code.PLACEHOLDER, same[0 if index != same[0] else -1]) for index in same)
        yield from _iter_near_duplicates_in_two_classes(group, get_class_key, get_digest)
        for within in by_file.values():
            firsts = [same[0] for same in _group_by(within, get_digest).values()]
            for of_class in _group_by(firsts, get_class_key).values():
                yield from ((index, Code.NEAR_DUPLICATE, of_class[0]) for index in of_class[1:])


def _group_by(indices: Iterable[int], key: Callable[[int], Key]) -> dict[Key, list[int]]:
    groups: dict[Key, list[int]] = {}
    for index in indices:
        groups.setdefault(key(index), []).append(index)
    return groups


def _iter_relations_of_identical_images(
    indices_by_label: Mapping[int, Sequence[int]], indices_by_file: Mapping[int, Sequence[int]]
) -> Iterator[ImageRelation]:
    """Yield the relations of byte-identical images: duplicates, or images in several classes."""
    first, *others = [indices[0] for indices in indices_by_label.values()]
    if others:
        for indices in indices_by_label.values():
            other = first if indices[0] != first else others[0]
            yield from ((index, Code.TWO_LABELS, other) for index in indices)
    else:
        for within in indices_by_file.values():
            yield from ((index, Code.DUPLICATE, within[0]) for index in within[1:])


def _iter_near_duplicates_in_two_classes(
    group: Sequence[int], get_class_key: Callable[[int], int], get_digest: Callable[[int], bytes]
) -> Iterator[ImageRelation]:
    """Yield the images of a group that have a near-duplicate in another class, and this near-duplicate.

    Pairs of byte-identical images are skipped: they have the code `Code.TWO_LABELS`.
    """
    by_class = _group_by(group, get_class_key)
    some = {label: [same[0] for same in _group_by(own, get_digest).values()][:2] for label, own in by_class.items()}
    for index in group:
        label, own = get_class_key(index), get_digest(index)  # two per class suffice: one differs in its bytes
        near = (other for of, two in some.items() if of != label for other in two if get_digest(other) != own)
        yield from ((index, Code.NEAR_TWO_LABELS, other) for other in islice(near, 1))


def _iter_leaks(indices_by_file: Mapping[int, Sequence[int]], file_starts: Sequence[int]) -> Iterator[ImageRelation]:
    """Yield the images of a group outside the smallest of its label files; that file is probably the test set."""
    home = min(indices_by_file, key=lambda file: (file_starts[file + 1] - file_starts[file], -file))
    for file, indices in indices_by_file.items():
        if file != home:
            yield from ((index, Code.LEAK, indices_by_file[home][0]) for index in indices)
