"""Which pictures are the same, or nearly so, without comparing all with all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

VERSION = 2
"""Of the comparison: raised when its outcome changes, so that no earlier one is taken for it."""

SMALL = 1 << 15
"""Sets of up to so many pictures are compared all with all: that is faster than to look for the near ones."""

AT_ONCE = 1 << 14
"""Pairs of hashes compared at a time: bounds the memory, and stays within the processor's cache.

Four times as many took 5 MB more among 100,000 pictures, for a quarter less time: under 1 % of a check."""

PAIRS = 64
"""Pairs whose thumbnails are compared at a time."""

WORTH_ALIGNING = 0.7
"""Correlation of a crop with its whole as they lie: of 82 crops that laying over finds, 80 have as much."""

CROP_SIZES = (0.98, 0.96, 0.94, 0.92, 0.90, 0.88)

SKETCH_BYTES = 24
"""The 5 x 5 lowest frequencies of a thumbnail but the constant."""

Places = NDArray[np.intp]

Links = NDArray[np.intp]
"""Pairs of numbers `(N, 2)`."""


class Families:
    """Disjoint sets of the numbers 0..count-1 (union by the smaller root, with path halving)."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int32)

    def root(self, number: int) -> int:
        """The smallest number of the set."""
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = int(parent[number])
        return number

    def roots(self, numbers: NDArray[np.int32] | Places) -> NDArray[np.int32]:
        """The smallest number of each one's set."""
        found = self._parent[numbers]
        while np.any(found != (above := self._parent[found])):
            found = above
        return found

    def unite(self, one: int, other: int) -> None:
        """Make one set of the two."""
        one, other = self.root(one), self.root(other)
        self._parent[max(one, other)] = min(one, other)

    def links(self) -> Links:
        """Pairs that make the same sets again."""
        numbers = np.flatnonzero(self._parent != np.arange(len(self._parent)))
        return np.stack([numbers, self._parent[numbers]], axis=1)

    def sets(self) -> list[list[int]]:
        """The sets of more than one number, sorted."""
        roots = self.roots(np.arange(len(self._parent)))
        found: dict[int, list[int]] = {}
        for number in np.flatnonzero(np.bincount(roots, minlength=len(roots))[roots] > 1).tolist():
            found.setdefault(int(roots[number]), []).append(number)
        return [found[root] for root in sorted(found)]


def near_pairs(
    thumbs: Callable[[Places], NDArray[np.uint8]],
    hashes: NDArray[np.uint64],
    *,
    sketches: NDArray[np.int8],
    max_bits: int,
    least: NDArray[np.float32],
    cropped: float,
    families: Callable[[Places], NDArray[np.int32]],
) -> Iterator[tuple[int, int]]:
    """Pairs whose perceptual hashes agree and whose thumbnails then correlate.

    Thumbnails that do not correlate as they are may be one the crop of the other: they are laid over each other.

    Args:
        thumbs: luma of the pictures at some places `(n, 256)`.
        hashes: perceptual hashes `(N,)`.
        sketches: of the thumbnails (see `outlined`), which are looked at only where these allow it.
        max_bits: most bits in which the hashes may differ.
        least: correlation that each picture asks of another `(N,)`; of two the stricter holds.
        cropped: correlation asked where one is laid over the other; not of pictures that ask for more.
        families: the families that pictures are of by now: pairs of one family are passed over, so that a long series
            of frames is not compared all with all.
    """
    for ones, others in _close(hashes, max_bits):
        asked = np.maximum(least[ones], least[others])
        asked = np.where(asked < cropped, np.minimum(asked, WORTH_ALIGNING), asked)
        open_ = (families(ones) != families(others)) & _may_correlate(sketches[ones], sketches[others], asked)
        ones, others = ones[open_], others[open_]
        for start in range(0, len(ones), PAIRS):
            one, other = ones[start : start + PAIRS], others[start : start + PAIRS]
            strange = families(one) != families(other)
            one, other = one[strange], other[strange]
            alike = _alike(thumbs(one), thumbs(other), np.maximum(least[one], least[other]), cropped)
            yield from zip(one[alike].tolist(), other[alike].tolist(), strict=True)


def outlined(thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
    """Of thumbnails `(N, 256)` the perceptual hashes `(N,)` and the sketches `(N, SKETCH_BYTES)`.

    A hash tells which of the 8 x 8 lowest frequencies lie above their median (pHash, Zauner 2010); a sketch holds fewer
    of them, at length 1 and in steps of 1/127.
    """
    squares = thumbs.reshape(-1, 16, 16).astype(np.float32)
    waves = _WAVES @ squares @ _WAVES.T  # (N, 8, 8); one by one: a large product wakes all of OpenBLAS's threads
    flat = waves.reshape(-1, 64)
    bits = np.packbits(flat > np.partition(flat, 31)[:, 31:32], axis=1)  # (N, 8)
    lengths = np.maximum(16 * thumbs.std(axis=1, keepdims=True, dtype=np.float32), 1e-6)
    sketches: NDArray[np.int8] = np.rint(127 * waves[:, :5, :5].reshape(-1, 25)[:, 1:] / lengths).astype(np.int8)
    return bits.view(np.uint64).ravel(), sketches


def _may_correlate(one: NDArray[np.int8], other: NDArray[np.int8], least: NDArray[np.float32]) -> NDArray[np.bool_]:
    """False where the thumbnails of two sketches cannot correlate so much: unit vectors lie sqrt(2 - 2 r) apart, and
    what is projected lies no farther apart than before, but for the steps."""
    apart = one.astype(np.int16) - other
    steps = np.sqrt(np.vecdot(apart.astype(np.float32), apart.astype(np.float32)))
    may: NDArray[np.bool_] = steps <= 127 * np.sqrt(np.maximum(2 - 2 * least, 0)) + np.sqrt(SKETCH_BYTES)
    return may


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


_WAVES = np.cos(np.pi / 16 * np.outer(np.arange(8), np.arange(16) + 0.5)).astype(np.float32)
_WAVES /= np.linalg.norm(_WAVES, axis=1, keepdims=True)
"""The lowest frequencies along an axis, each of length 1: `(8, 16)`."""

_WINDOWS = _windows()
"""`(sizes, offsets, 16, 16)`"""


def _close(hashes: NDArray[np.uint64], max_bits: int) -> Iterator[tuple[Places, Places]]:
    """Every pair of places whose hashes differ in at most `max_bits`, once, some at a time.

    Hashes of large sets are cut into four bands: two that differ by `max_bits` in all differ by at most a quarter of
    that in one of them, and only pictures whose bands do are compared (multi-index hashing: Norouzi, Punjani and Fleet,
    CVPR 2012).
    """
    if len(hashes) <= SMALL:
        step = max(4, AT_ONCE // max(1, len(hashes)))
        for top in range(0, len(hashes), step):
            near = np.bitwise_count(hashes[top : top + step, None] ^ hashes[top:]) <= max_bits
            one, other = np.divmod(np.flatnonzero(near), len(hashes) - top)
            yield one[one < other] + top, other[one < other] + top
        return
    bits = [(max_bits + 1 + band) // 4 - 1 for band in range(4)]  # they and 1 each add up to max_bits + 1
    for band in range(4):
        for one, other in _close_in_band(hashes, band, bits[band], max_bits):
            apart = hashes[one] ^ hashes[other]
            first = np.ones(len(one), dtype=bool)
            for before in range(band):
                first &= np.bitwise_count(_band(apart, before)) > bits[before]
            yield one[first], other[first]


def _band(hashes: NDArray[np.uint64], band: int) -> NDArray[np.uint64]:
    """16 of the 64 bits."""
    return (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)


def _close_in_band(hashes: NDArray[np.uint64], band: int, bits: int, max_bits: int) -> Iterator[tuple[Places, Places]]:
    """Pairs that differ by at most `bits` in one band, and by `max_bits` in all."""
    keys = _band(hashes, band).astype(np.uint16)
    order = np.argsort(keys, kind="stable").astype(np.int32)
    keys, hashes = keys[order], hashes[order]
    begins = np.searchsorted(keys, np.arange((1 << 16) + 1)).astype(np.int32)
    for flipped in (mask for mask in range(1 << 16) if mask.bit_count() <= bits):
        for top in range(0, len(keys), AT_ONCE):
            own = keys[top : top + AT_ONCE]
            asked = own ^ np.uint16(flipped)
            ones = np.flatnonzero(asked > own) if flipped else np.arange(len(own))
            first = begins[asked[ones]] if flipped else top + ones + 1
            last = begins[1:][asked[ones]]
            for one, other in _each_with_its_run(top + ones, first, last - first):
                near = np.bitwise_count(hashes[one] ^ hashes[other]) <= max_bits
                yield order[one[near]], order[other[near]]


def _each_with_its_run(ones: Places, first: Places, count: Places) -> Iterator[tuple[Places, Places]]:
    """Each number with the `count` numbers from its `first` on, about AT_ONCE pairs at a time."""
    ends = count.cumsum()
    start = 0
    while start < len(ones):
        done = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, done + AT_ONCE)))
        some = count[start:end]
        one = np.repeat(ones[start:end], some)
        yield one, np.arange(len(one)) + np.repeat(first[start:end] - (ends[start:end] - some - done), some)
        start = end


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors along the last axis with mean 0 and length 1: their products are correlations."""
    centred = vectors - vectors.mean(axis=-1, keepdims=True)
    unit: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)
    return unit
