"""Memory and time of the process that finds duplicates: made-up links and a made-up fetch, half of them dead.

    .venv/bin/python scripts/bench/gather_memory.py 10_000_000

No image is written, so a settled manifest's images count as missing: the script gathers, it does not continue.
"""

import asyncio
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from mlimages.core import FetchResult, ImageRef, NoProgress, Reason
from mlimages.gathering import GatherOptions
from mlimages.gathering.download.fetch import DownloadResult
from mlimages.gathering.download.host_limits import Hosts
from mlimages.gathering.download.image_info import ImageInfo
from mlimages.gathering.partition import NO_PARTITION
from mlimages.gathering.run import LinkScheduler
from mlimages.gathering.store.file_storage import FileStorage
from mlimages.gathering.store.gather_folder import GatherFolder


@dataclass
class Links:
    count: int

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        for number in range(self.count):
            yield ImageRef(f"https://host{number % 100_003}.example.org/images/{number}.jpg", f"class{number % 1000}")


@dataclass
class MadeUpDownloads:
    """Fetcher and decoders: every second link is dead; of the others each tenth gives the bytes of an earlier one."""

    hosts: Hosts = field(default_factory=lambda: Hosts(NO_PARTITION, 0.0))
    infos: dict[Path, ImageInfo] = field(default_factory=dict)

    async def fetch(self, url: str, part: Path, **_: object) -> DownloadResult:
        number = int(url.rpartition("/")[2].partition(".")[0])
        if number % 2:
            return DownloadResult(Reason.NOT_FOUND, http_status=404, attempts=1)
        seed = number // 2 - 1 if number % 20 == 10 else number // 2
        digest = hashlib.sha256(b"%d" % seed).hexdigest()
        self.infos[part] = ImageInfo(2048, digest, digest[:16], "JPEG", 500, 375, 1, ".jpg")
        return DownloadResult(attempts=1)

    async def verify_and_resize(self, part: Path) -> ImageInfo:
        return self.infos.pop(part)


class NoFiles(FileStorage):
    async def store(self, part: Path, row: FetchResult) -> str | None:
        return row.path


def main() -> None:
    count = int(sys.argv[1])
    began, options = time.monotonic(), GatherOptions()
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        GatherFolder(Path(folder), options, is_list=True) as gathered,
    ):
        gathered._storage = NoFiles(Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        made_up = MadeUpDownloads()
        scheduler = LinkScheduler(gathered, made_up, made_up, options, NoProgress(), NO_PARTITION)  # type: ignore[arg-type]
        if stopped := asyncio.run(scheduler.run(Links(count))):
            raise stopped
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        counts = {name: gathered.tally.counts[name] for name in ("ok", "failed", "duplicate")}
    seconds, cpu = time.monotonic() - began, time.process_time()
    print(f"{count:,} links: {counts}; {seconds:.0f} s, CPU {cpu:.0f} s ({cpu / count * 1e6:.0f} us a link)")
    a_link = (after - before) * 2**20 / count
    print(f"memory {before:.0f} MB at the start, {after:.0f} MB at most: {a_link:.1f} bytes a link")


if __name__ == "__main__":
    main()
