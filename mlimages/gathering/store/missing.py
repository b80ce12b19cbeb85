"""Detect images that were deleted or moved since they were gathered.

1. Each row is checked for its image; if that is missing, steps 2 and 3 find out why.
2. If a file that no row lists has the same bytes, the image was moved, and its row gets the new path.
3. Otherwise, if a commit row records that the image was on disk, it counts as deleted by the user.
4. If many images of a folder would count as deleted, the run stops with an error instead: a disk may not be mounted, or
   a copy may be incomplete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mlimages.core import FetchResult, GatherError, pluralize
from mlimages.gathering.store.file_storage import ImageStorage, make_quarantine_path
from mlimages.gathering.store.manifest import read_rows, read_rows_with_fsync_flags
from mlimages.gathering.store.merge_manifests import CurrentRows


def find_moved_and_deleted_images(
    storage: ImageStorage, manifests: list[Path], *, keep_deleted: bool, restore_deleted: bool
) -> Iterator[FetchResult]:
    """Yield new rows for images that the user has moved, deleted or put back since their rows were written.

    Args:
        storage: the stored images.
        manifests: the manifests in order.
        keep_deleted: treat images as deleted on purpose, however many are missing.
        restore_deleted: do not record missing images as deleted, so that the run downloads them again.

    Raises:
        GatherError: so many images are missing that they may not have been deleted on purpose.
    """
    current = CurrentRows(storage, manifests)
    totals: Counter[str] = Counter()
    missing: dict[str, tuple[str, int]] = {}  # SHA-256 and size in bytes
    fsynced: set[str] = set()
    returned: set[str] = set()
    for at, (row, is_fsynced) in enumerate(read_rows_with_fsync_flags(manifests)):
        if row.status != "ok" or not row.path or not current.is_current(at, row):
            continue
        size = storage.size(row.path)
        if row.removed:
            if size == row.bytes and storage.is_unchanged(row.path, row.sha256 or ""):
                returned.add(row.path)
            continue
        if size == 0 and not is_fsynced:
            storage.remove_empty_file(row.path)
            size = None
        totals[_get_parent_folder(row.path)] += 1
        if (
            size is None
            and row.sha256
            and row.bytes is not None
            and storage.size(make_quarantine_path(row.path, row.sha256)) is None
        ):
            missing[row.path] = row.sha256, row.bytes
            if is_fsynced:
                fsynced.add(row.path)
    moved = _find_moved_images(storage, manifests, missing) if missing else {}
    deleted = set() if restore_deleted else fsynced - moved.keys()
    if not keep_deleted:
        check_missing_count(Counter(map(_get_parent_folder, deleted)), totals)
    for row in current.rows() if moved or deleted or returned else ():
        if row.status != "ok" or not row.path:
            continue
        if row.removed and row.path in returned:
            yield replace(row, removed=None)
        elif not row.removed and row.path in moved:
            yield replace(row, path=moved[row.path])
        elif not row.removed and row.path in deleted:
            yield replace(row, removed="user")


def check_missing_count(missing_counts: Mapping[str, int], image_counts: Mapping[str, int]) -> None:
    """Raise an error if all images of a folder are missing, or at least two images and more than a tenth.

    Args:
        missing_counts: number of missing images, by folder.
        image_counts: number of recorded images, by folder.

    Raises:
        GatherError: too many images are missing; the message gives the counts by folder, and names the options
            `--keep-deleted` and `--restore-deleted`.
    """
    many = {
        folder: count
        for folder, count in sorted(missing_counts.items())
        if count == image_counts[folder] or count > max(1, image_counts[folder] / 10)
    }
    if many:
        shown = ", ".join(f"{count} of {image_counts[folder]} in {folder}" for folder, count in list(many.items())[:3])
        more = f", and others in {pluralize(len(many) - 3, 'more folder')}" if len(many) > 3 else ""
        raise GatherError(
            f"{pluralize(sum(many.values()), 'gathered image')} missing: {shown}{more}. Is the disk mounted, and was "
            "the folder copied completely? If you deleted them, use --keep-deleted; to download them again, use "
            "--restore-deleted"
        )


def _find_moved_images(
    storage: ImageStorage, manifests: list[Path], missing: Mapping[str, tuple[str, int]]
) -> dict[str, str]:
    """Return the new path of each image that was moved, by its old path.

    A missing image was moved if a file that no row lists has the same bytes.
    """
    sizes = {size for _, size in missing.values()}
    strays = {path for path in storage.iter_file_paths() if storage.size(path) in sizes}
    strays -= {row.path for row in read_rows(manifests) if row.path in strays}
    lie_at: dict[str | None, list[str]] = {}
    for path in sorted(strays):
        lie_at.setdefault(storage.sha256(path), []).append(path)
    return {path: lie_at[sha256].pop() for path, (sha256, _) in missing.items() if lie_at.get(sha256)}


def _get_parent_folder(path: str) -> str:
    return str(PurePosixPath(path).parent)
