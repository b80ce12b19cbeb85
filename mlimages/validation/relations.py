"""What pictures have to do with each other: doubled, leaking, one picture under two labels."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mlimages.records import LabeledPath
from mlimages.validation.codes import Code, Thresholds
from mlimages.validation.duplicates import SKETCH_BYTES, VERSION, Families, Places, near_pairs, outlined
from mlimages.validation.facts import THUMB_BYTES, FactsTable
from mlimages.validation.judging import spread
from mlimages.validation.store import Store

DIGEST_BYTES = 16
"""Kept of each SHA-256."""

PLAIN = 0.5
"""Where two levels cover so much of a picture it is a drawing: those are alike without being the same."""

SMOOTH = 0.26
"""Below this sharpness (see `Facts`) a picture has no detail: so do all but one of scikit-learn's 1797 digits of 8 x 8
blown up to 56 pixels, and of 1000 photographs of flowers blown up from 128 pixels to 160 13."""


class Seen:
    """What is kept in memory of each picture seen, some 60 bytes; its place is the order in which it came.

    Args:
        spill: an empty file for the thumbnails; unbuffered, as they are read here and there.

    Attributes:
        file, label: numbers by place.
    """

    def __init__(self, spill: IO[bytes]) -> None:
        self.file, self.label = array("i"), array("i")
        self._digests = bytearray()  # 16 bytes each; zeros where the picture could not be decoded
        self._places, self._hashes, self._plain = array("i"), array("Q"), bytearray()  # of those to compare
        self._sketches = bytearray()
        self._thumbs = spill

    def __len__(self) -> int:
        return len(self.file)

    def digest(self, place: int) -> bytes:
        """Of the picture's bytes; the same for all that could not be decoded."""
        return bytes(self._digests[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)])

    def decoded_labels(self) -> NDArray[np.int32]:
        """Class numbers of the pictures that could be decoded."""
        decoded = np.frombuffer(self._digests, np.uint64).reshape(-1, 2).any(axis=1)
        return np.frombuffer(self.label, np.int32)[decoded]

    def add(self, file: Iterable[int], label: Iterable[int], digests: Iterable[bytes]) -> None:
        """Note pictures: numbers of their files and classes, SHA-256 of their bytes (none where not decoded)."""
        self.file.extend(file)
        self.label.extend(label)
        self._digests += b"".join(digest[:DIGEST_BYTES] or bytes(DIGEST_BYTES) for digest in digests)

    def compare(self, places: NDArray[np.intp], facts: FactsTable, lines: Thresholds) -> None:
        """Note what decoded pictures look like; blank ones are all alike and left out."""
        places, facts = places[spread(facts) > lines.blank_spread], facts[spread(facts) > lines.blank_spread]
        tiny = np.minimum(facts["width"], facts["height"]) < lines.min_side_px
        plain = tiny | (facts["two_levels"] >= PLAIN) | (facts["sharpness"] < SMOOTH)
        self._places.frombytes(places.astype(np.int32).tobytes())
        self._plain += plain.tobytes()
        hashes, sketches = outlined(facts["thumb"])
        self._hashes.frombytes(hashes.tobytes())
        self._sketches += sketches.tobytes()
        self._thumbs.write(facts["thumb"].tobytes())

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
        halves = np.frombuffer(self._digests, np.uint64).reshape(-1, 2)
        order = np.lexsort(halves.T)
        last = halves[order, 1]
        same = np.flatnonzero(last[:-1] == last[1:])
        before, after = order[same], order[same + 1]
        same = (halves[before] == halves[after]).all(axis=1) & halves[after].any(axis=1)
        return zip(before[same].tolist(), after[same].tolist(), strict=True)

    def _near(self, families: Families, lines: Thresholds) -> Iterator[tuple[int, int]]:
        places = np.frombuffer(self._places, np.int32)
        plain = np.frombuffer(self._plain, np.bool_)
        pairs = near_pairs(
            self._thumbs_at,
            np.frombuffer(self._hashes, np.uint64),
            sketches=np.frombuffer(self._sketches, np.int8).reshape(-1, SKETCH_BYTES),
            max_bits=lines.near_bits,
            least=np.where(plain, np.float32(lines.plain_correlation), np.float32(lines.near_correlation)),
            cropped=lines.crop_correlation,
            families=lambda numbers: families.roots(places[numbers]),
        )
        yield from ((int(places[one]), int(places[other])) for one, other in pairs)

    def _thumbs_at(self, places: Places) -> NDArray[np.uint8]:
        rows = []
        for place in places.tolist():
            self._thumbs.seek(THUMB_BYTES * place)
            rows.append(self._thumbs.read(THUMB_BYTES))
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, THUMB_BYTES)

    def _key(self, lines: Thresholds) -> bytes:
        """What decides which pictures are nearly the same."""
        drawn = lines.near_bits, lines.near_correlation, lines.plain_correlation, lines.crop_correlation
        key = hashlib.sha256(f"{VERSION} {drawn} ".encode())
        for part in (self._digests, self._places, self._plain):
            key.update(part)
        return key.digest()


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
        for same in _grouped(family, seen.digest):
            yield from _same(seen, same, lines)
        for within in _grouped(family, seen.file.__getitem__):
            firsts = [same[0] for same in _grouped(within, seen.digest)]
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
        yield from (Relation(place, Code.PLACEHOLDER, same[0 if place != same[0] else -1]) for place in same)


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
