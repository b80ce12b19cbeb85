"""A body on its way to a file: decompressed, kept in memory while it is small, given up where it stalls."""

from __future__ import annotations

import zlib
from pathlib import Path

from mlimages.core import GatherError

_MEMORY_BYTES = 256 * 1024
_LEAST_BYTES_S = 1024
"""A body that comes more slowly than this, over a whole time-out, is given up."""

_NO_ENCODINGS = ("", "identity", "none", "utf-8", "binary")
"""What servers send as Content-Encoding of a body that is not encoded."""


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


class Pace:
    """Judges a transfer by its bytes in each window of this many seconds; the caller gives the time."""

    __slots__ = ("_bytes", "_since", "_window_s")

    def __init__(self, window_s: float, now: float) -> None:
        self._window_s = window_s
        self._since = now
        self._bytes = 0

    def is_stalled(self, now: float, total_bytes: int) -> bool:
        """Whether the window that ends now brought less than 1 KB/s; `total_bytes` came since the beginning."""
        elapsed = now - self._since
        if elapsed < self._window_s:
            return False
        if total_bytes - self._bytes < _LEAST_BYTES_S * elapsed:
            return True
        self._since, self._bytes = now, total_bytes
        return False


class Inflater:
    """Decompresses gzip, zlib and, where a server means by "deflate" what zlib packs, raw deflate; perhaps twice.

    zlib limits what it gives to the length asked for.
    """

    def __init__(self, encodings: list[str]) -> None:
        self._layers = [zlib.decompressobj(wbits=47) for _ in encodings]  # gzip or zlib, by its header
        self._may_be_raw = encodings == ["deflate"]

    def decompress(self, data: bytes, most: int) -> bytes:
        """What `data` holds, at most this many bytes of it."""
        for number, layer in enumerate(self._layers):
            try:
                data = layer.decompress(data, most)
            except zlib.error:
                if not self._may_be_raw:
                    raise
                self._layers[number] = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
                data = self._layers[number].decompress(data, most)
            self._may_be_raw = False
        return data

    @property
    def eof(self) -> bool:
        """Whether the end was reached."""
        return all(layer.eof for layer in self._layers)


def inflater(encoding: str) -> Inflater | None:
    """A decoder for a body that came compressed though we did not ask; None where it did not.

    Raises:
        ValueError: an encoding that is not known.
    """
    encodings = [name for name in (part.strip().lower() for part in encoding.split(",")) if name not in _NO_ENCODINGS]
    if len(encodings) > 2 or not set(encodings) <= {"gzip", "x-gzip", "deflate"}:
        raise ValueError(encoding)
    return Inflater(encodings) if encodings else None
