"""Pictures wait in a bounded queue for a few threads that decode and compute."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from mlimages.inference import Answer, Predictor

MAX_BATCH = 4
"""Beyond this little is gained, and memory grows."""

_PAYS = 0.85
"""Batching must bring the network's time per picture below this share of a single picture's."""

Encoded = bytes | NDArray[np.uint8]


class BusyError(Exception):
    """The queue is full."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and the seconds that its picture waited."""

    answer: Answer
    queue_s: float


@dataclass(frozen=True, slots=True)
class _Job:
    picture: Encoded
    top: int
    future: asyncio.Future[Answered]
    since: float


class Engine:
    """Threads that answer pictures, one network call at a time each.

    Args:
        predictor: its `workers` say how many threads.
        queue_size: pictures that may wait.
    """

    def __init__(self, predictor: Predictor, *, queue_size: int) -> None:
        self.predictor = predictor
        self.max_batch = MAX_BATCH if batching_pays(predictor) else 1
        self._queue_size = queue_size
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._idle: list[SimpleQueue[_Job | None]] = []  # what wakes each thread; the last to fall idle has warm caches
        self._closing = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(predictor.workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return len(self._waiting)

    def submit(self, pictures: Sequence[Encoded], *, top: int) -> list[asyncio.Future[Answered]]:
        """Put pictures in the queue, all or none; an answer names at least `top` classes.

        Raises:
            BusyError: there is no room for them.
        """
        if self.waiting + len(pictures) > self._queue_size:
            raise BusyError
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        jobs = [_Job(picture, top, loop.create_future(), now) for picture in pictures]
        with self._lock:
            for job in jobs:
                if self._idle:
                    self._idle.pop().put(job)
                else:
                    self._waiting.append(job)
        return [job.future for job in jobs]

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._lock:
            self._closing = True
            for wake in self._idle:
                wake.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        wake: SimpleQueue[_Job | None] = SimpleQueue()
        while (first := self._next(wake)) is not None:
            wanted = [job for job in (first, *self._drained()) if not job.future.cancelled()]
            if wanted:
                self._answer(wanted)

    def _next(self, wake: SimpleQueue[_Job | None]) -> _Job | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._closing:
                return None
            self._idle.append(wake)
        return wake.get()

    def _drained(self) -> list[_Job]:
        """What else waits, this thread's share of it, up to a batch."""
        with self._lock:
            share = min(self.max_batch - 1, len(self._waiting) // len(self._threads))
            return [self._waiting.popleft() for _ in range(share)]

    def _answer(self, jobs: Sequence[_Job]) -> None:
        outcomes = self._outcomes(jobs)
        jobs[0].future.get_loop().call_soon_threadsafe(_settle, jobs, outcomes)

    def _outcomes(self, jobs: Sequence[_Job]) -> list[Answered | Exception]:
        """One outcome per image; when a batch fails, each of its images is tried alone."""
        begin = time.perf_counter()
        try:
            answers = self.predictor.answer([job.picture for job in jobs], top=max(job.top for job in jobs))
        except Exception as error:
            if len(jobs) == 1:
                return [error]
            return [outcome for job in jobs for outcome in self._outcomes([job])]
        return [Answered(answer, begin - job.since) for job, answer in zip(jobs, answers, strict=True)]


def _settle(jobs: Sequence[_Job], outcomes: Sequence[Answered | Exception]) -> None:
    for job, outcome in zip(jobs, outcomes, strict=True):
        if job.future.done():  # the client has gone
            continue
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)


def batching_pays(predictor: Predictor) -> bool:
    """Whether the network takes clearly less time per picture for several at once, tried on this machine."""
    prop = predictor.bundle.preprocessing.image
    picture = np.zeros((prop.height, prop.width, prop.channels), np.uint8)

    def best_s(count: int) -> float:
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            predictor.probabilities([picture] * count)
            seconds.append(time.perf_counter() - begin)
        return min(seconds) / count

    return best_s(MAX_BATCH) < _PAYS * best_s(1)
