"""`gather`: links in, images and rows of the manifest out."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from mlimages.core import (
    FetchResult,
    GatherSummary,
    ImageRef,
    MlimagesError,
    NoProgress,
    Progress,
    Reason,
    as_path,
    counted,
)
from mlimages.gathering.download.body_file import Spool
from mlimages.gathering.download.decoders import Decoders
from mlimages.gathering.download.fetch import Fetched, Fetcher
from mlimages.gathering.download.image_facts import Checks, Facts
from mlimages.gathering.download.reasons import reason_of_error
from mlimages.gathering.event_loop import run_blocking
from mlimages.gathering.options import GatherKeywords, GatherOptions
from mlimages.gathering.sources.source import AnySource, Source, as_source
from mlimages.gathering.store.gather_folder import Gathered

AHEAD = 1024
"""Links in work or waiting at one time, so that one slow host does not hold up the others."""

MOST_WAITING = 20_000
"""Further links that wait for hosts which do not answer at present."""

_LOOK_S = 0.2

LOOKUPS = 64
"""Threads that look names up: a name server that does not answer holds one for long."""


def gather(
    source: AnySource,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Unpack[GatherKeywords],
) -> GatherSummary:
    """Download, verify and store every image that `source` names.

    A link that fails costs only itself: its reason goes into `out/manifest.jsonl`. The same call again goes on where
    the last one stopped. In a notebook or another running event loop it works too; there `gather_async` does not
    block the loop.

    Args:
        source: a list of links as a path, several of them, or a source such as `UrlList`, `Openverse`, `ImageNet`.
        out: folder for the images, one subfolder per class.
        options: the fields of `GatherOptions`.

    Raises:
        GatherError: the source cannot go on, or `out` cannot be written.
        InputError: an option or a list cannot be used.
        TypeError: `source` is not a source.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "cats.txt").write_text("http://127.0.0.1:9/cat.jpg")
        >>> summary = gather(folder / "cats.txt", folder / "images", limit=100)
        >>> summary.ok, summary.reasons
        (0, {'private-address': 1})
    """

    async def run() -> GatherSummary:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(LOOKUPS, "lookup"))
        return await gather_async(source, out, progress=progress, **options)

    return run_blocking(run())


async def gather_async(
    source: AnySource,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Unpack[GatherKeywords],
) -> GatherSummary:
    """As `gather`, where an event loop runs already."""
    links, chosen, out = as_source(source), GatherOptions(**options), as_path(out)
    started = time.monotonic()
    checks = Checks(
        max_pixels=chosen.max_pixels,
        min_size=chosen.min_size,
        resize=chosen.resize,
        ignore_opt_out=chosen.ignore_opt_out,
    )
    with Gathered(out, chosen, is_list=getattr(links, "is_list", False)) as gathered:
        async with Fetcher(chosen) as fetcher, Decoders(checks, chosen.decoders) as decoders:
            hand = _Hand(gathered, fetcher, decoders)
            stopped = await Run(gathered, hand, chosen, progress or NoProgress()).run(links)
        gathered.finish()
        if stopped:
            raise stopped
        return gathered.tally.summary(out, fetched=gathered.added, seconds=time.monotonic() - started)


class Run:
    """One run: starts links while their class wants images.

    Args:
        gathered: knows what is done and what each class has.
        ahead: links in work or waiting at one time.
    """

    def __init__(
        self, gathered: Gathered, hand: _Hand, options: GatherOptions, progress: Progress, *, ahead: int = AHEAD
    ) -> None:
        self._gathered = gathered
        self._hand = hand
        self._options = options
        self._progress = progress
        self._ahead = ahead
        self._in_work: Counter[str] = Counter()
        self._working = 0
        self._parked: dict[str, deque[ImageRef]] = {}
        self._waiting = 0
        self._moved = asyncio.Event()

    async def run(self, source: Source) -> Exception | None:
        """Finish every link of `source` that is wanted and not done; return the error that ended the source early."""
        stopped: Exception | None = None
        self._enough = getattr(source, "enough", lambda label: None)
        self._note = getattr(source, "finished", lambda row: None)
        most_parked = getattr(source, "lookahead", self._ahead)
        for label in sorted(self._gathered.tally.classes):
            self._tell_if_full(label)
        self._progress.start("gather", await length_of(source), "links")
        refs = aiter(source)
        reporter = asyncio.create_task(self._look_after_waiting())
        try:
            async with asyncio.TaskGroup() as self._group:
                try:
                    async for ref in refs:
                        await self._accept(ref, most_parked)
                    for ref in await asyncio.to_thread(self._gathered.decide_corrections):
                        await self._accept(ref, most_parked)
                except Exception as error:  # the links that it named before are finished all the same
                    stopped = error
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            reporter.cancel()
            if isinstance(refs, AsyncGenerator):
                await refs.aclose()
            self._progress.close()
        return stopped

    async def _accept(self, ref: ImageRef, most_parked: int) -> None:
        self._offer(ref)
        while self._is_busy or self._waiting > most_parked:
            self._moved.clear()
            with suppress(TimeoutError):  # links that begin to wait for their host say nothing
                async with asyncio.timeout(_LOOK_S):
                    await self._moved.wait()

    @property
    def _is_busy(self) -> bool:
        return self._working >= self._ahead + min(self._hand.waiting, MOST_WAITING)

    def _offer(self, ref: ImageRef) -> None:
        wanted = self._options.has(ref.url) and self._missing(ref.label) > 0
        if not (wanted and self._gathered.claim(ref)):
            self._progress.advance()
        elif self._has_room(ref.label):
            self._start(ref)
        else:
            self._parked.setdefault(ref.label, deque()).append(ref)
            self._waiting += 1

    def _missing(self, label: str) -> float:
        """How many good images the class lacks."""
        limit = self._options.limit
        return max(0, limit - self._gathered.tally.classes[label]) if limit is not None else math.inf

    def _has_room(self, label: str) -> bool:
        """Whether another link may fill the class; those that wait for hosts which do not answer do not count."""
        return self._in_work[label] - self._hand.waiting_count(label) < self._missing(label)

    def _start(self, ref: ImageRef) -> None:
        self._in_work[ref.label] += 1
        self._working += 1
        self._group.create_task(self._finish(ref))

    async def _finish(self, ref: ImageRef) -> None:
        row = await self._hand.finish(ref, lambda: self._missing(ref.label) > 0)
        if row:
            self._note(row)
        self._in_work[ref.label] -= 1
        self._working -= 1
        self._tell_if_full(ref.label)
        for label in list(self._parked) if row and row.reason is Reason.PLACEHOLDER else [ref.label]:
            self._start_parked(label)  # a placeholder may have cost another class an image
        self._moved.set()
        self._progress.advance(1, **self._gathered.tally.figures())

    async def _look_after_waiting(self) -> None:
        """Start other links of a class in place of those that wait; name the hosts where nothing else is left."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for label in list(self._parked):
                self._start_parked(label)
            if hosts := self._hand.blocking_hosts:
                more = f" +{len(hosts) - 1}" if len(hosts) > 1 else ""
                self._progress.advance(0, waiting_for=f"{hosts[0][:30]}{more} ({counted(self._hand.waiting, 'link')})")

    def _start_parked(self, label: str) -> None:
        parked = self._parked.get(label)
        while parked and self._has_room(label):
            self._waiting -= 1
            self._start(parked.popleft())

    def _tell_if_full(self, label: str) -> None:
        if self._missing(label) == 0:
            self._waiting -= len(self._parked.pop(label, ()))
            self._enough(label)


@dataclass(frozen=True, slots=True)
class _Hand:
    """Works on links in this process."""

    gathered: Gathered
    fetcher: Fetcher
    decoders: Decoders

    @property
    def waiting(self) -> int:
        return self.fetcher.waiting

    @property
    def blocking_hosts(self) -> Sequence[str]:
        return self.fetcher.blocking_hosts

    def waiting_count(self, label: str) -> int:
        return self.fetcher.waiting_count(label)

    async def finish(self, ref: ImageRef, is_wanted: Callable[[], bool]) -> FetchResult | None:
        """Download and record one link; None where meanwhile its class has all the images that are wanted."""
        part = self.gathered.new_part()
        fetched = await (
            _load(ref.load, part)
            if ref.load
            else self.fetcher.fetch(ref.url, part, label=ref.label, asks_site=not ref.is_interface)
        )
        found = None if fetched.reason else await self.decoders.inspect(part)
        if isinstance(found, Facts) and not is_wanted():
            part.unlink(missing_ok=True)
            return None
        return await self.gathered.add(ref, fetched, found, part)


async def _load(load: Callable[[], Awaitable[bytes]], part: Path) -> Fetched:
    spool = Spool(part)
    try:
        data = await load()
    except MlimagesError:
        raise
    except Exception as error:  # a source's own trouble with one image costs that image
        return Fetched(reason_of_error(error), f"{type(error).__name__}: {error}"[:200], attempts=1)
    spool.write(data)
    spool.finish()
    return Fetched(attempts=1)


async def length_of(source: Source) -> int | None:
    """How many links the source has, where it can tell."""
    length = getattr(source, "length", None)
    return await length() if length else None
