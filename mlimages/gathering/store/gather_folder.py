"""The gathered folder: its images and manifest, and which links are done."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlimages.core import FetchResult, ImageRef, Reason, is_remote
from mlimages.gathering.download.fetch import DownloadResult
from mlimages.gathering.download.image_info import ImageInfo, Rejection
from mlimages.gathering.links import hash_link
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.partition import NO_PARTITION, LinkPartition
from mlimages.gathering.store.attribution import write_attributions
from mlimages.gathering.store.corrections import ClassCorrections, ImageToMove, find_misplaced_images, move_images
from mlimages.gathering.store.file_names import PathsInUse, generate_paths, insert_subfolder
from mlimages.gathering.store.file_storage import FileStorage
from mlimages.gathering.store.image_index import ImageIndex
from mlimages.gathering.store.manifest import (
    ManifestWriter,
    UInt64Set,
    find_manifests,
    read_commit_rows,
    read_rows,
    read_rows_with_fsync_flags,
)
from mlimages.gathering.store.merge_manifests import CurrentRows, rewrite_manifests, warn_about_unlisted_images
from mlimages.gathering.store.missing import find_moved_and_deleted_images
from mlimages.gathering.store.object_storage import ObjectStorage
from mlimages.gathering.store.output_folder import open_output_folder
from mlimages.gathering.store.retries import ConsecutiveRefusals, check_same_settings, needs_retry
from mlimages.gathering.store.rows import make_failure_row, make_image_row
from mlimages.gathering.store.shard_storage import IMAGE_SUFFIX, ShardStorage, make_sample_key
from mlimages.gathering.store.tables import TableWriter
from mlimages.gathering.store.tally import ResultTally


class GatherFolder:
    """A gathered folder, open for adding images; use as a context manager.

    Args:
        out: a local or remote folder, as returned by `as_path`.
        options: options of the run.
        partition: determines which links this run gathers: all, or with --shard a part of them.
        is_list: whether the source is a list (see `Source.is_list`): if its classes were corrected, images are moved.

    Raises:
        GatherError: another run uses the folder, the folder cannot be written, or many of its images are missing.
        InputError: the images were gathered with another `resize` or `layout`, or a user's file would be replaced.
    """

    def __init__(
        self, out: Path, options: GatherOptions, partition: LinkPartition = NO_PARTITION, *, is_list: bool = False
    ) -> None:
        self.out, self._options, self._partition = out, options, partition
        self._moves_corrected = is_list and options.limit is None and not options.shard and not is_remote(out)
        self._corrections: list[ImageToMove] = []
        self._tables = TableWriter(out, options)
        self._numbers = itertools.count(1)
        self._objects: ObjectStorage | None = None
        self._index: ImageIndex | None = None
        self.num_added, self.has_attributions = 0, False

    def __enter__(self) -> GatherFolder:
        self._tables.require_writable()
        with ExitStack() as stack:
            opened = open_output_folder(self.out, self._options, stack)
            self._manifest, self._temp_folder = opened.manifest, opened.temp_folder
            self._storage, self._writer, self._folder = opened.storage, opened.writer, opened.manifest.parent
            self._objects = self._storage if isinstance(self._storage, ObjectStorage) else None
            stack.callback(lambda: self._writer.close())
            stack.callback(self._close_image_index)
            self._read_done_links(retry_unfinished=True)
            # while remote images are missing, and another run has changed the manifests
            while self._has_user_changes and self._objects and self._objects.refresh_manifests():
                self._read_done_links(retry_unfinished=True)
            if self._has_user_changes:
                self._record_moved_and_deleted_images()
                self._read_done_links(retry_unfinished=True)
            if not (self._is_merged or (self._objects and self._options.shard)):
                self._merge_manifests()
                self._read_done_links(retry_unfinished=True)
            stack.callback(self._close_manifest)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def _record_moved_and_deleted_images(self) -> None:
        """Record in the manifest which images the user has deleted, moved or put back since the last run."""
        keep, restore = self._options.keep_deleted, self._options.restore_deleted
        paths = find_manifests(self._folder)
        was_closed = all(read_commit_rows(path).is_at_end for path in paths)
        rows = find_moved_and_deleted_images(self._storage, paths, keep_deleted=keep, restore_deleted=restore)
        for row in list(rows):  # read the whole manifest before appending to it
            self._writer.append(row)
        if was_closed or self._objects:
            self._close_manifest()

    def _close_manifest(self) -> None:
        """Sync the images and append a commit row, so that later runs treat a missing image as deleted by the user."""
        if not self._objects:
            if read_commit_rows(self._manifest).is_at_end:
                return
            rows = read_rows_with_fsync_flags([self._manifest])
            self._storage.fsync(row.path for row, is_fsynced in rows if row.path and not is_fsynced)
        self._writer.append_commit_row(keep_duplicates=self._options.keep_duplicates)

    def claim_link(self, image_ref: ImageRef) -> bool:
        """Mark a link as started; return False if it was started or finished before, or is deferred."""
        key = hash_link(image_ref.label, image_ref.url)
        if self._moves_corrected and self._class_corrections.defer_if_needed(image_ref, key, is_done=key in self._done):
            return False
        is_refused = key in self._refused
        self._refused.discard(key)
        return is_refused or self._done.add(key)

    def resolve_deferred_links(self) -> list[ImageRef]:
        """Return the deferred links that are to be downloaded; those whose images `finish` moves are left out."""
        self._moves_corrected = False
        self._corrections, others = self._class_corrections.resolve_deferred(read_rows(self._find_manifests_to_merge()))
        return others

    def make_temp_path(self) -> Path:
        """Return a new path for an unfinished image."""
        return self._temp_folder / f"{next(self._numbers)}.part"

    async def record_download(
        self, image_ref: ImageRef, download: DownloadResult, inspection: ImageInfo | Rejection | None, temp_path: Path
    ) -> FetchResult:
        """Record a finished link and return its row; a valid image is stored unless it is a duplicate or placeholder.

        Raises:
            GatherError: the folder cannot be written.
        """
        key = hash_link(image_ref.label, image_ref.url)
        if isinstance(inspection, ImageInfo):
            index, keeps = self._open_image_index(), self._options.keep_duplicates
            row = make_image_row(image_ref, download, inspection, index, keep_duplicates=keeps)
        else:
            row = make_failure_row(image_ref, download, inspection)
        if row.status == "ok" and isinstance(inspection, ImageInfo):
            row = await self._store_image(image_ref, row, temp_path, inspection.suffix)
        elif inspection:
            temp_path.unlink(missing_ok=True)
        row = self._refusals.correct_row(key, row)
        self._writer.append(row)
        self.num_added += 1
        self._is_merged &= key not in self._retried and not self._objects
        self._mark_as_done(key, row)
        if row.sha256 and row.status != "ok":
            self._open_image_index().add(row)
        if row.reason is Reason.PLACEHOLDER and row.sha256:
            self._quarantine_placeholder(row.sha256)
        return row

    def finish(self) -> None:
        """Merge the manifests, move images of corrected classes, and write the tables and ATTRIBUTION.md if needed."""
        self._close_manifest()
        if self._objects and self._options.shard:
            return  # the run that merges the shards does all this
        if self._objects and not self._is_merged:
            self._objects.refresh_manifests()  # includes what other runs stored meanwhile
        if not self._is_merged:
            self._merge_manifests()
        elif self._has_retries:
            self._read_done_links(retry_unfinished=False)  # links that were not retried count as recorded
        if self._correct_refused_rows():
            self._merge_manifests()
        moved = self._move_images(self._corrections)
        self.tally.counts.update(moved=moved, unmoved=len(self._corrections) - moved)
        if self.has_attributions:
            path = write_attributions(self._folder)
            if self._objects:
                self._objects.upload_file(path)
        files, paths = self._storage, self._find_manifests_to_merge()
        self._tables.write(lambda: CurrentRows(files, paths).rows(), lambda row: self._read_image_size(row) is not None)

    def _move_images(self, corrections: list[ImageToMove]) -> int:
        if not corrections or not isinstance(self._storage, FileStorage | ShardStorage):
            return 0
        self._writer.close()
        moved = move_images(corrections, self._storage, self._manifest, self.paths_in_use, self.tally.classes)
        self._writer = ManifestWriter(self._manifest)
        self._read_done_links(retry_unfinished=False)
        return moved

    def _merge_manifests(self) -> None:
        """Merge the manifests into one and read it; retry if another run merged those of a remote folder meanwhile."""
        self._close_image_index()
        is_of_several = len(self._find_manifests_to_merge()) > 1
        self._writer.close()
        while not self._try_to_merge_manifests():
            assert self._objects
            self._objects.refresh_manifests()  # another run has merged the manifests meanwhile
        if not self._objects:
            self._writer = ManifestWriter(self._manifest)
        self._read_done_links(retry_unfinished=False)
        if is_of_several and isinstance(self._storage, FileStorage):
            self._move_images(find_misplaced_images(read_rows([self._manifest]), self.paths_in_use))

    def _try_to_merge_manifests(self) -> bool:
        """Merge the manifests; return False if another run has merged those of a remote folder meanwhile."""
        paths = self._find_manifests_to_merge()
        keeps = self._options.keep_duplicates or any(read_commit_rows(path).keeps_duplicates for path in paths)
        limit = self._options.limit
        is_stored = rewrite_manifests(self._storage, paths, self._manifest, keep_duplicates=keeps, limit=limit)
        if is_stored and len(paths) > 1:
            warn_about_unlisted_images(self._storage, self._manifest, self.out)
        return is_stored

    def _find_manifests_to_merge(self) -> list[Path]:
        """Return the manifests to merge: with --shard only those of this shard, otherwise all."""
        stem = self._manifest.stem if self._options.shard else ""
        return [path for path in find_manifests(self._folder) if path.stem.startswith(stem)]

    def _read_done_links(self, *, retry_unfinished: bool) -> None:
        """Read from manifests which links are done; with `retry_unfinished`, a link to retry does not count as done."""
        self._close_image_index()
        self._done, self._retried, self._class_corrections = UInt64Set(), UInt64Set(), ClassCorrections()
        self._has_retries = self._has_user_changes = False
        self.tally = ResultTally()
        paths = self._find_manifests_to_merge()
        self._is_merged = len(paths) < 2 if self._objects else paths in ([], [self._manifest])
        self._is_merged &= not find_manifests(self._folder, already_merged=True)
        placeholders: set[str] = set()
        self._refusals, self.paths_in_use = ConsecutiveRefusals(), PathsInUse()
        for row in read_rows(paths):
            key = hash_link(row.label, row.url)
            check_same_settings(row, self._options, self.out)
            self._refusals.add_row(key, row)
            self._is_merged &= not (key in self._done or key in self._retried)
            self._retry_or_count_row(key, row, retry_unfinished=retry_unfinished)
            if row.reason is Reason.PLACEHOLDER and row.sha256:
                placeholders.add(row.sha256)
        self._refused = self._refusals.find_refused_keys() if retry_unfinished and not self._options.no_retry else set()
        self._has_retries |= bool(self._refused)
        for key in self._refused:
            self._retried.add(key)
        self._is_merged &= not any(
            row.sha256 in placeholders and row.status == "ok" and self._storage.size(row.path or "") is not None
            for row in (read_rows(paths) if placeholders else ())
        )
        if self._options.shard:
            self._read_other_manifests(paths, retry_unfinished=retry_unfinished)

    def _correct_refused_rows(self) -> bool:
        """Append corrected rows for links that are recorded as final too early; return whether there are any."""
        paths = self._find_manifests_to_merge()
        rows = self._refusals.correct_earlier_rows(lambda: CurrentRows(self._storage, paths).rows())
        for row in rows:
            self._writer.append(row)
        if rows:
            self._close_manifest()
        return bool(rows)

    def _read_other_manifests(self, own_manifests: list[Path], *, retry_unfinished: bool) -> None:
        """Read which of this shard's links are done in other manifests. (Duplicates in them are found by the merge.)"""
        others = (path for path in reversed(find_manifests(self._folder)) if path not in own_manifests)
        for row in read_rows(others):
            key = hash_link(row.label, row.url)
            if self._partition.is_in_shard(row.url) and key not in self._done:
                self._retry_or_count_row(key, row, retry_unfinished=retry_unfinished)

    def _retry_or_count_row(self, key: int, row: FetchResult, *, retry_unfinished: bool) -> None:
        """Mark the link of a row (with hash `key`) for retry, or as done and counted (see `needs_retry`)."""
        size = self._read_image_size(row)
        if needs_retry(row, self._options, has_image=size is not None, retry_unfinished=retry_unfinished):
            self._retried.add(key)
            self._has_retries = True
        else:
            self._mark_as_done(key, row)
            if self._moves_corrected:
                self._class_corrections.add_row(key, row)
            self.tally.counts["changed"] += size is not None and self._storage.is_edited(row, size)

    def _read_image_size(self, row: FetchResult) -> int | None:
        """Return the size in bytes of a row's image, or None; set `_has_user_changes` if it was deleted or put back."""
        if row.status != "ok" or not row.path:
            return None
        size = self._storage.size(row.path)
        self._has_user_changes |= bool(row.removed) == (size is not None) or size == 0
        return None if row.removed else size

    def _mark_as_done(self, key: int, row: FetchResult) -> None:
        self._done.add(key)
        self.tally.add(row)
        if row.status == "ok" and row.path:
            self.paths_in_use.reserve(row.label, row.path)
        self.has_attributions |= "attribution" in row.source

    def _open_image_index(self) -> ImageIndex:
        """Return the image index, which is read when the first new image arrives."""
        if self._index is None:
            self._index = ImageIndex()
            for row in read_rows(self._find_manifests_to_merge()):
                has_image = self._read_image_size(row) is not None
                if row.sha256 and not needs_retry(row, self._options, has_image=has_image, retry_unfinished=True):
                    self._index.add(row)
        return self._index

    def _close_image_index(self) -> None:
        if self._index:
            self._index.close()
        self._index = None

    async def _store_image(self, image_ref: ImageRef, row: FetchResult, temp_path: Path, suffix: str) -> FetchResult:
        """Store the image under the first name that is free; return the row with its path."""
        index, sha256, stem = self._open_image_index(), row.sha256 or "", self.paths_in_use.make_path_stem(image_ref)
        is_new = not index.find_copies(sha256).num_links
        if isinstance(self._storage, ShardStorage):
            stem, suffix = make_sample_key(stem), IMAGE_SUFFIX
        elif self._options.subfolders:
            stem = insert_subfolder(stem, self.tally.classes[image_ref.label] * (self._options.shard or (1, 1))[1])
        digits = f"{hash_link(image_ref.label, image_ref.url):016x}"
        is_alone = not (self._options.shard or self._objects)
        for number, path in enumerate(generate_paths(stem, suffix, digits, is_only_writer=is_alone)):
            if not self.paths_in_use.reserve(image_ref.label, path):
                continue  # taken, except for case
            named = replace(row, path=path)
            if self._objects and number == 0:
                index.add(named)
            placed = await self._storage.store(temp_path, named)
            if not placed and not ((is_new or self._objects) and self._storage.sha256(path) == sha256):
                continue  # taken, and not by this image in a run that was killed before it wrote the row
            if not placed:
                temp_path.unlink(missing_ok=True)
            if placed and placed != path:
                named = replace(row, path=placed)
            if not self._objects:
                index.add(named)
            elif number:
                index.update_copies(sha256, replace(index.find_copies(sha256), path=path))
            return named
        raise AssertionError("unreachable: there is always a next name")

    def _quarantine_placeholder(self, sha256: str) -> None:
        """Quarantine an image that is a host's placeholder; its rows are corrected when the manifests are merged."""
        copies = self._open_image_index().find_copies(sha256)
        if copies.path and self._storage.quarantine_placeholder(copies.path, sha256):
            self.tally.classes[copies.label] -= 1
            self._open_image_index().update_copies(sha256, replace(copies, path=None))
        self._is_merged &= copies.num_links <= 1
