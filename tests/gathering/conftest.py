"""Both layouts of a gathered folder, and what tests of whole runs share.

What downloads a link (hosts, retries, address guard, opt-outs) knows no layout and is tested once. Files that a person
edits, deletes, moves or links have no counterpart in shards, whose members are not changed by hand, and addresses take
no shards; test_shards.py has shards that are missing, cut or edited.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimages import UrlList, gather
from mlimages.core import GatherSummary, read_file
from mlimages.gathering import read_manifest
from tests.servers import Site, serve

FAST = {"allow_private": True, "timeout_s": 60.0, "retries": 0, "max_wait_s": 0.0, "decoders": 1}
"""Options of a run that does not wait."""


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


@pytest.fixture(params=["folders", "tar"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test for each layout, by the options in `FAST`."""
    monkeypatch.setitem(FAST, "layout", request.param)
    return str(request.param)


def links(folder: Path, *lines: str, name: str = "cats.txt") -> UrlList:
    """A list of links, written to a file."""
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return UrlList(path)


def run(source: object, out: Path | str, **options: object) -> GatherSummary:
    return gather(source, out, **{**FAST, **options})  # type: ignore[arg-type]


def stored(out: Path) -> dict[str, bytes]:
    """The images that the manifest lists, by path within the folder or shard."""
    kept = [row.path for row in read_manifest(out) if row.path and row.status == "ok"]
    return {path.partition(".tar/")[2] or path: read_file(out / path) for path in kept}


def contents(out: Path) -> dict[str, bytes]:
    """Every file but the manifests."""
    files = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("manifest"))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(files)}
