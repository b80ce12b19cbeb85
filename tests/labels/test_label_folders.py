"""Layouts of folders that people have, read as what they are or refused with what to do."""

import re
from collections import Counter
from pathlib import Path

import pytest

from mlimages import label_dir_auto
from mlimages.core import InputError
from mlimages.labels import LabelFile, LabelOptions, label_dir_by_pattern, make_label_files
from tests.checks.test_validation import jpeg, scene
from tests.conftest import RunCli
from tests.labels.test_labels import touch


def classes(labels: LabelFile) -> dict[str, int]:
    counts = Counter(item.label for item in labels)
    return {name: counts[number] for number, name in enumerate(labels.class_names)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["flowers/rose/1.jpg", "flowers/tulip/2.jpg"], {"rose": 1, "tulip": 1}),
        (["a/b/c/rose/1.jpg", "a/b/c/tulip/2.jpg", "a/readme.txt"], {"rose": 1, "tulip": 1}),
        (["10/a.jpg", "9/a.jpg", "2/a.jpg", "1/a.jpg"], {"1": 1, "2": 1, "9": 1, "10": 1}),
        (["cafe\u0301/1.jpg", "tea/1.jpg"], {"caf\u00e9": 1, "tea": 1}),
        (["only/1.jpg", "only/deep/2.jpg"], {"only": 2}),
        (
            ["a/1.jpg", "b/1.jpg", "a/._1.jpg", "@eaDir/x.jpg", "$RECYCLE.BIN/x.jpg", "__MACOSX/a/x.jpg", ".git/x.jpg"],
            {"a": 1, "b": 1},
        ),
        ([*(f"a/{n}.jpg" for n in range(99)), "b/1.jpg", "loose.jpg"], {"a": 99, "b": 1}),
    ],
)
def test_a_layout_is_read_as_what_it_is(tmp_path: Path, names: list[str], expected: dict[str, int]) -> None:
    assert classes(label_dir_auto(touch(tmp_path, *names)).labels) == expected


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["1.jpg", "2.jpg"], r"2 images and no class folders.*--class-from.*--label"),
        (["a/1.jpg", "b/1.jpg", "loose.jpg"], r"images outside the class folders \(loose.jpg\): move each"),
        (["two  spaces/1.jpg", "two spaces/1.jpg", "c/1.jpg"], "have the same class name"),
        (["cafe\u0301/1.jpg", "caf\u00e9/1.jpg"], "have the same class name"),
        (["Ants/1.jpg", "ants/1.jpg", "bees/1.jpg"], "have the same class name"),
        (["Ants/1.jpg", "ants /1.jpg", "bees/1.jpg"], "have the same class name"),
        (
            ["train/Cats/1.jpg", "train/b/1.jpg", "val/cats/2.jpg", "val/b/2.jpg"],
            r"train/Cats and \S+val/cats differ only in case: rename one",
        ),
        (["train/1.jpg", "test/2.jpg"], r"parts of a dataset \(test, train\)"),
        (["val/a/1.jpg", "valid/a/2.jpg", "train/a/3.jpg"], "parts of a dataset"),
    ],
)
def test_a_layout_that_does_not_look_right_stops_with_what_to_do(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        label_dir_auto(touch(tmp_path, *names))


def test_what_else_is_in_the_folder_and_folders_of_another_name_are_said(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "a,b/1.jpg", "c./2.jpg", "c./drawing.svg")
    (data / "metadata.csv").write_text("file_name,label\nc./2.jpg,d\n")
    notes: list[str] = []

    def label(source: Path, **options: object) -> None:
        make_label_files(LabelOptions(source, **options), split=LabelFile.split, note=notes.append)  # type: ignore[arg-type]

    label(data, as_folders=tmp_path / "linked", out=tmp_path / "all.txt")
    assert notes == [
        f"left out: metadata.csv: the folders name the classes; `mlimages label {data}/metadata.csv` reads it",
        "left out: files that are not images: 1 .svg",
        "folders with another name than their class: c. as c",
    ]
    notes.clear()
    label(data / "c.", number=1, out=tmp_path / "c.txt")
    assert notes == ["left out: files that are not images: 1 .svg"]


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_parts_become_label_files_with_one_numbering(tmp_path: Path, run_cli: RunCli, val: str) -> None:
    names = ("train/rose/1.jpg", "train/tulip/2.jpg", "train/tulip/3.jpg", f"{val}/tulip/4.jpg", "test/5.jpg")
    touch(tmp_path / "data", *names)
    done = run_cli("label", "data", "-o", "all.txt")
    train, part = (LabelFile(tmp_path / f"all_{name}.txt") for name in ("train", "val"))
    assert classes(train) == {"rose": 1, "tulip": 2}
    assert classes(part) == {"rose": 0, "tulip": 1}
    assert "test: 1 images without class folders" in done.stderr
    assert done.stdout.startswith("all_train.txt: 3 images, 2 classes: rose 1, tulip 2\n")
    assert re.search("next: mlimages check all_train.txt all_val.txt", done.stderr)
    refused = run_cli("label", "data", "--split", "0.8,0.2", check=False)
    assert "data is already split (train, val)" in refused.stderr
    found = label_dir_auto(tmp_path / "data")
    assert list(found.parts) == ["train", "val"]
    assert classes(found.labels) == {"rose": 1, "tulip": 3}


def test_what_we_made_ourselves_is_no_image_of_the_dataset(tmp_path: Path, run_cli: RunCli) -> None:
    for name in ("a/1.jpg", "b/1.jpg"):
        touch(tmp_path, name)
        (tmp_path / name).write_bytes(jpeg(scene(1)))
    run_cli("label", ".")
    run_cli("mean", "labels.txt", "--size", "8", "-o", "mean.png")
    assert run_cli("label", ".").stdout == "labels.txt: 2 images, 2 classes: a 1, b 1\n"


def test_classes_come_from_the_names_where_there_are_no_folders(tmp_path: Path, run_cli: RunCli) -> None:
    touch(tmp_path / "pets", "cat.1.jpg", "cat.2.jpg", "dog.1.jpg")
    run_cli("label", "pets", "--class-from", r"^(\w+)\.", "-o", "all.txt")
    assert classes(LabelFile(tmp_path / "all.txt")) == {"cat": 2, "dog": 1}
    some = label_dir_by_pattern(tmp_path / "pets", "(cat)")
    assert classes(some) == {"cat": 2}
    assert some.notes == ("left out: (cat) matches no class in 1 of 3 paths (dog.1.jpg)",)
    with pytest.raises(InputError, match=r"matches no class in 2 of 3 paths \(cat.1.jpg, cat.2.jpg\)"):
        label_dir_by_pattern(tmp_path / "pets", "(dog)")


def test_one_class_and_classes_without_images_are_said(tmp_path: Path, run_cli: RunCli) -> None:
    touch(tmp_path / "one", "cats/1.jpg", "cats/2.jpg")
    assert "one class only: a classifier needs two" in run_cli("label", "one").stderr
    touch(tmp_path / "two", "train/a/1.jpg", "train/a/2.jpg", "train/b/3.jpg", "val/a/1.jpg", "val/a/2.jpg")
    assert "two/labels_val.txt: fewer than two images of b\n" in run_cli("label", "two").stderr


def test_a_pattern_of_groups_that_finds_nothing_is_refused(tmp_path: Path, run_cli: RunCli) -> None:
    touch(tmp_path / "data", *(f"{c}/P{n}_{m}.jpg" for c in "ab" for n in range(4) for m in range(2)))
    failed = run_cli("label", "data", "--split", "0.5,0.5", "--group", "Q[0-9]", check=False)
    assert failed.returncode == 1
    assert "--group Q[0-9] matches none of the 16 paths" in failed.stderr
    done = run_cli("label", "data", "--split", "0.5,0.5", "--group", "P[0-9]")
    assert "--group: 4 groups; P[0-9] matches 16 of 16 paths" in done.stderr


def test_parts_without_a_class_in_common_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/n1/images/1.jpg", "train/n2/images/2.jpg", "val/images/3.jpg")  # as Tiny ImageNet
    with pytest.raises(InputError, match=r"val: none of its folders \(images\) is a class of .*train"):
        label_dir_auto(tmp_path)
