"""Both layouts of a gathered folder.

What downloads a link (hosts, retries, address guard, opt-outs) knows no layout and is tested once. Files that a person
edits, deletes, moves or links have no counterpart in shards, whose members are not changed by hand, and addresses take
no shards; test_shards.py has shards that are missing, cut or edited.
"""

from pathlib import Path

import pytest

from mlimages.core import read_file
from mlimages.gathering import read_manifest


@pytest.fixture(params=["folders", "tar"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test for each layout: `FAST`, the options of the test's module, has it."""
    if fast := getattr(request.module, "FAST", None):
        monkeypatch.setitem(fast, "layout", request.param)
    return str(request.param)


def stored(out: Path) -> dict[str, bytes]:
    """The images that the manifest lists, by path within the folder or shard."""
    kept = [row.path for row in read_manifest(out) if row.path and row.status == "ok"]
    return {path.partition(".tar/")[2] or path: read_file(out / path) for path in kept}
