"""Whether a transfer makes progress."""

from __future__ import annotations

LEAST_BYTES_S = 1024
"""A body that comes more slowly than this, over a whole time-out, is given up."""


class Pace:
    """Judges a transfer by its bytes in each window of so many seconds; it has no clock of its own."""

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
        if total_bytes - self._bytes < LEAST_BYTES_S * elapsed:
            return True
        self._since, self._bytes = now, total_bytes
        return False
