"""Gather in several processes, on one machine or more; each task gathers one shard of the links.

1. The folder is opened once, which merges the manifests of earlier runs.
2. Each shard is a task that calls `gather(..., shard=(i, n))`; its manifest is its checkpoint, so it can be restarted.
3. The same call without a shard merges the manifests, removes duplicates and images beyond the limit, and downloads
   what classes still lack.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Protocol, Unpack

from mlimages.core import (
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
from mlimages.gathering.options import GatherKeywords, GatherOptions
from mlimages.gathering.run import count_source_links, gather
from mlimages.gathering.sources.source import AnySource, Source, as_source
from mlimages.gathering.store.gather_folder import GatherFolder
from mlimages.gathering.store.lock import work_folder
from mlimages.gathering.store.manifest import manifest_path

SHARDS_PER_WORKER = 4
"""More shards than workers, since shards differ in size: a host is in one, or in few."""

_BYTES_READ = 4 * 2**20

_AGAIN: GatherKeywords = {"no_retry": True, "retry_failed": (), "restore_deleted": False, "keep_deleted": True}
"""Options of the run that merges the shards: links that these left unfinished are not retried."""


class Tasks(Protocol):
    """Runs tasks in processes; implemented by `Cluster` and `Processes`."""

    @property
    def workers(self) -> int: ...

    def run(self, function: Callable[[int], Any], items: list[int]) -> Iterator[list[Any]]:
        """Yield the results of the tasks finished since the last list, at least once a second; retry crashed tasks."""


def gather_on(
    tasks: Tasks,
    source: AnySource,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Unpack[GatherKeywords],
) -> GatherSummary:
    """Run `gather` in several processes, those of `tasks`; the hosts are divided among the tasks.

    The output is a folder that every machine can access, or an address. `limit` and `per_host` apply to all processes
    together, `parallel` to each.

    Raises:
        GatherError: as for `gather`; or a machine cannot access the folder, or a process crashed repeatedly.
        InputError: as for `gather`, or the source cannot be divided.
    """
    links, chosen, out = copy.copy(as_source(source)), GatherOptions(**options), as_path(out)
    _require_divisible(links, chosen)
    started = time.monotonic()
    progress = progress or NoProgress()
    with GatherFolder(out, chosen) as gathered:
        full = {label for label, count in gathered.tally.classes.items() if count >= (chosen.limit or math.inf)}
    shards = tasks.workers * SHARDS_PER_WORKER
    with _make_access_marker(out) as marker_path:
        place = str(out if is_remote(out) else out.absolute())
        parts = run_blocking(_count_host_parts(links, shards, tasks.workers))
        own = copy.copy(links)  # the count opens `links`, which the last run then reads: one message about its columns
        task = partial(_gather_shard, _ShardedLinks(own, full, parts), place, marker_path, shards, options)
        ended = _run_shards(tasks, task, shards, out, links, progress)
    options.update(_AGAIN)
    last = gather(links, out, **options)
    waits_s = {host: pause_s for summary in (*ended, last) for host, pause_s in summary.waits_s.items()}
    fetched = sum(summary.fetched for summary in (*ended, last))
    return replace(last, fetched=fetched, waits_s=waits_s, seconds=round(time.monotonic() - started, 2))


async def _count_host_parts(source: Source, shards: int, workers: int) -> dict[str, int]:
    """Return the number of shards of each host that is spread over several, at most as many as run at a time."""
    host_parts = getattr(source, "host_parts", None)
    parts: dict[str, int] = await host_parts(shards) if host_parts else {}
    return {host: min(number, workers) for host, number in parts.items() if workers > 1}


def _require_divisible(source: Source, options: GatherOptions) -> None:
    name = type(source).__name__
    advice = "omit --engine ray and --workers"
    if options.shard:
        raise InputError("omit --shard: --workers and --engine ray already divide the links")
    if getattr(source, "lookahead", None) == 0:
        raise InputError(f"{name} runs in one process, to keep its provider's rate limit: {advice}")
    if getattr(source, "is_read_once", False):
        raise InputError(f"standard input can only be read by one process: write the list to a file, or {advice}")
    try:
        ForkingPickler.dumps(source)
    except Exception as error:
        raise InputError(f"{name} cannot be pickled ({error}): {advice}") from error


@contextmanager
def _make_access_marker(out: Path) -> Iterator[str | None]:
    """Yield a path below the folder with which each machine checks its access to it, and lock the folder for other
    runs; None for a remote folder."""
    if is_remote(out):
        yield None
        return
    with work_folder(out, secrets.token_hex(8), exclusive=False) as mark:
        yield str(mark.absolute())


def _run_shards(
    tasks: Tasks, task: Callable[[int], GatherSummary], shards: int, out: Path, source: Source, progress: Progress
) -> list[GatherSummary]:
    """Run all shards, with the total of their manifests as progress; return their summaries."""
    progress.start("gather", run_blocking(count_source_links(source)), "links")
    rows = _RowCounts(out, shards)
    summaries: list[GatherSummary] = []
    try:
        for ended in tasks.run(task, list(range(1, shards + 1))):
            summaries += ended
            progress.advance(**rows.poll())
    finally:
        progress.close()
    return summaries


class _RowCounts:
    """Counts the rows that shards write to a local folder; rows in remote folders are not counted."""

    def __init__(self, out: Path, shards: int) -> None:
        self._paths = [] if is_remote(out) else [manifest_path(out, (n, shards)) for n in range(1, shards + 1)]
        self._read = dict.fromkeys(self._paths, 0)
        self._sums = {"ok": 0, "failed": 0, "open": 0}

    def poll(self) -> dict[str, int]:
        """Read the rows appended since the last call; return their number as `count`, and the totals by outcome."""
        count = 0
        for path, begin in self._read.items():
            if path.exists() and path.stat().st_size > begin:
                with path.open("rb") as file:
                    file.seek(begin)
                    new = file.read(_BYTES_READ)
                new = new[: new.rfind(b"\n") + 1]
                self._read[path] += len(new)
                count += new.count(b"\n") - new.count(b'"status": "closed"')
                is_open = new.count(b'"final": false')
                self._sums["ok"] += new.count(b'"status": "ok"')
                self._sums["failed"] += new.count(b'"status": "failed"') - is_open
                self._sums["open"] += is_open
        return {"count": count, **self._sums}


@dataclass(frozen=True, slots=True)
class _ShardedLinks:
    """A source without the links of classes that have enough images, whose hosts have been counted."""

    source: Source
    full_classes: Collection[str]
    parts_by_host: Mapping[str, int]

    async def host_parts(self, shards: int) -> Mapping[str, int]:
        """Return the number of shards of each host that is spread over several."""
        return self.parts_by_host

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        async for image_ref in self.source:
            if image_ref.label not in self.full_classes:
                yield image_ref


def _gather_shard(
    source: Source, out: str, marker_path: str | None, shards: int, options: GatherKeywords, shard_number: int
) -> GatherSummary:
    """Gather one shard."""
    if marker_path and not Path(marker_path).exists():
        raise GatherError(
            f"{out} is not accessible on {socket.gethostname()}: use a folder on a shared file system, or an address "
            "(s3://...)"
        )
    limit = options.get("limit")
    own: GatherKeywords = {**options, "shard": (shard_number, shards), "decoders": 1, "keep_deleted": False}
    if limit is not None:
        own["limit"] = -(-limit // shards)
    with contextlib.redirect_stderr(io.StringIO()):  # the parent process has already printed how a list is read
        return gather(source, out, **own)
