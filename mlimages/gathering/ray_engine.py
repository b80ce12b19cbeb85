"""Gathering by many processes, on one machine or on several: Ray runs the ordinary loop once for each shard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from mlimages.cluster import Cluster
from mlimages.errors import GatherError, InputError
from mlimages.files import as_path, is_remote
from mlimages.gathering.collection import Gathered
from mlimages.gathering.loop import AHEAD, LOOKUPS, Run, gather_async
from mlimages.gathering.manifest import manifest_path, read_rows, row_key
from mlimages.gathering.options import GatherOptions, shard_of
from mlimages.gathering.sources import Source
from mlimages.progress import NoProgress, Progress
from mlimages.records import FetchResult, GatherSummary, ImageRef

_TOGETHER_S = 0.05
"""Rows of so long a time come in one message, of which each costs the driver a millisecond."""

_LIVES = 5
"""How often one shard's worker may be lost before the run ends."""


def gather_on(
    cluster: Cluster, source: Source, out: str | Path, *, progress: Progress | None = None, **options: Any
) -> GatherSummary:
    """As `gather`, by a worker per CPU of the cluster, each with its own part of the links and its own manifest.

    Every machine must reach the folder `out` under the same name. `limit` and `per_host` hold for all workers
    together, `parallel` for each. At the end the manifests become one.

    Raises:
        GatherError: as `gather`, or a shard's worker was lost again and again.
        InputError: as `gather`, or the source gives pictures that do not come from links.
    """
    folder = as_path(out)
    if is_remote(folder):
        raise InputError(f"{folder}: with --engine ray the pictures go into a folder that every machine reaches")
    return asyncio.run(_gather(cluster, source, folder, progress or NoProgress(), GatherOptions(**options)))


async def _gather(
    cluster: Cluster, source: Source, out: Path, progress: Progress, options: GatherOptions
) -> GatherSummary:
    if options.shard:
        raise InputError("Ray cuts the links into shards itself: leave out --shard")
    started = time.monotonic()
    with Gathered(out, options) as gathered:
        hands = _Hands(cluster, gathered, options)
        try:
            async with asyncio.TaskGroup() as group:
                for shard in hands.shards:
                    group.create_task(shard.serve())
                await Run(gathered, hands, options, progress, ahead=AHEAD * cluster.workers).run(source)
                hands.close()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    with Gathered(out, replace(options, retry_failed=frozenset())) as settled:
        settled.finish()
        return settled.tally.summary(out, fetched=gathered.added, seconds=time.monotonic() - started)


class _Hands:
    """Hands each link to the worker of its shard."""

    def __init__(self, cluster: Cluster, gathered: Gathered, options: GatherOptions) -> None:
        self._gathered = gathered
        self._per_host = options.per_host
        common = replace(options, limit=None, retry_failed=frozenset(), decoders=1)
        self.shards = [
            _Shard(cluster, gathered.out.absolute(), replace(common, shard=(number, cluster.workers)))
            for number in range(1, cluster.workers + 1)
        ]

    async def finish(self, ref: ImageRef) -> FetchResult:
        if ref.load:
            raise InputError(f"{ref.url} comes out of an archive, which one process reads: leave out --engine ray")
        number = shard_of(ref.url, len(self.shards), self._per_host)
        return self._gathered.adopt(await self.shards[number - 1].finish(ref))

    def close(self) -> None:
        """No further link will come."""
        for shard in self.shards:
            shard.close()


class _Shard:
    """One shard's worker, and the links that it has in hand; a worker that is lost is replaced."""

    def __init__(self, cluster: Cluster, out: Path, options: GatherOptions) -> None:
        self._start = partial(cluster.start, _Worker, out, options)
        self._manifest = manifest_path(out, options.shard)
        self._worker = self._start()
        self._in_hand: dict[int, tuple[ImageRef, asyncio.Future[FetchResult]]] = {}
        self._unsent: list[ImageRef] = []
        self._is_closed = False

    async def finish(self, ref: ImageRef) -> FetchResult:
        """How the link ended."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[FetchResult] = loop.create_future()
        self._in_hand[row_key(ref.label, ref.url)] = ref, future
        if not self._unsent:
            loop.call_soon(self._send)  # with what comes until then: a call to another process is not free
        self._unsent.append(ref)
        return await future

    def close(self) -> None:
        """No further link will come."""
        self._is_closed = True
        self._worker.give.remote([])

    async def serve(self) -> None:
        """Pass rows on until the shard is closed and its worker is done.

        Raises:
            GatherError: the worker's own, or it was lost too often.
        """
        try:
            for life in range(1, _LIVES + 1):
                try:
                    async for rows in self._worker.gather.options(num_returns="streaming").remote():
                        self._note(await rows)
                    return
                except RayActorError as error:
                    if life == _LIVES:
                        why = str(error).strip().splitlines()[-1]
                        raise GatherError(f"the worker for {self._manifest} died {life} times: {why}") from error
                    self._replace()
        except RayTaskError as error:
            raise error.cause from None
        finally:
            ray.kill(self._worker)

    def _send(self) -> None:
        refs, self._unsent = self._unsent, []
        self._worker.give.remote(refs)

    def _note(self, rows: Iterable[FetchResult]) -> None:
        for row in rows:
            _, future = self._in_hand.pop(row_key(row.label, row.url), (None, None))
            if future and not future.done():
                future.set_result(row)

    def _replace(self) -> None:
        """Go on from the lost worker's manifest."""
        self._worker = self._start()
        if self._manifest.exists():
            self._note(read_rows([self._manifest]))
        self._worker.give.remote([ref for ref, _ in self._in_hand.values()])
        if self._is_closed:
            self.close()


class _Worker:
    """The ordinary gather loop in a process of its own; the links are given to it as a source."""

    def __init__(self, out: Path, options: GatherOptions) -> None:
        self._out = out
        self._options = {field.name: getattr(options, field.name) for field in fields(options)}
        self._given: asyncio.Queue[list[ImageRef]] = asyncio.Queue()

    async def give(self, refs: list[ImageRef]) -> None:
        """Add links; none ends the source."""
        self._given.put_nowait(refs)

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        while refs := await self._given.get():
            for ref in refs:
                yield ref

    async def gather(self) -> AsyncIterator[list[FetchResult]]:
        """The rows as they are recorded."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(LOOKUPS, "lookup"))
        rows: list[FetchResult] = []
        job = asyncio.create_task(gather_async(self, self._out, tell=rows.append, **self._options))
        while rows or not job.done():
            await asyncio.wait([job], timeout=_TOGETHER_S)
            told = rows.copy()
            rows.clear()
            if told:
                yield told
        await job
