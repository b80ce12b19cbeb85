"""Manifests become one: a row per link; images that others replace are removed, "gone" ones are put aside."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mlimages.core import FetchResult, Reason, replacing
from mlimages.gathering.links import place_of, row_key
from mlimages.gathering.store.manifest import KeySet, dump_closing, dump_row, read_closing, read_rows
from mlimages.gathering.store.near_duplicates import LikenessIndex
from mlimages.gathering.store.stored_files import StoredFiles

PLACEHOLDER_PATHS = 5
"""Different paths of one host with the same bytes, from which on these are its placeholder for images that are gone."""


def are_of_a_placeholder(places: Iterable[int]) -> bool:
    """Whether links with the same bytes are so many different paths of one host; elsewhere they are duplicates."""
    hosts = Counter(place >> 32 for place in set(places))
    return max(hosts.values(), default=0) >= PLACEHOLDER_PATHS


def settle(files: StoredFiles, manifests: list[Path], into: Path, *, keep_duplicates: bool) -> None:
    """Rewrite `manifests` as the one file `into`, and remove images that others replace.

    Of several rows for one link the last counts whose image is there, else the last; the order is that in which links
    were finished. Copies of the same bytes in one manifest were kept on purpose and stay. Near-duplicates are found
    anew: an image's nearest may lie in another manifest, or be removed.
    """
    is_closed = all(read_closing(path).is_whole for path in manifests)
    current = CurrentRows(files, manifests)
    gone = set() if keep_duplicates else _gone(current)
    kept: dict[str, tuple[int, str]] = {}
    likeness = LikenessIndex()
    replaced: dict[str, str] = {}
    with replacing(into) as part, part.open("wb") as out:
        for number, row in current.numbered():
            settled = _settled(files, row, gone, None if keep_duplicates else kept.get(row.sha256 or ""), number)
            if settled.status == "ok" and settled.path and settled.sha256 and settled.dhash and not settled.removed:
                like = likeness.find(settled.dhash)
                likeness.add(settled.dhash, settled.path)
                kept.setdefault(settled.sha256, (number, settled.path))
                settled = replace(settled, same_as=like)
            elif row.path and row.sha256 and settled.status == "duplicate":
                replaced[row.path] = row.sha256
            out.write(dump_row(settled))
        if is_closed:
            out.write(dump_closing(keep_duplicates=keep_duplicates))
        out.flush()
        os.fsync(out.fileno())
    replaced |= current.superseded
    for path in [row.path for row in read_rows([into]) if row.path in replaced] if replaced else []:
        replaced.pop(path or "", None)
    for path, sha256 in replaced.items():
        files.remove(path, sha256)
    for manifest in manifests:
        if manifest != into:
            manifest.unlink()


class CurrentRows:
    """The row that counts for each link of these manifests: the last whose image is there, else the last.

    Attributes:
        superseded: path and sha256 of images that a later download of the same link replaces; filled by `numbered`.
    """

    def __init__(self, files: StoredFiles, manifests: list[Path]) -> None:
        self._files = files
        self._manifests = manifests
        self._chosen = self._choose()
        self.superseded: dict[str, str] = {}

    def numbered(self) -> Iterator[tuple[int, FetchResult]]:
        """Each row that counts, with the number of its manifest."""
        at = 0
        for number, manifest in enumerate(self._manifests):
            for row in read_rows([manifest]):
                chosen = self._chosen.get(row_key(row.label, row.url), at)
                if chosen == at:
                    yield number, row
                elif row.status == "ok" and row.path and row.sha256:
                    self.superseded[row.path] = row.sha256
                at += 1

    def counts(self, at: int, row: FetchResult) -> bool:
        """Whether the row, the `at`th of all, counts."""
        return self._chosen.get(row_key(row.label, row.url), at) == at

    def _choose(self) -> dict[int, int]:
        """Of links that have several rows, the place of the one that counts among all rows."""
        seen = KeySet()
        best: dict[int, tuple[int, int]] = {}
        for row in read_rows(self._manifests):
            key = row_key(row.label, row.url)
            if key in seen:
                best[key] = (-1, -1)
            seen.add(key)
        for at, row in enumerate(read_rows(self._manifests) if best else ()):
            key = row_key(row.label, row.url)
            if key in best:
                best[key] = max(best[key], (self._rank(row), at))
        return {key: at for key, (_, at) in best.items()}

    def _rank(self, row: FetchResult) -> int:
        if row.status == "ok" and not row.removed:
            return 2 if row.path and self._files.size(row.path) is not None else 0
        return 1 if row.removed or row.status == "duplicate" else 0


def _gone(current: CurrentRows) -> set[str]:
    """The sha256 of images for "gone": known as such, or behind many links, and not kept more than once by a run."""
    places: dict[str, list[int]] = {}
    gone: set[str] = set()
    for _, row in current.numbered():
        if row.status in ("ok", "duplicate") and row.sha256:
            places.setdefault(row.sha256, []).append(place_of(row.url))
        elif row.reason is Reason.PLACEHOLDER and row.sha256:
            gone.add(row.sha256)
    gone |= {sha256 for sha256, found in places.items() if are_of_a_placeholder(found)}
    kept = Counter(
        (number, row.sha256) for number, row in current.numbered() if row.status == "ok" and row.sha256 in gone
    )
    return gone - {sha256 for (_, sha256), count in kept.items() if count > 1}


def _settled(
    files: StoredFiles, row: FetchResult, gone: set[str], kept: tuple[int, str] | None, manifest: int
) -> FetchResult:
    """The row as it is among all others; `kept` is the manifest and path of the first image with the same bytes."""
    if row.status not in ("ok", "duplicate") or row.sha256 is None or row.removed:
        return row
    if row.sha256 in gone:
        aside = files.put_aside(row.path, row.sha256) if row.path else None
        if row.path and not aside and files.size(row.path) is not None:
            return row  # somebody changed it
        return replace(row, status="placeholder", reason=Reason.PLACEHOLDER, path=aside, same_as=None)
    if kept is None or kept[1] == row.path:
        return row
    if row.status == "duplicate":
        return replace(row, same_as=kept[1])
    if (
        kept[0] == manifest
        or not row.path
        or not (files.is_unchanged(row.path, row.sha256) and files.is_unchanged(kept[1], row.sha256))
    ):
        return row
    return replace(row, status="duplicate", path=None, same_as=kept[1])
