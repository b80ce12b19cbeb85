"""Order of the links of a list: hosts in turn, none lost, none before its time."""

import asyncio
import random
import selectors
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlimages.core import ImageRef, NoProgress, Reason
from mlimages.gathering import GatherOptions
from mlimages.gathering.download.fetch import DownloadResult, Fetcher
from mlimages.gathering.interleaving import interleave_hosts
from mlimages.gathering.partition import NO_PARTITION, LinkPartition
from mlimages.gathering.run import LinkScheduler
from mlimages.gathering.store.gather_folder import GatherFolder


async def yielded(
    hosts: list[str], *, max_in_memory: int, block: int, fails: bool = False
) -> tuple[list[tuple[str, int]], int]:
    """Return the host and number of each link as yielded, and the maximum number of links read ahead."""
    found: list[tuple[str, int]] = []
    most_ahead = 0

    async def source() -> AsyncIterator[ImageRef]:
        nonlocal most_ahead
        for number, host in enumerate(hosts):
            most_ahead = max(most_ahead, number + 1 - len(found))
            yield ImageRef(
                f"http://{host}/{number}", "cats", {"number": number, "licence": None}, f"{host}é", is_api=host == "a"
            )
        if fails:
            raise ValueError("the rest cannot be read")

    with pytest.raises(ValueError, match="the rest") if fails else nullcontext():
        async for ref in interleave_hosts(source(), max_in_memory=max_in_memory, block_size=block):
            _, _, host, number = ref.url.split("/")
            assert (ref.source, ref.name) == ({"number": int(number), "licence": None}, f"{host}é")
            assert ref.is_api == (host == "a")
            found.append((host, int(number)))
    return found, most_ahead


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=60),
    st.integers(1, 20),
    st.sampled_from([1, 2, 5, 60]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_host_keeps_its_order_and_no_link_is_lost(
    hosts: list[str], max_in_memory: int, block: int, fails: bool
) -> None:
    found, most_ahead = asyncio.run(yielded(hosts, max_in_memory=max_in_memory, block=block, fails=fails))
    assert sorted(number for _, number in found) == list(range(len(hosts)))
    for host in set(hosts):
        numbers = [number for name, number in found if name == host]
        assert numbers == sorted(numbers)
    assert most_ahead <= max_in_memory or block < 60  # none is written to the temporary file


def test_a_long_list_is_read_ahead_without_being_held_in_memory() -> None:
    hosts = [host for host in "abcdefgh" for _ in range(5000)]
    tracemalloc.start()
    found, most_ahead = asyncio.run(yielded(hosts, max_in_memory=400, block=16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {host for host, _ in found[2000:3000]} == set("abcdefgh")
    assert most_ahead > 30_000
    assert peak < 12e6  # of which 6 MB are the results; 40,000 links take 25 MB


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_that_names_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: Path("/dev/full").open("r+b", buffering=64))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left on device") as stopped:
        asyncio.run(yielded(["a"] * 5000, max_in_memory=400, block=200))
    assert stopped.value.filename == tempfile.gettempdir()


class VirtualTime(selectors.DefaultSelector):
    """Advances its clock instead of waiting."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        self.now_s += 0.0 if found else timeout or 0.0
        return found


class Links:
    is_list = True

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        for url in self.urls:
            yield ImageRef(url, "cats")


def seconds_of_run(urls: list[str], out: Path) -> float:
    """Return how long a run takes if each answer takes a second."""
    options, clock = GatherOptions(per_host=2, parallel=64), VirtualTime()

    async def answer(*_: object, **__: object) -> DownloadResult:
        await asyncio.sleep(1.0)
        return DownloadResult(Reason.NOT_FOUND, http_status=404)

    async def run() -> None:
        with GatherFolder(out, options, is_list=True) as gathered:
            async with Fetcher(options, LinkPartition(max_requests_per_host=2)) as fetcher:
                fetcher._request = answer  # type: ignore[method-assign]
                scheduler = LinkScheduler(gathered, fetcher, None, options, NoProgress(), NO_PARTITION)  # type: ignore[arg-type]
                assert await scheduler.run(Links(urls)) is None

    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now_s  # type: ignore[method-assign]

    def run_at_once(_: object, function: Callable[..., object], *args: object) -> asyncio.Future[object]:
        future = loop.create_future()
        future.set_result(function(*args))
        return future

    loop.run_in_executor = run_at_once  # type: ignore[method-assign]  # the clock would not wait for a thread
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
    return clock.now_s


@pytest.mark.parametrize("max_in_memory", [1000, 48])
def test_a_list_sorted_by_host_takes_as_long_as_one_that_is_shuffled(
    max_in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimages.gathering.run.MAX_LINKS_IN_PROGRESS", 20)
    monkeypatch.setattr("mlimages.gathering.run.MAX_LINKS_AWAITING_SLOT", 20)
    limits = {"max_in_memory": max_in_memory, "block_size": 4}
    monkeypatch.setattr("mlimages.gathering.run.interleave_hosts", partial(interleave_hosts, **limits))
    urls = [f"http://{host}.example/{number}.jpg" for host in "abcd" for number in range(80)]
    in_order = seconds_of_run(urls, tmp_path / "sorted")
    random.Random(0).shuffle(urls)
    assert in_order <= 1.2 * seconds_of_run(urls, tmp_path / "shuffled")
