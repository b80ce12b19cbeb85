"""The README's blocks, run as a reader would run them."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimages.demo.website import Page, serve_pages
from tests.conftest import cli_in, fork_server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PER_CLASS = 30


def block(title: str, text: str = README) -> str:
    found = re.search(rf"<!-- {title} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, f"there is no block titled {title!r}"
    return found[1]


@pytest.fixture
def folders(test_data: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two folders with one `links.tsv` of ants and bees on this machine."""
    train = test_data / "hymenoptera_data" / "train"
    images = [path for name in ("ants", "bees") for path in sorted((train / name).glob("*.jpg"))[:PER_CLASS]]
    pages = [Page(f"/{path.name}", path.parent.name, path.read_bytes()) for path in images]
    pages.append(Page("/gone.jpg", "ants", b"", status=404))
    with serve_pages(pages) as site:
        for name in ("commands", "python"):
            (tmp_path / name).mkdir()
            rows = "".join(f"{page.label}\t{site}{page.path}\n" for page in pages)
            (tmp_path / name / "links.tsv").write_text(rows)
        yield tmp_path / "commands", tmp_path / "python"


def files_of(folder: Path) -> dict[str, object]:
    """What a tour leaves, without times: contents of images, label files and networks, rows of tables and manifests."""
    rows = [json.loads(line) for line in (folder / "photos" / "manifest.jsonl").read_text().splitlines()]
    found: dict[str, object] = {
        "manifest": sorted(
            (row["url"], row["status"], row.get("path"), row.get("sha256")) for row in rows if "url" in row
        ),
        "metrics": [line.split(",")[:4] for line in (folder / "runs/links/metrics.csv").read_text().splitlines()],
        "names": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
    }
    same = ["labels_*.txt", "photos/[!.]*/*", "runs/links/[!l]*.txt", "runs/links/best.safetensors"]
    contents = {str(path.relative_to(folder)): path.read_bytes() for glob in same for path in folder.glob(glob)}
    assert len(contents) > 2 * PER_CLASS + 8
    return found | contents


@pytest.mark.realdata
@pytest.mark.train
def test_the_tour_in_commands_and_the_tour_in_python_make_the_same_files(folders: tuple[Path, Path]) -> None:
    by_commands, by_python = folders
    commands = [line.removeprefix("$ mlimages ").split() for line in block("tour").splitlines()]
    assert len(commands) == 6
    for words in commands:
        answer = cli_in(by_commands)(*words, *(["--allow-private"] if words[0] == "gather" else []))
    assert answer.stdout.count("ants") >= PER_CLASS

    code = block("tour in Python").replace('"photos")\n', '"photos", allow_private=True)\n', 1)
    done = fork_server().start(["-c", code], by_python, os.environ, torch=True).communicate()
    assert done.returncode == 0, done.stderr
    first, accuracy, *answers = done.stdout.splitlines()
    assert first == f"{2 * PER_CLASS} images; broken links: {{'not-found': 1}}"
    assert float(accuracy) > 0.6
    assert len(answers) == PER_CLASS

    one, other = files_of(by_commands), files_of(by_python)
    assert {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} == set()


@pytest.mark.realdata
@pytest.mark.train
def test_a_folder_is_trained_on_used_and_made_a_page_as_shown(test_data: Path, tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        (tmp_path / "my-photos" / name).mkdir(parents=True)
        images = sorted((test_data / "hymenoptera_data" / "train" / name).glob("*.jpg"))
        for path in images[:12]:
            shutil.copy(path, tmp_path / "my-photos" / name)
    shutil.copy(images[12], tmp_path / "new.jpg")
    (tmp_path / "my-photos/ants/broken.jpg").write_bytes(b"no image")
    shown = block("folder").splitlines()
    first, second = (line.removeprefix("$ mlimages ").split() for line in shown if line.startswith("$ "))
    done = cli_in(tmp_path)(*first)
    rows = {line.split()[0] for line in (done.stdout + done.stderr).splitlines() if line}
    *shown, answer = shown
    assert {line.split()[0] for line in shown if not line.startswith(("$ ", "..."))} <= rows
    assert next(line for line in shown if line.startswith("skipped")) in done.stdout
    assert re.sub(r"[\d.]+", "N", answer) in re.sub(r"[\d.]+", "N", cli_in(tmp_path)(*second).stdout)
    (page,) = (line.partition("#")[0] for line in block("service").splitlines() if " --page " in line)
    cli_in(tmp_path)(*page.removeprefix("$ mlimages ").split())
    assert (tmp_path / "site" / "index.html").exists()


def test_the_source_in_ten_lines_is_the_example() -> None:
    page = (ROOT / "docs/how-to/links.md").read_text()
    assert block("a source in ten lines", page) in (ROOT / "examples/own_source/own_source.py").read_text()


def test_every_file_that_the_readme_links_is_there() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
