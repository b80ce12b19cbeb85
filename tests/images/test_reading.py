"""What is said where a label file's images are not there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mlimages import ImageProperty, InputError, evaluate
from mlimages.dataset import compute_mean
from mlimages.images import missing_advice
from mlimages.inference import OnnxBundle
from mlimages.labels import LabelFile
from mlimages.training import FineTuneConfig, extract_features, fine_tune, probe_cuts

MOST = "of 6 images are missing: paths are resolved against the label file's folder; use --images DIR"


@pytest.mark.parametrize(("missing", "count", "expected"), [(0, 0, False), (1, 2, False), (2, 3, True), (3, 3, True)])
def test_more_than_half_missing_is_a_label_file_in_the_wrong_place(missing: int, count: int, expected: bool) -> None:
    assert bool(missing_advice(missing, count)) is expected


def moved(folder: Path) -> LabelFile:
    """A label file of six images, four of which are not there."""
    for n in range(2):
        Image.new("RGB", (32, 32), (n * 90, 9, 9)).save(folder / f"{n}.png")
    (folder / "labels.txt").write_text("".join(f"{n}.png {n % 2}\n" for n in range(6)))
    (folder / "labels_class_def.txt").write_text("0 class0\n1 class1\n")
    return LabelFile(folder / "labels.txt")


RUN: dict[str, Callable[[LabelFile], object]] = {
    "mean": lambda labels: compute_mean(labels, ImageProperty(8)),
    "finetune": lambda labels: fine_tune(FineTuneConfig(labels.path, labels.path.parent / "run", model="lenet5")),
    "features": lambda labels: extract_features(labels, model="lenet5", weights="none"),
    "probe": lambda labels: probe_cuts(labels, model="lenet5", weights="none"),
}


@pytest.mark.parametrize("what", RUN)
def test_nothing_is_computed_from_the_few_that_are_left(tmp_path: Path, what: str) -> None:
    labels = moved(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"4 {MOST}"):
        RUN[what](labels)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "run"] == before
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_nothing_is_measured_on_them(tmp_path: Path, cnn_bundle: OnnxBundle) -> None:
    with pytest.raises(InputError, match=f"4 {MOST}"):
        evaluate(cnn_bundle.path, moved(tmp_path))
