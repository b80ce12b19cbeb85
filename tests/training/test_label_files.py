"""The images and classes that a run takes from label files, tables and folders: compared by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlimages.core import InputError
from mlimages.training.config import FineTuneConfig
from mlimages.training.inputs import read_labeled_splits
from tests.conftest import RunCli
from tests.labels.test_labels import touch
from tests.training.conftest import COLOURS, draw

pytestmark = pytest.mark.train


def named(
    folder: Path, labels: str, val: Any = None, **options: Any
) -> tuple[tuple[str, ...], list[str], list[str] | None]:
    found = read_labeled_splits(FineTuneConfig(folder / labels, folder / "run", val=val and folder / val, **options))
    parts = [found.train, found.val]
    train, validation = (
        [f"{i.path.name} {found.class_names[i.label]}" for i in part] if part else None for part in parts
    )
    assert train is not None
    return found.class_names, train, validation


def test_classes_of_two_files_are_compared_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "train.csv").write_text("path,label\na.jpg,ant\nb.jpg,bee\n")
    (tmp_path / "val.txt").write_text("c.jpg 0\n")
    (tmp_path / "val_class_def.txt").write_text("0 bee\n1 ant\n")
    assert named(tmp_path, "train.csv", "val.txt") == (("ant", "bee"), ["a.jpg ant", "b.jpg bee"], ["c.jpg bee"])


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_labels_from_one_are_trained_on_without_a_class_zero(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    line = "{0}.jpg {0}" if suffix == ".txt" else "{0}.jpg,{0}"
    (tmp_path / f"train{suffix}").write_text("".join(line.format(n) + "\n" for n in (3, 1, 2)))
    (tmp_path / f"val{suffix}").write_text(line.format(3))
    assert named(tmp_path, f"train{suffix}", f"val{suffix}") == (
        ("1", "2", "3"), ["3.jpg 3", "1.jpg 1", "2.jpg 2"], ["3.jpg 3"],
    )  # fmt: skip


def test_a_folder_is_taken_and_one_with_parts_as_both_files(tmp_path: Path) -> None:
    touch(tmp_path, "set/a/1.jpg", "set/b/2.jpg", "parts/train/a/1.jpg", "parts/train/b/2.jpg", "parts/val/b/3.jpg")
    assert named(tmp_path, "set") == (("a", "b"), ["1.jpg a", "2.jpg b"], None)
    assert named(tmp_path, "parts") == (("a", "b"), ["1.jpg a", "2.jpg b"], ["3.jpg b"])


@pytest.mark.parametrize(
    ("files", "val", "expected"),
    [
        ({"train.csv": "a.jpg,ant\nb.jpg,ant\n"}, None, r"found only the class ant: add images of other classes"),
        (
            {"train.csv": "a.jpg,ant\nb.jpg,bee\n", "val.csv": "a.jpg,cow\nb.jpg,dog\n"},
            "val.csv",
            r"val.csv: no training images of cow, dog: add .* or remove these classes from val.csv$",
        ),
        (
            {"train.csv": "a.jpg,ant\nb.jpg,bee\n", "val.csv": "a.jpg,Ant\nb.jpg,bee\n"},
            "val.csv",
            r"val.csv: no training images of Ant: did you mean ant\? Or add some to the training set, or remove",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path, files: dict[str, str], val: str | None, expected: str
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=expected):
        named(tmp_path, "train.csv", val)


def write_splits(folder: Path, **counts: int) -> None:
    """Write a folder of splits with this number of images in each class."""
    for split, count in counts.items():
        for label, (name, colour) in enumerate(COLOURS.items()):
            for number in range(count):
                draw(folder / split / name / f"{number}.png", colour, seed=100 * label + 10 * len(split) + number)


TRAIN_LENET5 = ("--model", "lenet5", "--weights", "none", "--freeze", "none", "--epochs", "1", "-o")


def test_a_folder_is_fine_tuned_and_evaluated_by_the_commands(
    tmp_path: Path, run_cli: RunCli, invoke_cli: RunCli
) -> None:
    write_splits(tmp_path / "set", train=4, val=1)
    shutil.copy(tmp_path / "set/train/red/0.png", tmp_path / "set/train/blue/0.png")
    done = run_cli("finetune", "set", *TRAIN_LENET5, "run")
    assert "set, train: 12 images, 3 classes: blue 4, green 4, red 4" in done.stderr
    assert "1 image in several classes (set/train/blue/0.png and set/train/red/0.png): " in done.stderr
    assert "the validation set has only one image of each of blue, green, red" in done.stderr
    evaluated = invoke_cli("evaluate", "run/model.onnx", "set/val", "--json")
    assert "set/val: 3 images, 3 classes" in evaluated.stderr
    assert (json.loads(evaluated.stdout)["trained_on"], json.loads(evaluated.stdout)["chosen_on"]) == (0, 3)
    assert "\nwithout   `known` and prediction sets, which require at least 19 validation images\n" in done.stdout
    again = invoke_cli("evaluate", "run", "set/train")
    assert "\nof these images, the run used 12 for training: expect lower accuracy on new images\n" in again.stdout
    refused = invoke_cli("evaluate", "run/model.onnx", "set", check=False)
    assert "set contains several splits (train, val), expected one: use one of" in refused.stderr


def test_a_copied_project_goes_on_with_the_validation_set_beside_it(invoke_cli: RunCli, tmp_path: Path) -> None:
    write_splits(tmp_path / "old", train=3, val=1)
    done = invoke_cli("finetune", "old/train", "--val", "old/val", *TRAIN_LENET5, "old/run")
    assert "next: mlimages evaluate old/run/model.onnx old/val\n" in done.stderr
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    resumed = invoke_cli("finetune", "--resume", "new/run", "--epochs", "2")
    assert "next: mlimages evaluate new/run/model.onnx new/run/val.txt\n" in resumed.stderr
    told = json.loads(invoke_cli("evaluate", "new/run/model.onnx", "new/run/val.txt", "--json").stdout)
    assert (told["trained_on"], told["chosen_on"]) == (0, 3)


def test_the_options_of_tables_hold_for_both_files(tmp_path: Path) -> None:
    touch(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "train.csv").write_text("name,kind,other\na,ant,x\nb,bee,y\n")
    (tmp_path / "val.csv").write_text("kind,name\nbee,c\n")
    found = named(tmp_path, "train.csv", "val.csv", label_column="kind", images=tmp_path / "photos", suffix=".jpg")
    assert found == (("ant", "bee"), ["a.jpg ant", "b.jpg bee"], ["c.jpg bee"])
