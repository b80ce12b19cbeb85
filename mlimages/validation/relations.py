"""What pictures have to do with each other: doubled, leaking, one picture under two labels."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlimages.records import LabeledPath
from mlimages.validation.codes import Code, Thresholds
from mlimages.validation.duplicates import Families, near_pairs
from mlimages.validation.store import Examined

PLAIN = 0.5
"""Where two levels cover so much of a picture it is a drawing: those are alike without being the same."""

SMOOTH = 0.26
"""Below this sharpness (see `Facts`) a picture has no detail: scikit-learn's 8 x 8 digits blown up have at most 0.258,
of 1000 photographs of flowers blown up to 128 pixels none has less than 0.262."""


@dataclass(slots=True)
class Seen:
    """What is kept in memory of each picture seen, some 350 bytes; its place is the order in which it came.

    Attributes:
        file, label: numbers by place.
        digest: of the bytes, by place; empty where they could not be read or decoded.
    """

    file: array[int] = field(default_factory=lambda: array("i"))
    label: array[int] = field(default_factory=lambda: array("i"))
    digest: list[bytes] = field(default_factory=list)
    _place: array[int] = field(default_factory=lambda: array("q"))
    _hash: array[int] = field(default_factory=lambda: array("Q"))
    _least: array[float] = field(default_factory=lambda: array("f"))
    _thumbs: bytearray = field(default_factory=bytearray)
    _known: set[bytes] = field(default_factory=set)

    def add(self, file: int, label: int, picture: Examined, lines: Thresholds) -> int:
        """Note one picture; return its place."""
        place, facts = len(self.digest), picture.facts
        self.file.append(file)
        self.label.append(label)
        self.digest.append(picture.digest if facts else b"")
        if facts and picture.digest not in self._known:
            self._known.add(picture.digest)
            if facts.high - facts.low > lines.blank_spread:  # blank pictures are all alike
                self._place.append(place)
                self._hash.append(facts.hash)
                plain = facts.two_levels >= PLAIN or facts.sharpness < SMOOTH
                self._least.append(lines.plain_correlation if plain else lines.near_correlation)
                self._thumbs += facts.thumb
        return place

    def families(self, lines: Thresholds) -> list[list[int]]:
        """Places of pictures that are the same or nearly so, the first first."""
        families = Families(len(self.digest))
        first: dict[bytes, int] = {}
        for number, digest in enumerate(self.digest):
            if digest:
                families.unite(first.setdefault(digest, number), number)
        place = self._place
        pairs = near_pairs(
            np.array(self._thumbs, dtype=np.uint8).reshape(-1, 256),
            np.array(self._hash, dtype=np.uint64),
            max_bits=lines.near_bits,
            least=np.array(self._least, dtype=np.float32),
            cropped=lines.crop_correlation,
            family=lambda number: families.root(place[number]),
        )
        for one, other in pairs:
            families.unite(place[one], place[other])
        return families.sets()


@dataclass(frozen=True, slots=True)
class Relation:
    """A code that the picture at `place` has because of the one at `other`."""

    place: int
    code: Code
    other: int


def relations(seen: Seen, families: Sequence[Sequence[int]], lines: Thresholds) -> Iterator[Relation]:
    """All codes that come from pictures being the same or nearly so."""
    sizes = Counter(seen.file)
    for family in families:
        yield from _leaks(seen, family, sizes)
        for same in _grouped(family, seen.digest.__getitem__):
            yield from _same(seen, same, lines)
        for within in _grouped(family, seen.file.__getitem__):
            firsts = [same[0] for same in _grouped(within, seen.digest.__getitem__)]
            yield from (Relation(place, Code.NEAR_DUPLICATE, firsts[0]) for place in firsts[1:])


def _grouped(places: Iterable[int], key: Callable[[int], object]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for place in places:
        groups.setdefault(key(place), []).append(place)
    return list(groups.values())


def _same(seen: Seen, same: Sequence[int], lines: Thresholds) -> Iterator[Relation]:
    """Codes of pictures whose bytes are equal."""
    one, *others = [within[0] for within in _grouped(same, seen.label.__getitem__)]
    if others:
        for place in same:
            yield Relation(place, Code.TWO_LABELS, one if seen.label[place] != seen.label[one] else others[0])
    else:
        for within in _grouped(same, seen.file.__getitem__):
            yield from (Relation(place, Code.DUPLICATE, within[0]) for place in within[1:])
    if len(same) >= lines.placeholder_copies:
        yield from (Relation(place, Code.PLACEHOLDER, same[0]) for place in same)


def _leaks(seen: Seen, family: Sequence[int], sizes: Mapping[int, int]) -> Iterator[Relation]:
    """Pictures that another label file holds too: they stay in the smallest file, which is the one to judge by."""
    files = {seen.file[place] for place in family}
    if len(files) < 2:
        return
    home = min(files, key=lambda file: (sizes[file], -file))
    kept = next(place for place in family if seen.file[place] == home)
    yield from (Relation(place, Code.LEAK, kept) for place in family if seen.file[place] != home)


def described(relation: Relation, items: Mapping[int, LabeledPath], *, same: bool) -> str:
    """What was seen, for a person."""
    other = items[relation.other]
    if relation.code == Code.TWO_LABELS:
        return f"the same as {other.path} of class {other.label}"
    return f"{'the same as' if same else 'nearly the same as'} {other.path}"
