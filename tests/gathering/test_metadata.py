"""`--metadata`: the list's columns beside the images, never over a person's file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimages import UrlList
from mlimages.core import InputError
from mlimages.gathering import gather
from tests.conftest import RunCli
from tests.servers import Site, answer, photo, serve


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        running.routes = {f"/{n}.jpg": answer(photo(n)) for n in range(3)}
        yield running


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
    out, options = tmp_path / "out", {"allow_private": True, "decoders": 1, "metadata": True}
    run_cli("gather", "urls", "links.csv", "--label-column", "class", "-o", "out", "--allow-private", "--metadata")
    first = [{"file_name": f"ant/{n}.jpg", "label": "ant", "size": f"{n} mm"} for n in range(3)]
    assert lines(out) == first
    (out / "ant/1.jpg").unlink()
    gather(UrlList(links, label_col="class"), out, shard=(1, 1), **options)  # type: ignore[arg-type]
    assert lines(out) == first, "the run that merges the shards writes it"
    gather(UrlList(links, label_col="class"), out, **options)  # type: ignore[arg-type]
    assert lines(out) == [first[0], first[2]]
    (out / "metadata.jsonl").write_text("{}\n")
    site.requests.clear()
    with pytest.raises(InputError, match=r"metadata\.jsonl exists and was not written by mlimages.*--metadata"):
        gather(UrlList(links, label_col="class"), out, retry_failed=["not-found"], **options)  # type: ignore[arg-type]
    assert not site.requests
    assert (out / "metadata.jsonl").read_text() == "{}\n"


def test_columns_are_written_to_an_address(links: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("upath")
    for _ in range(2):
        gather(links, "memory://columns", allow_private=True, decoders=1, metadata=True)
    files = fsspec.filesystem("memory")
    found = [json.loads(line) for line in files.cat("/columns/metadata.jsonl").splitlines()]
    files.rm("/columns", recursive=True)
    assert sorted(row["size"] for row in found) == ["0 mm", "1 mm", "2 mm"]
