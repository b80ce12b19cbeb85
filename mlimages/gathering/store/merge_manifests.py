"""Manifests become one: a row per link; images that others replace are removed, placeholders are put aside."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mlimages.core import FetchResult, Reason, counted, replacing
from mlimages.gathering.links import row_key
from mlimages.gathering.store.image_index import ImageIndex, PlaceHosts, temporary_tables
from mlimages.gathering.store.manifest import (
    KeySet,
    dump_closing,
    dump_row,
    is_shard_manifest,
    read_closing,
    read_rows,
)
from mlimages.gathering.store.stored_files import Files
from mlimages.labels import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

_MAX_NAMES = 3
"""Number of names a message lists."""


def settle(
    files: Files,
    manifests: list[Path],
    into: Path,
    *,
    keep_duplicates: bool,
    limit: int | None = None,
    publish: Callable[[Path], bool] = lambda path: True,
    discard: Callable[[Path], None] = Path.unlink,
) -> bool:
    """Rewrite `manifests` as the one file `into`, and remove images that others replace.

    Of several rows for one link the last counts whose image is there, else the last; the order is that in which links
    were finished. Copies of the same bytes in one manifest were kept on purpose and stay. Near-duplicates are found
    anew: an image's nearest may lie in another manifest, or be removed.

    Args:
        limit: images of shards beyond so many of a class are removed, and their links are open again.
        publish: is called with the new manifest before anything is removed; where it returns False, nothing is.
        discard: removes a manifest whose rows are in the new one.
    """
    is_closed = all(read_closing(path).is_whole for path in manifests)
    current = CurrentRows(files, manifests)
    gone = set() if keep_duplicates else _gone(current)
    replaced = _Replaced()
    with replacing(into) as part, part.open("wb") as out:
        for row in _settled_rows(files, current, gone, replaced, keep_duplicates=keep_duplicates, limit=limit):
            out.write(dump_row(row))
        if is_closed:
            out.write(dump_closing(keep_duplicates=keep_duplicates))
        out.flush()
        os.fsync(out.fileno())
    if not publish(into):
        return False
    for path, sha256 in replaced.unnamed_in(into):
        files.remove(path, sha256)
    for manifest in manifests:
        if manifest != into:
            discard(manifest)
    return True


def _settled_rows(
    files: Files,
    current: CurrentRows,
    gone: set[str],
    replaced: _Replaced,
    *,
    keep_duplicates: bool,
    limit: int | None,
) -> Iterator[FetchResult]:
    index = ImageIndex()
    counts: Counter[str] = Counter()
    for number, row, is_of_shard in current.numbered(replaced):
        first = None if keep_duplicates or not row.sha256 else index.first(row.sha256)
        settled = _settled(files, row, gone, first, number)
        if settled.status == "ok" and settled.path and settled.sha256 and settled.dhash and not settled.removed:
            if is_of_shard and limit is not None and counts[row.label] >= limit:
                replaced.add(settled.path, settled.sha256)
                continue
            counts[row.label] += 1
            near = index.find_near(settled.dhash)
            index.add_image(settled.dhash, settled.path)
            if not first:
                index.put_first(settled.sha256, number, settled.path)
            settled = replace(settled, same_as=near)
        elif row.path and row.sha256 and settled.status == "duplicate":
            replaced.add(row.path, row.sha256)
        yield settled
    index.close()


class _Replaced:
    """Paths and hashes of images that others replace; on the disk, since there may be many."""

    def __init__(self) -> None:
        self._tables = temporary_tables("BEGIN; CREATE TABLE images (path TEXT PRIMARY KEY, sha256 TEXT);")

    def add(self, path: str, sha256: str) -> None:
        self._tables.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (path, sha256))

    def unnamed_in(self, manifest: Path) -> Iterator[tuple[str, str]]:
        """Those that no row of a manifest names."""
        if self._tables.execute("SELECT 1 FROM images LIMIT 1").fetchone():
            for row in read_rows([manifest]):
                self._tables.execute("DELETE FROM images WHERE path = ?", (row.path,))
        yield from self._tables.execute("SELECT path, sha256 FROM images")
        self._tables.close()


def warn_of_unknown_images(files: Files, manifest: Path, out: Path) -> None:
    """Log a warning that lists images without a row in the manifest."""
    tables = temporary_tables("BEGIN; CREATE TABLE paths (path TEXT PRIMARY KEY);")
    for row in read_rows([manifest]):
        tables.execute("INSERT OR IGNORE INTO paths VALUES (?)", (row.path or "",))
    images = (path for path in files.walk() if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES)
    found = [path for path in images if not tables.execute("SELECT 1 FROM paths WHERE path = ?", (path,)).fetchone()]
    tables.close()
    if found:
        names = ", ".join(found[:_MAX_NAMES]) + " ..." * (len(found) > _MAX_NAMES)
        logger.warning("%s in %s that no row of the manifest names: %s", counted(len(found), "image"), out, names)


class CurrentRows:
    """The row that counts for each link of these manifests: the last whose image is there, else the last."""

    def __init__(self, files: Files, manifests: list[Path]) -> None:
        self._files = files
        self._manifests = manifests
        self._chosen = self._choose()

    def numbered(self, replaced: _Replaced | None = None) -> Iterator[tuple[int, FetchResult, bool]]:
        """Each row that counts, with the number of its manifest and whether this is a shard's.

        Args:
            replaced: is told of images that a later download of the same link replaces.
        """
        at = 0
        for number, manifest in enumerate(self._manifests):
            for row in read_rows([manifest]):
                chosen = self._chosen.get(row_key(row.label, row.url), at)
                if chosen == at:
                    yield number, row, is_shard_manifest(manifest)
                elif replaced and row.status == "ok" and row.path and row.sha256:
                    replaced.add(row.path, row.sha256)
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
            if not seen.add(key):
                best[key] = (-1, -1)
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
    """The sha256 of placeholders: known as such, or behind many links, and not kept more than once by a run."""
    places = PlaceHosts()
    gone: set[str] = set()
    for _, row, _ in current.numbered():
        if row.status in ("ok", "duplicate") and row.sha256:
            places.add(row.sha256, row.url)
        elif row.reason is Reason.PLACEHOLDER and row.sha256:
            gone.add(row.sha256)
    gone.update(places.placeholders())
    places.close()
    if not gone:
        return gone
    kept = Counter(
        (number, row.sha256) for number, row, _ in current.numbered() if row.status == "ok" and row.sha256 in gone
    )
    return gone - {sha256 for (_, sha256), count in kept.items() if count > 1}


def _settled(
    files: Files, row: FetchResult, gone: set[str], kept: tuple[int, str] | None, manifest: int
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
