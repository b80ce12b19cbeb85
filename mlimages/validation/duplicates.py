"""Which pictures are the same, or nearly so, without comparing all with all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SMALL = 4096
"""Sets of up to so many pictures are compared all with all."""

BLOCK = 2048
"""Rows and columns compared at a time: bounds the memory."""

Places = NDArray[np.intp]


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
    thumbs: NDArray[np.uint8], hashes: NDArray[np.uint64], *, max_bits: int, least: NDArray[np.float32]
) -> Iterator[tuple[int, int]]:
    """Pairs whose perceptual hashes agree and whose thumbnails then correlate; a pair may come twice.

    Args:
        thumbs: luma `(N, 256)`.
        hashes: perceptual hashes `(N,)`.
        max_bits: most bits in which the hashes may differ.
        least: correlation that each picture asks of another `(N,)`; of two the stricter holds.
    """
    for rows, columns in _candidates(hashes, max_bits):
        for one, other in _close(hashes, rows, columns, max_bits):
            correlation = np.vecdot(_unit_vectors(thumbs[one]), _unit_vectors(thumbs[other]))
            alike = correlation >= np.maximum(least[one], least[other])
            yield from zip(one[alike].tolist(), other[alike].tolist(), strict=True)


def _candidates(hashes: NDArray[np.uint64], max_bits: int) -> Iterator[tuple[Places, Places]]:
    """Sets of places to compare with each other that together hold every pair within `max_bits`.

    Hashes are cut into so many bands that two within `max_bits` differ by at most one bit in one of them
    (multi-index hashing: Norouzi, Punjani and Fleet, CVPR 2012).
    """
    everything = np.arange(len(hashes))
    if len(hashes) <= SMALL:
        yield everything, everything
        return
    bands = max_bits // 2 + 1
    edges = np.linspace(0, 64, bands + 1).astype(int)
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        keys = (hashes >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)
        order = np.argsort(keys, kind="stable")
        distinct, begins = np.unique(keys[order], return_index=True)
        buckets = dict(zip(distinct.tolist(), np.split(order, begins[1:]), strict=True))
        for key, places in buckets.items():
            yield places, places
            flipped = (key ^ (1 << bit) for bit in range(end - start))
            yield from ((places, buckets[near]) for near in flipped if near > key and near in buckets)


def _close(hashes: NDArray[np.uint64], rows: Places, columns: Places, max_bits: int) -> Iterator[tuple[Places, Places]]:
    """Pairs of a row and a column whose hashes differ in at most `max_bits`, block by block."""
    same = rows is columns
    for top in range(0, len(rows), BLOCK):
        for left in range(top if same else 0, len(columns), BLOCK):
            own, others = rows[top : top + BLOCK], columns[left : left + BLOCK]
            near = np.bitwise_count(hashes[own][:, None] ^ hashes[others]) <= max_bits
            if same and top == left:
                near = np.triu(near, 1)
            one, other = np.nonzero(near)
            yield own[one], others[other]


def _unit_vectors(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails as vectors of mean 0 and length 1: their products are correlations."""
    levels = thumbs.astype(np.float32)
    levels -= levels.mean(axis=1, keepdims=True)
    levels /= np.maximum(np.linalg.norm(levels, axis=1, keepdims=True), 1e-6)
    return levels
