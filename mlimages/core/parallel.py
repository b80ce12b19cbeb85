"""Work on many items at once, the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 8
"""Items in work or done ahead of the one asked for, per worker."""


class Pool(Protocol):
    """Workers: threads here, or processes elsewhere.

    Attributes:
        workers: how many.
        at_once: small items worth handing to one of them together.
    """

    @property
    def workers(self) -> int: ...

    @property
    def at_once(self) -> int: ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of each item, in order; items are taken as they are needed."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads of this process.

    Attributes:
        ahead: items in work or done ahead of the one asked for, per worker.
    """

    workers: int
    at_once: int = 8
    ahead: int = AHEAD

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        _keep_freed_blocks()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="worker")
        try:
            for future in in_work(lambda item: pool.submit(function, item), items, self.ahead * self.workers):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def in_work(start: Callable[[Item], Result], items: Iterable[Item], most: int) -> Iterator[Result]:
    """Start each item's work; what it is known by comes back in order, once `most` others are under way."""
    waiting: deque[Result] = deque()
    for item in items:
        waiting.append(start(item))
        if len(waiting) > most:
            yield waiting.popleft()
    yield from waiting


@cache
def _keep_freed_blocks() -> None:
    """Free one block of 4 MB: from then on glibc keeps smaller ones for reuse (mallopt(3), M_MMAP_THRESHOLD).

    A picture takes 2 pages from the system in place of 26, which is 4 % of a check's processor time. Once is enough: a
    second block would be kept itself.
    """
    bytes(4 * 2**20)
