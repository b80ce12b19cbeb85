"""The README's blocks, run as a reader would run them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimages.demo.website import Page, serve_pages
from tests.conftest import RunCli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PER_CLASS = 30


def block(title: str) -> str:
    found = re.search(rf"<!-- {title} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no block titled {title!r}"
    return found[1]


@pytest.fixture
def links(test_data: Path, tmp_path: Path) -> Iterator[None]:
    """`links.tsv` of ants and bees on this machine."""
    train = test_data / "hymenoptera_data" / "train"
    pictures = [path for name in ("ants", "bees") for path in sorted((train / name).glob("*.jpg"))[:PER_CLASS]]
    pages = [Page(f"/{path.name}", path.parent.name, path.read_bytes()) for path in pictures]
    pages.append(Page("/gone.jpg", "ants", b"", status=404))
    with serve_pages(pages) as site:
        (tmp_path / "links.tsv").write_text("".join(f"{page.label}\t{site}{page.path}\n" for page in pages))
        yield


@pytest.mark.realdata
@pytest.mark.train
@pytest.mark.usefixtures("links")
def test_the_tour_runs_command_by_command(run_cli: RunCli) -> None:
    commands = [line.removeprefix("$ mlimages ").split() for line in block("tour").splitlines()]
    assert len(commands) == 6
    for words in commands:
        here = ["--allow-private"] if words[0] == "gather" else []
        answer = run_cli(*words, *here)
    assert answer.stdout.count("ants") >= PER_CLASS


@pytest.mark.realdata
@pytest.mark.train
@pytest.mark.usefixtures("links")
def test_the_tour_runs_in_python(tmp_path: Path) -> None:
    code = block("tour in Python").replace('"photos")\n', '"photos", allow_private=True)\n', 1)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, accuracy, *answers = done.stdout.splitlines()
    assert first == f"{2 * PER_CLASS} images; broken links: {{'not-found': 1}}"
    assert float(accuracy) > 0.6
    assert len(answers) == PER_CLASS


def test_the_source_in_ten_lines_is_the_example() -> None:
    assert block("a source in ten lines") in (ROOT / "examples" / "own_source" / "own_source.py").read_text()


def test_every_file_that_the_readme_links_is_there() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
