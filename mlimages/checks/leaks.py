"""What pictures have to do with each other: doubled, leaking, one picture under two labels."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.cache import Store
from mlimages.checks.codes import Code, Thresholds
from mlimages.checks.columns import NewColumn
from mlimages.checks.image_facts import THUMB_BYTES, FactsTable
from mlimages.checks.near_duplicates import SKETCH_BYTES, VERSION, Families, near_pairs, outlined
from mlimages.checks.rules import spread
from mlimages.core import LabeledPath

Key = TypeVar("Key")

DIGEST_BYTES = 16
"""Kept of each SHA-256."""

PLAIN = 0.5
"""Where two levels cover so much of a picture it is a drawing: those are alike without being the same."""

SMOOTH = 0.26
"""Below this sharpness (see `Facts`) a picture has no detail: so do all but one of scikit-learn's 1797 digits of 8 x 8
blown up to 56 pixels, and of 1000 photographs of flowers blown up from 128 pixels to 160 13."""


Listed = tuple[int, str, int]
"""A picture: the number of the file that lists it, its path, its class number."""


class Seen:
    """What is noted of each picture seen; its place is the order in which it came, file by file.

    Attributes:
        counts: pictures by (file, class number).
    """

    def __init__(self, new_column: NewColumn) -> None:
        self.counts = Counter[tuple[int, int]]()
        self._label = new_column("i4")
        self._digests = new_column(("u8", 2))  # zeros where the picture could not be decoded
        self._places, self._hashes, self._plain = new_column("i4"), new_column("u8"), new_column("?")  # to compare
        self._sketches, self._thumbs = new_column(("i1", SKETCH_BYTES)), new_column(("u1", THUMB_BYTES))

    def __len__(self) -> int:
        return self.counts.total()

    def digest(self, place: int) -> bytes:
        """Of the picture's bytes; the same for all that could not be decoded."""
        return self._digests.at([place]).tobytes()

    def digests(self) -> NDArray[np.uint64]:
        """Of all pictures' bytes, in order: `(N, 2)`, zeros where one could not be decoded."""
        digests: NDArray[np.uint64] = self._digests.whole()
        return digests

    def label(self, place: int) -> int:
        """Class number of the picture."""
        return int(self._label.at([place])[0])

    def add(self, pictures: Sequence[Listed], digests: Iterable[bytes]) -> None:
        """Note pictures, with the SHA-256 of their bytes (none where not decoded)."""
        self.counts.update((file, label) for file, _, label in pictures)
        self._label.add(np.array([label for _, _, label in pictures], np.int32))
        self._digests.add(b"".join(digest[:DIGEST_BYTES] or bytes(DIGEST_BYTES) for digest in digests))

    def compare(self, places: NDArray[np.intp], facts: FactsTable, lines: Thresholds) -> None:
        """Note what decoded pictures look like; blank ones are all alike and left out."""
        places, facts = places[spread(facts) > lines.blank_spread], facts[spread(facts) > lines.blank_spread]
        tiny = np.minimum(facts["width"], facts["height"]) < lines.min_side_px
        self._places.add(places.astype(np.int32))
        self._plain.add(tiny | (facts["two_levels"] >= PLAIN) | (facts["sharpness"] < SMOOTH))
        hashes, sketches = outlined(facts["thumb"])
        self._hashes.add(hashes)
        self._sketches.add(sketches)
        self._thumbs.add(facts["thumb"].tobytes())

    def families(self, lines: Thresholds, store: Store) -> list[list[int]]:
        """Places of pictures that are the same or nearly so, the first first."""
        families = Families(len(self))
        for one, other in self._same_bytes():
            families.unite(one, other)
        key = self._key(lines)
        known = store.find_links(key)
        for one, other in self._near(families, lines) if known is None else known.tolist():
            families.unite(one, other)
        if known is None:
            store.keep_links(key, families.links())
        return families.sets()

    def _same_bytes(self) -> Iterator[tuple[int, int]]:
        halves = self._digests.whole()
        order = np.lexsort(halves.T)
        last = halves[order, 1]
        same = np.flatnonzero(last[:-1] == last[1:])
        before, after = order[same], order[same + 1]
        same = (halves[before] == halves[after]).all(axis=1) & halves[after].any(axis=1)
        return zip(before[same].tolist(), after[same].tolist(), strict=True)

    def _near(self, families: Families, lines: Thresholds) -> Iterator[tuple[int, int]]:
        places, plain = self._places.whole(), self._plain.whole()
        pairs = near_pairs(
            lambda numbers: self._thumbs.at(numbers.tolist()),
            self._hashes.whole(),
            sketches=self._sketches.whole(),
            max_bits=lines.near_bits,
            least=np.where(plain, np.float32(lines.plain_correlation), np.float32(lines.near_correlation)),
            cropped=lines.crop_correlation,
            families=lambda numbers: families.roots(places[numbers]),
        )
        yield from ((int(places[one]), int(places[other])) for one, other in pairs)

    def _key(self, lines: Thresholds) -> bytes:
        """What decides which pictures are nearly the same."""
        drawn = lines.near_bits, lines.near_correlation, lines.plain_correlation, lines.crop_correlation
        key = hashlib.sha256(f"{VERSION} {drawn} ".encode())
        for column in (self._digests, self._places, self._plain):
            for piece in column.pieces():
                key.update(piece)
        return key.digest()


@dataclass(frozen=True, slots=True)
class Relation:
    """A code that the picture at `place` has because of the one at `other`."""

    place: int
    code: Code
    other: int


def relations(
    seen: Seen, families: Sequence[Sequence[int]], begins: Sequence[int], lines: Thresholds
) -> Iterator[Relation]:
    """All codes that come from pictures being the same or nearly so; `begins` as in `Findings`."""

    def file_of(place: int) -> int:
        return bisect_right(begins, place) - 1

    for family in families:
        by_file = _grouped(family, file_of)
        yield from _leaks(by_file, begins)
        for same in _grouped(family, seen.digest).values():
            yield from _same(_grouped(same, seen.label), _grouped(same, file_of))
            if len(same) >= lines.placeholder_copies:
                yield from (Relation(place, Code.PLACEHOLDER, same[0 if place != same[0] else -1]) for place in same)
        for within in by_file.values():
            firsts = [same[0] for same in _grouped(within, seen.digest).values()]
            yield from (Relation(place, Code.NEAR_DUPLICATE, firsts[0]) for place in firsts[1:])


def _grouped(places: Iterable[int], key: Callable[[int], Key]) -> dict[Key, list[int]]:
    groups: dict[Key, list[int]] = {}
    for place in places:
        groups.setdefault(key(place), []).append(place)
    return groups


def _same(by_label: Mapping[int, Sequence[int]], by_file: Mapping[int, Sequence[int]]) -> Iterator[Relation]:
    """Codes of pictures whose bytes are equal."""
    first, *others = [places[0] for places in by_label.values()]
    if others:
        for places in by_label.values():
            other = first if places[0] != first else others[0]
            yield from (Relation(place, Code.TWO_LABELS, other) for place in places)
    else:
        for within in by_file.values():
            yield from (Relation(place, Code.DUPLICATE, within[0]) for place in within[1:])


def _leaks(by_file: Mapping[int, Sequence[int]], begins: Sequence[int]) -> Iterator[Relation]:
    """Pictures that another label file holds too: they stay in the smallest file, which is the one to judge by."""
    home = min(by_file, key=lambda file: (begins[file + 1] - begins[file], -file))
    for file, places in by_file.items():
        if file != home:
            yield from (Relation(place, Code.LEAK, by_file[home][0]) for place in places)


def described(relation: Relation, items: Mapping[int, LabeledPath], *, same: bool) -> str:
    """What was seen, for a person."""
    other = items[relation.other]
    if relation.code == Code.TWO_LABELS:
        return f"the same as {other.path} of class {other.label}"
    return f"{'the same as' if same else 'nearly the same as'} {other.path}"
