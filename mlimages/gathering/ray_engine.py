"""Gathering by many processes, on one machine or on several: Ray runs the ordinary loop once for each shard."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Unpack

import ray
from ray.exceptions import RayActorError, RayTaskError

from mlimages.core import (
    Cluster,
    FetchResult,
    GatherError,
    GatherSummary,
    ImageRef,
    InputError,
    NoProgress,
    Progress,
    as_path,
    is_remote,
)
from mlimages.gathering.event_loop import run_blocking
from mlimages.gathering.links import row_key, shard_of
from mlimages.gathering.options import GatherKeywords, GatherOptions
from mlimages.gathering.run import AHEAD, LOOKUPS, Run, gather_async
from mlimages.gathering.sources.source import AnySource, Source, as_source
from mlimages.gathering.store.gather_folder import Gathered
from mlimages.gathering.store.manifest import manifest_path, read_rows
from mlimages.gathering.store.remote_folder import looked_at, mirrored

_TOGETHER_S = 0.05
"""Rows of so long a time come in one message, of which each costs the driver a millisecond."""

_AT_ONCE = 1000
"""Rows of an earlier worker in one message."""

_LIVES = 5
"""How often one shard's worker may be lost before the run ends."""


def gather_on(
    cluster: Cluster,
    source: AnySource,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Unpack[GatherKeywords],
) -> GatherSummary:
    """As `gather`, by a worker per CPU of the cluster, each with its own part of the links and its own manifest.

    A folder must be one that every machine sees; on the way to an address each worker gathers in a folder of its own.
    `limit` and `per_host` hold for all workers together, `parallel` for each. At the end the manifests become one.

    Raises:
        GatherError: as `gather`; or a machine does not see the folder, or was lost with what it had gathered for an
            address, or a shard's worker was lost again and again.
        InputError: as `gather`, or the source gives pictures that do not come from links.
    """
    links, chosen, out = as_source(source), GatherOptions(**options), as_path(out)
    if chosen.shard:
        raise InputError("Ray cuts the links into shards itself: leave out --shard")
    started = time.monotonic()
    if is_remote(out):
        with mirrored(out, None) as folder, Gathered(folder, chosen, has_holes=True):
            pass  # what other runs left, here or there, becomes one manifest before the workers write theirs
    with looked_at(out) as folder, Gathered(folder, chosen, has_holes=is_remote(out)) as gathered:
        run_blocking(_gather(cluster, links, gathered, out, chosen, progress or NoProgress()))
    nothing_again = replace(chosen, retry_failed=frozenset(), no_retry=True, restore_deleted=False, keep_deleted=True)
    with mirrored(out, None) as folder, Gathered(folder, nothing_again, has_holes=is_remote(out)) as settled:
        settled.finish()
    lost = gathered.tally.status.total() - settled.tally.status.total()
    if lost > 0:
        raise GatherError(f"{lost} links were lost with a machine on the way to {out}: the same command goes on")
    return settled.tally.summary(out, fetched=gathered.added, seconds=time.monotonic() - started)


async def _gather(
    cluster: Cluster, source: Source, gathered: Gathered, out: Path, options: GatherOptions, progress: Progress
) -> None:
    with tempfile.NamedTemporaryFile(dir=gathered.new_part().parent) as mark:
        home = _Home(str(out)) if is_remote(out) else _Home(str(out.absolute()), str(Path(mark.name).absolute()))
        hands = _Hands(cluster, gathered, home, options)
        try:
            async with asyncio.TaskGroup() as group:
                for shard in hands.shards:
                    group.create_task(shard.serve())
                run = Run(gathered, hands, options, progress, ahead=AHEAD * cluster.workers)
                stopped = await run.run(source)
                hands.close()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if stopped:
            raise stopped


@dataclass(frozen=True, slots=True)
class _Home:
    """Where the pictures go.

    Attributes:
        out: a folder or an address.
        mark: a file that every machine sees which sees the folder.
    """

    out: str
    mark: str | None = None


class _Hands:
    """Hands each link to the worker of its shard."""

    waiting = 0
    waited_for: Sequence[str] = ()

    def __init__(self, cluster: Cluster, gathered: Gathered, home: _Home, options: GatherOptions) -> None:
        self._gathered = gathered
        self._per_host = options.per_host
        common = replace(
            options,
            limit=None,
            retry_failed=frozenset(),
            no_retry=True,
            restore_deleted=False,
            keep_deleted=True,
            decoders=1,
        )
        self.shards = [
            _Shard(cluster, gathered, home, replace(common, shard=(number, cluster.workers)))
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

    def __init__(self, cluster: Cluster, gathered: Gathered, home: _Home, options: GatherOptions) -> None:
        self._start = partial(cluster.start, _Worker, home, options)
        self._gathered = gathered
        self._manifest = manifest_path(Path(home.out), options.shard)
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
            elif self._gathered.claim(ImageRef(row.url, row.label)):
                self._gathered.adopt(row)  # an interrupted run's, on its way to an address

    def _replace(self) -> None:
        self._worker = self._start()
        self._worker.give.remote([ref for ref, _ in self._in_hand.values()])
        if self._is_closed:
            self.close()


class _Worker:
    """The ordinary gather loop in a process of its own; the links are given to it as a source."""

    def __init__(self, home: _Home, options: GatherOptions) -> None:
        self._home = home
        self._options = options
        self._given: asyncio.Queue[list[ImageRef]] = asyncio.Queue()

    async def give(self, refs: list[ImageRef]) -> None:
        """Add links; none ends the source."""
        self._given.put_nowait(refs)

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        while refs := await self._given.get():
            for ref in refs:
                yield ref

    async def gather(self) -> AsyncIterator[list[FetchResult]]:
        """The rows: those that an earlier worker of this shard recorded, then the others as they are recorded.

        Raises:
            GatherError: as `gather_async`, or this machine does not see the folder.
        """
        if self._home.mark and not Path(self._home.mark).exists():
            raise GatherError(
                f"{self._home.out}: the machine {socket.gethostname()} does not see this folder of the first machine: "
                "take one on a disk that all share, or an address (s3://...)"
            )
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(LOOKUPS, "lookup"))
        options = {field.name: getattr(self._options, field.name) for field in fields(self._options)}
        with mirrored(as_path(self._home.out), self._options.shard) as folder:
            own = manifest_path(folder, self._options.shard)
            earlier = read_rows([own] if own.exists() else [])
            while told := list(itertools.islice(earlier, _AT_ONCE)):
                yield told
            rows: list[FetchResult] = []
            job = asyncio.create_task(gather_async(self, folder, tell=rows.append, asks_again=True, **options))
            while rows or not job.done():
                await asyncio.wait([job], timeout=_TOGETHER_S)
                told = rows.copy()
                rows.clear()
                if told:
                    yield told
            await job
