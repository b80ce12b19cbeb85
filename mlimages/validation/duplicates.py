"""Which pictures are the same, or nearly so, without comparing all with all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

SMALL = 4096
"""Sets of up to so many pictures are compared all with all."""

BLOCK = 2048
"""Rows and columns compared at a time: bounds the memory."""

PAIRS = 256
"""Pairs whose thumbnails are compared at a time."""

WORTH_ALIGNING = 0.6
"""Correlation of a crop of nine tenths with its whole; it is seldom less."""

CROP_SIZES = (0.98, 0.96, 0.94, 0.92, 0.90, 0.88)

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
    thumbs: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    *,
    max_bits: int,
    least: NDArray[np.float32],
    cropped: float,
    family: Callable[[int], int],
) -> Iterator[tuple[int, int]]:
    """Pairs whose perceptual hashes agree and whose thumbnails then correlate; a pair may come twice.

    Thumbnails that do not correlate as they are may be one the crop of the other: they are laid over each other.

    Args:
        thumbs: luma `(N, 256)`.
        hashes: perceptual hashes `(N,)`.
        max_bits: most bits in which the hashes may differ.
        least: correlation that each picture asks of another `(N,)`; of two the stricter holds.
        cropped: correlation asked where one is laid over the other; not of pictures that ask for more.
        family: the family that a picture is of by now: pairs of one family are passed over, so that a long series of
            frames is not compared all with all.
    """
    for rows, columns in _candidates(hashes, max_bits):
        for ones, others in _close(hashes, rows, columns, max_bits, family):
            for start in range(0, len(ones), PAIRS):
                one, other = ones[start : start + PAIRS], others[start : start + PAIRS]
                strange = [family(a) != family(b) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
                one, other = one[strange], other[strange]
                alike = _alike(thumbs[one], thumbs[other], np.maximum(least[one], least[other]), cropped)
                yield from zip(one[alike].tolist(), other[alike].tolist(), strict=True)


def _alike(
    one: NDArray[np.uint8], other: NDArray[np.uint8], least: NDArray[np.float32], cropped: float
) -> NDArray[np.bool_]:
    """Which of the pairs of thumbnails `(n, 256)` show the same."""
    correlation = np.vecdot(_unit(one.astype(np.float32)), _unit(other.astype(np.float32)))
    alike: NDArray[np.bool_] = correlation >= least
    open_ = np.flatnonzero(~alike & (correlation >= WORTH_ALIGNING) & (least < cropped))
    if len(open_):
        a, b = one[open_].astype(np.float32), other[open_].astype(np.float32)
        alike[open_] = np.maximum(_best_overlay(a, b), _best_overlay(b, a)) >= cropped
    return alike


def _best_overlay(whole: NDArray[np.float32], crop: NDArray[np.float32]) -> NDArray[np.float32]:
    """Best correlation of `crop` with some part of `whole`, both `(n, 256)`: `(n,)`."""
    rows = _WINDOWS @ whole.reshape(-1, 1, 1, 16, 16)  # (n, sizes, offsets, 16, 16)
    parts = rows[:, :, :, None] @ _WINDOWS.transpose(0, 1, 3, 2)[:, None]  # (n, sizes, offsets, offsets, 16, 16)
    found = _unit(parts.reshape(*parts.shape[:4], 256).astype(np.float32)) @ _unit(crop)[:, None, None, :, None]
    best: NDArray[np.float32] = found.reshape(len(whole), -1).max(axis=1)
    return best


def _windows() -> NDArray[np.float32]:
    """Linear interpolation along one axis: parts of 0.98 to 0.88 of it, at its begin, middle and end."""
    made = np.zeros((len(CROP_SIZES), 3, 16, 16), np.float32)
    for number, size in enumerate(CROP_SIZES):
        for place, free in enumerate((0.0, 0.5, 1.0)):
            at = np.clip(size * (np.arange(16) + 0.5) + free * (1 - size) * 16 - 0.5, 0, 15)
            below = np.minimum(at.astype(int), 14)
            made[number, place, np.arange(16), below] = below + 1 - at
            made[number, place, np.arange(16), below + 1] = at - below
    return made


_WINDOWS = _windows()
"""`(sizes, offsets, 16, 16)`"""


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


def _close(
    hashes: NDArray[np.uint64], rows: Places, columns: Places, max_bits: int, family: Callable[[int], int]
) -> Iterator[tuple[Places, Places]]:
    """Pairs of a row and a column whose hashes differ in at most `max_bits`, block by block."""
    same = rows is columns
    for top in range(0, len(rows), BLOCK):
        for left in range(top if same else 0, len(columns), BLOCK):
            own, others = rows[top : top + BLOCK], columns[left : left + BLOCK]
            near = np.bitwise_count(hashes[own][:, None] ^ hashes[others]) <= max_bits
            if same and top == left:
                near = np.triu(near, 1)
            if np.count_nonzero(near) > PAIRS:
                one_family, other_family = (np.array([family(n) for n in ns.tolist()]) for ns in (own, others))
                near &= one_family[:, None] != other_family
            one, other = np.nonzero(near)
            yield own[one], others[other]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors along the last axis with mean 0 and length 1: their products are correlations."""
    centred = vectors - vectors.mean(axis=-1, keepdims=True)
    unit: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)
    return unit
