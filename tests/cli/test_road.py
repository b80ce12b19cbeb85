"""The whole road on real photographs and real pretrained weights, from links on a web server to predictions."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from mlimages import Predictor
from mlimages.demo.website import Response, serve_responses
from tests.conftest import cli_in

pytestmark = [pytest.mark.realdata, pytest.mark.train]


def ants_and_bees(folder: Path) -> list[Response]:
    return [
        Response(f"/{folder.name}/{path.parent.name}/{path.name}", path.parent.name, path.read_bytes())
        for path in sorted(folder.glob("*/*"))
        if path.suffix != ".gif"  # a stray "image not found" among the ants
    ]


def broken_among(responses: list[Response], *, seed: int) -> list[Response]:
    """As many broken links of each kind as make a third of the list, shuffled in."""
    rng = random.Random(seed)
    each = len(responses) // 6
    broken = [Response(f"/dead/{n}.jpg", rng.choice("ab"), b"", status=404) for n in range(each)]
    broken += [
        Response(f"/moved/{n}.jpg", rng.choice("ab"), b"<!doctype html><p>Sign in", content_type="text/html")
        for n in range(each)
    ]
    broken += [
        Response(f"/cut/{n}.jpg", response.class_name, response.body[:-3000])
        for n, response in enumerate(responses[:each])
    ]
    links = [*responses, *(replace(p, class_name="ants" if p.class_name == "a" else "bees") for p in broken)]
    rng.shuffle(links)
    return links


def rows(manifest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


@pytest.fixture(scope="module")
def gathered(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `val` gathered over HTTP, and their label files."""
    folder = tmp_path_factory.mktemp("road")
    run_cli = cli_in(folder)
    for part in ("train", "val"):
        good = ants_and_bees(test_data / "hymenoptera_data" / part)
        links = broken_among(good, seed=1)
        with serve_responses(links) as site:
            listed = "".join(f"{response.class_name}\t{site}{response.path}\n" for response in links)
            (folder / f"{part}.tsv").write_text(listed)
            run_cli("gather", "urls", f"{part}.tsv", "-o", part, "--allow-private")
            kept = {row["url"] for row in rows(folder / part / "manifest.jsonl") if row["status"] == "ok"}
            assert kept == {f"{site}{response.path}" for response in good}
        whole = sorted(path.read_bytes() for path in (folder / part).glob("[!.]*/*"))
        assert whole == sorted(response.body for response in good)
        run_cli("label", part, "-o", f"{part}.txt")
    return folder


def test_ants_and_bees_from_links_to_predictions(gathered: Path, test_data: Path) -> None:
    run_cli, model = cli_in(gathered), "squeezenet1_0"
    checked = json.loads(run_cli("check", "train.txt", "val.txt", "--json").stdout)
    assert checked["checked"] == 244 + 153

    run_cli("mean", "train.txt", "--size", "224", "-o", "mean.png")
    assert (gathered / "mean.npy").exists()

    weights = test_data / "weights" / f"{model}_torchvision.pth"
    options = ["--model", model, "--weights", weights, "--freeze", "head", "--epochs", "10", "--seed", "0"]
    trained = run_cli("finetune", "train.txt", "--val", "val.txt", *options, "-o", model, "--json")
    accuracy = json.loads(trained.stdout)["val_accuracy"]
    assert accuracy >= 0.91

    judged = json.loads(run_cli("evaluate", f"{model}/model.onnx", "val.txt", "--json").stdout)
    assert judged["count"] == 153
    assert judged["accuracy"] == pytest.approx(accuracy, abs=1e-6)

    ant, bee = (sorted((gathered / "val" / name).glob("*.jpg"))[1] for name in ("ants", "bees"))
    predictor = Predictor(gathered / model / "model.onnx")
    for image, name in [(ant, "ants"), (bee, "bees")]:
        (row,) = json.loads(run_cli("predict", f"{model}/model.onnx", image, "--json").stdout)
        (answer,) = predictor([image])
        assert answer.class_name == row["top"][0]["class_name"] == name
        assert answer.probability == row["top"][0]["probability"]
