"""Links to folders: the images below them are read as those of other folders, once, and never in a circle."""

from pathlib import Path

import pytest

from mlimages.images import find_images
from mlimages.labels import LabelFile, label_dir, label_dir_auto, label_dir_by_pattern
from mlimages.labels.scanning import describe_skipped_entries
from tests.labels.test_labels import touch

OUTSIDE = ("nas/2022/x.jpg", "nas/2022/deep/y.jpg")


def find_names(labels: LabelFile) -> list[str]:
    return sorted(item.path.name for item in labels)


@pytest.mark.parametrize(
    ("links", "expected", "noted"),
    [
        ({"d/rose/2022": "nas/2022"}, "xy", ""),
        ({"d/rose/a/b": "nas/2022"}, "xy", ""),
        ({"d/rose/old": "nas/2022", "d/rose/new": "nas/2022"}, "xy", ""),
        ({"d/rose/deep": "nas/2022/deep", "d/rose/all": "nas/2022"}, "xy", ""),
        ({"d/rose/all": "nas/2022", "d/rose/deep": "nas/2022/deep"}, "xy", ""),
        ({"d/rose/link": "d/rose/a"}, "", ""),
        ({"d/rose/loop": "d/rose"}, "", "loop"),
        ({"d/rose/a/loop": "d/rose"}, "", "loop"),
        ({"d/rose/loop": "d"}, "", "loop"),
        ({"d/rose/loop": ""}, "", "loop"),
        ({"d/rose/2022": "nas/2022", "nas/2022/back": "d"}, "xy", "back"),
        ({"d/rose/2022": "nas/2022", "nas/2022/back": "d/rose"}, "xy", ""),
        ({"d/rose/2022": "nas/2022", "nas/2022/loop": "nas"}, "xy", "loop"),
        ({"d/rose/2022": "nas/2022", "nas/2022/other": "more", "more/back": "nas/2022"}, "xyz", ""),
        ({"d/rose/.2022": "nas/2022"}, "", ".2022"),
        ({"d/lily": "nas/2022"}, "xy", ""),
        ({"d/lily": "nas/2022", "nas/2022/back": "d"}, "xy", "back"),
    ],
)  # fmt: skip
def test_images_below_a_link_are_read_once_by_every_reader(
    tmp_path: Path, links: dict[str, str], expected: str, noted: str
) -> None:
    touch(tmp_path, "d/rose/1.jpg", "d/rose/a/2.jpg", "d/tulip/3.jpg", "more/z.jpg", *OUTSIDE)
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    folder, names = tmp_path / "d", [f"{name}.jpg" for name in sorted(f"123{expected}")]
    found = label_dir_auto(folder)
    assert find_names(found.labels) == names
    assert find_names(label_dir_auto(folder, leaf=True).labels) == names
    assert find_names(label_dir(folder, 0)) == names
    assert find_names(label_dir_by_pattern(folder, "^([^/]+)")) == names
    assert sorted(path.name for path in find_images([folder])) == names
    assert [text.rpartition(" ")[2] for text in found.skipped_notes if "folder" in text] == [noted] * bool(noted)
    in_class = {item.path.parts[len(folder.parts)] for item in found.labels if item.path.stem in expected}
    assert in_class == ({"lily" if "d/lily" in links else "rose"} if expected else set())


def test_images_below_a_link_in_a_split_belong_to_the_split(tmp_path: Path) -> None:
    touch(tmp_path, *(f"d/{split}/{name}/{split}.jpg" for split in ("train", "val") for name in "ab"), *OUTSIDE)
    (tmp_path / "d/val/b/more").symlink_to(tmp_path / "nas/2022")
    parts = label_dir_auto(tmp_path / "d").splits
    assert {name: find_names(part) for name, part in parts.items()} == {
        "train": ["train.jpg", "train.jpg"],
        "val": ["val.jpg", "val.jpg", "x.jpg", "y.jpg"],
    }


def test_a_folder_that_two_classes_link_to_is_in_both_for_check_to_report(tmp_path: Path) -> None:
    touch(tmp_path, "d/rose/1.jpg", "d/tulip/3.jpg", *OUTSIDE)
    for name in ("rose", "tulip"):
        (tmp_path / f"d/{name}/2022").symlink_to(tmp_path / "nas/2022")
    assert find_names(label_dir_auto(tmp_path / "d").labels) == ["1.jpg", "3.jpg", *["x.jpg"] * 2, *["y.jpg"] * 2]


@pytest.mark.parametrize("target", ["/nowhere/gone", "lily", "x" * 300])
@pytest.mark.parametrize(
    ("link", "folders"),
    [
        ("lily", "rose tulip"),
        ("lily.v2", "rose tulip"),
        ("rose/more", "rose tulip"),
        ("train/lily", "train/rose train/tulip val/rose val/tulip"),
        ("val", "train/rose train/tulip"),
        ("flowers/lily", "flowers/rose flowers/tulip"),
        ("lily", "a/b/rose a/b/tulip"),
        ("a/lily", "a/b/rose a/b/tulip"),
    ],
)
def test_a_link_to_a_folder_that_is_gone_is_named(tmp_path: Path, link: str, folders: str, target: str) -> None:
    touch(tmp_path, *(f"{folder}/1.jpg" for folder in folders.split()))
    (tmp_path / link).symlink_to(target if target != "lily" else Path(link).name)  # a link to itself
    note = f"left out: links to files or folders that do not exist: 1 {Path(link).name}"
    assert list(label_dir_auto(tmp_path).notes).count(note) == 1
    if link.count("/") == 1 and folders.startswith("rose"):
        skipped = describe_skipped_entries(tmp_path / "rose", is_class_folder=True)
        assert skipped == [note.removeprefix("left out: ")]


@pytest.mark.parametrize("name", ["val", "test", "lily"])
def test_an_empty_folder_beside_the_folder_of_the_classes_is_named(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "train/rose/1.jpg", "train/tulip/1.jpg")
    (tmp_path / name).mkdir()
    assert f"left out: {name}: no images" in label_dir_auto(tmp_path).notes
