"""Decode images in separate processes: if a process hangs or crashes, only the image that it was decoding fails."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from mlimages.core import GatherError, Reason, summarize_error
from mlimages.gathering.download.image_info import ImageInfo, ImageRequirements, Rejection

DECODE_TIMEOUT_S = 30.0
_MAX_BATCH_SIZE = 32
_PRELOADED_MODULES = ["mlimages.gathering.download.decoder_process", "PIL.JpegImagePlugin", "PIL.PngImagePlugin"]
"""Modules that are imported once, before the decoding processes are forked."""

_Job = tuple[Path, "asyncio.Future[ImageInfo | Rejection]"]


class DecodingProcess:
    """Process that decodes images; creating an object starts it. Methods block until the process has answered.

    Raises:
        OSError, EOFError: the process cannot be started.
        AssertionError: this process is a daemon of multiprocessing, which may not start processes.
    """

    def __init__(self, requirements: ImageRequirements) -> None:
        can_fork = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        context.set_forkserver_preload(_PRELOADED_MODULES)
        self._connection, child_connection = context.Pipe()
        self._process = context.Process(target=_run_decoder, args=(child_connection, requirements), daemon=True)  # type: ignore[attr-defined]
        with child_connection, _hide_main_module():
            self._process.start()

    def verify_and_resize(self, paths: list[Path], timeout_s: float) -> list[dict[str, Any]]:
        """Verify image files and resize them in place; return the fields of an `ImageInfo` or a `Rejection` for each.

        Raises:
            TimeoutError: all files together take longer than `timeout_s`.
            OSError, EOFError: the process crashed.
        """
        self._connection.send_bytes(json.dumps([str(path) for path in paths]).encode())
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        results: list[dict[str, Any]] = json.loads(self._connection.recv_bytes())
        return results

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _run_decoder(connection: Any, requirements: ImageRequirements) -> None:
    # not at the top: the parent does not need Pillow
    from mlimages.gathering.download.decoder_process import run_decoder

    run_decoder(connection, requirements)


_main_module_lock = threading.Lock()


@contextmanager
def _hide_main_module() -> Iterator[None]:
    """Hide the user's main script from multiprocessing.

    Otherwise, a new process imports the script, which starts over if it has no guard `if __name__ == "__main__"`.
    """
    with _main_module_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class DecoderPool:
    """Pool of processes that verify and resize image files; use as an async context manager.

    Args:
        requirements: requirements on images, and the size to which they are resized.
        num_processes: number of processes.
        timeout_s: time-out in seconds of a batch of images. After a time-out, each image of the batch is decoded alone,
            and is rejected if it takes longer than `timeout_s` again.
    """

    def __init__(
        self, requirements: ImageRequirements, num_processes: int, *, timeout_s: float = DECODE_TIMEOUT_S
    ) -> None:
        self._requirements = requirements
        self._count = num_processes
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(num_processes, "decoder")
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._retries: deque[_Job] = deque()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> DecoderPool:
        self._tasks = [asyncio.create_task(self._run_worker()) for _ in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown()

    async def verify_and_resize(self, path: Path) -> ImageInfo | Rejection:
        """Verify the image file at `path` and resize it in place; return its properties, or why it is rejected.

        Raises:
            GatherError: a decoding process cannot be started.
        """
        future: asyncio.Future[ImageInfo | Rejection] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait((path, future))
        return await future

    async def _run_worker(self) -> None:
        """Verify batches of files in a process, which is replaced after a time-out or crash."""
        loop = asyncio.get_running_loop()
        batch = await self._get_next_batch()  # a process is started only if there is a job
        while True:
            starting = loop.run_in_executor(self._threads, DecodingProcess, self._requirements)
            try:
                process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                (await starting).kill()
                raise
            except (OSError, EOFError, AssertionError) as error:
                await self._fail_all_jobs(
                    batch, GatherError(f"cannot start the decoder process: {summarize_error(error)}")
                )
            try:
                while await self._verify_batch(process, batch):
                    batch = await self._get_next_batch()
            finally:
                process.kill()
            batch = await self._get_next_batch()

    async def _get_next_batch(self) -> list[_Job]:
        """Wait until there are jobs, and return those that one process is to decode next.

        The jobs of a batch that failed are returned one at a time. Otherwise, each process gets an equal share of the
        waiting jobs.
        """
        if self._retries:
            return [self._retries.popleft()]
        first = await self._jobs.get()
        share = min(_MAX_BATCH_SIZE - 1, self._jobs.qsize() // self._count)
        return [first, *(self._jobs.get_nowait() for _ in range(share))]

    async def _verify_batch(self, process: DecodingProcess, batch: list[_Job]) -> bool:
        """Set the results of a batch; return False if the process hung or crashed and must be replaced."""
        paths = [path for path, _ in batch]
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._threads, process.verify_and_resize, paths, self._timeout_s)
        except TimeoutError:
            problem = f"decoding took more than {self._timeout_s:g} s"
        except (OSError, EOFError):
            problem = "the decoder process crashed"
        else:
            for job, values in zip(batch, found, strict=True):
                _set_result(job, _parse_result(values))
            return True
        if len(batch) > 1:  # decoding each alone shows which image causes the problem
            self._retries.extend(batch)
        else:
            _set_result(batch[0], Rejection(Reason.DECODER, problem))
        return False

    async def _fail_all_jobs(self, batch: list[_Job], error: GatherError) -> NoReturn:
        """Fail the jobs in `batch`, and then all later jobs, until the task of this worker is cancelled.

        The calls of `verify_and_resize` that wait for these jobs raise `error`.
        """
        while True:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            batch = await self._get_next_batch()


def _set_result(job: _Job, result: ImageInfo | Rejection) -> None:
    if not job[1].done():
        job[1].set_result(result)


def _parse_result(values: dict[str, Any]) -> ImageInfo | Rejection:
    if "reason" in values:
        return Rejection(**{**values, "reason": Reason(values["reason"])})
    return ImageInfo(**values)
