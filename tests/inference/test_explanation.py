"""The explanation finds what a network looks at, where that is known."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from mlimages.cli.main import app
from mlimages.cli.predictions import choose_overlay_paths, format_evaluation
from mlimages.core import BrokenImage, ImageProperty, LabeledPath, Normalization, Prediction, Preprocessing
from mlimages.export import TrainedNetwork, export_network
from mlimages.inference import Predictor, evaluate, explain
from mlimages.inference.explanation import replace_center, run_background_test
from mlimages.labels import LabelFile, write_label_file
from tests.deploying import made_image
from tests.planting import KINDS, FittedPredictor, Kind, Shortcut, linear_predictor, write_set

SIDE = 28
REGIONS = {"top left": (0, 0), "bottom right": (22, 22), "centre": (11, 11)}


class LooksAt(nn.Module):
    """Bright in one square of 6 x 6 pixels, or dark."""

    def __init__(self, region: str) -> None:
        super().__init__()
        self.top, self.left = REGIONS[region]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = x[:, :, self.top : self.top + 6, self.left : self.left + 6].mean(dim=(1, 2, 3))
        return torch.stack([bright * 8, 4 - bright * 8], dim=1)


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    return {region: predictor(region, tmp_path_factory.mktemp("model")) for region in REGIONS}


def predictor(region: str, folder: Path) -> Predictor:
    preprocessing = Preprocessing(ImageProperty(SIDE, resize="squash"), Normalization(255.0, (0.0,), (1.0,)))
    network = TrainedNetwork(LooksAt(region).eval(), preprocessing, ("bright", "dark"), "toy")
    export_network(network, folder / "model.onnx", validation=[])
    return Predictor(folder / "model.onnx", workers=1)


def images(folder: Path, region: str) -> list[LabeledPath]:
    """Eight images, dark but for the region that tells the class."""
    (top, left), items = REGIONS[region], []
    for n in range(8):
        pixels = np.full((SIDE, SIDE, 3), 20, np.uint8)
        if n % 2 == 0:
            pixels[top : top + 6, left : left + 6] = 250
        items.append(LabeledPath(folder / f"{n}.png", n % 2))
        Image.fromarray(pixels).save(items[-1].path)
    return items


@pytest.mark.parametrize("grid", [5, 7])
@pytest.mark.parametrize("region", REGIONS)
def test_hiding_what_the_network_looks_at_lowers_the_probability_most(
    region: str, grid: int, predictors: dict[str, Predictor], tmp_path: Path
) -> None:
    found = explain(predictors[region], images(tmp_path, region)[0].path, grid_size=grid)
    assert not isinstance(found, BrokenImage)
    assert found.masked_probabilities.shape == (grid, grid)
    assert found.most_influential_region == region
    assert found.min_probability < 0.3 < 0.9 < found.probability
    assert str(found) == f"bright: probability falls from 1.00 to {found.min_probability:.2f} if the {region} is hidden"
    reddest = np.asarray(found.draw_overlay(), np.int16)
    redness = reddest[:, :, 0] - reddest[:, :, 1]
    row, column = np.unravel_index(redness.argmax(), redness.shape)
    top, left = (place * redness.shape[0] / SIDE for place in REGIONS[region])
    assert top - 40 < row < top + 104
    assert left - 40 < column < left + 104


def test_the_passes_are_at_most_60_an_image(
    predictors: dict[str, Predictor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, passes = predictors["centre"], []
    session = model._session
    run = session.compute_all_outputs
    monkeypatch.setattr(session, "compute_all_outputs", lambda pixels: passes.append(len(pixels)) or run(pixels))
    explain(model, images(tmp_path, "centre")[0].path)
    assert sum(passes) == 50


@pytest.mark.parametrize(
    ("change", "known", "name"),
    [
        ({}, None, "bright"),
        ({"unknown_below": 0.5}, True, "bright"),
        ({"unknown_below": 1.1}, False, "none of these (nearest: bright)"),
        ({"multi_label": True, "thresholds": (0.5, 0.5)}, None, "bright"),
        ({"multi_label": True, "thresholds": (1.1, 1.1)}, None, "none of these (nearest: bright)"),
    ],
)
def test_an_image_of_none_of_the_classes_is_explained_as_such(
    predictors: dict[str, Predictor], tmp_path: Path, change: dict[str, Any], known: bool | None, name: str
) -> None:
    original = predictors["top left"].bundle
    bundle = replace(original, path=tmp_path / "model.onnx", **change)
    bundle.write(original.path)
    image = images(tmp_path, "top left")[0].path
    found = explain(bundle.path, image)
    (predicted,) = Predictor(bundle.path)([image])
    assert isinstance(predicted, Prediction)
    assert not isinstance(found, BrokenImage)
    assert found.known is predicted.known is known
    assert str(found).startswith(f"{name}: probability ")
    words = ["explain", str(bundle.path), str(image), "-o", str(tmp_path / "why")]
    assert f": {name}: probability " in CliRunner().invoke(app, words).stdout
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["known"] is known


@pytest.mark.parametrize(("region", "correct"), [("top left", 1.0), ("centre", 0.5)])
def test_evaluate_tells_a_network_that_does_without_the_middle(
    region: str, correct: float, predictors: dict[str, Predictor], tmp_path: Path
) -> None:
    write_label_file(tmp_path / "val.txt", images(tmp_path, region) * 2, ("bright", "dark"))
    found = evaluate(predictors[region], LabelFile(tmp_path / "val.txt"), background_test_images=16)
    assert found.accuracy.value == 1.0
    assert found.background_use is not None
    assert (found.background_use.accuracy, found.background_use.chance_accuracy) == (correct, 0.5)
    assert found.background_use.is_significant == (region == "top left")
    assert json.loads(found.to_json())["background"]["count"] == 16


def test_nothing_remains_of_the_replaced_centre() -> None:
    rng = np.random.default_rng(0)
    first, other = rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    second = first.copy()
    second[6:34, 8:42] = rng.integers(200, 256, (28, 34, 3))
    assert not np.array_equal(first, second)
    mixed = replace_center(first, other)
    np.testing.assert_array_equal(mixed, replace_center(second, other))
    np.testing.assert_array_equal(mixed[:6], first[:6])
    np.testing.assert_array_equal(mixed[6:34, 8:42], other[6:34, 8:42])


def test_a_background_without_a_relation_to_the_class_is_significant_as_often_as_stated(
    predictors: dict[str, Predictor],
) -> None:
    def looks_at_everything(pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.floating]:
        bright = np.stack(pixels).mean(axis=(1, 2, 3)) / 255
        return np.stack([bright, 1 - bright], axis=1)

    rng, labels = np.random.default_rng(0), np.arange(16) % 2
    sets = rng.integers(0, 256, (60, 16, 2, 2, 3), dtype=np.uint8).repeat(4, axis=2).repeat(4, axis=3)
    sets[:, labels == 0, 3:5, 3:5] = 250  # the object, within the centre
    model = FittedPredictor(predictors["centre"].bundle, looks_at_everything)
    p_values = np.array([run_background_test(model, list(images), labels).p_value for images in sets])
    assert 7 <= (p_values <= 0.2).sum() <= 17  # 12 expected, with a standard deviation of 3


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_the_sentence_of_evaluate_finds_planted_shortcuts_and_nothing_in_a_clean_set(
    kind: Kind | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    backgrounds = [made_image(n).point(lambda level, n=n: level // 2 + n % 2 * 127) for n in range(8)]
    shortcut = Shortcut.draw(kind, rng) if kind else None

    def things() -> list[list[Image.Image]]:
        colors = rng.integers(0, 156, (2, 30, 3)) + np.array([[[0]], [[100]]])  # dark and bright objects, which overlap
        return [[Image.new("RGB", (8, 8), tuple(color)) for color in of_class.tolist()] for of_class in colors]

    train, val = (
        write_set(tmp_path / part, things(), backgrounds, shortcut, side=24, rng=rng) for part in ("train", "val")
    )
    found = evaluate(linear_predictor(train, side=24), val, background_test_images=60)
    assert found.accuracy.low > 0.5
    assert (": the network uses the outer part of the image" in format_evaluation(found)) == bool(kind)


def test_the_command_writes_one_overlay_an_image_and_leaves_broken_ones_out(
    predictors: dict[str, Predictor], tmp_path: Path
) -> None:
    first = images(tmp_path, "top left")[0].path
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = [path.name for path in choose_overlay_paths([Path("a.png"), Path("b/a.jpg"), Path("a-2.png")], tmp_path)]
    assert names == ["a.png", "a-2.png", "a-2-2.png"]
    words = ["explain", predictors["top left"].bundle.path, first, tmp_path / "broken.png", "-o", tmp_path / "why"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0
    assert "if the top left is hidden" in done.stdout
    assert "broken, not-an-image" in done.stdout
    with Image.open(tmp_path / "why" / "0.png") as overlay:
        assert overlay.size == (224, 224)
    assert not (tmp_path / "why" / "broken.png").exists()
