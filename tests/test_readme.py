"""The README's blocks, run as a reader would run them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlimages.cli import main as cli
from mlimages.demo.website import Response, serve_responses
from tests.conftest import cli_in, fork_server
from tests.gathering.providers import INaturalistSite, OpenverseSite
from tests.servers import answer, serve
from tests.test_packaging import left_out

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PER_CLASS = 30


def block(title: str, text: str = README) -> str:
    found = re.search(rf"<!-- {title} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, f"there is no block titled {title!r}"
    return found[1]


def commands_of(title: str) -> list[list[str]]:
    """The words of each command of a block, without the name of the program."""
    lines = [line for line in block(title).splitlines() if line.startswith("$ ")]
    return [shlex.split(line.removeprefix("$ mlimages "), comments=True) for line in lines]


@pytest.fixture
def folders(test_data: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two folders with one `links.tsv` of ants and bees on this machine."""
    train = test_data / "hymenoptera_data" / "train"
    images = [path for name in ("ants", "bees") for path in sorted((train / name).glob("*.jpg"))[:PER_CLASS]]
    responses = [Response(f"/{path.name}", path.parent.name, path.read_bytes()) for path in images]
    responses.append(Response("/gone.jpg", "ants", b"", status=404))
    with serve_responses(responses) as site:
        for name in ("commands", "python"):
            (tmp_path / name).mkdir()
            rows = "".join(f"{response.class_name}\t{site}{response.path}\n" for response in responses)
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
    for words in commands_of("tour"):
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
    first, second = commands_of("folder")
    done = cli_in(tmp_path)(*first)
    rows = {line.split()[0] for line in (done.stdout + done.stderr).splitlines() if line}
    *shown, answer = block("folder").splitlines()
    assert {line.split()[0] for line in shown if not line.startswith(("$ ", "..."))} <= rows
    assert next(line for line in shown if line.startswith("skipped")) in done.stdout
    assert re.sub(r"[\d.]+", "N", answer) in re.sub(r"[\d.]+", "N", cli_in(tmp_path)(*second).stdout)
    service, static_page = commands_of("service")
    cli_in(tmp_path)(*static_page)
    assert (tmp_path / "site" / "index.html").exists()
    command = [sys.executable, "-m", "mlimages", *service, "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        try:
            with urllib.request.urlopen(address) as page, urllib.request.urlopen(f"{address}healthz") as state:
                assert page.headers.get_content_type() == "text/html"
                assert json.load(state)["classes"] == ["ants", "bees"]
        finally:
            server.terminate()
    assert server.returncode == 0


def test_a_word_becomes_folders_of_images_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serve() as observations, serve() as search, serve() as archive:
        INaturalistSite(observations, total=4)
        OpenverseSite(search, total=5)
        links = answer("".join(search.url(f"/{number}.jpg\n") for number in range(20, 26)).encode())
        archive.routes["/api/imagenet.synset.geturls"] = links
        endpoints = {
            "inaturalist": observations.url("/v1"), "openverse": search.base, "imagenet": archive.base
        }  # fmt: skip
        for words in commands_of("word"):
            words += ["--endpoint", endpoints[words[1]], "--allow-private"]
            done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
            assert done.exit_code == 0, done.output
    names = [path.name.partition("-")[0] for path in Path("photos").glob("*/*.jpg")]
    assert sorted(names) == ["inaturalist"] * 8 + ["openverse"] * 5, "both words find the same links here"
    assert {path.name for path in Path("cats").iterdir() if path.is_dir()} == {"domestic_cat"}


def test_the_lines_for_installing_install_the_program(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    copy = shutil.copytree(ROOT, tmp_path / "clone", ignore=left_out)
    lines = [line.removeprefix("$ ") for line in block("install").splitlines()]
    env = {  # without the package index: what is installed here serves as dependencies
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": sysconfig.get_path("purelib"),
        **{f"PIP_{name}": "1" for name in ("NO_DEPS", "NO_INDEX", "DISABLE_PIP_VERSION_CHECK")},
        "PIP_NO_BUILD_ISOLATION": "0",
    }
    script = "\n".join(["set -e", *lines, "cd .venv", "command -v mlimages", "mlimages --version"])
    done = subprocess.run(["bash", "-c", script], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(copy / ".venv/bin/mlimages") in done.stdout


def test_the_source_in_ten_lines_is_the_example() -> None:
    page = (ROOT / "docs/how-to/links.md").read_text()
    assert block("a source in ten lines", page) in (ROOT / "examples/own_source/own_source.py").read_text()


def test_every_file_that_the_readme_links_is_there() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
