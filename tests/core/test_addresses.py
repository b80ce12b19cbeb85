"""Label files and images at fsspec addresses: in memory, and in a bucket of a local S3 server."""

import hashlib
import json
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from typer.testing import CliRunner

from mlimages import (
    FineTuneConfig,
    GatherSummary,
    ImageProperty,
    LabelFile,
    Predictor,
    TrainingData,
    UrlList,
    check,
    evaluate,
    fine_tune,
    gather,
    label_dir_auto,
)
from mlimages.checks import write_results
from mlimages.cli.main import app
from mlimages.core import (
    BrokenImage,
    GatherError,
    InputError,
    LabeledPath,
    as_path,
    cache_dir,
    fingerprint,
    is_remote,
    path_from_name,
    relative_name,
)
from mlimages.dataset import compute_mean, load_mean_image
from mlimages.gathering import read_manifest
from mlimages.gathering.store.object_storage import ObjectStorage
from mlimages.images import copy_by_class, find_images
from mlimages.inference import OnnxBundle
from mlimages.inference.inputs import find_input_images
from mlimages.labels import class_definition_path, label_dir, open_labels, read_class_names
from mlimages.reports import draw_contact_sheet, render_evaluation, write_suspects
from mlimages.reports.suspects import SuspectLabel, read_suspects
from tests.conftest import RunCli, fork_server
from tests.forked import Forked
from tests.servers import Connection, Request, Site, answer, path_of, photo, serve, urls_in

fsspec = pytest.importorskip("fsspec")

TINY = ImageProperty(8)
OPTIONS: dict[str, Any] = {"allow_private": True, "retries": 0, "decoders": 1}


@pytest.fixture
def memory() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    for number in range(8):
        files.pipe(f"/set/class{number % 2}/{number}.jpg", photo(number) if number else b"no image")
    yield "memory://set"
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def store(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file system of `bucket`, to which this process and those that it starts are directed."""
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    return fsspec.filesystem("s3", use_listings_cache=False)


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server to which the addresses of S3 lead, so that it can fail."""
    pytest.importorskip("s3fs")
    with serve() as site:
        variables = {"AWS_ENDPOINT_URL": site.base, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield site
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def assert_whole(files: Any, folder: str, *, rows: int) -> None:
    """`folder` holds one manifest, of so many rows, and exactly the images that its rows name."""
    lines = [json.loads(line) for line in files.cat(f"{folder}/manifest.jsonl").splitlines()]
    paths = {f"{folder}/{row['path']}": row["sha256"] for row in lines if row.get("path")}
    assert sum(row["status"] != "closed" for row in lines) == rows
    assert set(files.find(folder)) == paths.keys() | {f"{folder}/manifest.jsonl"}
    assert {path: hashlib.sha256(files.cat(path)).hexdigest() for path in paths} == paths


@dataclass(frozen=True, slots=True)
class TwoShards:
    """Ten links, of five images, that two shards have gathered into `memory://out`."""

    site: Site
    source: UrlList

    def gather(self, **options: Any) -> GatherSummary:
        return gather(self.source, "memory://out", **OPTIONS, **options)


@pytest.fixture
def two_shards(memory: str, tmp_path: Path) -> Iterator[TwoShards]:
    with serve() as site:
        sides = urls_in(site, 1, 2), urls_in(site, 2, 2)
        urls = [next(side) for _ in range(5) for side in sides]
        site.routes = {path_of(url): answer(photo(n // 2)) for n, url in enumerate(urls)}
        (tmp_path / "cats.txt").write_text("\n".join(urls))
        shards = TwoShards(site, UrlList(tmp_path / "cats.txt"))
        for number in (1, 2):
            shards.gather(shard=(number, 2))
        yield shards


class AnyPath:
    """A path of another library."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __fspath__(self) -> str:
        return self.text


def test_an_address_is_known_by_its_kind_and_survives_a_path() -> None:
    for text in ("memory://a/b.txt", Path("memory://a/b.txt")):
        assert is_remote(as_path(text))
        assert as_path(text).as_posix() == "memory://a/b.txt"
    for text in ("memory://a/b.txt", "a/b"):
        assert as_path(AnyPath(text)) == as_path(text)
    for local in ("a/b", "/a/b", "c:/a", "C:\\a", "a:b", "."):
        assert as_path(local) == Path(local)
    assert path_from_name("http://127.0.0.1/a.jpg", Path("/set")) == Path("/set/http:/127.0.0.1/a.jpg")
    with pytest.raises(InputError, match=r"(?s)gs://a: .*gcsfs"):
        as_path("gs://a")


@pytest.mark.parametrize("as_type", [str, Path])
def test_a_file_url_is_a_path_and_other_urls_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_type: type
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("file:///a/b c", "file:///a/b%20c", "FILE:///a/b%20c", "file:/a/b c"):
        assert as_path(as_type(url)) == Path("/a/b c")
    assert as_path(as_type("file:///a/%FF")) == Path("/a/\udcff")  # a name that is not UTF-8
    assert as_path(as_type("MEMORY://a/b")) == as_path("memory://a/b")
    for url in (
        "http://h/a",
        "HTTPS://h/a",
        "sftp://h/a",
        "ftp://h/a",
        "zip://a::s3://b",
        "file:///",
        "s3:",
        "x+y://a",
    ):
        with pytest.raises(InputError, match=r"is neither a path on this machine nor a supported address"):
            as_path(as_type(url))
    (tmp_path / "http:").mkdir()
    assert as_path(as_type("http:/a")) == Path("http:/a")


def test_a_file_url_of_another_machine_is_refused() -> None:
    assert as_path("file://localhost/a") == Path("/a")
    with pytest.raises(InputError, match=r"^file://server/share/a is neither"):
        as_path("file://server/share/a")


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [
        ("/a/b/c.jpg", "/a", "b/c.jpg"),
        ("/a/c.jpg", "/a/b", "../c.jpg"),
        ("memory://a/b/c.jpg", "memory://a", "b/c.jpg"),
        ("memory://a/c.jpg", "memory://a/b", "memory://a/c.jpg"),
        ("memory://a/c.jpg", "/a", "memory://a/c.jpg"),
        ("/a/c.jpg", "memory://a", "/a/c.jpg"),
    ],
)
def test_a_label_file_names_what_lies_below_it_shortly_and_the_rest_in_full(path: str, folder: str, name: str) -> None:
    assert relative_name(as_path(path), as_path(folder)) == name
    found = path_from_name(name, as_path(folder))
    assert os.path.normpath(found.as_posix()) == os.path.normpath(path)


def test_a_folder_at_an_address_becomes_labels_a_check_and_a_mean_as_here(memory: str, tmp_path: Path) -> None:
    fsspec.filesystem("memory").get("/set", str(tmp_path / "set"), recursive=True)
    texts, means, reports = [], [], []
    for root in (memory, str(tmp_path / "set")):
        labels = label_dir_auto(root).labels.write(f"{root}/labels.txt")
        texts.append([labels.path.read_text(), class_definition_path(labels.path).read_text()])
        reports.append(check([labels]))
        write_results(reports[-1])
        texts.append([(labels.path.parent / f"labels_{end}").read_text() for end in ("checked.txt", "rejected.tsv")])
        made = TrainingData(labels, ImageProperty(32)).make_mean_image(f"{root}/mean.png")
        means.append(made.mean)
        assert np.array_equal(load_mean_image(f"{root}/mean.npy"), made.mean)
    assert texts[:2] == texts[2:]
    assert [report.errors for report in reports] == [{"not-an-image": 1}] * 2
    assert np.array_equal(*means)
    train, val = LabelFile(f"{memory}/labels.txt").split((0.5, 0.5), seed=1)
    here = LabelFile(tmp_path / "set" / "labels.txt").split((0.5, 0.5), seed=1)
    assert [[item.path.name for item in part] for part in (train, val)] == [[i.path.name for i in p] for p in here]


def test_a_label_file_here_names_images_elsewhere(memory: str, tmp_path: Path) -> None:
    labels = label_dir_auto(memory).labels.write(tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_text().splitlines()[1] == "memory://set/class0/2.jpg 0"
    assert compute_mean(labels, ImageProperty(32)).num_images == 7
    assert [item.path.as_posix() for item in labels.without([as_path(f"{memory}/class0/2.jpg")])][:2] == [
        "memory://set/class0/0.jpg",
        "memory://set/class0/4.jpg",
    ]


def test_a_missing_object_costs_that_image(memory: str) -> None:
    gone = LabeledPath(as_path("memory://set/class0/none.jpg"), 0)
    labels = LabelFile(f"{memory}/labels.txt", items=lambda: [gone], class_names=("a",))
    assert check([labels]).errors == {"missing": 1}


def test_what_is_not_written_whole_is_not_written(memory: str) -> None:
    labels = LabelFile(f"{memory}/new.txt", items=lambda: iter([LabeledPath(as_path(f"{memory}/a"), 0), None]))  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        labels.write(f"{memory}/new.txt")
    assert not fsspec.filesystem("memory").exists("/set/new.txt")


def test_a_run_folder_elsewhere_and_moving_images_there_are_refused(memory: str) -> None:
    with pytest.raises(InputError, match="a run folder must be on this machine"):
        FineTuneConfig(f"{memory}/labels.txt", "memory://run")
    from mlimages.checks import plan_moves

    with pytest.raises(InputError, match="cannot move remote images"):
        plan_moves(check([label_dir_auto(memory).labels]))


@pytest.mark.usefixtures("store")
def test_an_object_of_the_same_size_and_second_has_another_state(memory: str) -> None:
    for address in (f"{memory}/x_class_def.txt", "s3://bucket/x_class_def.txt"):
        found = []
        for text in ("0 ants\n1 bees\n", "0 bees\n1 ants\n"):
            as_path(address).write_text(text)
            found.append((fingerprint(address), read_class_names(address)))
        assert found[0][0] != found[1][0]
        assert [names for _, names in found] == [("ants", "bees"), ("bees", "ants")]


WRITTEN_AT = {
    "label set -o AT/labels.txt": ["labels.txt", "labels_class_def.txt"],
    "check labels.txt --report AT/check.html": ["check.html"],
    "mean labels.txt --size 8 -o AT/mean.png": ["mean.json", "mean.npy", "mean.png"],
    "probe labels.txt --model lenet5 --weights none -o AT/probe.png --report AT/probe.html": [
        "probe.html",
        "probe.png",
    ],
    "features labels.txt --model lenet5 --weights none -o AT/features.npz": ["features.npz"],
    "show labels.txt -o AT/sheet.png": ["sheet.png"],
    "compare run again --report AT/compare.html": ["compare.html"],
    "evaluate run labels.txt --report AT/evaluation.html": ["evaluation.html"],
    "explain run set/class0/2.jpg -o AT": ["2.png"],
    "export run -o AT/model.onnx": ["README.md", "model.onnx"],
    "export run -o new.onnx --croissant AT/croissant.json": ["croissant.json"],
}
REFUSED_AT = (
    "label set --as-folders AT", "augment labels.txt -o AT --size 8", "finetune labels.txt -o AT",
    "finetune labels.txt -o new --weights AT/weights.pth", "finetune --resume AT", "compare run AT", "export AT",
    "export run --page AT", "export run --page new --ort-web AT", "predict AT set", "predict AT/model.onnx set",
    "predict run set --copy-to AT", "evaluate AT labels.txt", "explain AT set -o new", "serve AT",
    "quantize AT --calibration labels.txt", "summary AT/model.onnx", "gather urls AT/links.tsv -o new", "demo -o AT",
)  # fmt: skip


def test_each_path_of_a_command_is_an_address_or_refused_as_one(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")
    files.get("/set", str(tmp_path / "set"), recursive=True)
    monkeypatch.chdir(tmp_path)
    label_dir_auto("set").labels.write("labels.txt")
    fine_tune(FineTuneConfig("labels.txt", "run", model="lenet5", weights="none", freeze="none", epochs=1))
    shutil.copytree("run", "again")
    for words, names in WRITTEN_AT.items():
        files.store.clear()
        done = CliRunner().invoke(app, words.replace("AT", "memory://at").split())
        found = {name.removeprefix("/at/") for name in files.find("/at")} - {".mlimages-written"}
        assert (words, done.exit_code, sorted(found)) == (words, 0, names), done.exception
    files.store.clear()
    for words in REFUSED_AT:
        done = CliRunner().invoke(app, words.replace("AT", "memory://at").split())
        expected = r"memory://at\S*: (use a path|a run folder must be) on this machine.*"
        assert re.fullmatch(expected, str(done.exception)), (words, done.exception)
    assert not files.find("/")
    assert not [*tmp_path.glob("memory*"), *tmp_path.glob("new/*")]


def test_the_commands_work_in_a_bucket(store: Any, tmp_path: Path, run_cli: RunCli) -> None:
    for number in range(8):
        store.pipe(f"bucket/set/class{number % 2}/{number}.jpg", photo(number) if number else b"no image")
    labelled = json.loads(run_cli("label", "s3://bucket/set", "--json").stdout)
    assert labelled["files"] == [
        {"path": "s3://bucket/set/labels.txt", "count": 8, "classes": {"class0": 4, "class1": 4}}
    ]
    checked = json.loads(run_cli("check", "s3://bucket/set/labels.txt", "--json").stdout)
    assert (checked["checked"], checked["errors"]) == (8, {"not-an-image": 1})
    words = ["mean", "s3://bucket/set/labels_checked.txt", "--size", "32", "-o", "s3://bucket/mean.png", "--json"]
    assert json.loads(run_cli(*words).stdout)["count"] == 7


ENTRIES: dict[str, Callable[[str], int]] = {
    "label_dir_auto": lambda address: len(list(label_dir_auto(address).labels)),
    "label_dir": lambda address: len(list(label_dir(address, 0))),
    "find_input_images": lambda address: len(list(find_input_images([address]))),
    "draw_contact_sheet": lambda address: sum(
        row.num_images for row in draw_contact_sheet(address, "memory://sheet.png", image_property=TINY)
    ),
    "open_labels": lambda address: compute_mean(open_labels(address), TINY).num_images,
    "check": lambda address: check([address, f"{address}-other"]).num_images - 1,
    "check of a label file": lambda address: check(f"{address}/labels.txt").num_images,
}


@pytest.mark.usefixtures("memory")
def test_each_call_sees_the_present_content_of_a_bucket_and_lists_a_folder_once(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, iterate = list[tuple[str, ...]](), type(store)._iterdir

    def listing(self: object, bucket: str, delimiter: str = "/", prefix: str = "", **options: object) -> object:
        listed.append((prefix, delimiter))
        return iterate(self, bucket, delimiter=delimiter, prefix=prefix, **options)

    monkeypatch.setattr(type(store), "_iterdir", listing)
    store.pipe("bucket/present-other/a/0.jpg", photo(99))
    lines = ""
    for count, name in enumerate([*ENTRIES, "label_dir_auto"], 1):
        lines += f"a/{count}.jpg 0\n"
        store.pipe({f"bucket/present/a/{count}.jpg": photo(count), "bucket/present/labels.txt": lines.encode()})
        listed.clear()
        assert (name, ENTRIES[name]("s3://bucket/present")) == (name, count)
        assert len(set(listed)) == len(listed) > 0, name


def test_images_are_gathered_into_an_address_and_the_same_command_goes_on_there(memory: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    with serve() as site:
        site.routes = {f"/{n}.jpg": answer(photo(n // 2)) for n in range(10)} | {
            f"/gone/{n}": answer(photo(99)) for n in range(4)
        }
        (tmp_path / "cats.txt").write_text("".join(site.url(f"{path}\n") for path in [*site.routes, "/none"]))
        source = UrlList(tmp_path / "cats.txt")
        first = gather(source, "memory://out", **OPTIONS)
        assert (first.ok, first.duplicate, first.failed, str(first.out)) == (6, 8, 1, "memory://out")
        assert_whole(files, "/out", rows=15)
        site.requests.clear()
        again = gather(source, "memory://out", **OPTIONS)
        assert (again.ok, again.fetched, site.requests) == (6, 0, [])
        with (tmp_path / "cats.txt").open("a") as lines:
            lines.write(site.url("/gone/4\n"))
        site.routes["/gone/4"] = answer(photo(99))
        last = gather(source, "memory://out", **OPTIONS)
        assert (last.ok, last.reasons["placeholder"], len(site.requests)) == (5, 5, 1)
        (aside,) = (name for name in files.find("/out") if "/.placeholders/" in name)
        assert files.cat(aside) == photo(99)
        assert len(files.find("/out")) == 7, "the image for `gone` is put aside there too"
    assert not list(cache_dir("gathered").iterdir())


def test_a_merge_that_begins_during_the_removals_of_another_keeps_the_rows_of_that_one(
    two_shards: TwoShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = threading.current_thread()
    remove, is_unchanged = ObjectStorage.remove, ObjectStorage.is_unchanged
    has_listed, is_removed = threading.Event(), threading.Event()
    others: list[GatherSummary] = []

    def merge_too() -> None:
        others.append(two_shards.gather())
        has_listed.set()

    def remove_while_another_merges(self: ObjectStorage, path: str, sha256: str) -> None:
        if not other.ident:
            other.start()
            assert has_listed.wait(60)
        remove(self, path, sha256)

    def read_after_the_removals(self: ObjectStorage, path: str, sha256: str) -> bool:
        if threading.current_thread() is not main:
            has_listed.set()
            assert is_removed.wait(60)
        return is_unchanged(self, path, sha256)

    other = threading.Thread(target=merge_too)
    monkeypatch.setattr(ObjectStorage, "remove", remove_while_another_merges)
    monkeypatch.setattr(ObjectStorage, "is_unchanged", read_after_the_removals)
    merged = two_shards.gather()
    is_removed.set()
    other.join()
    two_shards.site.requests.clear()
    again = two_shards.gather()
    assert [(run.ok, run.duplicate) for run in (merged, *others, again)] == [(5, 5)] * 3
    assert not two_shards.site.requests
    assert_whole(fsspec.filesystem("memory"), "/out", rows=10)


def test_a_merge_that_was_killed_before_its_removals_is_finished_by_the_next_run(two_shards: TwoShards) -> None:
    files = fsspec.filesystem("memory")
    killed = mock.patch.object(ObjectStorage, "remove", side_effect=KeyboardInterrupt)
    with killed, pytest.raises(KeyboardInterrupt):
        two_shards.gather()
    assert sum("manifest" in name for name in files.find("/out")) == 3
    shard = two_shards.gather(shard=(1, 2))
    assert (shard.ok + shard.duplicate, shard.fetched) == (5, 0)
    again = two_shards.gather()
    assert (again.ok, again.duplicate) == (5, 5)
    assert_whole(files, "/out", rows=10)


def test_a_shard_that_grows_into_one_address_leaves_the_merged_rows_alone(memory: str, tmp_path: Path) -> None:
    with serve() as site:
        sides = urls_in(site, 1, 2), urls_in(site, 2, 2)
        urls = [next(side) for _ in range(4) for side in sides]
        site.routes = {path_of(url): answer(photo(n)) for n, url in enumerate(urls)}
        for count in (2, 4, 6, 8):
            (tmp_path / "cats.txt").write_text("\n".join(urls[:count]))
            source = UrlList(tmp_path / "cats.txt")
            gather(source, "memory://out", shard=None if count == 2 else (1, 2), **OPTIONS)
        assert gather(source, "memory://out", shard=(2, 2), **OPTIONS).ok == 4
        site.requests.clear()
        assert gather(source, "memory://out", **OPTIONS).ok == 8
        assert not site.requests


def test_two_shards_on_their_way_to_one_address_leave_each_other_alone(memory: str, tmp_path: Path) -> None:
    with serve() as site:
        first, second = urls_in(site, 1, 2), urls_in(site, 2, 2)
        urls = [next(side) for _ in range(4) for side in (first, second)]
        site.routes = {path_of(url): answer(photo(n)) for n, url in enumerate(urls)}
        waiting = next(first)
        links = tmp_path / "cats.txt"
        links.write_text("\n".join([*urls, waiting]))

        def other_shard_first(connection: Connection, request: Request) -> None:
            assert gather(UrlList(links), "memory://out", shard=(2, 2), **OPTIONS).ok == 4
            answer(photo(99))(connection, request)

        site.routes[path_of(waiting)] = other_shard_first
        assert gather(UrlList(links), "memory://out", shard=(1, 2), timeout_s=60, **OPTIONS).ok == 5
    names = fsspec.filesystem("memory").find("/out")
    found = sorted(name.rpartition("/")[2][:25] for name in names if "manifest" in name)
    assert found == ["manifest-00001-of-00002-0", "manifest-00002-of-00002-0"]
    assert (len(names), list(cache_dir("gathered").iterdir())) == (11, [])


@pytest.mark.parametrize("shard", [None, (1, 1)])
@pytest.mark.parametrize(
    ("stores", "failures", "error"),
    [(False, 2, "Please reduce your request rate."), (True, 1, "Connection reset by peer")],
)
def test_a_store_that_refuses_at_first_or_whose_first_responses_are_lost_is_said_once_and_has_the_objects_once(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    shard: tuple[int, int] | None, stores: bool, failures: int, error: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("mlimages.gathering.store.object_storage._BACKOFF_S", 0)
    files, asked = fsspec.filesystem("memory"), Counter[str]()
    pipe_file = files.pipe_file

    def fail_at_first(path: str, value: bytes, **options: Any) -> None:
        asked[path] += 1
        if stores or asked[path] > failures:
            pipe_file(path, value, **options)
        if asked[path] <= failures:
            raise OSError(16, error)

    monkeypatch.setattr(files, "pipe_file", fail_at_first)
    with serve() as site:
        site.fallback = answer(photo(1))
        (tmp_path / "cats.txt").write_text(site.url("/1.jpg"))
        assert gather(UrlList(tmp_path / "cats.txt"), "memory://out", shard=shard, **OPTIONS).ok == 1
        assert caplog.text.count("trying again") == 1
        assert f"cannot be written: {error.rstrip('.')}; trying again" in caplog.text
        assert gather(UrlList(tmp_path / "cats.txt"), "memory://out", **OPTIONS).ok == 1
    assert [row.status for row in read_manifest("memory://out")] == ["ok"]
    assert len(files.find("/out")) == 2, "an image and a manifest"


def test_a_manifest_of_another_run_is_not_replaced(memory: str, tmp_path: Path) -> None:
    files, path = fsspec.filesystem("memory"), tmp_path / "manifest-0123456789abcdef.jsonl"
    files.pipe(f"/out/{path.name}", b"theirs")
    path.write_bytes(b"ours")
    objects = ObjectStorage(as_path("memory://out"), tmp_path)
    with pytest.raises(GatherError, match="was written by another run: wait until that run has ended"):
        objects.upload_manifest(path)
    objects.close()
    assert files.cat(f"/out/{path.name}") == b"theirs"


@pytest.mark.parametrize("change", ["removed", "replaced", "cut"])
def test_manifests_that_change_while_they_are_read_are_read_again(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    files, row = fsspec.filesystem("memory"), b'{"v": 1, "url": "http://a.example/1.jpg", "status": "ok"}\n'
    names = ["manifest.jsonl", *(f"manifest-{number:016x}.jsonl" for number in range(3))]
    for name in names:
        files.pipe(f"/out/{name}", row)
    get_file, changed = files.get_file, list[str]()

    def change_on_the_way(remote: str, local: str) -> None:
        is_first = not changed
        changed.append(remote)
        if is_first and change == "removed":
            files.rm(remote)
        elif is_first and change == "replaced":
            files.pipe(remote, row + row)
        get_file(remote, local)
        if is_first and change == "cut":
            Path(local).write_bytes(b"")

    monkeypatch.setattr(files, "get_file", change_on_the_way)
    objects = ObjectStorage(as_path("memory://out"), tmp_path)
    assert objects.refresh_manifests()
    assert not objects.refresh_manifests()
    objects.close()
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {name.rpartition("/")[2]: files.cat(name) for name in files.find("/out")}


@pytest.mark.parametrize("lists", ["two lists", "the same list"])
def test_two_runs_into_one_bucket_at_once_lose_nothing_of_each_other(store: Any, tmp_path: Path, lists: str) -> None:
    address = f"s3://bucket/{lists.replace(' ', '-')}"
    first, second = tmp_path / "first" / "cats.txt", tmp_path / "second" / "cats.txt"
    asked, both_work = set[str](), threading.Event()

    def meet(connection: Connection, request: Request) -> None:
        asked.add(request.headers["user-agent"])
        if len(asked) == 2:
            both_work.set()
        both_work.wait(30)
        answer(photo(int(request.path[1:].partition(".")[0]) % 20))(connection, request)

    with serve() as site:
        site.fallback = meet
        for number, path in enumerate((first, second)):
            path.parent.mkdir()
            begin = 0 if lists == "the same list" else number * 15  # five images are in both lists
            path.write_text("".join(site.url(f"/{n}.jpg\n") for n in range(begin, begin + 20)))
        words = ["-m", "mlimages", "gather", "urls", "cats.txt", "-o", address, "--allow-private", "--quiet"]
        runs = [
            fork_server().start([*words, "--user-agent", path.parent.name], path.parent, os.environ, torch=False)
            for path in (first, second)
        ]
        assert [run.communicate(100).returncode for run in runs] == [0, 0]
        site.requests.clear()
        again = gather(UrlList(first, second, class_name="cats"), address, **OPTIONS)
        assert not site.requests
    links = 20 if lists == "the same list" else 35
    assert again.ok + again.duplicate == links
    assert_whole(store, address[5:], rows=links)


def test_a_killed_run_into_a_bucket_is_taken_up_elsewhere_and_replaces_nothing(store: Any, tmp_path: Path) -> None:
    running: list[Forked] = []

    def killing(connection: Connection, request: Request) -> None:
        number = int(request.path[1:].partition(".")[0])
        while number == 11 and running and len(store.find("bucket/killed")) < 8:
            pass
        if number == 11 and running:
            os.kill(running.pop().pid, signal.SIGKILL)
        answer(photo(number))(connection, request)

    with serve() as site:
        site.fallback = killing
        (tmp_path / "cats.txt").write_text("".join(site.url(f"/{n}.jpg\n") for n in range(12)))
        words = ["gather", "urls", "cats.txt", "-o", "s3://bucket/killed", "--allow-private", "--quiet"]
        command = fork_server().start(["-m", "mlimages", *words], tmp_path, os.environ, torch=False)
        running.append(command)
        assert command.communicate(100).returncode == -9
        before = {name: store.cat(name) for name in store.find("bucket/killed")}
        assert before
        assert gather(tmp_path / "cats.txt", "s3://bucket/killed", allow_private=True, decoders=1).ok == 12
    after = {name: store.cat(name) for name in store.find("bucket/killed", refresh=True)}
    assert before.items() <= after.items()
    assert len(after) == 13


def test_a_stores_trouble_ends_each_command_and_an_image_is_one_request_of_many_at_a_time(
    tmp_path: Path, trouble: Site, cnn_bundle: OnnxBundle
) -> None:
    count, refused, failing = 12, {"/trouble/a/3.jpg", "/trouble/b/8.jpg"}, {"/trouble/a/1.jpg"}
    all_ask, asked_before = threading.Barrier(count, timeout=30), set[str]()

    def store(connection: Connection, request: Request) -> None:
        number = request.path.rpartition("/")[2].partition(".")[0]
        if request.method != "GET" or not number.isdigit():
            answer(b"", 404)(connection, request)
            return
        if request.path not in asked_before:
            asked_before.add(request.path)
            all_ask.wait()
        if request.path in failing:
            failing.discard(request.path)
            answer(b"<Error><Code>InternalError</Code></Error>", 500)(connection, request)
        elif request.path in refused:
            answer(b"<Error><Code>AccessDenied</Code></Error>", 403)(connection, request)
        else:
            answer(photo(int(number), (64, 64)), ETag=f'"{number}"')(connection, request)

    names = cnn_bundle.class_names[:2]
    paths = [f"s3://trouble/{'ab'[n // 6]}/{n}.jpg" for n in range(count)]
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{path} {n // 6}\n" for n, path in enumerate(paths)))
    class_definition_path(labels).write_text("".join(f"{n} {name}\n" for n, name in enumerate(names)))
    trouble.fallback = store
    message = r"2 images could not be downloaded; .*\(s3://trouble/a/3.jpg\)\. .*--skip-unavailable"
    progress = mock.Mock()
    with pytest.raises(InputError, match=message):
        check(labels, workers=1, progress=progress)
    assert progress.mock_calls[-1] == mock.call.close(), "the message begins on a line of its own"
    asked = Counter(request.path for request in trouble.requests if request.path.endswith(".jpg"))
    assert sorted(asked.values()) == [1] * (count - 1) + [2], "one request for an image, and one more after an error"
    config = FineTuneConfig(labels, tmp_path / "run", model="lenet5", weights="none", freeze="none", epochs=1)
    for command in (
        lambda skip: compute_mean(labels, ImageProperty(32), skip_unavailable=skip),
        lambda skip: evaluate(Predictor(cnn_bundle), labels, skip_unavailable=skip),
        lambda skip: check(labels, skip_unavailable=skip),
    ):
        with pytest.raises(InputError, match=message):
            command(False)
        assert command(True) is not None
    with pytest.raises(InputError, match=message):
        fine_tune(config)


def test_a_request_that_fails_is_repeated_once_before_the_store_counts_as_failing(trouble: Site) -> None:
    """More attempts would pass in silence: those who call for the object report the failure and repeat it."""
    trouble.fallback = answer(b"<Error><Code>InternalError</Code></Error>", 500)
    with pytest.raises(OSError, match="InternalError"):
        as_path("s3://failing/1.jpg").fs.cat_file("failing/1.jpg", max_concurrency=1)  # type: ignore[attr-defined]
    assert trouble.asked("/failing/1.jpg") == 2


def test_a_network_learns_from_images_at_an_address_and_answers_there(memory: str, tmp_path: Path) -> None:
    labels = label_dir_auto(memory).labels.write(f"{memory}/labels.txt")
    run = tmp_path / "run"
    fine_tune(FineTuneConfig(labels.path, run, model="lenet5", weights="none", freeze="none", epochs=1, val_share=0.4))
    assert sum(1 for part in ("train", "val") for _ in LabelFile(run / f"{part}.txt")) == 7
    found = list(find_images([Path(memory)]))
    assert len(found) == 8
    fsspec.filesystem("memory").pipe("/shards/images-00000.tar", b"")
    for read in (label_dir_auto, lambda folder: list(find_images([folder]))):
        with pytest.raises(
            InputError, match=r"memory://shards is remote, but shards can only be read from a local folder"
        ):
            read(Path("memory://shards"))
    predictor = Predictor(run / "model.onnx")
    answers = predictor(found)
    assert [answer.path for answer in answers] == [path.as_posix() for path in found]
    assert sum(isinstance(answer, BrokenImage) for answer in answers) == 1
    assert len(list(copy_by_class(answers, tmp_path / "sorted", class_names=predictor.bundle.class_names))) == 8
    assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == 7
    measured = evaluate(Predictor(run / "model.onnx"), LabelFile(labels.path))
    assert (measured.num_images, len(measured.broken_images)) == (7, 1)
    assert "data:image/jpeg" in render_evaluation(measured, "")
    suspects = (SuspectLabel(found[0], "class0", "class1", 0.75),)
    write_suspects(suspects, run / "suspects.tsv")
    assert read_suspects(run / "suspects.tsv") == suspects


@pytest.mark.parametrize("command", [["gather", "urls", "a.txt", "-o"], ["check"], ["label"]])
def test_a_missing_bucket_is_named_before_any_download(
    store: Any, run_cli: RunCli, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "a.txt").write_text("http://127.0.0.1:9/a.jpg\n")
    done = run_cli(*command, "s3://nobucket/photos", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["mlimages: there is no bucket s3://nobucket: create it, or correct its name"]


def test_an_address_without_the_way_there_is_one_line(run_cli: RunCli) -> None:
    env = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_CONFIG_FILE": "none"}
    done = run_cli("check", "s3://bucket/labels.txt", check=False, **env)
    assert (done.returncode, done.stderr) == (
        1,
        "mlimages: s3://bucket cannot be reached: Unable to locate credentials\n",
    )
