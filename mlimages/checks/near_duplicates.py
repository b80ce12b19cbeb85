"""Find near-duplicates: images that look the same, also when mirrored or rotated.

1. Pairs of images whose perceptual hashes differ in few bits, in any orientation, are candidates.
2. In large datasets, only hashes with few different bits in one of four bands are compared.
3. The thumbnails of candidates must correlate, either directly or after one is aligned as a crop of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from math import comb
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

NEAR_DUPLICATES_VERSION = 4
"""Version of the algorithm, part of cache keys; increase it when the result changes."""

COMPARISONS_PER_LOOKUP = 80
"""Number of hash comparisons that take as long as one look-up in the index of a band (16 of the 64 bits of all hashes),
measured at 20,000 to 60,000 images. `_find_close_pairs` chooses the faster search by it."""

HASH_PAIR_BATCH_SIZE = 1 << 14
"""Pairs of hashes compared at a time; limits memory and fits the processor's cache."""

HASH_BATCH_SIZE = 1 << 10
"""Thumbnails hashed at a time."""

PAIR_BATCH_SIZE = 64
"""Pairs whose thumbnails are compared at a time."""

MIN_ALIGN_CORRELATION = 0.7
"""Thumbnails with a lower correlation are not aligned. 80 of the 82 crops that alignment can find have a higher one."""

CROP_SCALES = (0.98, 0.96, 0.94, 0.92, 0.90, 0.88)
"""Side lengths of the crops that are compared, as fractions of the image's."""

Value = TypeVar("Value", bound=np.generic)

Indices = NDArray[np.intp]


class DisjointSets:
    """Disjoint sets of the integers 0..size-1: union-find with path halving. A set's root is its smallest element."""

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size, dtype=np.int32)

    def find_root(self, item: int) -> int:
        """Return the smallest element of the set that contains `item`."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    def find_roots(self, items: NDArray[np.int32] | Indices) -> NDArray[np.int32]:
        """Return the smallest element of the set of each item `(N,)`."""
        found = self._parent[items]
        while np.any(found != (above := self._parent[found])):
            found = above
        return found

    def merge_pairs(self, pairs: Iterable[Sequence[int]]) -> None:
        """Merge the sets of the two elements of each pair."""
        for one, other in pairs:
            one, other = self.find_root(one), self.find_root(other)
            self._parent[max(one, other)] = min(one, other)

    def list_parent_pairs(self) -> Indices:
        """Return the edges of the disjoint-set forest: each element that is not a root, and its parent `(N, 2)`.

        `merge_pairs` restores the sets from these pairs.
        """
        numbers = np.flatnonzero(self._parent != np.arange(len(self._parent)))
        return np.stack([numbers, self._parent[numbers]], axis=1)

    def list_sets_of_several(self) -> list[list[int]]:
        """Return the sets with more than one element, each as a sorted list, ordered by their smallest elements."""
        roots = self.find_roots(np.arange(len(self._parent)))
        found: dict[int, list[int]] = {}
        for number in np.flatnonzero(np.bincount(roots, minlength=len(roots))[roots] > 1).tolist():
            found.setdefault(int(roots[number]), []).append(number)
        return [found[root] for root in sorted(found)]


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight orientations of an image, which may be transposed, then flipped along one or both axes."""

    transposed: bool
    flipped_vertically: bool
    flipped_horizontally: bool

    def apply_to_images(self, images: NDArray[Value]) -> NDArray[Value]:
        """Apply this orientation to square images `(..., side, side)`."""
        images = images.swapaxes(-1, -2) if self.transposed else images
        return images[..., :: -1 if self.flipped_vertically else 1, :: -1 if self.flipped_horizontally else 1]

    def apply_to_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the perceptual hashes `(N,)` of the images in this orientation; a flip negates the odd frequencies."""
        hashes = _transpose_bits(hashes) if self.transposed else hashes
        flipped = (_ODD_ROWS if self.flipped_vertically else 0) ^ (_ODD_COLUMNS if self.flipped_horizontally else 0)
        return hashes ^ np.uint64(flipped)


ORIENTATIONS = tuple(starmap(Orientation, product((False, True), repeat=3)))
"""The eight orientations; the first is the identity."""

_ODD_ROWS, _ODD_COLUMNS = 0xFF00FF00FF00FF00, 0xAAAAAAAAAAAAAAAA


def _transpose_bits(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Transpose the 8 x 8 bits of each hash, in blocks of 1, 2 and 4 (Warren, Hacker's Delight, 7-3)."""
    for distance, upper_right in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        swapped = (hashes ^ (hashes >> np.uint64(distance))) & np.uint64(upper_right)
        hashes = hashes ^ swapped ^ (swapped << np.uint64(distance))
    return hashes


def find_near_duplicate_pairs(
    get_thumbnails: Callable[[Indices], NDArray[np.uint8]],
    hashes: NDArray[np.uint64],
    *,
    max_bits: int,
    max_rotated_bits: int,
    min_correlation_per_image: NDArray[np.float32],
    min_crop_correlation: float,
    find_groups: Callable[[Indices], NDArray[np.int32]],
) -> Iterator[tuple[int, int]]:
    """Yield pairs of indices whose perceptual hashes differ in few bits and whose thumbnails correlate.

    Each pair is compared in the eight orientations. One image may be a crop of the other, so thumbnails that do not
    correlate enough directly are aligned first.

    Args:
        get_thumbnails: function that returns the luma thumbnails `(n, 256)` of the images at some indices `(n,)`.
        hashes: perceptual hashes `(N,)`.
        max_bits: maximum number of bits in which two hashes differ.
        max_rotated_bits: maximum number of different bits if one image is mirrored or rotated.
        min_correlation_per_image: minimum correlation of each image `(N,)`; for a pair, the higher value applies.
        min_crop_correlation: minimum correlation after alignment. A pair is aligned only if its minimum in
            `min_correlation_per_image` is lower than this.
        find_groups: function that returns the current group of each image `(n,)` at some indices; pairs within a group
            are skipped, so that a long series of frames is not compared pair by pair.
    """
    for orientation in ORIENTATIONS:
        bits = max_bits if orientation == ORIENTATIONS[0] else max_rotated_bits
        for ones, others in _find_close_pairs(orientation.apply_to_hashes(hashes), hashes, bits):
            for start in range(0, len(ones), PAIR_BATCH_SIZE):
                one, other = ones[start : start + PAIR_BATCH_SIZE], others[start : start + PAIR_BATCH_SIZE]
                apart = find_groups(one) != find_groups(other)
                one, other = one[apart], other[apart]
                min_correlations = np.maximum(min_correlation_per_image[one], min_correlation_per_image[other])
                alike = _are_near_duplicates(
                    orientation.apply_to_images(get_thumbnails(one).reshape(-1, 16, 16)).reshape(-1, 256),
                    get_thumbnails(other),
                    min_correlations,
                    min_crop_correlation,
                )
                yield from zip(one[alike].tolist(), other[alike].tolist(), strict=True)


def compute_perceptual_hashes(thumbnails: NDArray[np.uint8], indices: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Compute the perceptual hashes `(n,)` of `thumbnails[indices]`, given `thumbnails` `(N, 256)`, `indices` `(n,)`.

    Each bit says whether one of the 8 x 8 lowest frequencies is positive, row by row. pHash (Zauner 2010) compares them
    with their median, which is nearly 0. With the median, the hash of a mirrored image could not be computed from the
    hash of the image.
    """
    hashes = np.empty(len(indices), np.uint64)
    for begin in range(0, len(indices), HASH_BATCH_SIZE):
        chunk = slice(begin, begin + HASH_BATCH_SIZE)
        squares = thumbnails[indices[chunk]].reshape(-1, 16, 16).astype(np.float32)
        waves = (_DCT @ squares @ _DCT.T).reshape(-1, 64)  # one large product would start all BLAS threads
        hashes[chunk] = np.packbits(waves > 0, axis=1, bitorder="little").view("<u8").ravel()
    return hashes


def _are_near_duplicates(
    thumbnails: NDArray[np.uint8],
    other_thumbnails: NDArray[np.uint8],
    min_correlations: NDArray[np.float32],
    min_crop_correlation: float,
) -> NDArray[np.bool_]:
    """Return whether the thumbnails of each pair, both `(n, 256)`, correlate, either directly or after alignment."""
    correlation = np.vecdot(
        _normalize_vectors(thumbnails.astype(np.float32)), _normalize_vectors(other_thumbnails.astype(np.float32))
    )
    alike: NDArray[np.bool_] = correlation >= min_correlations
    may_be_crop = (correlation >= MIN_ALIGN_CORRELATION) & (min_correlations < min_crop_correlation)
    candidates = np.flatnonzero(~alike & may_be_crop)
    if len(candidates):
        a, b = thumbnails[candidates].astype(np.float32), other_thumbnails[candidates].astype(np.float32)
        best = np.maximum(_compute_best_crop_correlation(a, b), _compute_best_crop_correlation(b, a))
        alike[candidates] = best >= min_crop_correlation
    return alike


def _compute_best_crop_correlation(
    thumbnails: NDArray[np.float32], crop_thumbnails: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the correlation `(n,)` of each `crop_thumbnails[i]` with the crop of `thumbnails[i]` that fits it best.

    Both arrays of thumbnails are `(n, 256)`.
    """
    rows = _CROP_MATRICES @ thumbnails.reshape(-1, 1, 1, 16, 16)  # (n, sizes, offsets, 16, 16)
    parts = rows[:, :, :, None] @ _CROP_MATRICES.transpose(0, 1, 3, 2)[:, None]  # (n, sizes, offsets, offsets, 16, 16)
    found = (
        _normalize_vectors(parts.reshape(*parts.shape[:4], 256).astype(np.float32))
        @ _normalize_vectors(crop_thumbnails)[:, None, None, :, None]
    )
    best: NDArray[np.float32] = found.reshape(len(thumbnails), -1).max(axis=1)
    return best


def _make_crop_matrices() -> NDArray[np.float32]:
    """Return matrices `(scales, 3, 16, 16)` that crop an image along one axis: at the start, middle and end."""
    scales, shares = np.array(CROP_SCALES)[:, None, None], np.array([0, 0.5, 1])[:, None]
    centers = np.clip(scales * (np.arange(16) + 0.5) + shares * (1 - scales) * 16 - 0.5, 0, 15)  # (scales, 3, 16)
    weights: NDArray[np.float32] = np.maximum(0, 1 - abs(centers[..., None] - np.arange(16))).astype(np.float32)
    return weights


_DCT = np.cos(np.pi / 16 * np.outer(np.arange(8), np.arange(16) + 0.5)).astype(np.float32)
"""Matrix of the discrete cosine transform along one axis, for the lowest frequencies: `(8, 16)`."""

_CROP_MATRICES = _make_crop_matrices()
"""Matrices that interpolate crops along one axis: `(scales, offsets, 16, 16)`."""


def _find_close_pairs(
    rotated_image_hashes: NDArray[np.uint64], hashes: NDArray[np.uint64], max_bits: int
) -> Iterator[tuple[Indices, Indices]]:
    """Yield the pairs i < j for which `rotated_image_hashes[i]` and `hashes[j]` differ in at most `max_bits` bits.

    In large datasets, the hashes are split into four bands of 16 bits. Two hashes that differ in at most 12 bits differ
    in at most 3 bits of at least one band. Only pairs with such a band are compared (multi-index hashing: Norouzi,
    Punjani and Fleet, CVPR 2012).
    """
    bits = [(max_bits + 1 + band) // 4 - 1 for band in range(4)]  # each plus 1, they add up to max_bits + 1
    look_ups = sum(comb(16, flipped) for most in bits for flipped in range(most + 1))
    if len(hashes) <= COMPARISONS_PER_LOOKUP * look_ups:
        yield from _find_close_pairs_exhaustively(rotated_image_hashes, hashes, max_bits)
        return
    for band in range(4):
        for one, other in _find_close_pairs_in_band(rotated_image_hashes, hashes, band, bits[band]):
            apart = rotated_image_hashes[one] ^ hashes[other]
            wanted = (one < other) & (np.bitwise_count(apart) <= max_bits)
            for before in range(band):  # already found in that band
                wanted &= np.bitwise_count(_extract_band(apart, before)) > bits[before]
            yield one[wanted], other[wanted]


def _find_close_pairs_exhaustively(
    rotated_image_hashes: NDArray[np.uint64], hashes: NDArray[np.uint64], max_bits: int
) -> Iterator[tuple[Indices, Indices]]:
    """Yield the pairs of `_find_close_pairs`, found by comparing all pairs."""
    step = max(4, HASH_PAIR_BATCH_SIZE // max(1, len(hashes)))
    for top in range(0, len(hashes), step):
        near = np.bitwise_count(rotated_image_hashes[top : top + step, None] ^ hashes[top:]) <= max_bits
        one, other = np.divmod(np.flatnonzero(near), len(hashes) - top)
        yield one[one < other] + top, other[one < other] + top


def _extract_band(hashes: NDArray[np.uint64], band_index: int) -> NDArray[np.uint16]:
    """Return the 16 bits of a band of the 64-bit hashes."""
    return (hashes >> np.uint64(16 * band_index)).astype(np.uint16)


def _find_close_pairs_in_band(
    rotated_image_hashes: NDArray[np.uint64], hashes: NDArray[np.uint64], band_index: int, max_bits: int
) -> Iterator[tuple[Indices, Indices]]:
    """Yield pairs that differ in at most `max_bits` bits of one band."""
    wanted_bands, keys = _extract_band(rotated_image_hashes, band_index), _extract_band(hashes, band_index)
    ones, others = (np.argsort(values, kind="stable").astype(np.int32) for values in (wanted_bands, keys))
    wanted_bands = wanted_bands[ones]  # sorted for locality of memory accesses
    begins = np.searchsorted(keys[others], np.arange((1 << 16) + 1)).astype(np.int32)
    for flipped in (mask for mask in range(1 << 16) if mask.bit_count() <= max_bits):
        for top in range(0, len(wanted_bands), HASH_PAIR_BATCH_SIZE):
            wanted = wanted_bands[top : top + HASH_PAIR_BATCH_SIZE] ^ np.uint16(flipped)
            first, last = begins[wanted], begins[1:][wanted]
            for one, other in _expand_ranges(np.arange(top, top + len(wanted)), first, last - first):
                yield ones[one].astype(np.intp), others[other].astype(np.intp)


def _expand_ranges(indices: Indices, starts: Indices, lengths: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Pair each index with each integer of its range, `start` to `start + length - 1`.

    Yields two arrays, the indices and the integers, with about HASH_PAIR_BATCH_SIZE pairs at a time.
    """
    ends = lengths.cumsum()
    start = 0
    while start < len(indices):
        done = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, done + HASH_PAIR_BATCH_SIZE)))
        some = lengths[start:end]
        one = np.repeat(indices[start:end], some)
        yield one, np.arange(len(one)) + np.repeat(starts[start:end] - (ends[start:end] - some - done), some)
        start = end


def _normalize_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalize vectors along the last axis to mean 0 and length 1; their dot products are then correlations."""
    centered = vectors - vectors.mean(axis=-1, keepdims=True)
    unit: NDArray[np.float32] = centered / np.maximum(np.linalg.norm(centered, axis=-1, keepdims=True), 1e-6)
    return unit
