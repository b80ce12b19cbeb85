"""Which pictures are the same, or nearly so, without comparing all with all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mlimages.validation.facts import THUMB_PX

LEAF = 512
"""Sets of so many pictures are compared all with all."""

COORDINATES = 16
"""Low-frequency coordinates by which larger sets are parted."""


class Families:
    """Disjoint sets of the numbers 0..count-1 (union by the smaller root, with path halving)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, number: int) -> int:
        """The smallest number of the set."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def unite(self, one: int, other: int) -> None:
        """Make one set of the two."""
        one, other = self.root(one), self.root(other)
        self._parent[max(one, other)] = min(one, other)

    def sets(self) -> list[list[int]]:
        """The sets of more than one number, sorted."""
        found: dict[int, list[int]] = {}
        for number in range(len(self._parent)):
            root = self.root(number)
            if root != number:
                found.setdefault(root, [root]).append(number)
        return [found[root] for root in sorted(found)]


def near_pairs(
    thumbs: NDArray[np.uint8], hashes: NDArray[np.uint64], *, max_bits: int, min_correlation: float
) -> Iterator[tuple[int, int]]:
    """Pairs (i < j) whose thumbnails correlate and whose perceptual hashes agree; a pair may come twice.

    Thumbnails as unit vectors correlate by at least r where they lie within sqrt(2 - 2 r) of each other, and so do
    their projections. Sets are therefore halved along a coordinate with an overlap of that width: no pair is lost.

    Args:
        thumbs: luma `(N, 256)`.
        hashes: perceptual hashes `(N,)`.
        max_bits: most bits in which the hashes may differ.
        min_correlation: least correlation.
    """
    vectors = _Vectors(thumbs)
    reach = float(np.sqrt(2 - 2 * min_correlation))
    for leaf in _leaves(np.arange(len(thumbs)), vectors.coordinates, reach):
        blocks = [leaf[start : start + LEAF] for start in range(0, len(leaf), LEAF)]
        for number, rows in enumerate(blocks):
            own = vectors[rows]
            for columns in blocks[number:]:
                close = own @ vectors[columns].T >= min_correlation
                one, other = np.nonzero(np.triu(close, 1) if columns is rows else close)
                alike = np.bitwise_count(hashes[rows[one]] ^ hashes[columns[other]]) <= max_bits
                yield from zip(rows[one[alike]].tolist(), columns[other[alike]].tolist(), strict=True)


class _Vectors:
    """Thumbnails as float32 unit vectors with mean 0, made where they are asked for: `(n, 256)`."""

    def __init__(self, thumbs: NDArray[np.uint8]) -> None:
        self._thumbs = thumbs
        steps = range(0, len(thumbs), 1 << 16)
        parts = [self[np.arange(start, min(start + (1 << 16), len(thumbs)))] @ _low_frequencies() for start in steps]
        self.coordinates = np.concatenate(parts) if parts else np.empty((0, COORDINATES), np.float32)

    def __getitem__(self, places: NDArray[np.intp]) -> NDArray[np.float32]:
        levels = self._thumbs[places].astype(np.float32)
        levels -= levels.mean(axis=1, keepdims=True)
        levels /= np.maximum(np.linalg.norm(levels, axis=1, keepdims=True), 1e-6)
        return levels


def _low_frequencies() -> NDArray[np.float32]:
    """An orthonormal basis `(256, COORDINATES)` of the lowest frequencies but the mean (2-D DCT-II)."""
    k, x = np.arange(THUMB_PX), np.arange(THUMB_PX) + 0.5
    cosines = np.cos(np.pi / THUMB_PX * np.outer(k, x)) * np.where(k == 0, 1, np.sqrt(2))[:, None] / np.sqrt(THUMB_PX)
    order = sorted(((a, b) for a in k for b in k), key=lambda ab: (ab[0] + ab[1], ab[0]))[1 : COORDINATES + 1]
    return np.stack([np.outer(cosines[a], cosines[b]).ravel() for a, b in order], axis=1).astype(np.float32)


def _leaves(places: NDArray[np.intp], at: NDArray[np.float32], reach: float) -> Iterator[NDArray[np.intp]]:
    """Small sets that together hold every pair within `reach`."""
    if len(places) > LEAF:
        own = at[places]
        axis = int(np.argmax(own.std(axis=0)))
        middle = np.median(own[:, axis])
        left = places[own[:, axis] <= middle + reach / 2]
        right = places[own[:, axis] >= middle - reach / 2]
        if max(len(left), len(right)) < 0.95 * len(places):
            yield from _leaves(left, at, reach)
            yield from _leaves(right, at, reach)
            return
    yield places
