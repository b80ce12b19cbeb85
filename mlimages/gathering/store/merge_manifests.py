"""Merge manifests to one row per link; remove replaced images and quarantine placeholders."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mlimages.core import FetchResult, Reason, atomic_write, format_examples, pluralize
from mlimages.gathering.links import hash_link
from mlimages.gathering.store.file_storage import ImageStorage
from mlimages.gathering.store.image_index import ImageIndex, PlaceholderDetector, open_temporary_database
from mlimages.gathering.store.manifest import (
    UInt64Set,
    dump_commit_row,
    dump_row,
    find_manifests,
    read_commit_rows,
    read_rows,
)
from mlimages.labels import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)


def rewrite_manifests(
    storage: ImageStorage, manifests: list[Path], target: Path, *, keep_duplicates: bool, limit: int | None = None
) -> bool:
    """Rewrite `manifests` as the single file `target`, and remove images that it no longer lists.

    - Of several rows for a link, only the current one is kept (see `CurrentRows`); the order of rows does not change.
    - If images in several manifests have the same bytes, only the copies in the first of these manifests are kept: a
      single one, unless the run that wrote this manifest was to keep duplicates.
    - Near-duplicates are searched again: the nearest image may be in another manifest or have been removed.

    Args:
        storage: the stored images.
        manifests: the manifests in order.
        target: path of `manifest.jsonl`.
        keep_duplicates: keep every copy of the same bytes.
        limit: maximum number of images per class. Runs with --shard may together have stored more: these images are
            removed with their rows, so that a later run can request their links again.

    Returns:
        False, and nothing is removed, if another run has merged the manifests of a remote folder meanwhile; else True.
    """
    is_closed = all(read_commit_rows(path).is_at_end for path in manifests)
    current_rows = CurrentRows(storage, manifests)
    placeholders = set() if keep_duplicates else _find_placeholder_hashes(current_rows)
    candidates = _ImagePaths()  # replaced images, duplicates, and images beyond the limit
    already_merged = find_manifests(target.parent, already_merged=True)
    for row in read_rows(already_merged):
        if row.status == "ok" and row.path and row.sha256:
            candidates.add(row.path, row.sha256)
    done = [*already_merged, *(manifest for manifest in manifests if manifest != target)]
    with atomic_write(target) as part, part.open("wb") as out:
        if storage.allows_concurrent_runs and done:  # runs that read both the new and the merged ones ignore the latter
            out.write(dump_commit_row(keep_duplicates=False, merged_names=[path.name for path in done]))
        for row in _merge_rows(
            storage, current_rows, placeholders, candidates, keep_duplicates=keep_duplicates, limit=limit
        ):
            out.write(dump_row(row))
        if is_closed:
            out.write(dump_commit_row(keep_duplicates=keep_duplicates))
        out.flush()
        os.fsync(out.fileno())
    if not storage.publish_manifest(target):
        return False
    for path, sha256 in candidates.find_unlisted_images(target):
        storage.remove(path, sha256)
    for manifest in done:
        storage.remove_manifest(manifest)
    return True


def _merge_rows(
    storage: ImageStorage,
    current_rows: CurrentRows,
    placeholders: set[str],
    removal_candidates: _ImagePaths,
    *,
    keep_duplicates: bool,
    limit: int | None,
) -> Iterator[FetchResult]:
    """Yield the rows of the merged manifest; add images of omitted rows, and duplicates, to `removal_candidates`."""
    index = ImageIndex()
    counts: Counter[str] = Counter()
    for number, row, is_of_shard in current_rows.rows_with_origin(removal_candidates):
        first = None if keep_duplicates or not row.sha256 else index.find_first_copy(row.sha256)
        settled = _update_status(storage, row, placeholders, first, number)
        if settled.status == "ok" and settled.path and settled.sha256 and settled.dhash and not settled.removed:
            if is_of_shard and limit is not None and counts[row.label] >= limit:
                removal_candidates.add(settled.path, settled.sha256)
                continue
            counts[row.label] += 1
            near = index.find_near_duplicate(settled.dhash)
            index.add_difference_hash(settled.dhash, settled.path)
            if not first:
                index.add_first_copy(settled.sha256, number, settled.path)
            settled = replace(settled, same_as=near)
        elif row.path and row.sha256 and settled.status == "duplicate":
            removal_candidates.add(row.path, row.sha256)
        yield settled
    index.close()


class _ImagePaths:
    """Paths and SHA-256 of images, kept in a temporary file, to find those that a manifest does not list."""

    def __init__(self) -> None:
        self._tables = open_temporary_database("CREATE TABLE images (path TEXT PRIMARY KEY, sha256 TEXT);")

    def add(self, path: str, sha256: str = "") -> None:
        self._tables.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (path, sha256))

    def find_unlisted_images(self, manifest: Path) -> Iterator[tuple[str, str]]:
        """Yield path and SHA-256 of the images that no row of the manifest lists."""
        if self._tables.execute("SELECT 1 FROM images LIMIT 1").fetchone():
            for row in read_rows([manifest]):
                self._tables.execute("DELETE FROM images WHERE path = ?", (row.path,))
        yield from self._tables.execute("SELECT path, sha256 FROM images")
        self._tables.close()


def warn_about_unlisted_images(storage: ImageStorage, manifest: Path, out: Path) -> None:
    """Log a warning that lists images without a row in the manifest."""
    images = _ImagePaths()
    for path in storage.iter_file_paths():
        if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES:
            images.add(path)
    if found := [path for path, _ in images.find_unlisted_images(manifest)]:
        count, names = pluralize(len(found), "image"), format_examples(found, 3)
        logger.warning("%s contains %s that its manifest does not list: %s", out, count, names)


class CurrentRows:
    """Finds the current row of each link in several manifests.

    The current row is the one with the highest rank (`_rank_row`); of several with this rank, the last one.
    """

    def __init__(self, storage: ImageStorage, manifests: list[Path]) -> None:
        self._storage = storage
        self._manifests = manifests
        self._current_indices = self._find_current_indices()

    def rows_with_origin(
        self, removal_candidates: _ImagePaths | None = None
    ) -> Iterator[tuple[int, FetchResult, bool]]:
        """Yield (index of its manifest, row, whether a run with --shard wrote it) for each current row.

        Args:
            removal_candidates: unless None, the images of all other rows are added to it.
        """
        at = 0
        for number, manifest in enumerate(self._manifests):
            for row in read_rows([manifest]):
                chosen = self._current_indices.get(hash_link(row.label, row.url), at)
                if chosen == at:
                    yield number, row, "-of-" in manifest.name
                elif removal_candidates and row.status == "ok" and row.path and row.sha256:
                    removal_candidates.add(row.path, row.sha256)
                at += 1

    def rows(self) -> Iterator[FetchResult]:
        """Yield each current row."""
        return (row for _, row, _ in self.rows_with_origin())

    def is_current(self, row_index: int, row: FetchResult) -> bool:
        """Return whether the row at index `row_index` is the current row of its link."""
        return self._current_indices.get(hash_link(row.label, row.url), row_index) == row_index

    def _find_current_indices(self) -> dict[int, int]:
        """Return the index of the current row of each link that has several rows, by the `hash_link` of the link.

        The rows are numbered from 0, through all manifests in order.
        """
        seen = UInt64Set()
        keys = (hash_link(row.label, row.url) for row in read_rows(self._manifests))
        repeated = {key for key in keys if not seen.add(key)}
        best: dict[int, tuple[int, int]] = {}
        for at, row in enumerate(read_rows(self._manifests) if repeated else ()):
            key = hash_link(row.label, row.url)
            if key in repeated:
                rank = self._rank_row(row), at
                best[key] = max(best.get(key, rank), rank)
        return {key: at for key, (_, at) in best.items()}

    def _rank_row(self, row: FetchResult) -> int:
        """Return 2 for a stored image, 1 for a deleted image or a duplicate, and 0 for other rows."""
        if row.status == "ok" and not row.removed:
            return 2 if row.path and self._storage.size(row.path) is not None else 0
        return 1 if row.removed or row.status == "duplicate" else 0


def _find_placeholder_hashes(current_rows: CurrentRows) -> set[str]:
    """Return the SHA-256 of known placeholders, and of images that many paths of one host return.

    Images of which a run has kept several copies are not placeholders.
    """
    detector = PlaceholderDetector()
    placeholders: set[str] = set()
    for _, row, _ in current_rows.rows_with_origin():
        if row.status in ("ok", "duplicate") and row.sha256:
            detector.add(row.sha256, row.url)
        elif row.reason is Reason.PLACEHOLDER and row.sha256:
            placeholders.add(row.sha256)
    placeholders.update(detector.find_placeholders())
    detector.close()
    if not placeholders:
        return placeholders
    kept = Counter(
        (number, row.sha256)
        for number, row, _ in current_rows.rows_with_origin()
        if row.status == "ok" and row.sha256 in placeholders
    )
    return placeholders - {sha256 for (_, sha256), count in kept.items() if count > 1}


def _update_status(
    storage: ImageStorage,
    row: FetchResult,
    placeholders: set[str],
    first_copy: tuple[int, str] | None,
    manifest_index: int,
) -> FetchResult:
    """Return the row, with a new status if its image is now known to be a placeholder or a duplicate.

    The file of a placeholder is moved to the quarantine folder.

    Args:
        first_copy: the first image with the same bytes, as the index of its manifest and its path; None if there is no
            earlier one, or if duplicates are kept.
        manifest_index: index of the row's manifest.
    """
    if row.status not in ("ok", "duplicate") or row.sha256 is None or row.removed:
        return row
    if row.sha256 in placeholders:
        aside = storage.quarantine_placeholder(row.path, row.sha256) if row.path else None
        if row.path and not aside and storage.size(row.path) is not None:
            return row  # the user has changed it
        return replace(row, status="placeholder", reason=Reason.PLACEHOLDER, path=aside, same_as=None)
    if first_copy is None or first_copy[1] == row.path:
        return row
    if row.status == "duplicate":
        return replace(row, same_as=first_copy[1])
    if (
        first_copy[0] == manifest_index
        or not row.path
        or not (storage.is_unchanged(row.path, row.sha256) and storage.is_unchanged(first_copy[1], row.sha256))
    ):
        return row
    return replace(row, status="duplicate", path=None, same_as=first_copy[1])
