"""A small dataset, weights and settings that the tests of training share."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from mlimages.networks import build_model
from mlimages.training import FineTuneConfig

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 70), "red": (210, 50, 40)}


def draw(path: Path, colour: tuple[int, int, int], *, seed: int) -> None:
    """A noisy image of one colour."""
    noise = np.random.default_rng(seed).normal(0, 40, (36, 40, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(path)


def write_colours(folder: Path) -> Path:
    """Write a label file of 3 classes with 12 images each."""
    lines = []
    for label, (name, colour) in enumerate(COLOURS.items()):
        for number in range(12):
            path = folder / "set" / name / f"{number:02}.png"
            draw(path, colour, seed=100 * label + number)
            lines.append(f"{path.relative_to(folder)} {label}\n")
    (folder / "labels.txt").write_text("".join(lines))
    (folder / "labels_class_def.txt").write_text("0 blue\n1 green\n2 red\n")
    return folder / "labels.txt"


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A label file of 3 classes with 12 images each, which the test may change."""
    return write_colours(tmp_path)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of cifar10_cnn for ten classes."""
    path = tmp_path_factory.mktemp("weights") / "cifar10_cnn.safetensors"
    save_file(build_model("cifar10_cnn", num_classes=10, weights="none", seed=9).network.state_dict(), path)
    return path


def config_for(labels: Path, **options: object) -> FineTuneConfig:
    """Settings of a short run in the folder `run` beside the label file."""
    settings = {"out": labels.parent / "run", "model": "cifar10_cnn", "weights": "none", "freeze": "none", "epochs": 3}
    return FineTuneConfig(labels, **{**settings, "seed": 1, **options})  # type: ignore[arg-type]


def read_metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with (run / "metrics.csv").open() as lines:
        return list(csv.DictReader(lines))
