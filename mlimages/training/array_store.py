"""On-disk cache of arrays by key: append-only, memory-mapped, safe for concurrent processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mlimages.core import ImageProperty, cache_dir
from mlimages.images import PIXELS_VERSION

KEY_BYTES = 32

CACHE_FOLDER_NAMES = ("pixels", "features", "probe")
"""Names of the folders in the cache directory that share one size limit."""

Rows = NDArray[Any]


class ArrayStore:
    """On-disk cache of arrays of one shape; each array is a row, found by its key of 32 bytes.

    Each writer appends to its own pair of files, first to `NAME.rows`, then to `NAME.keys`, so that no lock is needed.
    If a writer is killed, the rows with a complete key remain valid. The modification time of `NAME.keys` shows when
    the rows were last used.

    Args:
        folder: created when the first row is written.
        shape: shape of one row.
        dtype: data type of the rows.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self._own = folder / uuid4().hex
        self._parts: dict[str, Rows] = {}
        self._index: dict[bytes, tuple[str, int]] = {}
        self._used: set[str] = set()
        self.refresh_index()

    def refresh_index(self) -> None:
        """Index the rows that any process has written since the last call, so that they can be read."""
        for keys_file in sorted(self.folder.glob("*.keys")):
            name, rows_file = keys_file.stem, keys_file.with_suffix(".rows")
            known = len(self._parts.get(name, ()))
            with suppress(FileNotFoundError):  # another process may evict the file
                keys = keys_file.read_bytes()
                num_rows = min(len(keys) // KEY_BYTES, rows_file.stat().st_size // self.row_bytes)
                if num_rows > known:
                    self._parts[name] = np.memmap(rows_file, self.dtype, "r", shape=(num_rows, *self.shape))
                    for row in range(known, num_rows):
                        self._index.setdefault(keys[row * KEY_BYTES : (row + 1) * KEY_BYTES], (name, row))

    def append(self, keys: Sequence[bytes], rows: Rows) -> None:
        """Write rows `(N, *shape)`, one for each key of 32 bytes; they can be read after `refresh_index`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._own.with_suffix(".rows").open("ab") as out:
            out.write(np.ascontiguousarray(rows, self.dtype).data)
        with self._own.with_suffix(".keys").open("ab") as out:
            out.write(b"".join(keys))

    def __contains__(self, key: bytes) -> bool:
        if key not in self._index:
            return False
        self._touch_file(self._index[key][0])
        return True

    def read_rows(self, keys: Sequence[bytes]) -> Rows:
        """Return the rows of `keys`, in their order, `(N, *shape)`.

        Raises:
            KeyError: a key has no row.
        """
        indices = [self._index[key] for key in keys]
        names = {name for name, _ in indices}
        for name in names:
            self._touch_file(name)
        if len(names) == 1:
            gathered: Rows = self._parts[indices[0][0]][[row for _, row in indices]]
            return gathered
        out = np.empty((len(keys), *self.shape), self.dtype)
        for index, (name, row) in enumerate(indices):
            out[index] = self._parts[name][row]
        return out

    def _touch_file(self, file_name: str) -> None:
        """Set the modification time of `FILE_NAME.keys` to now, unless this object has already done so."""
        if file_name not in self._used:
            self._used.add(file_name)
            with suppress(OSError):
                os.utime(self.folder / f"{file_name}.keys")

    def fits_in_cache(self, num_rows: int, max_bytes: int) -> bool:
        """Return whether this many rows fit into half of the cache, whose maximum size is `max_bytes`."""
        return num_rows * self.row_bytes <= max_bytes / 2

    def evict_files(self, max_bytes: int, *, reserved_bytes: int = 0) -> None:
        """Remove the least recently used files of the cache until it fits into `max_bytes`.

        The cache consists of the files in all CACHE_FOLDER_NAMES. Those that this store has used or written are kept.

        Args:
            max_bytes: maximum size of the cache.
            reserved_bytes: part of `max_bytes` to keep free for the rows that are written next.
        """
        kept = {self.folder / name for name in (*self._used, self._own.name)}
        parts: list[tuple[float, int, Path]] = []
        for path in (path for name in CACHE_FOLDER_NAMES for path in cache_dir(name).glob("*/*.keys")):
            with suppress(FileNotFoundError):  # another process may have removed it
                used, size = path.stat(), path.with_suffix(".rows").stat().st_size
                parts.append((used.st_mtime, used.st_size + size, path.with_suffix("")))
        total = sum(size for _, size, _ in parts) + reserved_bytes
        for _, size, part in sorted(parts):
            if total > max_bytes and part not in kept:
                with suppress(OSError):  # Windows does not remove files that another process has open
                    part.with_suffix(".rows").unlink()
                    part.with_suffix(".keys").unlink()
                    total -= size


def open_pixel_store(image_property: ImageProperty) -> ArrayStore:
    """Open the cache of pixels for images of this size, channels and resize method; all runs share it."""
    name = hashlib.sha256(
        f"v{PIXELS_VERSION} {json.dumps(asdict(image_property), sort_keys=True)}".encode()
    ).hexdigest()[:32]
    return ArrayStore(
        cache_dir("pixels") / name, (image_property.height, image_property.width, image_property.channels), np.uint8
    )
