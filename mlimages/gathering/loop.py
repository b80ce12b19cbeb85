"""The gather loop: references in, pictures and rows out."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlimages.errors import MlimagesError
from mlimages.gathering.collection import Gathered
from mlimages.gathering.decoders import Decoders
from mlimages.gathering.facts import Checks
from mlimages.gathering.failures import reason_of_error
from mlimages.gathering.fetch import Fetched, Fetcher
from mlimages.gathering.manifest import row_key
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.sources import Source
from mlimages.gathering.spool import Spool
from mlimages.progress import NoProgress, Progress
from mlimages.records import GatherSummary, ImageRef, Reason

_AHEAD = 1024
"""Links in work or waiting at one time, so that one slow host does not hold up the others."""

_LOOKUPS = 64
"""Threads that look names up: a name server that does not answer holds one for long."""


def gather(source: Source, out: str | Path, *, progress: Progress | None = None, **options: Any) -> GatherSummary:
    """Fetch, verify and store every picture that `source` names; `options` are the fields of `GatherOptions`.

    Broken links cost themselves alone and are recorded with their reason in `out/manifest.jsonl`. Running it again
    goes on where it stopped.

    Raises:
        GatherError: the source cannot go on, or `out` cannot be written.
        InputError: an option or a list cannot be used.
    """

    async def run() -> GatherSummary:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_LOOKUPS, "lookup"))
        return await gather_async(source, out, progress=progress, **options)

    return asyncio.run(run())


async def gather_async(
    source: Source, out: str | Path, *, progress: Progress | None = None, **options: Any
) -> GatherSummary:
    """As `gather`, where an event loop runs already."""
    chosen = GatherOptions(**options)
    started = time.monotonic()
    checks = Checks(max_pixels=chosen.max_pixels, min_size=chosen.min_size, resize=chosen.resize)
    with Gathered(Path(out), chosen) as gathered:
        async with Fetcher(chosen) as fetcher, Decoders(checks, chosen.decoders) as decoders:
            await _Run(gathered, fetcher, decoders, chosen, progress or NoProgress()).run(source)
        gathered.finish()
        return gathered.tally.summary(Path(out), fetched=gathered.added, seconds=time.monotonic() - started)


class _Run:
    """One run: starts links while their class wants pictures, and records how each ended."""

    def __init__(
        self, gathered: Gathered, fetcher: Fetcher, decoders: Decoders, options: GatherOptions, progress: Progress
    ) -> None:
        self._gathered = gathered
        self._fetcher = fetcher
        self._decoders = decoders
        self._options = options
        self._progress = progress
        self._in_work: Counter[str] = Counter()
        self._working = 0
        self._parked: dict[str, deque[ImageRef]] = {}
        self._waiting = 0
        self._moved = asyncio.Event()

    async def run(self, source: Source) -> None:
        self._enough = getattr(source, "enough", lambda label: None)
        most_parked = getattr(source, "lookahead", _AHEAD)
        for label in sorted(self._gathered.tally.classes):
            self._tell_if_full(label)
        self._progress.start("gather", await _length(source), "link")
        refs = aiter(source)
        try:
            async with asyncio.TaskGroup() as self._group:
                async for ref in refs:
                    self._offer(ref)
                    while self._working >= _AHEAD or self._waiting > most_parked:
                        self._moved.clear()
                        await self._moved.wait()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            if isinstance(refs, AsyncGenerator):
                await refs.aclose()
            self._progress.close()

    def _offer(self, ref: ImageRef) -> None:
        wanted = _in_shard(ref.url, self._options.shard) and self._missing(ref.label) > 0
        if not (wanted and self._gathered.claim(ref)):
            self._progress.advance()
        elif self._in_work[ref.label] < self._missing(ref.label):
            self._start(ref)
        else:
            self._parked.setdefault(ref.label, deque()).append(ref)
            self._waiting += 1

    def _missing(self, label: str) -> float:
        """How many good pictures the class lacks."""
        limit = self._options.limit
        return max(0, limit - self._gathered.tally.classes[label]) if limit is not None else math.inf

    def _start(self, ref: ImageRef) -> None:
        self._in_work[ref.label] += 1
        self._working += 1
        self._group.create_task(self._finish(ref))

    async def _finish(self, ref: ImageRef) -> None:
        part = self._gathered.new_part()
        fetched = await (self._load(ref, part) if ref.load else self._fetcher.fetch(ref.url, part))
        found = None if fetched.reason else await self._decoders.inspect(part)
        row = self._gathered.add(ref, fetched, found, part)
        self._in_work[ref.label] -= 1
        self._working -= 1
        self._tell_if_full(ref.label)
        for label in list(self._parked) if row.reason is Reason.PLACEHOLDER else [ref.label]:
            self._start_parked(label)  # a placeholder may have cost another class a picture
        self._moved.set()
        status = self._gathered.tally.status
        self._progress.advance(1, good=status["ok"], broken=status["failed"], duplicate=status["duplicate"])

    def _start_parked(self, label: str) -> None:
        parked = self._parked.get(label)
        while parked and self._in_work[label] < self._missing(label):
            self._waiting -= 1
            self._start(parked.popleft())

    async def _load(self, ref: ImageRef, part: Path) -> Fetched:
        assert ref.load
        spool = Spool(part)
        try:
            data = await ref.load()
        except MlimagesError:
            raise
        except Exception as error:  # a source's own trouble with one picture costs that picture
            return Fetched(reason_of_error(error), f"{type(error).__name__}: {error}"[:200], attempts=1)
        spool.write(data)
        spool.finish()
        return Fetched(attempts=1)

    def _tell_if_full(self, label: str) -> None:
        if self._missing(label) == 0:
            self._waiting -= len(self._parked.pop(label, ()))
            self._enough(label)


def _in_shard(url: str, shard: tuple[int, int] | None) -> bool:
    return shard is None or row_key("", url) % shard[1] == shard[0] - 1


async def _length(source: Source) -> int | None:
    """How many links the source has, where it can tell."""
    length = getattr(source, "length", None)
    return await length() if length else None
