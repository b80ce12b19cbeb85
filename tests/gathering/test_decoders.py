"""The processes that decode: killed, hanging, orphaned."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlimages.core import Reason
from mlimages.gathering import read_manifest
from mlimages.gathering.download.decoders import Decoders
from mlimages.gathering.download.image_facts import Checks, Facts, Rejection
from tests.servers import answer, photo, serve


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [pid for child in children for pid in descendants(child)]


def kill_who_reads(pipe: Path) -> None:
    try:
        writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # no decoder holds it yet
        return
    for pid in descendants(os.getpid()):
        ours = b"mlimages.gathering" in Path(f"/proc/{pid}/cmdline").read_bytes()  # a server of other tests stays
        if ours and not descendants(pid):  # nor is the one that forks the one that reads
            os.kill(pid, signal.SIGKILL)
    os.close(writer)


@pytest.mark.parametrize("system", ["that forks", "without fork"])
@pytest.mark.parametrize("end", ["hangs", "dies"])
def test_a_decoder_that_hangs_or_dies_costs_the_picture_that_it_held(
    tmp_path: Path, end: str, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "without fork":
        monkeypatch.delattr(os, "fork")
    good = tmp_path / "good"
    good.write_bytes(photo(1))
    pipe = tmp_path / "never-ends"
    os.mkfifo(pipe)
    before = descendants(os.getpid())

    async def inspect_all() -> list[object]:
        async with Decoders(Checks(), 1, timeout_s=2.0 if end == "hangs" else 60.0) as decoders:
            found = asyncio.gather(*map(decoders.inspect, (good, pipe, good)))
            while end == "dies" and not found.done():
                kill_who_reads(pipe)
                await asyncio.sleep(0.01)
            return await found

    first, stuck, last = asyncio.run(inspect_all())
    assert first == last
    assert isinstance(stuck, Rejection)
    assert stuck.reason is Reason.DECODER
    assert descendants(os.getpid()) == before


def test_decoding_goes_on_when_the_process_that_forks_the_decoders_is_killed_and_then_a_decoder(tmp_path: Path) -> None:
    picture = tmp_path / "picture"
    picture.write_bytes(photo(1))
    before = descendants(os.getpid())

    async def inspect_all() -> list[object]:
        async with Decoders(Checks(), 1) as decoders:
            found = [await decoders.inspect(picture)]
            forks, decoder = (pid for pid in descendants(os.getpid()) if pid not in before)
            os.kill(forks, signal.SIGKILL)
            while Path(f"/proc/{forks}").exists():
                found.append(await decoders.inspect(picture))
            os.kill(decoder, signal.SIGKILL)
            lost = await decoders.inspect(picture)
            assert isinstance(lost, Rejection)
            return [*found, await decoders.inspect(picture)]

    found = asyncio.run(inspect_all())
    assert isinstance(found[0], Facts)
    assert found == found[:1] * len(found)
    assert descendants(os.getpid()) == before


@pytest.mark.parametrize("system", ["that forks", "without fork"])
def test_a_run_that_ends_before_its_decoder_is_ready_leaves_no_process(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "without fork":
        monkeypatch.delattr(os, "fork")
    before = descendants(os.getpid())

    async def begin_and_end() -> None:
        async with asyncio.timeout(60), Decoders(Checks(), 1) as decoders:
            asked = asyncio.create_task(decoders.inspect(tmp_path / "any"))
            while not decoders._nursery._started:
                await asyncio.sleep(0)
            for _ in range(20):  # on to where it waits for the decoder, which takes a tenth of a second
                await asyncio.sleep(0)
            assert not asked.done()
            asked.cancel()

    asyncio.run(begin_and_end())
    assert descendants(os.getpid()) == before


def test_no_process_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    words = ["gather", "urls", "-", "-o", str(tmp_path / "out"), "--allow-private", "--quiet"]
    with serve() as site:
        site.fallback = answer(photo(1))
        run = subprocess.Popen([sys.executable, "-m", "mlimages", *words], stdin=subprocess.PIPE)
        assert run.stdin
        run.stdin.write(site.url("/a.jpg\n").encode())
        run.stdin.flush()
        while not list(read_manifest(tmp_path / "out")):
            assert run.poll() is None
        ends = [os.pidfd_open(pid) for pid in descendants(run.pid)]
        run.kill()
        run.communicate()
    assert ends
    for end in ends:
        assert select.select([end], [], [], 20)[0] == [end]
        os.close(end)
