"""Pools of threads and of processes that apply a function to items."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeVar

from mlimages.core.errors import GatherError

Item = TypeVar("Item")
Result = TypeVar("Result")
Submitted = TypeVar("Submitted")

POLL_INTERVAL_S = 1.0
"""Maximum time between two lists of results of `map_as_completed`, in seconds."""

MAX_CRASHES = 5
"""Number of crashes after which a run fails; on a cluster, the crashes of each task are counted separately."""

_STOP_SIGNAL_INTERVAL_S = 0.5
"""Seconds between two SIGTERMs that a worker sends itself after its parent was killed: the first one interrupts the
task, the next one ends the process."""

_STOP_TIMEOUT_S = 20.0
"""Seconds that an interrupted process has to store its last results before it is killed; most need 0.1 s."""

PREFETCH_FACTOR = 8
"""Number of items per worker that a pool submits ahead of the result that it yields."""


class Pool(Protocol):
    """A pool of workers: threads of this process, or processes of a cluster.

    Attributes:
        workers: number of threads or processes.
        chunk_size: number of images that callers should combine into one item of `map`, as each item has an overhead.
    """

    @property
    def workers(self) -> int: ...

    @property
    def chunk_size(self) -> int: ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `function` to each item lazily, and yield the results in order."""


def count_available_cores() -> int:
    """Return the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class ThreadPool:
    """A pool of threads in this process; implements `Pool`, which describes the other attributes.

    Attributes:
        prefetch_factor: number of items per worker that are submitted ahead of the result that is yielded.
    """

    workers: int
    chunk_size: int = 8
    prefetch_factor: int = PREFETCH_FACTOR

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="worker")
        try:
            max_pending = self.prefetch_factor * self.workers
            for future in submit_ahead(lambda item: pool.submit(function, item), items, max_pending):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class ProcessPool:
    """A pool of processes on this machine, for tasks that can be retried.

    Attributes:
        workers: number of processes.
    """

    workers: int

    def map_as_completed(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[list[Result]]:
        """Apply `function` to each item; yield lists with the results of the tasks that finished since the last list.

        A list, which may be empty, is yielded at least once a second. Tasks whose process crashed are retried.

        Raises:
            GatherError: the processes crashed repeatedly.
        """
        left = list(items)
        for _ in range(MAX_CRASHES):
            try:
                for ended in self._map_until_crash(function, left):
                    left = [item for item in left if item not in ended]
                    yield list(ended.values())
                return
            except BrokenProcessPool:
                continue
        raise GatherError(f"a worker crashed {MAX_CRASHES} times: run the same command again to resume")

    def _map_until_crash(self, function: Callable[[Item], Result], items: list[Item]) -> Iterator[dict[Item, Result]]:
        """Yield dicts from item to result, each with the tasks that finished since the last dict.

        Raises:
            BrokenProcessPool: a process crashed.
        """
        before = active_children()
        with ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=_install_signal_handlers) as pool:
            running = {pool.submit(_run_task, function, item): item for item in items}
            try:
                while running:
                    ended, _ = wait(running, timeout=POLL_INTERVAL_S, return_when=FIRST_COMPLETED)
                    yield {running.pop(future): future.result() for future in ended}
            finally:
                if running:  # after an error or Ctrl-C, do not wait for the others
                    pool.shutdown(wait=False, cancel_futures=True)
                    _stop_processes([process for process in active_children() if process not in before])


def _stop_processes(processes: Collection[BaseProcess]) -> None:
    """Terminate processes, and kill those that still run after `_STOP_TIMEOUT_S`.

    A task may miss the signal: Python ignores the exception of a signal handler that is called during a finalizer.
    """
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()


class _WorkerState:
    """In a worker of `ProcessPool`: whether it runs a task, and whether SIGTERM has interrupted a task."""

    is_running_task = False
    is_interrupted = False


def _install_signal_handlers() -> None:
    """Make this process ignore Ctrl-C, which its parent handles, and stop on SIGTERM or when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _handle_sigterm)
    threading.Thread(target=_stop_when_parent_exits, daemon=True).start()


def _stop_when_parent_exits() -> None:
    if parent := parent_process():
        parent.join()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline:  # the first signal interrupts the task, another one the wait for the next
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_STOP_SIGNAL_INTERVAL_S)
        os._exit(1)


def _handle_sigterm(*_: object) -> None:
    """Raise KeyboardInterrupt in the current task, once, so that it can clean up. If there is none, end the process."""
    if not _WorkerState.is_running_task:
        raise SystemExit(1)
    if not _WorkerState.is_interrupted:
        _WorkerState.is_interrupted = True
        raise KeyboardInterrupt


def _run_task(function: Callable[[Item], Result], item: Item) -> Result:
    if _WorkerState.is_interrupted:
        raise KeyboardInterrupt
    _WorkerState.is_running_task = True
    try:
        return function(item)
    finally:
        _WorkerState.is_running_task = False


def submit_ahead(submit: Callable[[Item], Submitted], items: Iterable[Item], max_pending: int) -> Iterator[Submitted]:
    """Yield `submit(item)`, such as a future, for each item in order; the caller waits for its result.

    At most `max_pending` items are submitted ahead of the one that is yielded.
    """
    waiting: deque[Submitted] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) > max_pending:
            yield waiting.popleft()
    yield from waiting
