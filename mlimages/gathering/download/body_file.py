"""A body on its way to a file."""

from __future__ import annotations

from pathlib import Path

from mlimages.core import GatherError

_MEMORY_BYTES = 256 * 1024


class Spool:
    """Keeps a small body in memory until it is complete, so that a failed link touches no disk.

    Every method raises `GatherError` if the file cannot be written: a full disk ends the run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chunks: list[bytes] = []
        self._flushed = 0
        self._mode = "wb"
        self.total = 0

    def write(self, data: bytes) -> None:
        """Add `data`."""
        self._chunks.append(data)
        self.total += len(data)
        if self.total - self._flushed > _MEMORY_BYTES:
            self._flush()

    def finish(self) -> None:
        """Put what is still in memory into the file."""
        self._flush()

    def _flush(self) -> None:
        try:
            with open(self._path, self._mode, buffering=0) as file:  # noqa: PTH123 - pathlib costs as much as the write
                left = memoryview(b"".join(self._chunks))  # most bodies come as one chunk, which is not copied
                while left:  # a disk that is almost full takes a part
                    left = left[file.write(left) :]
        except OSError as error:
            raise GatherError(f"{self._path.parent} cannot be written: {error.strerror}") from error
        self._chunks.clear()
        self._flushed = self.total
        self._mode = "ab"
