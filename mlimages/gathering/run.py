"""Gather images: download the links of a source, store the images and write the manifest."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
    pluralize,
)
from mlimages.gathering.download.body_file import BufferedFile
from mlimages.gathering.download.decoders import DecoderPool
from mlimages.gathering.download.fetch import DownloadResult, Fetcher
from mlimages.gathering.download.image_info import ImageInfo, ImageRequirements
from mlimages.gathering.download.reasons import classify_error
from mlimages.gathering.event_loop import run_blocking
from mlimages.gathering.interleaving import interleave_hosts
from mlimages.gathering.options import GatherKeywords, GatherOptions
from mlimages.gathering.partition import LinkPartition
from mlimages.gathering.sources.source import AnySource, Source, as_source
from mlimages.gathering.store.gather_folder import GatherFolder
from mlimages.gathering.store.manifest import read_manifest

MAX_LINKS_IN_PROGRESS = 1024
"""Maximum number of links in progress, apart from links that wait for their host (see the two constants below)."""

MAX_PAUSED_LINKS = 20_000
"""Up to this many links of paused hosts do not count towards `MAX_LINKS_IN_PROGRESS`, so that a paused host does not
delay the others."""

MAX_LINKS_AWAITING_SLOT = 8192
"""Up to this many links whose host already has the maximum number of requests do not count towards
`MAX_LINKS_IN_PROGRESS`, so that a list sorted by host keeps several hosts busy. A link takes about 5 KB of memory."""

_POLL_INTERVAL_S = 0.2

MAX_DNS_THREADS = 64
"""Maximum number of threads that resolve host names; an unresponsive name server blocks a thread for a long time."""


def gather(
    source: AnySource,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Unpack[GatherKeywords],
) -> GatherSummary:
    """Download, verify and store the images of `source`; return a summary of `out` after this and earlier runs.

    Failed links do not stop the run; their reasons are recorded in `out/manifest.jsonl`. Repeat the call to resume.
    In a notebook or other code with a running event loop, `gather` blocks the loop; `gather_async` does not.

    Args:
        source: the path of a list of links, several such paths, or a source such as `UrlList`, `Openverse`, `ImageNet`.
        out: folder for the images, one subfolder per class, or an address such as `s3://bucket/folder`.
        options: the fields of `GatherOptions`.
        progress: shows the number of finished links.

    Raises:
        GatherError: the source fails, `out` cannot be written or is used by another run, or many of its images are
            missing.
        InputError: an option or a list is invalid.
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
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(MAX_DNS_THREADS, "lookup"))
        return await gather_async(source, out, progress=progress, **options)

    return run_blocking(run())


async def gather_async(
    source: AnySource,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Unpack[GatherKeywords],
) -> GatherSummary:
    """Asynchronous version of `gather`, with the same arguments and result."""
    chosen, out = GatherOptions(**options), as_path(out)
    links = as_source(source, chosen)
    await asyncio.to_thread(_check_earlier_rows, links, out)
    started = time.monotonic()
    checks = ImageRequirements(
        max_pixels=chosen.max_pixels,
        min_side_px=chosen.min_size,
        target_shorter_px=chosen.resize,
        ignore_opt_out=chosen.ignore_opt_out,
    )
    shard, shards = chosen.shard or (1, 1)
    num_shards_by_host = await count_shards_by_host(links, shards) if chosen.shard else {}
    partition = LinkPartition(shard, shards, num_shards_by_host, chosen.per_host)
    with GatherFolder(out, chosen, partition, is_list=getattr(links, "is_list", False)) as folder:
        async with Fetcher(chosen, partition) as fetcher, DecoderPool(checks, chosen.decoders) as decoders:
            scheduler = LinkScheduler(folder, fetcher, decoders, chosen, progress or NoProgress(), partition)
            stopped = await scheduler.run(links)
        folder.finish()
        if stopped:
            raise stopped
        summary = folder.tally.make_summary(out, num_fetched=folder.num_added, seconds=time.monotonic() - started)
        renamed = {} if chosen.layout == "tar" else folder.paths_in_use.find_renamed_folders(summary.classes)
        return replace(summary, waits_s=fetcher.hosts.long_pause_s_by_host, renamed=renamed)


def _check_earlier_rows(source: Source, out: Path) -> None:
    """Let the source check the rows that the folder already has (see `Source`)."""
    if check := getattr(source, "check_earlier_row", None):
        for row in read_manifest(out):
            check(row)


@dataclass
class LinkScheduler:
    """Schedules the downloads of a run: a link is started only if its class still needs images.

    A link that is needed only if links in progress fail is put in the backlog of its class.

    Attributes:
        folder: records the finished links and the images of each class.
        fetcher: downloads links.
        decoders: verify the downloaded images.
        options: options of the run.
        progress: shows the number of finished links.
        partition: determines which links belong to this run.
    """

    folder: GatherFolder
    fetcher: Fetcher
    decoders: DecoderPool
    options: GatherOptions
    progress: Progress
    partition: LinkPartition
    _num_active_links_by_label: Counter[str] = field(default_factory=Counter, init=False)
    _num_active_links: int = field(default=0, init=False)
    _backlog_by_label: dict[str, deque[ImageRef]] = field(default_factory=dict, init=False)
    _num_in_backlog: int = field(default=0, init=False)
    _link_finished: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def run(self, source: Source) -> Exception | None:
        """Download the links of `source` that are needed; return the error that ended `source` early, or None."""
        stopped: Exception | None = None
        self._skip_class_in_source = getattr(source, "skip_class", lambda label: None)
        self._report_row_to_source = getattr(source, "record_result", lambda row: None)
        max_backlog = getattr(source, "lookahead", MAX_LINKS_IN_PROGRESS)
        for label in sorted(self.folder.tally.classes):
            self._notify_source_if_class_is_full(label)
        self.progress.start("gather", await count_source_links(source), "links")
        image_refs = aiter(source)
        needs_all = getattr(source, "is_list", False) and self.options.limit is None
        # links of standard input are requested in order, without reading ahead
        may_reorder = needs_all and not getattr(source, "is_read_once", False)
        in_turn = interleave_hosts(image_refs) if may_reorder else image_refs
        watcher = asyncio.create_task(self._watch_paused_hosts())
        try:
            async with asyncio.TaskGroup() as self._group:
                try:
                    async for image_ref in in_turn:
                        await self._accept_link(image_ref, max_backlog)
                    others = await asyncio.to_thread(self.folder.resolve_deferred_links)
                    self.progress.advance(-len(others))  # they were counted when they were deferred
                    for image_ref in others:
                        await self._accept_link(image_ref, max_backlog)
                except Exception as error:  # links that the source yielded before are still finished
                    stopped = error
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            watcher.cancel()
            for each in (in_turn, image_refs):
                if isinstance(each, AsyncGenerator):
                    await each.aclose()
            self.progress.close()
        return stopped

    async def _accept_link(self, image_ref: ImageRef, max_backlog: int) -> None:
        """Start a link, put it in the backlog, or skip it.

        Then wait while too many links are in progress, or more than `max_backlog` links are in the backlog.
        """
        self._start_postpone_or_skip(image_ref)
        while self._has_max_links_in_progress or self._num_in_backlog > max_backlog:
            self._link_finished.clear()
            with suppress(TimeoutError):  # no event is set when links begin to wait for their host
                async with asyncio.timeout(_POLL_INTERVAL_S):
                    await self._link_finished.wait()

    @property
    def _has_max_links_in_progress(self) -> bool:
        hosts = self.fetcher.hosts
        num_paused = min(hosts.num_paused_links, MAX_PAUSED_LINKS)
        num_awaiting_slot = min(hosts.num_links_awaiting_slot, MAX_LINKS_AWAITING_SLOT)
        return self._num_active_links >= MAX_LINKS_IN_PROGRESS + num_paused + num_awaiting_slot

    def _start_postpone_or_skip(self, image_ref: ImageRef) -> None:
        self.folder.paths_in_use.plan_folder(image_ref.label)  # in the order of the source, in every shard
        is_own = self.partition.is_in_shard(image_ref.url) and self.partition.max_concurrent_requests(image_ref.url) > 0
        if not (is_own and self._count_needed_images(image_ref.label) > 0 and self.folder.claim_link(image_ref)):
            self.progress.advance()
        elif self._may_start_link(image_ref.label):
            self._start_link(image_ref)
        else:
            self._backlog_by_label.setdefault(image_ref.label, deque()).append(image_ref)
            self._num_in_backlog += 1

    def _count_needed_images(self, label: str) -> float:
        """Return how many images the class still needs, which is infinity if `limit` is not set."""
        limit = self.options.limit
        return max(0, limit - self.folder.tally.classes[label]) if limit is not None else math.inf

    def _may_start_link(self, label: str) -> bool:
        """Return whether the class needs more images than its links in progress can give.

        Links of paused hosts are not counted, so others are started in their place.
        """
        num_paused = self.fetcher.hosts.num_paused_links_by_label[label]
        return self._num_active_links_by_label[label] - num_paused < self._count_needed_images(label)

    def _start_link(self, image_ref: ImageRef) -> None:
        self._num_active_links_by_label[image_ref.label] += 1
        self._num_active_links += 1
        self._group.create_task(self._process_link(image_ref))

    async def _process_link(self, image_ref: ImageRef) -> None:
        row = await self._download_and_record(image_ref)
        if row:
            self._report_row_to_source(row)
        self._num_active_links_by_label[image_ref.label] -= 1
        self._num_active_links -= 1
        self._notify_source_if_class_is_full(image_ref.label)
        for label in list(self._backlog_by_label) if row and row.reason is Reason.PLACEHOLDER else [image_ref.label]:
            self._start_from_backlog(label)  # a placeholder may have removed an image of another class
        self._link_finished.set()
        self.progress.advance(1, **self.folder.tally.make_progress_counts())

    async def _download_and_record(self, image_ref: ImageRef) -> FetchResult | None:
        """Download a link and return its recorded row, or None if its class has enough images by then."""
        temp_path = self.folder.make_temp_path()
        download = await (
            _save_image(image_ref.load, temp_path)
            if image_ref.load
            else self.fetcher.fetch(
                image_ref.url, temp_path, label=image_ref.label, obeys_site_rules=not image_ref.is_api
            )
        )
        inspection = None if download.reason else await self.decoders.verify_and_resize(temp_path)
        if isinstance(inspection, ImageInfo) and not self._count_needed_images(image_ref.label):
            temp_path.unlink(missing_ok=True)
            return None
        return await self.folder.record_download(image_ref, download, inspection, temp_path)

    async def _watch_paused_hosts(self) -> None:
        """In place of links of paused hosts, start links from the backlog of the same class.

        If the hosts of all links in progress are paused, name these hosts in the progress display. Runs until the task
        is cancelled.
        """
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            for label in list(self._backlog_by_label):
                self._start_from_backlog(label)
            if hosts := self.fetcher.hosts.host_names_if_all_paused:
                more = f" +{len(hosts) - 1}" if len(hosts) > 1 else ""
                self.progress.advance(
                    0, waiting_for=f"{hosts[0][:30]}{more} ({pluralize(self.fetcher.hosts.num_paused_links, 'link')})"
                )

    def _start_from_backlog(self, label: str) -> None:
        backlog = self._backlog_by_label.get(label)
        while backlog and self._may_start_link(label):
            self._num_in_backlog -= 1
            self._start_link(backlog.popleft())

    def _notify_source_if_class_is_full(self, label: str) -> None:
        """If a class needs no more images, discard its backlog and tell the source to skip the class."""
        if self._count_needed_images(label) == 0:
            backlog = self._backlog_by_label.pop(label, ())
            self._num_in_backlog -= len(backlog)
            if backlog:
                self.progress.advance(len(backlog))
            self._skip_class_in_source(label)


async def _save_image(load_bytes: Callable[[], Awaitable[bytes]], temp_path: Path) -> DownloadResult:
    """Write the image that `load_bytes` returns to `temp_path`.

    An MlimagesError of `load_bytes` is raised again. For any other error, a failed result is returned: its `reason`
    comes from `classify_error`, and its `detail` is the error's message.
    """
    file = BufferedFile(temp_path)
    try:
        data = await load_bytes()
    except MlimagesError:
        raise
    except Exception as error:  # an error of the source in one image affects only that image
        return DownloadResult(classify_error(error), f"{type(error).__name__}: {error}"[:200], attempts=1)
    file.write(data)
    file.flush()
    return DownloadResult(attempts=1)


async def count_shards_by_host(source: Source, num_shards: int) -> Mapping[str, int]:
    """Return the number of shards for each host whose links are to be spread over several shards."""
    count_shards = getattr(source, "count_shards_by_host", None)
    return await count_shards(num_shards) if count_shards else {}


async def count_source_links(source: Source) -> int | None:
    """Return the number of links of the source, or an upper bound of it; None if it is unknown."""
    count_links = getattr(source, "count_links", None)
    return await count_links() if count_links else None
