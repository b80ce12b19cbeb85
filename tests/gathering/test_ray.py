"""Work divided among the processes of a local Ray of two CPUs: the same outcome, whoever dies."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from mlimages import ImageProperty, LabelFile, UrlList, check, gather, label_dir_auto
from mlimages.core import (
    Cluster,
    FetchResult,
    GatherError,
    GatherSummary,
    ImageRef,
    InputError,
    NoProgress,
    Threads,
    ray_cluster,
)
from mlimages.dataset import compute_mean
from mlimages.gathering import gather_on, ray_engine, read_manifest
from tests.conftest import RunCli
from tests.servers import Connection, Request, Site, answer, paths_in, photo, serve

ray = pytest.importorskip("ray")
fsspec = pytest.importorskip("fsspec")
pytestmark = pytest.mark.ray
FAST = {"allow_private": True, "timeout_s": 60.0, "retries": 0}


@pytest.fixture(scope="module")
def workers_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def cluster(bucket: dict[str, str], workers_cache: Path) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**bucket, "RAY_USAGE_STATS_ENABLED": "0", "MLIMAGES_CACHE": str(workers_cache)}.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
        with ray_cluster() as opened:
            yield opened
        ray.shutdown()


@pytest.fixture(autouse=True)
def _ends_in_time() -> Iterator[None]:
    """A link whose row never comes would be waited for without end."""

    def too_late(*_: object) -> None:
        raise TimeoutError("the test hangs")

    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


def links(folder: Path, *urls: str) -> UrlList:
    path = folder / "cats.txt"
    path.write_text("\n".join(urls))
    return UrlList(path)


def outcome(summary: GatherSummary) -> tuple[object, ...]:
    return summary.ok, summary.duplicate, summary.near_duplicate, summary.reasons, summary.classes


def kept(folder: Path) -> dict[str, tuple[str | None, bool]]:
    """Each link's bytes, and whether it failed; checks that every row's picture is there, and no other file."""
    rows = list(read_manifest(folder))
    named = {row.path for row in rows if row.path and row.status == "ok"}
    assert named | {row.path for row in rows if row.status == "placeholder" and row.path} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")
    }
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["manifest.jsonl"]
    assert len({row.sha256 for row in rows if row.status == "ok"}) == len(named)
    assert {row.same_as for row in rows} - {None} <= named
    return {row.url: (row.sha256, row.status in ("failed", "placeholder")) for row in rows}


def workers() -> list[int]:
    """The processes of our workers in this test's own Ray."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::_Worker"):
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if parent(parent(pid)) == os.getpid()]


def recorded_in(*folders: Path) -> list[FetchResult]:
    return [row for folder in folders for row in read_manifest(folder)]


def fetched(address: str, folder: Path) -> Path:
    """What lies at an address, here."""
    fsspec.filesystem("s3", use_listings_cache=False).get(address, str(folder), recursive=True)
    return folder


@pytest.mark.parametrize("where", ["a folder", "an address"])
def test_a_worker_killed_in_mid_shard_is_replaced_and_the_outcome_is_that_of_a_single_run(
    cluster: Cluster, site: Site, tmp_path: Path, workers_cache: Path, where: str
) -> None:
    is_remote, out = where == "an address", tmp_path / "ray"
    lock, recorded = threading.Lock(), list[FetchResult]()

    def killing(connection: Connection, request: Request) -> None:
        number = int(request.path[1:].partition(".")[0])
        with lock:
            while number > 100 and not recorded:
                rows = recorded_in(*workers_cache.glob("gathered/*")) if is_remote else recorded_in(out)
                if len(rows) > 20:
                    os.kill(workers()[0], signal.SIGKILL)
                    recorded.extend(rows)
        answer(photo(number))(connection, request)

    first, second = paths_in(site, 1, 2), paths_in(site, 2, 2)
    copies = [photo(1000), photo(1001), photo(1001, quality=60), *[photo(999)] * 4]
    site.routes = {next(side): answer(body) for body in copies for side in (first, second)}
    site.routes |= {next(first): answer(photo(1002)), next(second): answer(photo(1002, quality=60))}
    site.routes["/html"] = answer(b"<html>")
    site.fallback = killing
    source = links(tmp_path, *(site.url(f"/{n}.jpg") for n in range(200)), *map(site.url, site.routes))
    divided = gather_on(cluster, source, "s3://bucket/ray" if is_remote else out, **FAST)
    asked = Counter(request.path for request in site.requests)
    assert recorded
    assert {asked[row.url.removeprefix(site.base)] for row in recorded} == {1}, "what was recorded is not asked again"
    single = gather(source, tmp_path / "single", **FAST)
    assert single.reasons == {"html": 1, "placeholder": 8}
    assert (single.duplicate, single.near_duplicate) == (3, 2)
    assert outcome(divided) == outcome(single)
    assert kept(fetched("bucket/ray", out) if is_remote else out) == kept(tmp_path / "single")


class Told(NoProgress):
    """Counts the links whose end the first process knows."""

    count = 0

    def advance(self, count: int = 1, **figures: object) -> None:
        self.count += count


@dataclass
class Halting:
    """Links, some of them only after the end of the others is known; without any further, a source that fails."""

    first: list[ImageRef]
    then: list[ImageRef]
    told: Told = field(default_factory=Told)

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        for ref in self.first:
            yield ref
        while self.told.count < len(self.first):
            await asyncio.sleep(0)
        if not self.then:
            raise GatherError("stopped")
        for ref in self.then:
            yield ref


def test_what_an_interrupted_run_left_on_its_way_to_an_address_is_not_asked_for_again(
    cluster: Cluster, site: Site
) -> None:
    site.fallback = lambda connection, request: answer(photo(int(request.path.split("/")[1])))(connection, request)
    sides = paths_in(site, 1, 2), paths_in(site, 2, 2)
    refs = [ImageRef(site.url(next(side)), "cats") for _ in range(4) for side in sides]
    stopped = Halting(refs[:6], [])
    with pytest.raises(GatherError, match="stopped"):
        gather_on(cluster, stopped, "s3://bucket/left", progress=stopped.told, **FAST)
    assert len(site.requests) == 6
    again = Halting(refs[6:], refs[:6])  # a link to each worker: then what it told before is known
    assert gather_on(cluster, again, "s3://bucket/left", progress=again.told, **FAST).ok == 8
    assert len(site.requests) == 8


def test_a_machine_lost_on_the_way_to_an_address_is_told_and_the_same_command_goes_on(
    cluster: Cluster, site: Site, tmp_path: Path, workers_cache: Path
) -> None:
    told, killed = Told(), list[int]()

    def losing(connection: Connection, request: Request) -> None:
        if request.path == "/30" and not killed:
            while not told.count:
                pass
            killed.extend(workers())
            for worker in killed:
                os.kill(worker, signal.SIGKILL)
            shutil.rmtree(workers_cache / "gathered")
        answer(photo(int(request.path[1:])))(connection, request)

    site.fallback = losing
    source = links(tmp_path, *(site.url(f"/{n}") for n in range(40)))
    with pytest.raises(GatherError, match=r"links were lost with a machine on the way to s3://bucket/lost: the same"):
        gather_on(cluster, source, "s3://bucket/lost", progress=told, **FAST)
    again = gather_on(cluster, source, "s3://bucket/lost", **FAST)
    assert (again.ok, again.duplicate) == (40, 0)
    assert len(kept(fetched("bucket/lost", tmp_path / "lost"))) == 40
    assert not list(workers_cache.glob("gathered/*"))


def test_a_machine_that_does_not_see_the_folder_is_named_before_it_gathers(
    cluster: Cluster, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unseen = "/proc/self/cwd/out"  # the worker's own is another
    with pytest.raises(GatherError, match=rf"{unseen}: the machine \S+ does not see this folder .* or an address"):
        gather_on(cluster, links(tmp_path, site.url("/1")), unseen, **FAST)
    assert not site.requests


def test_a_worker_that_dies_again_and_again_ends_the_run_and_the_next_one_goes_on(
    cluster: Cluster, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killing(connection: Connection, request: Request) -> None:
        for worker in workers():
            os.kill(worker, signal.SIGKILL)
        raise ConnectionAbortedError

    monkeypatch.setattr(ray_engine, "_LIVES", 2)
    site.fallback = killing
    source = links(tmp_path, *(site.url(f"/{n}") for n in range(8)))
    with pytest.raises(GatherError, match=r"manifest-0000.-of-0000.\.jsonl died 2 times: "):
        gather_on(cluster, source, tmp_path / "out", **FAST)
    site.fallback = lambda connection, request: answer(photo(int(request.path[1:])))(connection, request)
    assert gather_on(cluster, source, tmp_path / "out", **FAST).ok == 8


def test_the_limit_holds_for_all_workers_together_and_a_finished_folder_asks_for_nothing(
    cluster: Cluster, site: Site, tmp_path: Path
) -> None:
    sides = paths_in(site, 1, 2), paths_in(site, 2, 2)
    paths = [next(sides[n % 2]) for n in range(60)]  # the two copies of each picture are in two shards
    there = {path: answer(photo(n // 2)) for n, path in enumerate(paths)}
    site.routes = there | {path: answer(b"no", 404) for path in paths[::3]}
    source = links(tmp_path, *map(site.url, paths))
    assert gather_on(cluster, source, tmp_path / "out", limit=15, **FAST).ok == 15
    site.requests.clear()
    assert gather_on(cluster, source, tmp_path / "out", limit=15, **FAST).ok == 15
    assert not site.requests
    more = gather_on(cluster, source, tmp_path / "out", **FAST)
    assert (more.ok, more.duplicate, more.failed) == (30, 10, 20)
    site.routes = there
    again = gather_on(cluster, source, tmp_path / "out", retry_failed=["not-found"], **FAST)
    assert (again.ok, again.duplicate, again.failed) == (30, 30, 0)


@pytest.mark.parametrize("per_host", [1, 3])
def test_a_host_sees_no_more_requests_at_one_time_than_it_would_from_one_process(
    cluster: Cluster, site: Site, tmp_path: Path, per_host: int
) -> None:
    lock, now, most = threading.Lock(), Counter[str](), 0

    def counting(connection: Connection, request: Request) -> None:
        nonlocal most
        with lock:
            now["open"] += 1
            most = max(most, now["open"])
        connection.pause(0.02)
        with lock:
            now["open"] -= 1
        answer(photo(int(request.path[1:])))(connection, request)

    site.fallback = counting
    source = links(tmp_path, *(site.url(f"/{n}") for n in range(40)))
    assert gather_on(cluster, source, tmp_path / "out", per_host=per_host, **FAST).ok == 40
    assert most <= per_host


def test_ctrl_c_stops_every_worker_and_the_same_command_goes_on(
    cluster: Cluster, site: Site, tmp_path: Path, run_cli: RunCli
) -> None:
    def hang_after_ten(connection: Connection, request: Request) -> None:
        number = int(request.path[1:])
        if number >= 10:
            connection.pause()
            raise ConnectionAbortedError
        answer(photo(number))(connection, request)

    site.fallback = hang_after_ten
    links(tmp_path, *(site.url(f"/{n}") for n in range(14)))
    words = ["gather", "urls", "cats.txt", "-o", "out", "--allow-private", "--engine", "ray"]
    words += ["--address", ray.get_runtime_context().gcs_address]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlimages", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while len(list(read_manifest(tmp_path / "out"))) < 10:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "mlimages: interrupted; run the same command again to go on"
    assert "Traceback" not in errors
    site.fallback = lambda connection, request: answer(photo(int(request.path[1:])))(connection, request)
    site.requests.clear()
    done = run_cli(*words)
    assert "14 good, 0 duplicates, 0 failed in out" in done.stdout
    assert sorted(int(request.path[1:]) for request in site.requests) == [10, 11, 12, 13]


def test_standard_output_holds_the_outcome_alone_whatever_ray_says(
    cluster: Cluster, site: Site, tmp_path: Path, run_cli: RunCli
) -> None:
    lock, killed = threading.Lock(), list[int]()

    def killing(connection: Connection, request: Request) -> None:
        with lock:
            if not killed:
                killed.extend(workers())
                os.kill(killed[0], signal.SIGKILL)
        answer(photo(int(request.path[1:])))(connection, request)

    site.fallback = killing
    links(tmp_path, *(site.url(f"/{n}") for n in range(20)))
    words = ["gather", "urls", "cats.txt", "-o", "out", "--allow-private", "--json", "--quiet", "--engine", "ray"]
    done = run_cli(*words, "--address", ray.get_runtime_context().gcs_address)
    assert killed
    assert json.loads(done.stdout)["ok"] == 20


def test_what_ends_a_worker_ends_the_run_in_its_words(cluster: Cluster, site: Site, tmp_path: Path) -> None:
    site.fallback = answer(photo(1))
    source = links(tmp_path, *(site.url(f"/{n}") for n in range(4)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cats").write_text("a file where the class's folder should be")
    with pytest.raises(GatherError, match=r"cats/.* cannot be written: Not a directory$"):
        gather_on(cluster, source, tmp_path / "out", **FAST)


def test_pictures_out_of_an_archive_and_shards_by_hand_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    class Archive:
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            async def load() -> bytes:
                return b""

            yield ImageRef("n1.tar#a.jpg", "cats", load=load)

    with pytest.raises(InputError, match="comes out of an archive"):
        gather_on(cluster, Archive(), tmp_path / "out")
    with pytest.raises(InputError, match="leave out --shard"):
        gather_on(cluster, Archive(), tmp_path / "out", shard=(1, 2))


def test_without_ray_the_command_says_what_to_install_and_an_address_needs_it(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError")
    (tmp_path / "links.txt").write_text("http://127.0.0.1/a.jpg")
    words = ["gather", "urls", "links.txt", "-o", "out"]
    done = run_cli(*words, "--engine", "ray", check=False)
    assert (done.returncode, done.stderr) == (
        1,
        'mlimages: the engine ray needs an optional part: pip install "mlimages[ray]>=1"\n',
    )
    done = run_cli(*words, "--address", "auto", check=False)
    assert (done.returncode, done.stderr) == (1, "mlimages: --address names a Ray cluster: add --engine ray\n")


def pictures(folder: Path, broken: int = 5) -> LabelFile:
    """Two classes; one picture in each, a near copy across them, and some that cannot be decoded."""
    for number in range(300):
        path = folder / f"class{number // 10 % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number // 3) if number >= broken else b"no picture")
    labels = label_dir_auto(folder).labels.write(folder / "labels.txt")
    with labels.path.open("a") as lines:
        lines.write("class0/missing.jpg 0\n")
    return labels


def test_a_check_finds_the_same_whoever_looks_at_the_pictures(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = pictures(tmp_path)
    divided = replace(check([labels], pool=cluster), seconds=0)
    again = replace(check([labels], pool=cluster), seconds=0)
    monkeypatch.setenv("MLIMAGES_CACHE", str(tmp_path / "empty"))
    single = replace(check([labels], workers=1), seconds=0)
    assert divided.warnings["duplicate"] > 100
    assert divided.errors["same-picture-two-labels"] > 10
    assert divided.to_dict() == again.to_dict() == single.to_dict()
    assert list(divided.findings) == list(again.findings) == list(single.findings)


def test_the_mean_is_the_same_to_the_bit_for_any_partition(cluster: Cluster, tmp_path: Path) -> None:
    labels, prop = pictures(tmp_path), ImageProperty(32)
    single = compute_mean(labels, prop, workers=1)
    for pool in (cluster, replace(cluster, at_once=7), Threads(3, at_once=1)):
        divided = compute_mean(labels, prop, pool=pool)
        assert np.array_equal(divided.mean, single.mean)
        assert replace(divided, mean=single.mean) == single
    assert (single.count, len(single.broken)) == (295, 6)


def test_check_and_mean_run_on_a_cluster_from_the_command_line(
    cluster: Cluster, tmp_path: Path, run_cli: RunCli
) -> None:
    pictures(tmp_path / "p")
    where = ["--engine", "ray", "--address", ray.get_runtime_context().gcs_address]
    checked = json.loads(run_cli("check", "p/labels.txt", "--json", *where).stdout)
    assert (checked["checked"], checked["errors"]["not-an-image"], checked["errors"]["missing"]) == (301, 5, 1)
    figures = json.loads(run_cli("mean", "p/labels.txt", "--size", "32", "--json", *where).stdout)
    assert (figures["count"], figures["broken"]) == (295, 6)
    done = run_cli("mean", "p/labels.txt", "--engine", "ray", "--address", "127.0.0.1:1", check=False)
    assert done.returncode == 1
    assert "no Ray cluster lets us in at 127.0.0.1:1: " in done.stderr
    assert "Traceback" not in done.stderr
