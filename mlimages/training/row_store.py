"""A cache of array rows on disk, by key: append-only, memory-mapped, safe for concurrent processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import DTypeLike, NDArray

KEY_BYTES = 32

Rows = NDArray[Any]


class RowStore:
    """A folder of rows of one shape, each under a key of 32 bytes.

    Each writer appends to its own pair of files, first `X.rows`, then `X.keys`: no lock is needed, and after a kill the
    rows up to the last complete key are valid.

    Args:
        folder: created if missing.
        shape: of one row.
        dtype: of the rows.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self._own = folder / uuid4().hex
        self._parts: dict[str, Rows] = {}
        self._index: dict[bytes, tuple[str, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # make_room removes the least recently used folders first
        self.refresh()

    def refresh(self) -> None:
        """Make the rows readable that any process has written since."""
        for keys_file in sorted(self.folder.glob("*.keys")):
            name, keys = keys_file.stem, keys_file.read_bytes()
            known = len(self._parts.get(name, ()))
            count = min(len(keys) // KEY_BYTES, keys_file.with_suffix(".rows").stat().st_size // self.row_bytes)
            if count > known:
                self._parts[name] = np.memmap(
                    keys_file.with_suffix(".rows"), self.dtype, "r", shape=(count, *self.shape)
                )
                for row in range(known, count):
                    self._index.setdefault(keys[row * KEY_BYTES : (row + 1) * KEY_BYTES], (name, row))

    def append(self, keys: Sequence[bytes], rows: Rows) -> None:
        """Write rows `(N, *shape)`; `refresh` makes them readable."""
        with self._own.with_suffix(".rows").open("ab") as out:
            out.write(np.ascontiguousarray(rows, self.dtype).data)
        with self._own.with_suffix(".keys").open("ab") as out:
            out.write(b"".join(keys))

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def rows(self, keys: Sequence[bytes]) -> Rows:
        """The rows of `keys`, in their order: `(N, *shape)`.

        Raises:
            KeyError: there is no row under a key.
        """
        indices = [self._index[key] for key in keys]
        if len({name for name, _ in indices}) == 1:
            gathered: Rows = self._parts[indices[0][0]][[row for _, row in indices]]
            return gathered
        out = np.empty((len(keys), *self.shape), self.dtype)
        for index, (name, row) in enumerate(indices):
            out[index] = self._parts[name][row]
        return out


def make_room(root: Path, *, needed: int, budget: int, keep: Path) -> None:
    """Remove the least recently used folders of `root` until `needed` more bytes fit into `budget`; never `keep`."""
    used: dict[Path, tuple[float, int]] = {}
    for folder in root.iterdir():
        with suppress(FileNotFoundError):  # another process may remove it too
            used[folder] = (folder.stat().st_mtime, sum(file.stat().st_size for file in folder.iterdir()))
    total = sum(size for _, size in used.values()) + needed
    for folder in sorted(used, key=lambda folder: used[folder]):
        if total > budget and folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            total -= used[folder][1]
