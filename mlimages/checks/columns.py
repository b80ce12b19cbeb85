"""Columns on disk: what is noted of each picture takes no memory while the pictures pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_PIECE_BYTES = 1 << 16


class Column:
    """Rows of one kind, by the order in which they came.

    Args:
        file: empty; where they lie.
        kind: of a row; `("u1", 3)` for three numbers.
    """

    def __init__(self, file: IO[bytes], kind: DTypeLike) -> None:
        self._file = file
        self._kind = np.dtype(kind)

    def add(self, rows: NDArray[Any] | bytes) -> None:
        """Note rows: contiguous, of the column's kind."""
        self._file.write(rows)  # type: ignore[arg-type]  # numpy's arrays are buffers, which only Python 3.12 can say

    def whole(self) -> NDArray[Any]:
        """All rows `(N, ...)`."""
        self._file.seek(0)
        return np.frombuffer(self._file.read(), self._kind)

    def at(self, places: Iterable[int]) -> NDArray[Any]:
        """The rows at some places `(n, ...)`."""
        rows = []
        for place in places:
            self._file.seek(self._kind.itemsize * place)
            rows.append(self._file.read(self._kind.itemsize))
        return np.frombuffer(b"".join(rows), self._kind)

    def pieces(self) -> Iterator[bytes]:
        """All bytes, some at a time."""
        self._file.seek(0)
        while piece := self._file.read(_PIECE_BYTES):
            yield piece


NewColumn = Callable[[DTypeLike], Column]
"""Makes one, empty, for rows of some kind."""


@contextmanager
def columns_on_disk() -> Iterator[NewColumn]:
    """Columns in temporary files, which are gone at the end.

    Raises:
        OSError: with the folder's name, where its disk is full.
    """
    try:
        with ExitStack() as files:
            yield lambda kind: Column(files.enter_context(TemporaryFile()), kind)
    except OSError as error:
        error.filename = error.filename or gettempdir()
        raise
