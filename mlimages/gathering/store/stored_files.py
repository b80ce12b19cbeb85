"""Files of a gathered folder: whether they are still ours, and how they leave it.

Only a file whose bytes are those of its row is ever removed or moved, never through a symbolic link.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

QUARANTINE = ".placeholders"
"""Folder of a host's images for "gone", one copy each; hidden, so that no label file takes them."""


class StoredFiles:
    """The files of one gathered folder.

    Args:
        has_holes: files that lie at an address are empty space of the same size here.
    """

    def __init__(self, folder: Path, *, has_holes: bool = False) -> None:
        self._folder = folder
        self._has_holes = has_holes

    def size(self, path: str) -> int | None:
        """Bytes of the file at `path`; None where there is none."""
        try:
            return os.stat(f"{self._folder}/{path}").st_size  # noqa: PTH116  # pathlib would cost more than the call
        except OSError:
            return None

    def is_unchanged(self, path: str, sha256: str) -> bool:
        """Whether the file at `path` is there, under no symbolic link, with these bytes."""
        data = self._read(path)
        if self._has_holes and data and not data.strip(b"\0"):
            return True
        return data is not None and hashlib.sha256(data).hexdigest() == sha256

    def sha256(self, path: str) -> str | None:
        """Hash of the file at `path`; None where there is none, or only behind a symbolic link."""
        data = self._read(path)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def remove_empty(self, path: str) -> None:
        """Remove a file without a byte: what is left of an image when the power fails."""
        if self._read(path) == b"":
            (self._folder / path).unlink()

    def remove(self, path: str, sha256: str) -> None:
        """Remove the file at `path` if it is unchanged."""
        if self.is_unchanged(path, sha256):
            (self._folder / path).unlink()

    def put_aside(self, path: str, sha256: str) -> str | None:
        """Move the file at `path` into the quarantine, if it is unchanged; where it lies now, if it does."""
        aside = aside_path(path, sha256)
        if self.is_unchanged(path, sha256) and not (self._folder / QUARANTINE).is_symlink():
            (self._folder / QUARANTINE).mkdir(exist_ok=True)
            (self._folder / path).replace(self._folder / aside)
        return aside if self.is_unchanged(aside, sha256) else None

    def is_aside(self, path: str, sha256: str) -> bool:
        """Whether the quarantine has what lay at `path`."""
        return self.size(aside_path(path, sha256)) is not None

    def sync(self, paths: Iterable[str]) -> None:
        """Wait until the files at `paths` and the names in their folders are on the disk."""
        syncfs = getattr(ctypes.CDLL(None), "syncfs", None) if os.name == "posix" else None
        folders = {str(self._folder)}
        for path in paths:
            folders.add(f"{self._folder}/{path}".rpartition("/")[0])
            if not syncfs:
                _sync(f"{self._folder}/{path}", os.fsync)
        for folder in folders:
            _sync(folder, syncfs or os.fsync)  # a call for each of 50,000 files took 130 us of CPU time an image

    def _read(self, path: str) -> bytes | None:
        if self._is_linked(path):
            return None
        try:
            return (self._folder / path).read_bytes()
        except OSError:
            return None

    def _is_linked(self, path: str) -> bool:
        parts = PurePosixPath(path).parts
        return any((self._folder / PurePosixPath(*parts[:count])).is_symlink() for count in range(1, len(parts) + 1))


def aside_path(path: str, sha256: str) -> str:
    """Where the quarantine keeps the file at `path`."""
    return f"{QUARANTINE}/{sha256[:16]}{PurePosixPath(path).suffix}"


def _sync(path: str, sync: Callable[[int], object]) -> None:
    with suppress(OSError):  # deleted meanwhile, or a folder where the system does not sync these (Windows)
        handle = os.open(path, os.O_RDONLY)
        try:
            sync(handle)
        finally:
            os.close(handle)
