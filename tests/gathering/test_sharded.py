"""Work divided among processes of this machine or of a local Ray: the same outcome, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlimages import ImageProperty, LabelFile, UrlList, check, gather, label_dir_auto
from mlimages.core import (
    GatherError,
    GatherSummary,
    ImageRef,
    InputError,
    ProcessPool,
    RayCluster,
    ThreadPool,
    connect_to_ray,
)
from mlimages.dataset import compute_mean
from mlimages.gathering import Openverse, gather_on, read_manifest
from tests.conftest import RunCli
from tests.gathering.conftest import links
from tests.servers import Connection, Request, Site, answer, path_of, photo, silence, urls_in

ray = pytest.importorskip("ray")
fsspec = pytest.importorskip("fsspec")
pytestmark = pytest.mark.ray
FAST = {"allow_private": True, "timeout_s": 60.0, "retries": 0, "max_wait_s": 0.0}
SHARDS = 8


@pytest.fixture(scope="module")
def cluster(bucket: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("workers"))
        for name, value in {**bucket, "RAY_USAGE_STATS_ENABLED": "0", "MLIMAGES_CACHE": cache}.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
        with connect_to_ray() as opened:
            yield opened
        ray.shutdown()


@pytest.fixture(autouse=True)
def _ends_in_time() -> Iterator[None]:
    def too_late(*_: object) -> None:
        raise TimeoutError("the test hangs")

    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(300)
    yield
    signal.alarm(0)


def spread(site: Site, count: int, shards: int = SHARDS) -> list[str]:
    """Links of as many hosts as there are shards, in turn."""
    sides = [urls_in(site, number, shards) for number in range(1, shards + 1)]
    return [next(sides[n % shards]) for n in range(count)]


def outcome(summary: GatherSummary) -> tuple[object, ...]:
    return summary.ok, summary.duplicate, summary.near_duplicate, summary.reasons, summary.classes


def kept(folder: Path) -> dict[str, tuple[str | None, bool]]:
    """Each link's bytes, and whether it failed; checks that every row's image is there, and no other file."""
    rows = list(read_manifest(folder))
    named = {row.path for row in rows if row.path and row.status == "ok"}
    assert named | {row.path for row in rows if row.status == "placeholder" and row.path} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")
    }
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["manifest.jsonl"]
    assert len({row.sha256 for row in rows if row.status == "ok"}) == len(named)
    assert {row.same_as for row in rows} - {None} <= named
    return {row.url: (row.sha256, row.status in ("failed", "placeholder")) for row in rows}


def children(name: bytes) -> list[int]:
    """The processes that this test started, by a part of their command line, at any depth."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) if pid > 1 else 0

    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ancestors = [parent(int(folder.name))]
            while ancestors[-1] > 1:
                ancestors.append(parent(ancestors[-1]))
            if name in (folder / "cmdline").read_bytes() and os.getpid() in ancestors:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture(params=["ray", "processes"])
def pool(request: pytest.FixtureRequest, cluster: RayCluster) -> RayCluster | ProcessPool:
    return cluster if request.param == "ray" else ProcessPool(2)


def workers(pool: RayCluster | ProcessPool) -> list[int]:
    return children(b"ray::_run_task" if isinstance(pool, RayCluster) else b"spawn_main")


@pytest.mark.parametrize("where", ["processes", "ray", "ray into an address"])
def test_a_process_killed_in_mid_shard_costs_nothing_and_the_outcome_is_that_of_a_single_run(
    cluster: RayCluster, site: Site, tmp_path: Path, where: str
) -> None:
    pool = cluster if "ray" in where else ProcessPool(2)
    out = "s3://bucket/ray" if "address" in where else tmp_path / "out"
    killed, lock = list[int](), threading.Lock()

    def killing(connection: Connection, request: Request) -> None:
        with lock:
            if not killed and len(site.requests) > 30:
                killed.extend(workers(pool)[:1])
                os.kill(killed[0], signal.SIGKILL)
        answer(photo(int(request.path.split("/")[2])))(connection, request)

    urls = spread(site, 100)
    copies = [photo(1000), photo(1001), photo(1001, quality=60), photo(1000), *[photo(999)] * 4]
    site.routes = {path_of(url): answer(body) for url, body in zip(urls, copies, strict=False)}
    site.routes[path_of(urls[20])] = answer(b"<html>")
    site.fallback = killing
    source = links(tmp_path, *urls)
    divided = gather_on(pool, source, out, **FAST)
    assert killed
    single = gather(source, tmp_path / "single", **FAST)
    assert outcome(divided) == outcome(single)
    if "address" in where:
        fsspec.filesystem("s3", use_listings_cache=False).get("bucket/ray", str(tmp_path / "out"), recursive=True)
    assert kept(tmp_path / "out") == kept(tmp_path / "single")


@pytest.mark.parametrize(("per_host", "by_hand"), [(3, False), (2, True)])
def test_a_host_in_several_shards_sees_no_more_requests_at_one_time_than_from_one_process(
    site: Site, tmp_path: Path, per_host: int, by_hand: bool
) -> None:
    lock, now, most, throttled = threading.Lock(), [0], [0], set[str]()

    def counting(connection: Connection, request: Request) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            is_throttled = len(throttled) < 4 and request.path not in throttled
            throttled.add(request.path)
        connection.pause(0.02)
        with lock:
            now[0] -= 1
        reply = answer(b"", 429) if is_throttled else answer(photo(int(request.path.split("/")[2])))
        reply(connection, request)

    site.fallback = counting
    source, out = links(tmp_path, *(site.url(f"/1/{n}/x.jpg") for n in range(40))), tmp_path / "out"
    options = {**FAST, "retries": 2, "max_wait_s": 30.0, "per_host": per_host}
    if by_hand:
        with ThreadPoolExecutor(4) as pool:
            ended = list(pool.map(lambda n: gather(source, out, shard=(n, 4), decoders=1, **options), range(1, 5)))
        assert sum(one.ok > 0 for one in ended) == min(per_host, 4)
        assert gather(source, out, **options).ok == 40
    else:
        assert gather_on(ProcessPool(2), source, out, **options).ok == 40
    assert most[0] <= per_host
    at_work = min(per_host, 4 if by_hand else 2) + (per_host < 4 if by_hand else per_host < 2)
    assert len(site.rule_requests) == 2 * at_work, "each process that has links of the host asks for its rules once"


def test_the_shards_of_a_host_send_no_more_into_its_pause_than_one_process_and_obey_its_rules(
    site: Site, tmp_path: Path
) -> None:
    source = links(tmp_path, *(site.url(f"/{n}.jpg") for n in range(40)))

    def gather_shards(out: str) -> list[GatherSummary]:
        with ThreadPoolExecutor(4) as pool:
            return list(
                pool.map(lambda n: gather(source, tmp_path / out, shard=(n, 4), decoders=1, **FAST), range(1, 5))
            )

    site.fallback = answer(b"", 429, Retry_After="3600")
    paused = gather_shards("paused")
    assert [one.open > 0 and list(one.waits_s) for one in paused] == [["127.0.0.1"]] * 4
    assert len(site.requests) <= 8, "each shard learns of the pause from its own requests, at most --per-host of all"
    site.requests.clear()
    site.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /")
    forbidden = gather_shards("forbidden")
    assert sum(one.reasons["opt-out"] for one in forbidden) == 40
    assert not site.requests


class Here:
    """Tasks of this process, one after the other."""

    workers = 1

    def map_as_completed(self, function: Callable[[int], Any], items: list[int]) -> Iterator[list[Any]]:
        return ([function(item)] for item in items)


def test_the_pause_that_a_host_asks_of_a_shard_is_in_the_summary(site: Site, tmp_path: Path) -> None:
    site.fallback = answer(b"", 429, Retry_After="3600")
    summary = gather_on(Here(), links(tmp_path, site.url("/1.jpg")), tmp_path / "out", **FAST)  # type: ignore[arg-type]
    assert (summary.open, list(summary.waits_s)) == (1, ["127.0.0.1"])
    assert 3000 < summary.waits_s["127.0.0.1"] <= 3600


def test_the_limit_holds_for_all_shards_together_and_a_finished_folder_asks_for_nothing(
    site: Site, tmp_path: Path
) -> None:
    urls = spread(site, 60)  # the two copies of each image are in two shards
    there = {path_of(url): answer(photo(n // 2)) for n, url in enumerate(urls)}
    site.routes = there | {path_of(url): answer(b"no", 404) for url in urls[::3]}
    source, out = links(tmp_path, *urls), tmp_path / "out"
    assert gather_on(ProcessPool(2), source, out, limit=15, **FAST).ok == 15
    assert len(list(out.rglob("*.jpg"))) == 15
    site.requests.clear()
    assert gather_on(ProcessPool(2), source, out, limit=15, **FAST).ok == 15
    assert not site.requests
    more = gather(source, out, **FAST)
    assert (more.ok, more.duplicate, more.failed) == (30, 10, 20)


def test_shards_by_hand_are_trimmed_and_images_that_no_row_knows_are_named(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = spread(site, 24, 2)
    site.routes = {path_of(url): answer(photo(n)) for n, url in enumerate(urls)}
    source, out = links(tmp_path, *urls), tmp_path / "out"
    assert gather(links(tmp_path), out, shard=(2, 3), **FAST).ok == 0  # a shard without links
    source = links(tmp_path, *urls)
    for number in (1, 2):
        gather(source, out, shard=(number, 2), limit=8, **FAST)
    assert len(list(out.rglob("*.jpg"))) == 16, "each shard has a limit of its own"
    (out / "cats/mine.jpg").write_bytes(b"mine")
    assert gather(source, out, limit=8, **FAST).ok == 8
    assert "contains 1 image that its manifest does not list: cats/mine.jpg" in caplog.text
    assert len(list(out.rglob("*.jpg"))) == 9
    site.requests.clear()
    assert gather(source, out, limit=20, **FAST).ok == 20
    assert len(site.requests) == 12


def test_shards_of_another_count_keep_their_rows_and_images(site: Site, tmp_path: Path) -> None:
    urls = spread(site, 24, 6)
    site.routes = {path_of(url): answer(photo(n)) for n, url in enumerate(urls)}
    source, out = links(tmp_path, *urls), tmp_path / "out"
    for shard in ((1, 2), (1, 3), (2, 3), (3, 3)):
        gather(source, out, shard=shard, **FAST)
    assert len(site.requests) == 24, "no link is asked for twice"
    assert gather(source, out, **FAST).ok == 24
    assert len(kept(out)) == 24


def test_a_machine_that_does_not_see_the_folder_is_named_before_it_gathers(
    cluster: RayCluster, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unseen = "/proc/self/cwd/out"  # the worker's own is another
    monkeypatch.setattr("os.getcwd", lambda: "/")
    with pytest.raises(GatherError, match=rf"{unseen} is not accessible on \S+: .* or an address"):
        gather_on(cluster, links(tmp_path, site.url("/1")), unseen, **FAST)
    assert not site.requests


def test_a_process_that_dies_again_and_again_ends_the_run_and_the_next_one_goes_on(
    pool: RayCluster | ProcessPool, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killing(connection: Connection, request: Request) -> None:
        for worker in workers(pool):
            os.kill(worker, signal.SIGKILL)
        raise ConnectionAbortedError

    for module in ("cluster", "parallel"):
        monkeypatch.setattr(f"mlimages.core.{module}.MAX_CRASHES", 2)
    site.fallback = killing
    source = links(tmp_path, *(site.url(f"/{n}") for n in range(4)))
    with pytest.raises(GatherError, match=r"a worker crashed 2 times"):
        gather_on(pool, source, tmp_path / "out", **FAST)
    site.fallback = lambda connection, request: answer(photo(int(request.path[1:])))(connection, request)
    assert gather_on(pool, source, tmp_path / "out", **FAST).ok == 4


@pytest.mark.parametrize(
    ("engine", "number"), [("ray", signal.SIGTERM), ("processes", signal.SIGINT), ("processes", signal.SIGKILL)]
)
def test_a_signal_stops_every_process_and_the_same_command_goes_on(
    cluster: RayCluster, site: Site, tmp_path: Path, run_cli: RunCli, engine: str, number: signal.Signals
) -> None:
    site.routes = {f"/{n}": answer(photo(n)) if n < 10 else silence() for n in range(14)}
    links(tmp_path, *map(site.url, site.routes))
    words = ["gather", "urls", "cats.txt", "-o", "out", "--allow-private"]
    ray_words = ["--engine", "ray", "--address", ray.get_runtime_context().gcs_address]
    words += ray_words if engine == "ray" else ["--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlimages", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while len(list(read_manifest(tmp_path / "out"))) < 10:
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)  # until the last process has closed its standard error
    if number == signal.SIGKILL:
        assert process.returncode == -number, errors
    else:
        assert process.returncode == 130, errors
        assert errors.strip().splitlines()[-1] == "mlimages: interrupted; run the same command again to resume"
    assert "Traceback" not in errors
    site.routes = {f"/{n}": answer(photo(n)) for n in range(14)}
    site.requests.clear()
    done = run_cli(*words)
    assert "14 images, 0 duplicates, 0 failed links in out" in done.stdout
    assert done.stderr.count("first link") == 1
    assert sorted(int(request.path[1:]) for request in site.requests) == [10, 11, 12, 13]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cats", "manifest.jsonl"]


def test_what_ends_a_task_ends_the_run_in_its_words(pool: RayCluster | ProcessPool, site: Site, tmp_path: Path) -> None:
    site.fallback = answer(photo(1))
    source = links(tmp_path, *(site.url(f"/{n}") for n in range(4)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cats").write_text("a file where the class's folder should be")
    with pytest.raises(GatherError, match=r"cats/.* cannot be written: Not a directory$"):
        gather_on(pool, source, tmp_path / "out", **FAST)


class Unsendable:
    """A source that holds what no other process can have."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        yield ImageRef("http://127.0.0.1/a.jpg", "cats")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (Openverse(["cats"]), {}, "Openverse runs in one process, to stay within its provider's rate limit"),
        (UrlList("-"), {}, "standard input can only be read by one process: write the list to a file"),
        (Unsendable(), {}, "Unsendable cannot be pickled"),
        (UrlList(), {"shard": (1, 2)}, "omit --shard"),
    ],
)
def test_sources_that_cannot_be_divided_are_refused(
    tmp_path: Path, source: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        gather_on(ProcessPool(2), source, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_lacks_and_what_excludes_what(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError")
    (tmp_path / "links.txt").write_text("http://127.0.0.1/a.jpg")
    words = ["gather", "urls", "links.txt", "-o", "out"]
    for more, error in (
        (["--engine", "ray"], '--engine ray requires an optional dependency: pip install "mlimages[ray]>=1"'),
        (["--address", "auto"], "--address requires --engine ray"),
        (
            ["--engine", "ray", "--workers", "2"],
            "--workers cannot be combined with --engine ray, which has its own workers: omit one of them",
        ),
    ):
        done = run_cli(*words, *more, check=False)
        assert (done.returncode, done.stderr) == (1, f"mlimages: {error}\n")


def test_a_source_with_a_rate_limit_is_refused_before_a_cluster_is_contacted(run_cli: RunCli) -> None:
    done = run_cli(
        "gather", "openverse", "owl", "-o", "out", "--engine", "ray", "--address", "127.0.0.1:1", check=False
    )
    assert done.returncode == 1
    assert "to stay within its provider's rate limit: omit --engine ray" in done.stderr


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "^cannot start Ray on this machine: no memory$"),
        ("auto", "^cannot connect to a Ray cluster at auto: no memory; `ray start"),
    ],
)
def test_an_error_says_whether_ray_was_to_be_started_or_a_cluster_to_be_found(
    address: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(InputError, match=message), connect_to_ray(address):
        pass


@pytest.mark.parametrize(("address", "where"), [(None, ""), ("auto", " at auto")])
def test_a_cluster_without_cpus_is_refused(address: str | None, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    with pytest.raises(InputError, match=f"^the Ray cluster{where} has no CPU: "), connect_to_ray(address):
        pass


def test_a_busy_cluster_says_so(cluster: RayCluster, caplog: pytest.LogCaptureFixture) -> None:
    def occupy() -> None:
        threading.Event().wait(50)

    holder = ray.remote(num_cpus=2)(occupy).remote()
    while ray.available_resources().get("CPU", 0):
        pass
    with connect_to_ray():
        assert "all 2 CPUs of the Ray cluster are in use: waiting for a free CPU" in caplog.text
    ray.cancel(holder, force=True)


def images(folder: Path, broken: int = 5) -> LabelFile:
    """Two classes; one image in each, a near copy across them, and some that cannot be decoded."""
    for number in range(300):
        path = folder / f"class{number // 10 % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number // 3) if number >= broken else b"no image")
    labels = label_dir_auto(folder).labels.write(folder / "labels.txt")
    with labels.path.open("a") as lines:
        lines.write("class0/missing.jpg 0\n")
    return labels


def test_a_check_finds_the_same_whoever_looks_at_the_images(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = images(tmp_path)
    divided = replace(check([labels], pool=cluster), duration_s=0)
    again = replace(check([labels], pool=cluster), duration_s=0)
    monkeypatch.setenv("MLIMAGES_CACHE", str(tmp_path / "empty"))
    single = replace(check([labels], workers=1), duration_s=0)
    assert divided.warnings["duplicate"] > 100
    assert divided.errors["same-picture-two-labels"] > 10
    assert divided.to_dict() == again.to_dict() == single.to_dict()
    assert list(divided.findings) == list(again.findings) == list(single.findings)


def test_the_mean_is_the_same_to_the_bit_for_any_partition(cluster: RayCluster, tmp_path: Path) -> None:
    labels, prop = images(tmp_path), ImageProperty(32)
    single = compute_mean(labels, prop, workers=1)
    others = attrgetter("channel_mean", "channel_std", "num_images", "image_property", "broken_images", "class_means")
    for pool in (cluster, replace(cluster, chunk_size=7), ThreadPool(3, chunk_size=1)):
        divided = compute_mean(labels, prop, pool=pool)
        assert np.array_equal(divided.mean, single.mean)
        assert others(divided) == others(single)
    assert (single.num_images, len(single.broken_images)) == (295, 6)


def test_check_and_mean_run_on_a_cluster_from_the_command_line(
    cluster: RayCluster, tmp_path: Path, run_cli: RunCli
) -> None:
    images(tmp_path / "p")
    where = ["--engine", "ray", "--address", ray.get_runtime_context().gcs_address]
    checked = json.loads(run_cli("check", "p/labels.txt", "--json", *where).stdout)
    assert (checked["checked"], checked["errors"]["not-an-image"], checked["errors"]["missing"]) == (301, 5, 1)
    figures = json.loads(run_cli("mean", "p/labels.txt", "--size", "32", "--json", *where).stdout)
    assert (figures["count"], figures["broken"]) == (295, 6)
    no_token = {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    for address, env in (("127.0.0.1:1", {}), (where[-1], no_token)):
        done = run_cli("mean", "p/labels.txt", "--engine", "ray", "--address", address, check=False, **env)
        assert done.returncode == 1
        assert f"cannot connect to a Ray cluster at {address}: " in done.stderr
        assert "RAY_AUTH_MODE=token" in done.stderr
        assert "Traceback" not in done.stderr
