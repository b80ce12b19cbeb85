"""Decoding in processes of their own: one that hangs or dies costs the picture that it held."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

from mlimages.core import GatherError, Reason
from mlimages.gathering.download.fork_server import DecodingProcess, Nursery
from mlimages.gathering.download.image_facts import Checks, Facts, Rejection

DECODE_TIMEOUT_S = 30.0
_BATCH = 32

_Job = tuple[Path, "asyncio.Future[Facts | Rejection]"]


class Decoders:
    """Processes that inspect files; use as an async context manager.

    Args:
        checks: what a picture must satisfy.
        count: how many processes.
        timeout_s: for one picture.
    """

    def __init__(self, checks: Checks, count: int, *, timeout_s: float = DECODE_TIMEOUT_S) -> None:
        self._nursery = Nursery(checks)
        self._count = count
        self._timeout_s = timeout_s
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._alone: deque[_Job] = deque()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Decoders:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._nursery.close()

    async def inspect(self, path: Path) -> Facts | Rejection:
        """Facts of the picture in the file at `path`, or why it is none.

        Raises:
            GatherError: no decoding process can be started.
        """
        future: asyncio.Future[Facts | Rejection] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait((path, future))
        return await future

    async def _run(self) -> None:
        batch = await self._next_batch()  # a run that fetches nothing starts no process
        while True:
            try:
                process = await self._nursery.start()
            except GatherError as error:
                await self._refuse(batch, error)
            try:
                while await self._serve(process, batch):
                    batch = await self._next_batch()
            finally:
                process.end()
            batch = await self._next_batch()

    async def _next_batch(self) -> list[_Job]:
        if self._alone:
            return [self._alone.popleft()]
        first = await self._jobs.get()
        share = min(_BATCH - 1, self._jobs.qsize() // self._count)
        return [first, *(self._jobs.get_nowait() for _ in range(share))]

    async def _serve(self, process: DecodingProcess, batch: list[_Job]) -> bool:
        """Answer the jobs in `batch`; False if the process must be replaced."""
        process.jobs.write(json.dumps([str(path) for path, _ in batch]).encode() + b"\n")
        line, trouble = b"", "the decoder died"
        try:
            async with asyncio.timeout(self._timeout_s):
                line = await process.answers.readline()
        except TimeoutError:
            trouble = f"decoding took more than {self._timeout_s:g} s"
        except ConnectionError:  # it died before it had read all
            pass
        if line.endswith(b"\n"):
            for job, values in zip(batch, json.loads(line), strict=True):
                _settle(job, _parsed(values))
        elif len(batch) > 1:  # whose fault it was is seen one by one
            self._alone.extend(batch)
        else:
            _settle(batch[0], Rejection(Reason.DECODER, trouble))
        return line.endswith(b"\n")

    async def _refuse(self, batch: list[_Job], error: GatherError) -> NoReturn:
        while True:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            batch = await self._next_batch()


def _settle(job: _Job, answer: Facts | Rejection) -> None:
    if not job[1].done():
        job[1].set_result(answer)


def _parsed(values: dict[str, Any]) -> Facts | Rejection:
    if "reason" in values:
        return Rejection(**{**values, "reason": Reason(values["reason"])})
    return Facts(**values)
