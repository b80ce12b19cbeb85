"""Write response bodies to files: buffering, decompression, and detection of slow transfers."""

from __future__ import annotations

import zlib
from pathlib import Path

from mlimages.core import GatherError

_MAX_BUFFERED_BYTES = 256 * 1024
_MIN_BYTES_PER_S = 1024
_TIME_LIMIT_BYTES_PER_S = 32 * 1024
_IDENTITY_ENCODINGS = ("", "identity", "none", "utf-8", "binary")
"""Values of Content-Encoding that servers send with uncompressed bodies."""


class BufferedFile:
    """File that buffers up to 256 KiB in memory, so that most failed downloads write nothing to disk.

    Call `flush` at the end. Every method raises `GatherError` if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chunks: list[bytes] = []
        self._flushed = 0
        self._mode = "wb"
        self.total = 0

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._chunks.append(data)
        self.total += len(data)
        if self.total - self._flushed > _MAX_BUFFERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the buffered bytes to the file."""
        try:
            with open(self._path, self._mode, buffering=0) as file:  # noqa: PTH123 - pathlib takes as long as the write
                left = memoryview(b"".join(self._chunks))  # most bodies are one chunk, which is not copied
                while left:  # a nearly full disk writes only a part
                    left = left[file.write(left) :]
        except OSError as error:
            raise GatherError(f"{self._path.parent} cannot be written: {error.strerror}") from error
        self._chunks.clear()
        self._flushed = self.total
        self._mode = "ab"


class StallDetector:
    """Detects transfers that are too slow.

    In each period of `timeout_s` seconds, the average rate must be at least 1 KiB/s. The time limit of the whole
    transfer is `max_bytes` / (32 KiB/s) + 4 * `timeout_s`, however small the body is: 35 minutes with the defaults.

    Args:
        timeout_s: time-out in seconds.
        max_bytes: maximum size of a body.
        now: start of the transfer, in seconds of a monotonic clock.
    """

    def __init__(self, timeout_s: float, max_bytes: int, now: float) -> None:
        self._timeout_s = timeout_s
        self._total_s = 4 * timeout_s + max_bytes / _TIME_LIMIT_BYTES_PER_S
        self._ends_at = now + self._total_s
        self._since = now
        self._bytes = 0

    def describe_stall(self, now: float, total_bytes: int) -> str:
        """Return why the transfer is too slow; "" if it is not.

        Args:
            now: current time, in seconds of a monotonic clock.
            total_bytes: number of bytes received since the start of the transfer.
        """
        if now > self._ends_at:
            return f"not complete after {self._total_s:.0f} s"
        elapsed = now - self._since
        if elapsed < self._timeout_s:
            return ""
        if total_bytes - self._bytes < _MIN_BYTES_PER_S * elapsed:
            return f"less than 1 KB/s over {self._timeout_s:g} s"
        self._since, self._bytes = now, total_bytes
        return ""


class Decompressor:
    """Decompresses gzip, zlib, and the raw deflate that some servers send as "deflate".

    Args:
        encodings: one encoding, or two if the data was compressed twice.
    """

    def __init__(self, encodings: list[str]) -> None:
        self._layers = [zlib.decompressobj(wbits=47) for _ in encodings]  # gzip or zlib, by its header
        self._may_be_raw = encodings == ["deflate"]

    def decompress(self, data: bytes, max_bytes: int) -> bytes:
        """Decompress the next part of the body to at most `max_bytes` bytes; the rest of this part is lost."""
        for number, layer in enumerate(self._layers):
            try:
                data = layer.decompress(data, max_bytes)
            except zlib.error:
                if not self._may_be_raw:
                    raise
                self._layers[number] = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
                data = self._layers[number].decompress(data, max_bytes)
            self._may_be_raw = False
        return data

    @property
    def eof(self) -> bool:
        """Whether the end of the compressed data was reached."""
        return all(layer.eof for layer in self._layers)


def make_decompressor(content_encoding: str) -> Decompressor | None:
    """Return a decompressor for a value of Content-Encoding; None for an uncompressed body.

    Raises:
        ValueError: an encoding is unknown, or there are more than two.
    """
    names = [name.strip().lower() for name in content_encoding.split(",")]
    encodings = [name for name in names if name not in _IDENTITY_ENCODINGS]
    if len(encodings) > 2 or not set(encodings) <= {"gzip", "x-gzip", "deflate"}:
        raise ValueError(content_encoding)
    return Decompressor(encodings) if encodings else None
