"""Parallel map with ordered results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 8
"""Items submitted ahead of the one being returned, per worker."""


class Pool(Protocol):
    """Workers: threads of this process, or processes of a cluster.

    Attributes:
        workers: their number.
        at_once: number of small items worth submitting together.
    """

    @property
    def workers(self) -> int: ...

    @property
    def at_once(self) -> int: ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to each item, lazily and in order."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads of this process.

    Attributes:
        ahead: items submitted ahead of the one being returned, per worker.
    """

    workers: int
    at_once: int = 8
    ahead: int = AHEAD

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="worker")
        try:
            for future in in_order(lambda item: pool.submit(function, item), items, self.ahead * self.workers):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(submit: Callable[[Item], Result], items: Iterable[Item], most: int) -> Iterator[Result]:
    """Submit each item and yield the results of `submit` in order, at most `most` of them pending."""
    waiting: deque[Result] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) > most:
            yield waiting.popleft()
    yield from waiting
