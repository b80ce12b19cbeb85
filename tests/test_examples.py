"""The examples do what their READMEs say: the commands run here are read from there."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import mlimages
from mlimages import LabelFile
from tests.conftest import fork_server
from tests.gathering.test_gather_sources import tar
from tests.servers import Connection, Request, Site, answer, serve

ROOT = Path(mlimages.__file__).parent.parent
EXAMPLES = ROOT / "examples"

Follow = Callable[..., str]
NONE: Mapping[str, str] = {}


def commands_in(readme: Path) -> list[str]:
    """The lines behind `$` in a README's console blocks; a backslash joins lines."""
    blocks = re.findall(r"```console\n(.*?)```", readme.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Follow]:
    """Run an example's commands in `tmp_path` and return what they print.

    What begins with a key of `more` gets these arguments too; a key of `instead` gives way to its value.
    """

    def run(example: str, *, more: Mapping[str, str] = NONE, instead: Mapping[str, str] = NONE, **env: str) -> str:
        said, unused = "", {*more, *instead}
        for line in commands_in(EXAMPLES / example / "README.md"):
            added = [text for start, text in more.items() if line.startswith(start)]
            unused -= {text for text in unused if text in line}
            for old, new in instead.items():
                line = line.replace(old, new)
            words = shlex.split(" ".join([line, *added]))
            if words[0] == "python":
                words[1] = str((EXAMPLES / example / words[1]).resolve())
            words = words[1:] if words[0] == "python" else ["-m", *words]
            command = fork_server().start(words, tmp_path, {**os.environ, "COLUMNS": "80", **env}, torch=True)
            done = command.communicate(1200)
            assert done.returncode == 0, f"$ {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
            said += done.stdout
        assert not unused, f"the README does not say {unused}"
        return said

    yield run
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)  # VGG alone is 2 GB of checkpoints


def test_every_example_has_a_readme_with_one_small_image() -> None:
    for readme in sorted(EXAMPLES.glob("*/README.md")):
        (image,) = re.findall(r"!\[.+?\]\((.+?)\)", readme.read_text())
        assert (readme.parent / image).stat().st_size < 60_000
    assert {readme.parent for readme in EXAMPLES.glob("*/README.md")} == {path.parent for path in EXAMPLES.glob("*/*")}


def test_own_source_gathers_what_a_catalogue_lists(tmp_path: Path, follow: Follow) -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from drawings import write_vessels  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(EXAMPLES))
    write_vessels(tmp_path / "vessels", each=4)
    paths = sorted((tmp_path / "vessels").glob("*/*.png"))
    with serve() as site:
        site.routes |= {f"/{path.parent.name}/{path.name}": answer(path.read_bytes()) for path in paths}
        site.routes["/lost.png"] = answer(b"", 404)
        entries = [
            {"image": site.url(route), "kind": route.split("/")[1], "artist": "a potter"} for route in site.routes
        ]
        site.routes["/catalogue.json"] = answer(json.dumps(entries).encode(), Content_Type="application/json")
        said = follow("own_source", more={"python": "--allow-private"}, instead={"https://museum.example": site.base})
    found = {kind: int(count) for kind, count in re.findall(r"(\w+) +(\d+) images", said)}
    assert found == {"bowl": 4, "jar": 4, "vase": 4}
    assert re.findall(r"(\S+) +\d+ links", said) == ["not-found"]
    rows = [json.loads(line) for line in (tmp_path / "data/museum/manifest.jsonl").read_text().splitlines()]
    assert {row["source"]["artist"] for row in rows if row["status"] != "closed"} == {"a potter"}
    assert (tmp_path / "museum.png").exists()


def test_every_image_is_in_the_credits() -> None:
    files = [*EXAMPLES.rglob("*"), *(ROOT / "docs").rglob("*")]
    images = {str(path.relative_to(ROOT)) for path in files if path.suffix in (".png", ".jpg", ".svg")}
    credited = re.findall(r"^\| `(\S+)`", (ROOT / "docs/images/CREDITS.md").read_text(), re.MULTILINE)
    assert images == set(credited)


@pytest.mark.train
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    pages = {name: names[name]._repr_html_() for name in ("train", "report", "result", "predictor")}
    assert [name for name, page in pages.items() if "<td>bowl</td><td>9</td><td><img " in page] == ["train"]
    assert [name for name, page in pages.items() if "data:image/png;base64," in page] == ["train", "report", "result"]
    assert "<td>bowl, jar, vase</td>" in pages["predictor"]
    assert "<td>accuracy</td>" in pages["predictor"]
    assert (tmp_path / "runs/vessels/model.onnx").exists()


def test_batches_are_the_same_in_numpy_and_torch(tmp_path: Path, follow: Follow) -> None:
    said = follow("batches", more={"python batches.py": "--epochs 1"})
    numpy_loss, torch_loss = said.splitlines()[-1].split()[1:]
    assert float(numpy_loss) == pytest.approx(float(torch_loss), abs=2e-5)
    assert (tmp_path / "batches.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.train
@pytest.mark.realdata
def test_cats_from_imagenet_are_gathered_labelled_shown_learned_and_named(
    tmp_path: Path, follow: Follow, test_data: Path
) -> None:
    cats = iter(sorted((test_data / "cifar10_jpeg/train/cat").iterdir()))
    with serve() as site:
        for wnid in ("n02121808", "n02123394", "n02123597"):  # domestic, Persian, Siamese
            images = {f"{wnid}_{n}.JPEG": next(cats).read_bytes() for n in range(5)} | {f"{wnid}_9.JPEG": b"<html>"}
            site.routes[f"/data/winter21_whole/{wnid}.tar"] = answer(tar(images))
        said = follow(
            "cats_imagenet",
            more={"mlimages gather": f"--endpoint {site.base} --allow-private", "python": "--epochs 1"},
        )
    assert LabelFile(tmp_path / "cats_train.txt").class_names == (
        "domestic_cat",
        "domestic_cat/persian_cat",
        "domestic_cat/siamese_cat",
    )
    assert re.search(r"^15 images.*, 0 duplicates, \d+ failed", said, re.MULTILINE)
    assert "epoch 1: rate 0.0100, loss" in said
    assert len(re.findall(r"siamese_cat/\S+: .*persian_cat \d", said)) == 5
    for image in ("cats_sheet.png", "mean.png", "cats.png"):
        assert (tmp_path / image).exists()


@pytest.mark.train
@pytest.mark.realdata
def test_both_digit_networks_reach_97_percent_in_five_epochs(tmp_path: Path, follow: Follow, test_data: Path) -> None:
    instead = {"python idx_to_images.py ": f"python idx_to_images.py {test_data}/mnist_t10k/"}
    instead[" t10k-labels"] = f" {test_data}/mnist_t10k/t10k-labels"
    said = follow("digits_mnist", more={"mlimages evaluate": "--json"}, instead=instead)
    table = re.findall(r"^(?:conv|pool|flatten)\S* +\S+ +(\S+)", said, re.MULTILINE)
    assert [output.split("x")[-1] for output in table] == ["26", "13", "11", "5", "800"]
    accuracies = [json.loads(line)["accuracy"] for line in said.splitlines() if line.startswith("{")]
    assert len(accuracies) == 2
    assert min(accuracies) >= 0.97, accuracies


CREATURES = {"cat": "cat", "dog": "dog", "bird": "bird", "monkey": "deer", "fish": "ship", "lizard": "frog"}


def serve_pexels(site: Site, folder: Path, *, key: str, each: int) -> None:
    """Pexels' search over CIFAR-10's images, those of another class where it has no such creature."""

    def search(connection: Connection, request: Request) -> None:
        if request.headers.get("authorization") != key:
            return answer(b"{}", 401)(connection, request)
        photos = [
            {"id": number, "url": "https://www.pexels.com/", "photographer": "A", "photographer_url": "", "alt": "",
             "src": {"medium": site.url(f"/{request.query['query']}/{number}.jpg")}}
            for number in range(each)
        ]  # fmt: skip
        return answer(json.dumps({"photos": photos, "total_results": each}).encode())(connection, request)

    site.routes["/v1/search"] = search
    for creature, kind in CREATURES.items():
        for number, path in enumerate(sorted((folder / kind).iterdir())[:each]):
            site.routes[f"/{creature}/{number}.jpg"] = answer(path.read_bytes())


@pytest.mark.train
@pytest.mark.realdata
def test_creatures_are_learned_from_scratch_and_from_what_a_network_knows(
    tmp_path: Path, follow: Follow, test_data: Path
) -> None:
    (tmp_path / "new").mkdir()
    for creature, kind in CREATURES.items():
        new = min((test_data / "cifar10_jpeg/test" / kind).iterdir())
        (tmp_path / "new" / f"{creature}.jpg").write_bytes(new.read_bytes())
    with serve() as site:
        serve_pexels(site, test_data / "cifar10_jpeg/train", key="secret", each=8)
        said = follow(
            "creatures_pexels",
            more={
                "mlimages gather": f"--endpoint {site.base}/v1 --allow-private",
                "mlimages augment": "--rotate -30:30:30",
                "python scratch.py": "--epochs 1",
                "mlimages finetune": f"--weights {test_data}/weights/mobilenet_v2_torchvision.pth --epochs 3",
            },
            PEXELS_API_KEY="secret",
        )
    assert re.search(r"^48 images.*, 0 duplicates, \d+ failed", said, re.MULTILINE)
    losses = re.findall(r"^loss (\d\.\d+)", said, re.MULTILINE)
    assert len(losses) == 2
    told = re.findall(r"epoch 1: test loss (\S+), test accuracy (\S+)%", said)
    assert losses[0] == told[0][0], "the exported file answers as the network that was trained on the arrays"
    names = "|".join(["none of these", *CREATURES])
    assert len(re.findall(rf"^new/\w+\.jpg: (?:{names})", said, re.MULTILINE)) == 12


@pytest.mark.train
@pytest.mark.realdata
def test_three_networks_are_compared_on_fruit(tmp_path: Path, follow: Follow, test_data: Path) -> None:
    for folder in sorted((test_data / "flowers5_small/train").iterdir()):
        (tmp_path / "data/fruit" / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:10]:
            (tmp_path / "data/fruit" / folder.name / image.name).symlink_to(image)
    small = {"--model alexnet": "--model alexnet --size 64", "--model vgg11": "--model squeezenet1_1 --size 64"}
    said = follow("fruit", more={"mlimages finetune": "--epochs 1 --weights none --freeze head"}, instead=small)
    table = said[max(0, said.rindex("lenet5", 0, said.rindex("vgg11")) - 2000) :]
    assert all(name in table for name in ("runs/lenet5", "runs/alexnet", "runs/vgg11")), said
