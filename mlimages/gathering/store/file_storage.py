"""The protocol of all storages of gathered images, and the storage in local files.

A file is removed or moved only if it is empty or has the SHA-256 of its row in the manifest, so that no file that the
user has changed is lost, and never through a symbolic link.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import ClassVar, Protocol

from mlimages.core import FetchResult, GatherError

QUARANTINE_NAME = ".placeholders"
"""Hidden folder to which placeholders are moved: images that a host returns in place of removed ones.

It has one copy of each placeholder. As it is hidden, its images do not become part of a dataset.
"""

_MAX_STORAGE_DELAY_S = 0.5
"""Maximum seconds from the end of a download until its file is written; a file modified later may have been edited."""


class ImageStorage(Protocol):
    """Storage for gathered images, keyed by relative path: local files, tar shards or remote objects.

    Attributes:
        allows_concurrent_runs: several runs may write to this storage at the same time.
    """

    allows_concurrent_runs: ClassVar[bool] = False

    async def store(self, temp_path: Path, row: FetchResult) -> str | None:
        """Move a downloaded image from `temp_path` to `row.path`; return its new path, or None if that path is taken.

        The new path is relative to the gathered folder: `row.path`; in tar shards, `images-00000.tar/` and `row.path`.

        Raises:
            GatherError: the file cannot be written.
        """

    def size(self, path: str) -> int | None:
        """Return the size in bytes of the file at `path`; None if there is no such file."""

    def sha256(self, path: str) -> str | None:
        """Return the SHA-256 of the file at `path`; None if it is missing or reached by a symbolic link."""

    def is_unchanged(self, path: str, sha256: str) -> bool:
        """Return whether the file at `path` has this SHA-256; False if it is missing or reached by a symbolic link."""
        return self.sha256(path) == sha256

    def is_edited(self, row: FetchResult, current_size: int) -> bool:
        """Return whether the image of a row was edited since it was stored; it now has `current_size` bytes.

        Edits that do not change the size are found only in local files.
        """
        return current_size != row.bytes

    def remove_empty_file(self, path: str) -> None:
        """Remove an empty file that a power failure has left; shards and remote folders have no such files."""
        return

    def remove(self, path: str, sha256: str) -> None:
        """Remove the file at `path` if it has this SHA-256."""

    def quarantine_placeholder(self, path: str, sha256: str) -> str | None:
        """Move the placeholder image at `path` to the quarantine folder if it has this SHA-256; return its path there.

        The path is returned whether this call or an earlier one has moved the image. If the image is not there,
        None is returned.
        """

    def fsync(self, paths: Iterable[str]) -> None:
        """Wait until the files at `paths` and their directory entries are on disk; remote files always are."""
        return

    def iter_file_paths(self) -> Iterator[str]:
        """Yield the paths of all files except those in hidden folders."""

    def publish_manifest(self, path: Path) -> bool:
        """Make the new `manifest.jsonl` at `path` visible to other runs; return whether this succeeded.

        It fails, and the old `manifest.jsonl` is kept, if another run has changed the old one since this run read it.
        """
        return True

    def remove_manifest(self, path: Path) -> None:
        """Remove a manifest whose rows are in `manifest.jsonl`."""
        path.unlink()


class FileStorage(ImageStorage):
    """The image files of a gathered folder on a local disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def store(self, temp_path: Path, row: FetchResult) -> str | None:
        target = f"{self._folder}/{row.path}"  # strings, since pathlib is slower than the system calls
        if os.path.lexists(target):
            return None
        try:
            try:
                os.replace(temp_path, target)  # noqa: PTH105
            except FileNotFoundError:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                temp_path.replace(target)
        except OSError as error:
            raise GatherError(f"{target} cannot be written: {error.strerror}") from error
        return row.path

    def size(self, path: str) -> int | None:
        try:
            return os.stat(f"{self._folder}/{path}").st_size  # noqa: PTH116  # pathlib is slower than the call
        except OSError:
            return None

    def is_edited(self, row: FetchResult, current_size: int) -> bool:
        if current_size != row.bytes:
            return True
        is_newer = os.stat(f"{self._folder}/{row.path}").st_mtime > _compute_latest_mtime(row)  # noqa: PTH116  # as in `size`
        return is_newer and self.sha256(row.path or "") not in (None, row.sha256)

    def sha256(self, path: str) -> str | None:
        data = self._read(path)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def remove_empty_file(self, path: str) -> None:
        if self._read(path) == b"":
            (self._folder / path).unlink()

    def remove(self, path: str, sha256: str) -> None:
        if self.is_unchanged(path, sha256):
            (self._folder / path).unlink()

    def quarantine_placeholder(self, path: str, sha256: str) -> str | None:
        aside = make_quarantine_path(path, sha256)
        if self.is_unchanged(path, sha256) and not (self._folder / QUARANTINE_NAME).is_symlink():
            (self._folder / QUARANTINE_NAME).mkdir(exist_ok=True)
            (self._folder / path).replace(self._folder / aside)
        return aside if self.is_unchanged(aside, sha256) else None

    def move(self, path: str, sha256: str, new_paths: Iterable[str]) -> str | None:
        """Move the file at `path` to the first free path in `new_paths`; return that path, or None if not moved.

        The file is not moved if its content has changed, the new path contains a symbolic link, or renaming fails.
        """
        if not self.is_unchanged(path, sha256):
            return None
        name = next(name for name in new_paths if not os.path.lexists(self._folder / name))
        if self._contains_symlink(name):
            return None
        try:
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / path).rename(self._folder / name)
        except OSError:  # on another file system, or not permitted
            return None
        return name

    def fsync(self, paths: Iterable[str]) -> None:
        syncfs = getattr(ctypes.CDLL(None), "syncfs", None) if os.name == "posix" else None
        folders = {str(self._folder)}
        for path in paths:
            folders.add(f"{self._folder}/{path}".rpartition("/")[0])
            if not syncfs:
                fsync_path(f"{self._folder}/{path}", os.fsync)
        for folder in folders:
            fsync_path(folder, syncfs or os.fsync)  # a call for each of 50,000 files took 130 us of CPU time per image

    def iter_file_paths(self) -> Iterator[str]:
        for folder, folders, names in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inner = Path(folder).relative_to(self._folder)
            yield from ((inner / name).as_posix() for name in names)

    def _read(self, path: str) -> bytes | None:
        """Return the content of a file; None if it is missing or reached by a symbolic link."""
        if self._contains_symlink(path):
            return None
        try:
            return (self._folder / path).read_bytes()
        except OSError:
            return None

    def _contains_symlink(self, path: str) -> bool:
        parts = PurePosixPath(path).parts
        return any((self._folder / PurePosixPath(*parts[:count])).is_symlink() for count in range(1, len(parts) + 1))


def make_quarantine_path(path: str, sha256: str) -> str:
    """Return the path to which the image at `path` is moved if it is a placeholder (see `QUARANTINE_NAME`)."""
    return f"{QUARANTINE_NAME}/{sha256[:16]}{PurePosixPath(path).suffix}"


def fsync_path(path: str, sync_function: Callable[[int], object]) -> None:
    """Call `sync_function` with the descriptor of the file or folder at `path`; an OSError is ignored."""
    with suppress(OSError):  # deleted meanwhile, or a folder, which Windows does not sync
        handle = os.open(path, os.O_RDONLY)
        try:
            sync_function(handle)
        finally:
            os.close(handle)


def _compute_latest_mtime(row: FetchResult) -> float:
    """Return the latest modification time that a row's file can have if it was not edited, in seconds since the epoch.

    It is 0 if `fetched_at` of the row is invalid: the file then counts as modified later, so its content is compared.
    """
    try:
        return datetime.fromisoformat(row.fetched_at).timestamp() + row.elapsed_s + _MAX_STORAGE_DELAY_S
    except ValueError:
        return 0.0
