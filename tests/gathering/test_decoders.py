"""The processes that decode: killed, hanging, orphaned."""

import asyncio
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlimages.core import Reason
from mlimages.gathering import read_manifest
from mlimages.gathering.download.decoders import DecoderPool
from mlimages.gathering.download.image_info import ImageInfo, ImageRequirements, Rejection
from tests.servers import answer, photo, serve


def descendants(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for thread in threads for child in thread.read_text().split()]
    return children + [pid for child in children for pid in descendants(child)]


def kill_who_reads(pipe: Path) -> None:
    try:
        writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # no decoder holds it yet
        return
    for process in multiprocessing.active_children():
        process.kill()
    os.close(writer)


@pytest.fixture(params=["forkserver", "spawn"])
def start_method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to start a process; Windows has only the second."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [request.param])
    return str(request.param)


@pytest.mark.parametrize("end", ["hangs", "dies"])
def test_a_decoder_that_hangs_or_dies_costs_the_image_that_it_held(tmp_path: Path, start_method: str, end: str) -> None:
    timeout_s = 60.0 if end == "dies" else 2.0 if start_method == "spawn" else 1.0  # spawned ones import Pillow first
    good = tmp_path / "good"
    good.write_bytes(photo(1))
    pipe = tmp_path / "never-ends"
    os.mkfifo(pipe)

    async def inspect_all() -> list[object]:
        async with DecoderPool(ImageRequirements(), 1, timeout_s=timeout_s) as decoders:
            found = asyncio.gather(*map(decoders.verify_and_resize, (good, pipe, good)))
            while end == "dies" and not found.done():
                kill_who_reads(pipe)
                await asyncio.sleep(0.01)
            return await found

    first, stuck, last = asyncio.run(inspect_all())
    assert first == last
    assert isinstance(stuck, Rejection)
    assert stuck.reason is Reason.DECODER
    assert not multiprocessing.active_children()


def test_decoding_goes_on_when_the_process_that_forks_the_decoders_is_killed_and_then_a_decoder(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(photo(1))

    async def inspect_all() -> list[object]:
        async with DecoderPool(ImageRequirements(), 1) as decoders:
            found = [await decoders.verify_and_resize(image)]
            (decoder,) = multiprocessing.active_children()
            server = int(Path(f"/proc/{decoder.pid}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(server, signal.SIGKILL)
            while ") Z" not in Path(f"/proc/{server}/stat").read_text():
                found.append(await decoders.verify_and_resize(image))
            decoder.kill()
            lost = await decoders.verify_and_resize(image)
            assert isinstance(lost, Rejection)
            return [*found, await decoders.verify_and_resize(image)]

    found = asyncio.run(inspect_all())
    assert isinstance(found[0], ImageInfo)
    assert found == found[:1] * len(found)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("start_method")
def test_a_run_that_ends_before_its_decoder_is_ready_leaves_no_process(tmp_path: Path) -> None:
    async def begin_and_end() -> None:
        async with asyncio.timeout(60), DecoderPool(ImageRequirements(), 1) as decoders:
            asked = asyncio.create_task(decoders.verify_and_resize(tmp_path / "any"))
            for _ in range(3):  # on to where it waits for the process
                await asyncio.sleep(0)
            assert not asked.done()
            asked.cancel()

    asyncio.run(begin_and_end())
    assert not multiprocessing.active_children()


def test_a_script_without_a_guard_for_its_main_module_gathers_once(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(photo(1))
    script = tmp_path / "script.py"
    script.write_text("""
import asyncio, pathlib
from mlimages.gathering.download.decoders import DecoderPool
from mlimages.gathering.download.image_info import ImageRequirements

async def inspect():
    async with DecoderPool(ImageRequirements(), 1) as decoders:
        return await decoders.verify_and_resize(pathlib.Path("image"))

print(asyncio.run(inspect()).format)
""")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("JPEG\n", "")


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
            time.sleep(0.05)
        ends = [os.pidfd_open(pid) for pid in descendants(run.pid)]
        run.kill()
        run.communicate()
    assert ends
    for end in ends:
        assert select.select([end], [], [], 20)[0] == [end]
        os.close(end)
