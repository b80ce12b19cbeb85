"""Images that were deleted or moved since they were gathered.

1. Rows whose image is missing are counted by folder.
2. Files that no row names are compared with them by size, then by hash: an image that was moved stays where it is.
3. Of what is still missing, rows of closed runs were deleted by somebody: their files had been on the disk.
4. Where much is missing, a disk may not be mounted, or a copy be incomplete: the run stops and asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mlimages.core import FetchResult, GatherError, counted
from mlimages.gathering.store.manifest import read_closed_rows, read_rows
from mlimages.gathering.store.merge_manifests import CurrentRows
from mlimages.gathering.store.stored_files import Files, aside_path


@dataclass(frozen=True, slots=True)
class _Missing:
    path: str
    sha256: str
    bytes: int
    is_closed: bool


def corrected_rows(files: Files, manifests: list[Path], *, keep: bool, restore: bool) -> Iterator[FetchResult]:
    """New rows for images that were moved, deleted or brought back since their rows were written.

    Args:
        keep: however many are missing, they were deleted on purpose. restore: none was; they get no new row.

    Raises:
        GatherError: so many are missing that they may not have been deleted on purpose.
    """
    current = CurrentRows(files, manifests)
    totals: Counter[str] = Counter()
    missing: dict[str, _Missing] = {}
    returned: set[str] = set()
    for at, (row, is_closed) in enumerate(read_closed_rows(manifests)):
        if row.status != "ok" or not row.path or not current.counts(at, row):
            continue
        size = files.size(row.path)
        if row.removed:
            if size == row.bytes and files.is_unchanged(row.path, row.sha256 or ""):
                returned.add(row.path)
            continue
        if size == 0 and not is_closed:
            files.remove_empty(row.path)
            size = None
        totals[_folder_of(row.path)] += 1
        if (
            size is None
            and row.sha256
            and row.bytes is not None
            and files.size(aside_path(row.path, row.sha256)) is None
        ):
            missing[row.path] = _Missing(row.path, row.sha256, row.bytes, is_closed)
    moved = _find_moved(files, manifests, missing) if missing else {}
    deleted = {path for path, image in missing.items() if image.is_closed and path not in moved and not restore}
    if not keep:
        demand_few(Counter(map(_folder_of, deleted)), totals)
    for at, row in enumerate(read_rows(manifests) if moved or deleted or returned else ()):
        if row.status != "ok" or not row.path or not current.counts(at, row):
            continue
        if row.removed:
            if row.path in returned:
                yield replace(row, removed=None)
        elif row.path in moved:
            yield replace(row, path=moved[row.path])
        elif row.path in deleted:
            yield replace(row, removed="user")


def demand_few(deleted: Mapping[str, int], totals: Mapping[str, int]) -> None:
    """Stop where a whole folder or more than a tenth of one is missing; one image of several may always be.

    Raises:
        GatherError: it names the folders, the counts and the two ways to go on.
    """
    many = {
        folder: count
        for folder, count in sorted(deleted.items())
        if count == totals[folder] or count > max(1, totals[folder] / 10)
    }
    if many:
        shown = ", ".join(f"{count} of {totals[folder]} in {folder}" for folder, count in list(many.items())[:3])
        more = f" and {counted(len(many) - 3, 'more folder')}" if len(many) > 3 else ""
        raise GatherError(
            f"{counted(sum(many.values()), 'gathered image')} missing: {shown}{more}. Is the disk mounted, the copy "
            "complete? --keep-deleted leaves them deleted, --restore-deleted downloads them again"
        )


def _find_moved(files: Files, manifests: list[Path], missing: Mapping[str, _Missing]) -> dict[str, str]:
    """Where missing images lie now: among files that no row names, one with the same bytes."""
    sizes = {image.bytes for image in missing.values()}
    strays = {path for path in files.walk() if files.size(path) in sizes}
    strays -= {row.path for row in read_rows(manifests) if row.path in strays}
    lie_at: dict[str | None, list[str]] = {}
    for path in sorted(strays):
        lie_at.setdefault(files.sha256(path), []).append(path)
    return {image.path: lie_at[image.sha256].pop() for image in missing.values() if lie_at.get(image.sha256)}


def _folder_of(path: str) -> str:
    return str(PurePosixPath(path).parent)
