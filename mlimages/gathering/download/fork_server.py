"""Where decoding processes come from: forks of one that has loaded Pillow; where the system has none, one by one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

from mlimages.core import GatherError
from mlimages.gathering.download.image_facts import Checks

_SIGKILL = 9  # `signal` lacks it on Windows, where any number ends a process
_KEPT_BYTES = str(32 * 2**20)  # glibc takes no more; else each picture's pixels come from the system page by page
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": _KEPT_BYTES,
    "MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES,
}

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class DecodingProcess:
    """Takes a line of paths, gives a line of what was found (`gathering.worker`)."""

    pid: int
    answers: asyncio.StreamReader
    jobs: asyncio.StreamWriter

    def end(self) -> None:
        """Kill it, whatever it does; not what bears the number of one that has gone by itself."""
        if not (self.answers.at_eof() or self.answers.exception()):
            with suppress(ProcessLookupError):
                os.kill(self.pid, _SIGKILL)
        self.jobs.close()


class Nursery:
    """Starts decoding processes: a fork takes 1 ms of CPU, a start 100; `close` it when all have been ended."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._started: list[Process] = []
        self._asked: socket.socket | None = None
        self._lock = asyncio.Lock()

    async def start(self) -> DecodingProcess:
        """One more, ready.

        Raises:
            GatherError: it does not start.
        """
        try:
            answers, jobs = await (self._fork() if hasattr(os, "fork") else self._start_alone())
            with ExitStack() as unless_ready:
                unless_ready.callback(jobs.close)
                line = await answers.readuntil()
                unless_ready.pop_all()
        except (OSError, EOFError) as error:
            message = (
                "the decoding process does not start: try `python -m mlimages.gathering.download.decoder_process '{}'`"
            )
            raise GatherError(message) from error
        return DecodingProcess(int(line.removeprefix(b"ready ")), answers, jobs)

    async def close(self) -> None:
        """Wait until nothing of it runs."""
        if self._asked:
            self._asked.close()
        for process in self._started:
            await process.wait()

    async def _fork(self) -> _Streams:
        async with self._lock:
            if not self._started or self._started[-1].returncode is not None:
                await self._start_parent()
        assert self._asked
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._asked, [b"+"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return await asyncio.open_connection(sock=ours)

    async def _start_parent(self) -> None:
        if self._asked:
            self._asked.close()
        self._asked, theirs = socket.socketpair()
        with theirs:
            await self._execute("forks", stdin=theirs, stdout=DEVNULL)

    async def _start_alone(self) -> _Streams:
        process = await self._execute(stdin=PIPE, stdout=PIPE)
        assert process.stdout
        assert process.stdin
        return process.stdout, process.stdin

    async def _execute(self, *words: str, **streams: Any) -> Process:
        command = (
            sys.executable,
            "-m",
            "mlimages.gathering.download.decoder_process",
            json.dumps(asdict(self._checks)),
            *words,
        )
        env = {**os.environ, **_ENVIRONMENT}
        process = await asyncio.create_subprocess_exec(*command, stderr=DEVNULL, env=env, **streams)
        self._started.append(process)
        return process
