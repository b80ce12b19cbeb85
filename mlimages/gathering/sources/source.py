"""Where links come from: the Source protocol, and lists in files."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from mlimages.core import ImageRef, InputError
from mlimages.gathering.sources.lists import STDIN, count_lines, list_suffix, read_list, require_reader

_BLOCK = 1000


class Source(Protocol):
    """Yields the links to gather, in a steady order.

    It may also have `enough(label)`, called once a class has all the pictures that are wanted; `lookahead`, how many
    links may be asked of it that wait for their class; `async length()`, how many links it has, or None.
    """

    def __aiter__(self) -> AsyncIterator[ImageRef]: ...


AnySource = Source | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""What `gather` takes: a source, or one or several lists of links as paths."""


def as_source(source: AnySource) -> Source:
    """The source itself, or a `UrlList` of the paths.

    Raises:
        TypeError: it is neither.
        InputError: there is no list of links at a path.
    """
    if isinstance(source, str | os.PathLike):
        return UrlList(source)
    if isinstance(source, Sequence) and all(isinstance(path, str | os.PathLike) for path in source):
        return UrlList(*source)
    if hasattr(source, "__aiter__") and not isinstance(source, type):
        return source
    raise TypeError(f"source is a {type(source).__name__}: give the path of a list of links, or a source (UrlList ...)")


class UrlList:
    """Links in files: text, CSV, TSV, JSON lines or Parquet, by suffix, gzip of any; `-` is standard input as text.

    A line of text is a URL, or `label<TAB>url`, or ImageNet's `n00004475_6590<TAB>url`. Tables have a column of links
    and perhaps one of labels, found by name. Links without a label belong to a class named after their file.

    Args:
        url_col, label_col: the columns' names, where they are unusual.

    Raises:
        InputError: a file is missing, or has no column of links.
        MissingExtraError: a file is Parquet, and what reads it is not installed.
    """

    def __init__(
        self, *paths: str | os.PathLike[str], url_col: str | None = None, label_col: str | None = None
    ) -> None:
        self._paths = [Path(path) for path in paths]
        self._columns = (url_col, label_col)
        for path in self._paths:
            if path != STDIN and not path.exists():
                raise InputError(f"no list of links at {path}")
            require_reader(path)

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        for path in self._paths:
            refs = read_list(path, *self._columns)
            while found := await (_typed(refs) if path == STDIN else asyncio.to_thread(_take, refs, _BLOCK)):
                for ref in found:
                    yield ref

    async def length(self) -> int | None:
        """How many lines the lists have; None where that is not quickly told."""
        if any(list_suffix(path) == ".parquet" or path.suffix == ".gz" or not path.is_file() for path in self._paths):
            return None
        return await asyncio.to_thread(lambda: sum(map(count_lines, self._paths)))

    async def plan(self) -> dict[str, int | None]:
        """How many links there are by class."""
        counts: Counter[str] = Counter()
        async for ref in self:
            counts[ref.label] += 1
        return dict(counts)


async def _typed(refs: Iterator[ImageRef]) -> list[ImageRef]:
    """The next link of standard input, read by a thread that Ctrl-C does not wait for: nobody may ever press Enter."""
    found: Future[list[ImageRef]] = Future()

    def read() -> None:
        try:
            found.set_result(_take(refs, 1))  # who writes into a pipe waits for each line to be taken
        except BaseException as error:  # it is raised where the link is awaited
            found.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    return await asyncio.wrap_future(found)


def _take(refs: Iterator[ImageRef], block: int) -> list[ImageRef]:
    return list(itertools.islice(refs, block))
