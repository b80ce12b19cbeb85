"""Pictures wait in a bounded queue for a few threads that decode and compute."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlimages.predictor import Answer, Predictor

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
    future: Future[Answered]
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
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._queue_size = queue_size
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(predictor.workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return self._jobs.qsize()

    def submit(self, pictures: Sequence[Encoded], *, top: int) -> list[Future[Answered]]:
        """Put pictures in the queue, all or none; an answer names at least `top` classes.

        Raises:
            BusyError: there is no room for them.
        """
        if self.waiting + len(pictures) > self._queue_size:
            raise BusyError
        now = time.perf_counter()
        jobs = [_Job(picture, top, Future(), now) for picture in pictures]
        for job in jobs:
            self._jobs.put(job)
        return [job.future for job in jobs]

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs = [first, *self._drained()]
            wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)

    def _drained(self) -> list[_Job]:
        """What else waits, this thread's share of it, up to a batch."""
        jobs: list[_Job] = []
        share = min(self.max_batch - 1, self.waiting // len(self._threads))
        for _ in range(share):
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            jobs.append(job)
        return jobs

    def _answer(self, jobs: Sequence[_Job]) -> None:
        begin = time.perf_counter()
        try:
            answers = self.predictor.answer([job.picture for job in jobs], top=max(job.top for job in jobs))
        except Exception as error:  # of one batch: the server goes on
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(Answered(answer, begin - job.since))


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
