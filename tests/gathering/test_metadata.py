"""`--metadata`: the list's columns beside the images, never over a person's file."""

import json
from pathlib import Path

import pytest

from mlimages import UrlList
from mlimages.core import InputError
from mlimages.gathering.store import file_names
from mlimages.labels import label_dir_auto
from tests.conftest import RunCli
from tests.gathering.conftest import run
from tests.servers import Site, answer, photo


@pytest.fixture
def site(site: Site) -> Site:
    site.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(3)}
    return site


@pytest.fixture
def links(site: Site, tmp_path: Path) -> Path:
    rows = (f"{site.url(f'/{n}.jpg')},ant,{n} mm,x{n},mine\n" for n in range(4))
    (tmp_path / "links.csv").write_text("url,class,size,file_name,label\n" + "".join(rows))
    return tmp_path / "links.csv"


def lines(out: Path) -> list[dict[str, str]]:
    found = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    return sorted(found, key=lambda line: line["file_name"])


def test_columns_of_the_images_that_are_there_are_written_anew_by_each_run(
    site: Site, links: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    out, source = tmp_path / "out", UrlList(links, label_col="class")
    run_cli("gather", "urls", "links.csv", "--label-column", "class", "-o", "out", "--allow-private", "--metadata")
    first = [{"file_name": f"ant/{n}.jpg", "label": "ant", "size": f"{n} mm"} for n in range(3)]
    assert lines(out) == first
    (out / "ant/1.jpg").unlink()
    run(source, out, shard=(1, 1), metadata=True)
    assert lines(out) == first, "the run that merges the shards writes it"
    run(source, out, metadata=True)
    assert lines(out) == [first[0], first[2]]
    (out / "metadata.jsonl").write_text("{}\n")
    site.requests.clear()
    with pytest.raises(InputError, match=r"metadata\.jsonl exists and was not written by mlimages.*--metadata"):
        run(source, out, metadata=True, retry_failed=["not-found"])
    assert not site.requests
    assert (out / "metadata.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(("folder", "label"), [("bee", "bee"), ("ant/red", "ant/red"), ("best", "ant")])
def test_an_image_that_was_moved_by_hand_has_the_class_of_its_folder(
    site: Site, tmp_path: Path, folder: str, label: str
) -> None:
    site.routes |= {f"/{n}.jpg": answer(photo(n)) for n in range(3, 6)}
    classes = ["ant", "ant", "bee", "bee", "ant/red", "ant/red"]
    rows = (f"{site.url(f'/{n}.jpg')},{name}\n" for n, name in enumerate(classes))
    (tmp_path / "links.csv").write_text("url,label\n" + "".join(rows))
    out = tmp_path / "out"
    run(tmp_path / "links.csv", out, metadata=True)
    before = {line["file_name"]: line["label"] for line in lines(out)}
    assert before == {f"{name}/{n}.jpg": name for n, name in enumerate(classes)}
    (out / folder).mkdir(exist_ok=True)
    (out / "ant/0.jpg").rename(out / folder / "0.jpg")
    site.requests.clear()
    for _ in range(2):
        run(tmp_path / "links.csv", out, metadata=True)
        del (expected := dict(before))["ant/0.jpg"]
        found = {line["file_name"]: line["label"] for line in lines(out)}
        assert found == expected | {f"{folder}/0.jpg": label}
    assert not site.requests


def test_the_manifest_is_written_as_parquet_and_classes_are_split_into_subfolders(
    site: Site, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(file_names, "IMAGES_PER_SUBFOLDER", 2)
    links.write_text(links.read_text().replace("ant,", "insects/ant,"))
    out, source = tmp_path / "out", UrlList(links, label_col="class")
    assert run(source, out, parallel=1, parquet=True, subfolders=True).ok == 3
    found = parquet.read_table(out / "manifest.parquet").sort_by("url").to_pylist()
    assert [(row["path"], row["width"], row["final"]) for row in found] == [
        (f"insects/ant/part-{n // 2:04d}/{n}.jpg", 96, True) for n in range(3)
    ] + [(None, None, True)]
    assert json.loads(found[0]["source"])["size"] == "0 mm"
    for leaf, name in ((False, "insects"), (True, "insects/ant")):
        labels = label_dir_auto(out, leaf=leaf).labels
        assert (labels.class_names, sum(1 for _ in labels)) == ((name,), 3)
    links.write_text(links.read_text().replace("insects/ant,", "bee,"))
    summary = run(source, out, parquet=True, subfolders=True)
    assert (summary.moved, summary.classes) == (3, {"bee": 3})
    assert (out / "bee/part-0001/2.jpg").exists()


def test_columns_are_written_to_an_address(links: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("upath")
    for _ in range(2):
        run(links, "memory://columns", metadata=True)
    files = fsspec.filesystem("memory")
    found = [json.loads(line) for line in files.cat("/columns/metadata.jsonl").splitlines()]
    files.rm("/columns", recursive=True)
    assert sorted(row["size"] for row in found) == ["0 mm", "1 mm", "2 mm"]
