"""`--layout tar`: what shards hold, what readers see of them, and what a killed run leaves."""

import asyncio
import gzip
import io
import itertools
import json
import tarfile
import tracemalloc
from pathlib import Path
from posixpath import normpath
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlimages.checks import check
from mlimages.core import (
    FetchResult,
    GatherError,
    GatherSummary,
    ImageError,
    ImageProperty,
    InputError,
    LabelFileError,
    find_member,
    is_file_or_member,
    iter_members,
)
from mlimages.dataset import compute_mean
from mlimages.gathering import read_manifest
from mlimages.gathering.store import shard_storage
from mlimages.gathering.store.shard_storage import ShardStorage, strip_shard_name
from mlimages.images import find_images
from mlimages.images.reading import read_bytes
from mlimages.labels import LabelFile, label_dir_auto, open_labels, write_class_folders
from tests.gathering import conftest
from tests.servers import Site, answer, photo

COUNT = 12


@pytest.fixture
def site(site: Site) -> Site:
    form = {0: "PNG", 1: "WEBP"}
    site.routes = {f"/v1.{n}.jpg": answer(photo(n, form=form.get(n, "JPEG"))) for n in range(COUNT)}
    return site


@pytest.fixture
def links(site: Site, tmp_path: Path) -> Path:
    return write_list(site, tmp_path, "ant" * 4 + "bee" * 4)


def write_list(site: Site, folder: Path, classes: str) -> Path:
    rows = (f"{classes[3 * n % len(classes) :][:3]},{site.url(path)},{n} mm\n" for n, path in enumerate(site.routes))
    (folder / "links.csv").write_text("class,url,size\n" + "".join(rows))
    return folder / "links.csv"


def run(source: Path, out: Path | str, **options: object) -> GatherSummary:
    return conftest.run(source, out, **{"layout": "tar", **options})


def images(out: Path) -> dict[str, set[bytes]]:
    """The images of each class, as readers see them."""
    labels, found = open_labels(out), {}
    for item in labels:
        member = find_member(item.path)
        data = member.read() if member else item.path.read_bytes()
        found.setdefault(labels.class_names[item.label], set()).add(data)
    assert sum(map(len, found.values())) == sum(1 for _ in labels)
    return found


def expected(classes: str) -> dict[str, set[bytes]]:
    found: dict[str, set[bytes]] = {}
    for n in range(COUNT):
        data = photo(n, form={0: "PNG", 1: "WEBP"}.get(n, "JPEG"))
        found.setdefault(classes[3 * n % len(classes) :][:3], set()).add(data)
    return found


def test_every_step_reads_shards_as_class_folders(
    site: Site, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_storage, "MAX_IMAGES_PER_SHARD", 5)
    site.routes["/v1.7.jpg"] = answer(photo(7, (20, 20)))  # a finding of `check`
    for layout in ("tar", "folders"):
        run(links, tmp_path / layout, layout=layout)
    assert sorted(path.name for path in (tmp_path / "tar").iterdir()) == [
        "images-00000.tar", "images-00001.tar", "images-00002.tar", "manifest.jsonl"
    ]  # fmt: skip
    assert images(tmp_path / "tar") == images(tmp_path / "folders")
    reports = [check([written(tmp_path / layout)]) for layout in ("tar", "folders")]
    codes = [sorted((found.label, found.code, found.detail) for found in report.findings) for report in reports]
    assert codes[0] == codes[1] != []
    assert reports[0].class_counts == reports[1].class_counts
    means = [compute_mean(written(tmp_path / layout), ImageProperty(32)) for layout in ("tar", "folders")]
    assert np.array_equal(means[0].mean, means[1].mean)
    write_class_folders(open_labels(tmp_path / "tar"), tmp_path / "copied")
    assert images(tmp_path / "copied") == images(tmp_path / "tar")
    shown = [sorted(map(read_bytes, find_images([tmp_path / layout]))) for layout in ("tar", "folders")]
    assert shown[0] == shown[1], "what `predict` and `explain` read"
    alone = [list(find_images([tmp_path / f"tar/images-0000{n}.tar"])) for n in range(3)]
    assert sorted(map(read_bytes, itertools.chain(*alone))) == shown[0], "a shard by itself"
    with pytest.raises(LabelFileError, match=r"is a single shard: .* `mlimages label "):
        open_labels(tmp_path / "tar/images-00000.tar")


def written(folder: Path) -> LabelFile:
    """The label file of a folder, as a table whose paths must exist."""
    return open_labels(folder).write(folder / "labels.csv", overwrite=True)


def test_a_shard_is_a_tar_of_images_each_followed_by_its_json(site: Site, links: Path, tmp_path: Path) -> None:
    run(links, tmp_path / "out", parallel=1)
    with tarfile.open(tmp_path / "out/images-00000.tar") as shard:
        names = shard.getnames()
        keys = [f"{'ant' if n % 8 < 4 else 'bee'}/v1_{n}" for n in range(COUNT)]
        assert names == [f"{key}.{suffix}" for key in keys for suffix in ("json", "jpg")]
        file = shard.extractfile("ant/v1_0.json")
        assert file
        about = json.load(file)
    assert (about["label"], about["format"], json.loads(about["source"])) == ("ant", "PNG", {"size": "0 mm"})
    found = {row.path: find_member(f"{tmp_path}/out/{row.path}") for row in read_manifest(tmp_path / "out")}
    assert {path: member and member.num_bytes for path, member in found.items()} == {
        row.path: row.bytes for row in read_manifest(tmp_path / "out")
    }


def test_a_second_run_asks_nothing_and_what_was_open_or_new_goes_into_a_new_shard(
    site: Site, links: Path, tmp_path: Path
) -> None:
    site.routes["/v1.3.jpg"] = answer(b"", 500)
    out = tmp_path / "out"
    assert (run(links, out).ok, run(links, out).open) == (COUNT - 1, 1)
    site.routes["/v1.3.jpg"] = answer(photo(3))
    site.requests.clear()
    assert (run(links, out).ok, run(links, out).fetched) == (COUNT, 0)
    assert [request.path for request in site.requests] == ["/v1.3.jpg"]
    assert len(list(out.glob("*.tar"))) == 2
    assert images(out) == expected("ant" * 4 + "bee" * 4)


def test_a_corrected_class_is_a_row_and_asks_nothing(site: Site, links: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(links, out)
    before = (out / "images-00000.tar").read_bytes()
    site.requests.clear()
    changed = write_list(site, tmp_path, "ant" * 4 + "fly" * 4)
    assert (run(changed, out).moved, run(changed, out).moved, site.requests) == (4, 0, [])
    assert images(out) == expected("ant" * 4 + "fly" * 4)
    assert (out / "images-00000.tar").read_bytes() == before


def test_duplicates_and_placeholders_are_rows_that_no_reader_sees(site: Site, tmp_path: Path) -> None:
    site.routes = {f"/{n}.jpg": answer(photo(0)) for n in range(7)} | {
        "/a.jpg": answer(photo(1)), "/b.jpg": answer(photo(1))
    }  # fmt: skip
    out = tmp_path / "out"
    (tmp_path / "ant.txt").write_text("\n".join(map(site.url, site.routes)))
    summary = run(tmp_path / "ant.txt", out)
    assert (summary.ok, summary.duplicate, summary.reasons) == (1, 1, {"placeholder": 7})
    assert run(tmp_path / "ant.txt", out).to_dict() | {"seconds": 0, "fetched": 0} == summary.to_dict() | {
        "seconds": 0, "fetched": 0
    }  # fmt: skip
    assert images(out) == {"ant": {photo(1)}}


def test_shards_of_processes_are_merged_by_rows_alone(site: Site, links: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        run(links, out, shard=(number, 2))
    assert images(out) == expected("ant" * 4 + "bee" * 4), "before they are merged"
    site.requests.clear()
    assert (run(links, out).ok, site.requests) == (COUNT, [])
    assert images(out) == expected("ant" * 4 + "bee" * 4)


@pytest.mark.parametrize("keep", [0.0, 0.5, -1500])
def test_a_shard_that_was_cut_is_read_to_its_last_member_and_continued_in_a_new_one(
    site: Site, links: Path, tmp_path: Path, keep: float
) -> None:
    out = tmp_path / "out"
    run(links, out, parallel=1)
    shard = out / "images-00000.tar"
    whole = shard.read_bytes()
    size = int(keep * len(whole)) if isinstance(keep, float) else keep % len(whole)
    shard.write_bytes(whole[:size])
    rows = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / "manifest.jsonl").write_bytes(b"".join(rows[:-1]))  # no commit row: the run was killed
    left = sum(not one.name.endswith(".json") for one in iter_members(shard))
    site.requests.clear()
    assert run(links, out).ok == COUNT
    assert len(site.requests) == COUNT - left
    assert images(out) == expected("ant" * 4 + "bee" * 4)
    for path in out.glob("*.tar"):
        with tarfile.open(path) as file:
            names = file.getnames()
        assert [name.endswith(".json") for name in names] == [True, False] * (len(names) // 2)
        assert path.read_bytes().endswith(bytes(1024))


def test_a_shard_that_is_missing_stops_the_run_as_a_missing_folder_does(
    site: Site, links: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(links, out)
    (out / "images-00000.tar").unlink()
    with pytest.raises(GatherError, match=r"12 gathered images missing: .*--restore-deleted"):
        run(links, out)
    assert run(links, out, restore_deleted=True).ok == COUNT


def test_a_million_images_need_a_file_for_each_10_000_or_gigabyte(
    site: Site, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1_000_000 / shard_storage.MAX_IMAGES_PER_SHARD + 1_000_000 * 4096 / shard_storage.MAX_SHARD_BYTES < 1_000
    monkeypatch.setattr(shard_storage, "MAX_SHARD_BYTES", 20_000)
    run(links, tmp_path / "out")
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert len(sizes) > 1
    assert max(sizes) <= 20_000


def test_a_mixture_metadata_and_an_address_are_refused_before_anything_is_asked(
    site: Site, links: Path, tmp_path: Path
) -> None:
    run(links, tmp_path / "tar")
    run(links, tmp_path / "folders", layout="folders")
    site.requests.clear()
    for out, layout in (("tar", "folders"), ("folders", "tar")):
        with pytest.raises(InputError, match=r"was gathered with(out)? --layout tar: use the same"):
            run(links, tmp_path / out, layout=layout)
    with pytest.raises(InputError, match="`metadata` requires the layout `folders`"):
        run(links, tmp_path / "out", metadata=True)
    pytest.importorskip("upath")
    with pytest.raises(InputError, match="requires a local folder"):
        run(links, "memory://shards")
    assert not site.requests


def test_shards_without_a_manifest_and_parts_are_read_by_their_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_tar(tmp_path / part / "data-000000.tar", {f"{label}/{n}.png": photo(n, form="PNG") for label in ("a", "b")
                                                       for n in range(2)})  # fmt: skip
    splits = label_dir_auto(tmp_path).splits
    assert {name: sorted(item.label for item in part) for name, part in splits.items()} == {
        "train": [0, 0, 1, 1], "val": [0, 0, 1, 1]
    }  # fmt: skip
    write_tar(tmp_path / "loose/data-000000.tar", {"1.png": b""})
    with pytest.raises(InputError, match=r"data-000000.tar/1.png has no class"):
        label_dir_auto(tmp_path / "loose")


def test_members_are_selected_and_named_as_files_in_folders_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"./ant/1.png": "ant/1.png", "/ant/2.png": "ant/2.png", "../../bee//3.png": "bee/3.png"}
    others = ("./ant/._1.png", "__MACOSX/ant/1.png", ".git/ant/1.png", "ant/a\nb.png", "ant/\udce9.png", "ant/1.txt")
    shard = tmp_path / "in/data-00000.tar"
    write_tar(shard, dict.fromkeys((*names, *others), b"12345"))
    (tmp_path / "in/other-00000.tar").mkdir()
    found = [item.path.relative_to(shard).as_posix() for item in label_dir_auto(tmp_path / "in").labels]
    assert found == list(names.values())
    assert all(map(is_file_or_member, (f"{shard}/{name}" for name in found)))
    monkeypatch.setattr("mlimages.images.reading.MAX_FILE_BYTES", 4)
    with pytest.raises(ImageError, match="5 bytes; at most 4 are supported"):
        read_bytes(shard / found[0])

    def refuse(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr("mlimages.core.shards._load_index", refuse)
    assert not is_file_or_member(f"{shard}/{found[0]}"), "a shard without permission"


def header(name: str, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    data = tarfile.TarInfo(name).tobuf()
    return data[:124] + size.ljust(12, b"\0") + data[136:156] + kind + data[157:]


@pytest.mark.parametrize("size", [b"-1000", b"-5", b"+5", b"1_0", b"0o7", b"9", b"\x80\0\0\5", b"77777777777"])
def test_an_entry_without_a_sensible_size_ends_the_archive(tmp_path: Path, size: bytes) -> None:
    path = tmp_path / "a-00000.tar"
    path.write_bytes(header("a.jpg", b"5") + bytes(512) + header("b.jpg", size) + bytes(2048))
    assert [one.name for one in iter_members(path)] == ["a.jpg"]


@pytest.mark.parametrize("records", [b"9" * 5000 + b" path=x\n", b"0 path=x\n", b"1 " * 5000, b" ", b"99 path", b"x"])
def test_an_extended_header_without_sense_or_bound_costs_its_name_alone(tmp_path: Path, records: bytes) -> None:
    path, size = tmp_path / "a-00000.tar", 2**28
    with path.open("wb") as file:
        file.write(header("x", b"%o" % size, b"x") + records)
        file.seek(512 + size)
        file.write(header("a.jpg", b"0"))
    tracemalloc.start()
    (found,) = iter_members(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert (found.offset, found.num_bytes) == (size + 1024, 0)


def tar_of(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


OURS, OTHER = tar_of({"a/1.json": b"", "a/1.jpg": b""}), tar_of({"b/1.txt": b""})
FOLDER = tarfile.TarInfo("mine")
FOLDER.type = tarfile.DIRTYPE


@pytest.mark.parametrize(
    "edited",
    {
        "two archives in one": OURS + OTHER,
        "a folder was added": OURS[:1024] + FOLDER.tobuf() + bytes(10240),
        "the last file is a JSON": tar_of(dict.fromkeys(["a/1.jpg", "a/1.json", "b.json"], b"")),
        "a format without `ustar`": OURS.replace(b"ustar", bytes(5)),
        "an entry of 8 GB and more": OURS[:1024] + header("c", b"\x80" + bytes(5) + b"\2" + bytes(5)) + bytes(2048),
        "compressed": gzip.compress(Random(0).randbytes(2048)),
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    }.items(),
    ids=lambda case: case[0],
)
def test_a_shard_that_a_person_edited_or_replaced_is_never_changed(tmp_path: Path, edited: tuple[str, bytes]) -> None:
    shard, part = tmp_path / "images-00000.tar", tmp_path / "1.part"
    shard.write_bytes(edited[1])
    files = ShardStorage(tmp_path, "images")
    files.size("images-00000.tar/a/1.jpg")
    part.write_bytes(b"x")
    path = asyncio.run(files.store(part, FetchResult("http://a/2.jpg", "a", "ok", path="a/2.jpg")))
    assert path == "images-00001.tar/a/2.jpg"
    shard.replace(tmp_path / "images-00001.tar")  # while the run has it open
    files.close()
    assert (tmp_path / "images-00001.tar").read_bytes() == edited[1]


def test_only_a_shard_at_the_beginning_of_a_path_is_left_out() -> None:
    paths = ("images-00000.tar/a/1.jpg", "images-00001-of-00002-00000.tar/a/1.jpg", "images/images-00000.tar/1.jpg")
    assert list(map(strip_shard_name, paths)) == ["a/1.jpg", "a/1.jpg", "images/images-00000.tar/1.jpg"]


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(files))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "name", ["a/b.jpg", "é/ü.jpg", "f" * 99 + "/" + "n" * 60 + ".jpg", "d/" * 40 + "ä" * 40 + ".jpg"]
)
def test_members_are_those_that_tarfile_finds(tmp_path: Path, form: int, name: str) -> None:
    path = tmp_path / "x-00000.tar"
    path.write_bytes(tar_of({name: b"1", "z/" + name[1:]: b"22" * 300, "last": b""}, form))
    with tarfile.open(path) as tar:
        found = [(normpath(info.name), info.offset_data, info.size) for info in tar]
    assert [(one.name, one.offset, one.num_bytes) for one in iter_members(path)] == found
    assert [find_member(f"{path}/{one[0]}").offset for one in found] == [one[1] for one in found]  # type: ignore[union-attr]


@given(st.binary(max_size=2000), st.integers(0, 1500))
def test_a_tar_of_noise_is_read_as_far_as_it_makes_sense(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise-00000.tar"
    info = tarfile.TarInfo("a.jpg")
    info.size = 3
    data = info.tobuf() + b"abc" + bytes(509)
    path.write_bytes(data[:at] + noise + data[at:])
    assert all(one.offset + one.num_bytes <= path.stat().st_size for one in iter_members(path))


def test_hugging_face_datasets_read_shards(site: Site, links: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    run(links, tmp_path / "out")
    found = datasets.load_dataset(
        "webdataset", data_files=f"{tmp_path}/out/*.tar", split="train", cache_dir=str(tmp_path)
    )
    assert sorted(one["json"]["label"] for one in found) == ["ant"] * 8 + ["bee"] * 4
    assert found[0]["jpg"].size == (96, 64)
