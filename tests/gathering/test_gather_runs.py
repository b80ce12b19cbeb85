"""Whole runs from the command line: interrupted, killed, resumed, and what they print."""

import contextlib
import errno
import itertools
import json
import os
import pty
import random
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlimages.core import FetchResult, GatherError, InputError, Reason
from mlimages.gathering import GatherOptions, read_manifest
from mlimages.gathering.download.host_state import REFUSALS_UNTIL_PAUSED
from mlimages.gathering.links import hash_link
from mlimages.gathering.store.gather_folder import GatherFolder
from mlimages.gathering.store.manifest import ManifestWriter, UInt64Set, dump_row, is_manifest, parse_row
from mlimages.gathering.store.retries import ConsecutiveRefusals
from mlimages.gathering.store.shard_storage import strip_shard_name
from mlimages.images import read_bytes
from mlimages.labels import label_dir_auto
from tests.conftest import RunCli
from tests.gathering.conftest import links, run
from tests.servers import Reply, Site, answer, closed_port, in_turn, photo, silence


def command(out: Path, source: object) -> list[str]:
    return [sys.executable, "-m", "mlimages", "gather", "urls", str(source), "-o", str(out), "--allow-private"]


def test_a_run_tells_what_was_kept_what_failed_and_what_to_type_next(
    site: Site, tmp_path: Path, run_cli: RunCli
) -> None:
    site.routes = {"/a.jpg": answer(photo(1)), "/b.jpg": answer(photo(2)), "/c": answer(b"<html>")}
    (tmp_path / "links.tsv").write_text(
        "label\turl\n"
        + "".join(f"{label}\t{site.url(path)}\n" for label, path in zip("xyxx", [*site.routes, "/d"], strict=True))
    )
    done = run_cli("gather", "urls", "links.tsv", "-o", "out", "--allow-private", "--retries", "0")
    host = site.base.removeprefix("http://")
    assert done.stdout.splitlines() == [
        "images by class",
        f"  {'x':<48}        1",
        f"  {'y':<48}        1",
        "",
        "failed links by reason",
        f"  {'html':<48}        1",
        f"  {'not-found':<48}        1",
        "",
        "failed links by host",
        f"  {host:<48}        2",
        "",
        "2 images, 0 duplicates, 2 failed links in out",
    ]
    assert done.stderr.strip().endswith("next: mlimages label out")
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = json.loads(run_cli("gather", "urls", "links.tsv", "-o", "out", "--json", "--quiet").stdout)
    assert found["classes"] == {"x": 1, "y": 1}
    assert (found["ok"], found["failed"], found["duplicate"], found["fetched"]) == (2, 2, 0, 0)
    assert found["reasons"] == {"html": 1, "not-found": 1}
    assert {"seconds", "out"} <= set(found)


def test_the_next_command_can_be_pasted_and_keeps_nested_classes_apart(
    site: Site, tmp_path: Path, run_cli: RunCli
) -> None:
    site.routes = {"/a.jpg": answer(photo(1)), "/b.jpg": answer(photo(2))}
    (tmp_path / "links.txt").write_text(f"cat\t{site.url('/a.jpg')}\ncat/persian\t{site.url('/b.jpg')}\n")
    done = run_cli("gather", "urls", "links.txt", "-o", "my cats", "--allow-private")
    _, command = done.stderr.strip().rsplit("next: mlimages ", 1)
    assert command == "label 'my cats' --leaf"
    assert "2 classes" in run_cli(*shlex.split(command)).stdout


def test_nothing_gathered_is_exit_1_and_a_finished_run_is_0_whatever_the_links_did(
    site: Site, tmp_path: Path, run_cli: RunCli
) -> None:
    (tmp_path / "dead.txt").write_text(f"http://127.0.0.1:{closed_port()}/a.jpg\n")
    done = run_cli("gather", "urls", "dead.txt", "-o", "out", "--allow-private", "--max-wait", "0", check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "mlimages: no image was gathered: the only link could not be downloaded yet: run the same command again"
    )
    (tmp_path / "empty.txt").write_text("")
    done = run_cli("gather", "urls", "empty.txt", "-o", "none", check=False)
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (
        1, "mlimages: no image was gathered: the source has no links",
    )  # fmt: skip


def test_links_that_are_still_open_are_counted_and_the_same_command_asks_again(
    site: Site, tmp_path: Path, run_cli: RunCli
) -> None:
    site.routes = {"/good.jpg": answer(photo(0))} | {f"/{n}.jpg": answer(b"", 503) for n in range(3)}
    (tmp_path / "links.txt").write_text("".join(site.url(f"{path}\n") for path in [*site.routes, "/gone.jpg"]))
    words = ["gather", "urls", "links.txt", "-o", "out", "--allow-private", "--retries", "0", "--max-wait", "0"]
    command = "  mlimages gather urls links.txt -o out --allow-private --retries 0 --max-wait 0"
    assert run_cli(*words).stdout.splitlines()[-3:] == [
        "1 image, 0 duplicates, 4 failed links in out",
        "3 links are unfinished: run the same command again",
        command,
    ]
    assert run_cli(*words, "--no-retry").stdout.splitlines()[-1] == command
    found = json.loads(run_cli(*words, "--json", "--quiet", "--no-retry").stdout)
    assert (found["open"], found["failed"], found["fetched"]) == (3, 4, 0)
    site.routes |= {f"/{n}.jpg": answer(photo(n + 1)) for n in range(2)}
    last = run_cli(*words).stdout.splitlines()[-2:]
    assert last == ["1 link is unfinished: run the same command again", command]
    site.routes["/2.jpg"] = answer(photo(9))
    finished = "4 images, 0 duplicates, 1 failed link in out"
    assert run_cli(*words).stdout.splitlines()[-1] == finished
    nothing = "nothing to download: earlier runs finished every link"
    assert run_cli(*words).stdout.splitlines()[-2:] == [finished, nothing]


@pytest.mark.parametrize(
    "refusal", [answer(b"no", 403), answer(b"<!DOCTYPE html>log in"), answer(b"", 302, Location="/login.html")]
)
def test_a_host_that_refuses_every_link_spends_none(
    site: Site, tmp_path: Path, refusal: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimages.gathering.download.host_state.GIVE_UP_AFTER_S", 0.0)
    source = links(tmp_path, *(site.url(f"/{n}.jpg") for n in range(40)))
    site.routes["/login.html"] = answer(b"<!DOCTYPE html>log in")
    site.fallback = in_turn(*(answer(photo(n)) for n in range(3)), refusal)
    first = run(source, tmp_path / "out", per_host=1)
    assert (first.ok, first.open) == (3, 37)
    assert sum(not row.final for row in read_manifest(tmp_path / "out")) == 37
    unrequested = {row.detail for row in read_manifest(tmp_path / "out") if row.reason is Reason.HOST_DOWN}
    assert unrequested == {"the host has refused several links in a row"}
    assert len(site.requests) <= (45 if site.asked("/login.html") else 8)
    site.fallback = lambda connection, request: answer(photo(int(request.path[1:-4])))(connection, request)
    second = run(source, tmp_path / "out", per_host=1)
    assert (second.ok + second.duplicate, second.open) == (40, 0)


@pytest.mark.parametrize("options", [{}, {"limit": 20}, {"no_retry": True}, {"shard": (1, 1)}, {"layout": "tar"}])
@pytest.mark.parametrize("num_links", [3, 10])
@pytest.mark.parametrize("refusal", [answer(b"no", 403), answer(b"<!DOCTYPE html>log in")])
def test_a_row_is_final_unless_the_link_counts_as_unfinished(
    site: Site,
    tmp_path: Path,
    refusal: Reply,
    num_links: int,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlimages.gathering.download.host_state.GIVE_UP_AFTER_S", 0.0)
    source, out = links(tmp_path, *(site.url(f"/{n}.jpg") for n in range(num_links))), tmp_path / "out"
    site.fallback = refusal
    num_open = num_links if num_links >= REFUSALS_UNTIL_PAUSED else 0
    for _ in range(3):
        summary = run(source, out, per_host=1, **options)
        assert (summary.open, summary.failed) == (num_open, num_links)
        rows = [row for row in read_manifest(out) if row.status == "failed"]
        assert [row.final for row in rows] == [num_open == 0] * num_links


def test_only_links_that_are_still_refused_get_corrected_rows() -> None:
    """An image that was requested before the first refusal does not end the refusals, although its row comes later."""
    rows = [
        FetchResult(f"http://x/{n}.jpg", "x", "failed", Reason.FORBIDDEN, fetched_at="2", final=n < 3)
        for n in range(REFUSALS_UNTIL_PAUSED)
    ]
    stored = replace(rows[0], status="ok", reason=None, fetched_at="1")
    refusals = ConsecutiveRefusals()
    for row in (*rows, stored):
        refusals.add_row(hash_link(row.label, row.url), row)
    assert refusals.correct_earlier_rows(lambda: [stored, *rows[1:]]) == [
        replace(row, final=False) for row in rows[1:3]
    ]


@pytest.mark.usefixtures("layout")
def test_what_an_option_of_ours_refused_is_asked_for_when_the_option_changes(site: Site, tmp_path: Path) -> None:
    site.routes = {"/a.jpg": answer(photo(1, (60, 40))), "/b.jpg": answer(photo(2), X_Robots_Tag="noai")}
    source = links(tmp_path, *map(site.url, site.routes))

    def again(**options: object) -> tuple[int, list[str]]:
        run(source, tmp_path / "out", **options)
        reasons = [row.reason for row in read_manifest(tmp_path / "out") if row.reason]
        return len(site.requests), sorted(reason.value for reason in reasons)

    assert again(min_size=50) == (2, ["opt-out", "too-small"])
    assert again(min_size=45) == (2, ["opt-out", "too-small"])
    assert again(min_size=40, max_bytes=100) == (3, ["opt-out", "too-large"])
    assert again(max_pixels=2000) == (4, ["opt-out", "too-many-pixels"])
    assert again() == (5, ["opt-out"])
    assert again(ignore_opt_out=True) == (6, [])
    with pytest.raises(InputError, match="was gathered without --resize"):
        again(resize=20)


@pytest.mark.usefixtures("layout")
def test_no_two_labels_share_a_folder_and_no_two_names_differ_in_case_alone(site: Site, tmp_path: Path) -> None:
    site.fallback = lambda connection, request: answer(photo(sum(request.target.encode())))(connection, request)
    rows = [("cat?", "/a.jpg"), ("cat:", "/b.jpg"), ("CAT_", "/c.jpg"), ("cat?", "/A.jpg"), ("cat?", "/a.JPG")]
    for count in (3, 5):  # the second run knows the first one's names
        source = links(tmp_path, *(f"{label}\t{site.url(path)}" for label, path in rows[:count]))
        summary = run(source, tmp_path / "out", per_host=1)
    stored = [row for row in read_manifest(tmp_path / "out") if row.path]
    found = {strip_shard_name(row.path or "").casefold(): row.label for row in stored}
    assert (summary.ok, len(found)) == (5, 5)
    folders = {path.partition("/")[0]: label for path, label in found.items()}
    assert sorted(folders.values()) == ["CAT_", "cat:", "cat?"]
    assert all(label == folders[path.partition("/")[0]] for path, label in found.items())


@pytest.mark.usefixtures("layout")
def test_a_folder_remembers_resize(site: Site, tmp_path: Path) -> None:
    site.fallback = answer(photo(1, (60, 40)))
    source = links(tmp_path, site.url("/a.jpg"))
    run(source, tmp_path / "out", resize=20)
    with pytest.raises(InputError, match="was gathered with --resize 20: use the same"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out", resize=20)


def test_failed_links_are_tried_again_when_asked_all_or_by_reason(site: Site, tmp_path: Path, run_cli: RunCli) -> None:
    site.routes = {"/good.jpg": answer(photo(9))}
    (tmp_path / "links.txt").write_text("".join(site.url(f"/{name}\n") for name in ("good.jpg", "a.jpg", "b.jpg")))
    words = ["gather", "urls", "links.txt", "-o", "out", "--allow-private", "--json", "--quiet"]
    assert json.loads(run_cli(*words).stdout)["failed"] == 2
    site.routes |= {"/a.jpg": answer(photo(1)), "/b.jpg": answer(photo(2))}
    assert json.loads(run_cli(*words, "--retry-failed", "timeout,host-down").stdout)["failed"] == 2
    found = json.loads(run_cli(*words, "--retry-failed").stdout)
    assert (found["ok"], found["failed"], found["reasons"]) == (3, 0, {})
    assert len(list(read_manifest(tmp_path / "out"))) == 3


def test_ctrl_c_ends_in_one_line_with_exit_130_and_the_next_run_goes_on(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(n)) if n < 5 else silence() for n in range(9)}
    source, out = links(tmp_path, *map(site.url, site.routes)), tmp_path / "out"
    process = subprocess.Popen(
        command(out, tmp_path / "cats.txt"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while len(site.requests) < 9 or len(list(read_manifest(out))) < 5:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "mlimages: interrupted; run the same command again to resume"
    assert "Traceback" not in errors
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(9)}
    site.requests.clear()
    assert run(source, out).ok == 9
    assert len(site.requests) == 4


def test_ctrl_c_is_heard_while_the_list_is_typed_at_a_terminal(site: Site, tmp_path: Path) -> None:
    site.fallback = answer(photo(1))
    out, (keyboard, terminal) = tmp_path / "out", pty.openpty()
    process = subprocess.Popen(command(out, "-"), stdin=terminal, stderr=subprocess.PIPE, text=True)
    try:
        os.write(keyboard, site.url("/a.jpg\n").encode())
        while not list(read_manifest(out)):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
        os.close(terminal)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "mlimages: interrupted; run the same command again to resume"


@pytest.mark.parametrize(("layout", "count"), [("folders", 80), ("tar", 60)])
def test_killed_at_any_moment_it_goes_on_with_nothing_twice_nothing_lost_and_no_half_file(
    site: Site, tmp_path: Path, layout: str, count: int
) -> None:
    images = {f"/{n}.jpg": photo(n) for n in range(count)}
    out = tmp_path / "out"
    links(tmp_path, *map(site.url, images))
    words = [*command(out, tmp_path / "cats.txt"), "--quiet", "--per-host", "4", "--layout", layout]
    chance, answers_left, kills = random.Random(7), itertools.count(), 0

    def limited(reply: Reply) -> Reply:
        held = silence()
        return lambda *asked: (reply if next(answers_left) < 20 else held)(*asked)

    site.routes = {path: limited(answer(data)) for path, data in images.items()}
    manifest = out / "manifest.jsonl"
    while True:
        answers_left = itertools.count(0 if kills < 2 else -len(images))
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        recorded = manifest.stat().st_size if manifest.exists() else 0
        enough = recorded + chance.randrange(1, 3_000 if kills < 2 else 30_000)
        while process.poll() is None and (not manifest.exists() or manifest.stat().st_size < enough):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        for path in (out / "cats").glob("*"):
            assert path.read_bytes() == images[f"/{path.name}"], "a half file"
    assert process.returncode == 0
    assert kills >= 2
    rows = list(read_manifest(out))
    assert sorted(row.url for row in rows) == sorted(map(site.url, images))
    assert {row.status for row in rows} == {"ok"}
    found = [(item.path.name, read_bytes(item.path)) for item in label_dir_auto(out).labels]
    assert sorted(found) == sorted((path[1:], data) for path, data in images.items())


def test_a_torn_last_line_is_ignored_and_its_link_fetched_again(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(3)}
    source, out = links(tmp_path, *map(site.url, site.routes)), tmp_path / "out"
    run(source, out)
    manifest = out / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:-1])[:-40])
    site.requests.clear()
    assert run(source, out).ok == 3
    assert len(site.requests) == 1
    found = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [(row["v"], row["status"]) for row in found] == [(1, "ok")] * 3 + [(1, "closed")]
    assert len(list((out / "cats").iterdir())) == 3


HOSTILE = [
    {"v": 1, "url": "u", "label": "l", "status": "ok", "path": "../../../etc/passwd", "sha256": "00" * 32},
    {"v": 1, "url": "u", "label": "l", "status": "ok", "path": "/etc/passwd", "bytes": 1, "dhash": "0" * 16},
    {"v": 1, "url": "u", "label": "l", "status": "duplicate", "sha256": "no hexadecimal", "bytes": 1, "dhash": "x"},
    {"v": 1, "url": ["u"], "label": "l", "status": "failed"},
    {"v": 1, "url": "u", "label": "l", "status": "failed", "reason": "no such reason"},
    {"v": 1, "url": "u", "label": "l", "status": "failed", "source": 7},
    {"v": 1, "url": "u", "label": "l", "status": "failed", "reason": "placeholder", "sha256": 5},
    [1], None, "text",
]  # fmt: skip


@given(st.lists(st.integers(1, 2**64 - 1) | st.integers(1, 20).map(lambda n: n << 40)))
def test_the_small_set_of_keys_holds_what_was_added_once(keys: list[int]) -> None:
    found, twice = UInt64Set(), []
    for key in keys:
        twice.append(key in found)
        assert found.add(key) != twice[-1]
        assert not found.add(key)
    assert twice == [key in keys[:number] for number, key in enumerate(keys)]
    assert all(key in found for key in keys)


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([json.dumps(row).encode() for row in HOSTILE]))))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_manifest_of_noise_is_read_as_far_as_it_makes_sense(tmp_path: Path, lines: list[bytes]) -> None:
    outside = tmp_path / "keep.txt"
    outside.write_text("mine")
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    noise = b"\n".join(lines)
    row = dump_row(FetchResult("u", "l", "failed", Reason.NOT_FOUND))
    for first in (row, b""):
        (out / "manifest.jsonl").write_bytes(first + noise)
        (out / "manifest-00002.jsonl").write_bytes(b"\n".join(reversed(lines)))
        is_ours = is_manifest(out / "manifest.jsonl")
        refusal = pytest.raises(GatherError, match="was not written by mlimages")
        with contextlib.nullcontext() if is_ours else refusal, GatherFolder(out, GatherOptions()) as gathered:
            gathered.finish()
        if not is_ours:
            assert (out / "manifest.jsonl").read_bytes() == noise
    assert outside.read_text() == "mine"


def test_a_manifest_of_a_later_version_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"v": 2, "url": "u"}\n')
    with pytest.raises(GatherError, match="format version 2"):
        run(links(tmp_path), tmp_path)


def test_a_row_survives_writing_and_reading() -> None:
    row = FetchResult("http://x/ü", "l", "failed", Reason.TIMEOUT, detail="\ud800", source={"a": [1, None]})
    assert parse_row(dump_row(row)) == row


def test_downloading_loads_neither_pillow_nor_numpy_and_decoding_no_aiohttp() -> None:
    for module, unwanted in (("run", ["PIL", "numpy"]), ("download.decoder_process", ["aiohttp", "numpy", "torch"])):
        code = f"import sys, mlimages.gathering.{module}; print([n for n in {unwanted!r} if n in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


def test_the_bench_of_memory_runs() -> None:
    script = Path(__file__).parents[2] / "scripts/bench/gather_memory.py"
    done = subprocess.run([sys.executable, script, "200"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "{'ok': 90, 'failed': 100, 'duplicate': 10}" in done.stdout


def test_the_bench_runs(tmp_path: Path) -> None:
    if not Path("/usr/sbin/nginx").exists():
        pytest.skip("nginx is not installed")
    script = Path(__file__).parents[2] / "scripts/bench/gather.py"
    done = subprocess.run([sys.executable, script, "--tiny"], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "https: mlimages --resize 256" in done.stdout


@pytest.mark.realdata
def test_real_images_are_gathered_whole_and_strange_ones_end_with_a_reason(
    site: Site, test_data: Path, tmp_path: Path
) -> None:
    files = sorted([*(test_data / "weird").iterdir(), *(test_data / "hymenoptera_data/val/ants").iterdir()])
    site.routes = {f"/{path.name}": answer(path.read_bytes()) for path in files if path.is_file()}
    source = links(tmp_path, *map(site.url, site.routes))
    summary = run(source, tmp_path / "out")
    by_url = {row.url: row for row in read_manifest(tmp_path / "out")}
    assert by_url[site.url("/broken.png")].reason is Reason.NOT_AN_IMAGE
    assert {by_url[site.url(f"/{name}")].reason for name in ("truncated_image.png", "truncated_jpeg.jpg")} == {
        Reason.TRUNCATED
    }
    assert summary.failed == 3
    for path in files:
        row = by_url.get(site.url(f"/{path.name}"))
        if row and row.path:
            assert (tmp_path / "out" / row.path).read_bytes() == path.read_bytes()
    resized = run(source, tmp_path / "small", resize=48)
    assert resized.failed == 3
    assert {min(row.width or 0, row.height or 0) for row in read_manifest(tmp_path / "small") if row.path} == {48}


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("file = BufferedFile(Path('a.part')); file.write(bytes(1500)); file.flush()", "."),
        ("writer.append(row)", "manifest.jsonl"),
        ("writer.append_commit_row(keep_duplicates=False)", "manifest.jsonl"),
    ],
)
def test_a_disk_that_takes_half_an_image_or_a_row_ends_the_run(tmp_path: Path, statement: str, name: str) -> None:
    code = (
        "import resource; from pathlib import Path\n"
        "from mlimages.core import FetchResult\n"
        "from mlimages.gathering.download.body_file import BufferedFile\n"
        "from mlimages.gathering.store.manifest import ManifestWriter\n"
        "row, writer = FetchResult('http://a.example/1.jpg', 'a', 'failed'), ManifestWriter(Path('manifest.jsonl'))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); {statement}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1:]
    assert last == [f"mlimages.core.errors.GatherError: {name} cannot be written: File too large"]


def test_a_manifest_that_cannot_be_opened_or_synced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GatherError, match=r"file/manifest\.jsonl cannot be written: "):
        ManifestWriter(tmp_path / "file" / "manifest.jsonl")
    writer = ManifestWriter(tmp_path / "manifest.jsonl")
    monkeypatch.setattr("os.fsync", mock.Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(GatherError, match=r"manifest\.jsonl cannot be written: Input/output error$"):
        writer.append_commit_row(keep_duplicates=False)
    writer.close()
