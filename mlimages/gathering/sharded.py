"""Gather in several processes, on one machine or more; each task gathers one shard of the links.

1. `gather_on` opens the folder, which merges manifests left by earlier runs, and finds the classes that are full.
2. For each shard, a task calls `gather(..., shard=(i, n))`. Its manifest is its checkpoint, so it can be restarted.
3. `gather_on` calls `gather` without a shard. This merges the manifests of the shards, removes duplicates and images
   beyond the limit, and downloads what classes still lack.
"""

from __future__ import annotations

import copy
import io
import math
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from mlimages.core import (
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
from mlimages.gathering.options import GatherKeywords, GatherOptions
from mlimages.gathering.run import count_shards_by_host, count_source_links, gather
from mlimages.gathering.sources.source import AnySource, Source, as_source
from mlimages.gathering.store.gather_folder import GatherFolder
from mlimages.gathering.store.manifest import make_manifest_path, parse_row
from mlimages.gathering.store.output_folder import open_work_folder
from mlimages.gathering.store.tally import ResultTally

if TYPE_CHECKING:
    from mlimages.core import ProcessPool, RayCluster

SHARDS_PER_WORKER = 4
"""Number of shards per worker: more than one, since shards differ in size (a host's links are usually in one shard)."""

_MERGE_OPTIONS: GatherKeywords = {"no_retry": True, "retry_failed": (), "restore_deleted": False, "keep_deleted": True}
"""Options of the run that merges the shards; it does not retry links that the shards left unfinished."""


def gather_on(
    pool: RayCluster | ProcessPool,
    source: AnySource,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Unpack[GatherKeywords],
) -> GatherSummary:
    """Run `gather` in several processes, each for a part of the links, divided by host; return the overall summary.

    Args:
        pool: the processes, on this machine or on a Ray cluster.
        source: as for `gather`; each process receives a pickled copy.
        out: a folder that every machine can access, or an address such as `s3://bucket/folder`.
        progress, options: as for `gather`; `limit` and `per_host` apply to all processes together, `parallel` to each.

    Raises:
        GatherError: as for `gather`; or a machine cannot access the folder, or a process crashed repeatedly.
        InputError: as for `gather`, or the links cannot be divided among processes.
    """
    chosen, out = GatherOptions(**options), as_path(out)
    links = copy.copy(as_source(source, chosen))
    require_shardable(links, chosen)
    started = time.monotonic()
    with GatherFolder(out, chosen) as gathered:
        full = {label for label, count in gathered.tally.classes.items() if count >= (chosen.limit or math.inf)}
    num_shards = pool.workers * SHARDS_PER_WORKER
    num_shards_by_host = run_blocking(count_shards_by_host(links, num_shards))
    # of shards that run at a time
    parts = {host: min(number, pool.workers) for host, number in num_shards_by_host.items()}
    own = copy.copy(links)  # the count opens `links`, which the last run then reads: one message about its columns
    folder = out if is_remote(out) else out.absolute()
    lock = nullcontext() if is_remote(out) else open_work_folder(folder, secrets.token_hex(8), is_exclusive=False)
    progress = progress or NoProgress()
    with lock as access_marker:
        task = partial(
            _gather_shard, _SourceWithoutFullClasses(own, full, parts), str(folder), access_marker, num_shards, options
        )
        progress.start("gather", run_blocking(count_source_links(links)), "links")
        try:
            ended = _run_shards(pool, task, out, num_shards, progress)
        finally:
            progress.close()
    options.update(_MERGE_OPTIONS)
    last = gather(links, out, **options)
    waits_s = {host: pause_s for summary in (*ended, last) for host, pause_s in summary.waits_s.items()}
    fetched = sum(summary.fetched for summary in (*ended, last))
    return replace(last, fetched=fetched, waits_s=waits_s, seconds=round(time.monotonic() - started, 2))


def require_shardable(source: Source, options: GatherOptions) -> None:
    """Check that the links of `source` can be divided among processes.

    Raises:
        InputError: the links cannot be divided; the message says why.
    """
    name = type(source).__name__
    advice = "omit --engine ray and --workers"
    if options.shard:
        raise InputError("omit --shard: --workers and --engine ray already divide the links")
    if getattr(source, "lookahead", None) == 0:
        raise InputError(f"{name} runs in one process, to stay within its provider's rate limit: {advice}")
    if getattr(source, "is_read_once", False):
        raise InputError(f"standard input can only be read by one process: write the list to a file, or {advice}")
    try:
        ForkingPickler.dumps(source)
    except Exception as error:
        raise InputError(f"{name} cannot be pickled ({error}): {advice}") from error


def _run_shards(
    pool: RayCluster | ProcessPool, task: Callable[[int], GatherSummary], out: Path, num_shards: int, progress: Progress
) -> list[GatherSummary]:
    """Run `task` for each shard number and return the summaries.

    If `out` is local, the new rows in the manifests of the shards are shown as progress.
    """
    numbers = range(1, num_shards + 1)
    offsets = {make_manifest_path(out, (number, num_shards)): 0 for number in numbers if not is_remote(out)}
    summaries: list[GatherSummary] = []
    tally = ResultTally()
    for ended in pool.map_as_completed(task, numbers):
        summaries += ended
        rows = list(_read_new_rows(offsets))
        for row in rows:
            tally.add(row)
        progress.advance(len(rows), **tally.make_progress_counts())
    return summaries


def _read_new_rows(offsets: dict[Path, int]) -> Iterator[FetchResult]:
    """Yield the rows of each manifest after its offset in bytes, and advance the offsets past these rows."""
    for path in filter(Path.exists, offsets):
        with path.open("rb") as file:
            file.seek(offsets[path])
            for line in file:
                if line.endswith(b"\n"):
                    offsets[path] += len(line)
                    if row := parse_row(line):
                        yield row


@dataclass(frozen=True, slots=True)
class _SourceWithoutFullClasses:
    """Wraps a source to omit the links of full classes, and to return a precomputed `num_shards_by_host`."""

    source: Source
    full_classes: Collection[str]
    num_shards_by_host: Mapping[str, int]

    async def count_shards_by_host(self, num_shards: int) -> Mapping[str, int]:
        return self.num_shards_by_host

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        async for image_ref in self.source:
            if image_ref.label not in self.full_classes:
                yield image_ref


def _gather_shard(
    source: Source, out: str, access_marker: Path | None, num_shards: int, options: GatherKeywords, shard_number: int
) -> GatherSummary:
    """Gather the shard with the number `shard_number`.

    Args:
        access_marker: a folder in `out`; if it does not exist on this machine, the machine cannot access `out`. None if
            `out` is remote.
    """
    if access_marker and not access_marker.exists():
        raise GatherError(
            f"{out} is not accessible on {socket.gethostname()}: use a folder on a shared file system, or an address "
            "(s3://...)"
        )
    limit = options.get("limit")
    share = limit and math.ceil(limit / num_shards)
    own: GatherKeywords = {
        **options,
        "shard": (shard_number, num_shards),
        "limit": share,
        "decoders": 1,
        "keep_deleted": False,
    }
    with redirect_stderr(io.StringIO()):  # the parent process has already printed how a list is read
        return gather(source, out, **own)
