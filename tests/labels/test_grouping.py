"""`label --group`: images of one group stay in one split, also when images are appended."""

import re
from itertools import chain
from pathlib import Path

import pytest

from mlimages.core import as_path, read_settings, record_settings
from mlimages.labels import LabelFile, group_by_pattern
from tests.conftest import RunCli
from tests.labels.test_appending import images, read_files

GROUP = r"P\d+"
SPLIT = ("-o", "l.txt", "--split", "0.5,0.5")


def add_patients(folder: Path, *numbers: int) -> None:
    images(folder, *(f"d/{name}/P{number % 5}_{number}.jpg" for name in ("covid", "normal") for number in numbers))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add_patients(tmp_path, *range(10))
    return tmp_path


def find_split_patients(*paths: Path) -> set[str]:
    """Return the patients with images in more than one of these label files."""
    files = [{re.findall(GROUP, item.path.name)[0] for item in LabelFile(path)} for path in paths]
    return {patient for patient in chain(*files) if sum(patient in patients for patients in files) > 1}


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
@pytest.mark.parametrize("fractions", ["0.5,0.5", "0.5,0.25,0.25"])
@pytest.mark.parametrize("other", [(), ("--group", "[^/]+$"), ("--group-by", "features")])
def test_images_are_appended_only_with_the_group_of_the_split(
    folder: Path, invoke_cli: RunCli, suffix: str, fractions: str, other: tuple[str, ...]
) -> None:
    split = ("label", "d", "-o", f"l{suffix}", "--split", fractions)
    invoke_cli(*split, "--group", GROUP)
    add_patients(folder, *range(10, 25))
    before = read_files(folder)
    refused = invoke_cli(*split, *other, "--append", check=False).stderr
    assert rf"l_train{suffix} was split with --group='P\d+': repeat this option, since images that it" in refused
    assert read_files(folder) == before
    invoke_cli(*split, "--append", "--group", GROUP)
    names = [f"l_{name}{suffix}" for name in ("train", "val", "test")[: len(fractions.split(","))]]
    assert not find_split_patients(*(folder / name for name in names))
    invoke_cli(*split, *other[: 2 * (other[:1] == ("--group",))])  # a new split


def test_the_grouping_of_the_last_split_is_the_one_to_repeat(folder: Path, invoke_cli: RunCli) -> None:
    for group in ("[^/]+$", GROUP, "[^/]+$", GROUP):
        invoke_cli("label", "d", *SPLIT, "--group", group)
    add_patients(folder, *range(10, 25))
    refused = invoke_cli("label", "d", *SPLIT, "--append", "--group", "[^/]+$", check=False).stderr
    assert r"was split with --group='P\d+'" in refused
    invoke_cli("label", "d", *SPLIT, "--append", "--group", GROUP)


def test_a_split_by_features_is_continued_by_features(folder: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "d", *SPLIT)
    record_settings(folder / "l_train.txt", "--split 0.5,0.5 --seed 0 --group-by features")
    refused = invoke_cli("label", "d", *SPLIT, "--append", check=False).stderr
    assert "l_train.txt was split with --group-by=features: repeat this option" in refused


def test_a_split_by_near_duplicates_or_by_hand_is_continued_with_any_group(folder: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "d", *SPLIT)
    for group in ((), ("--group", GROUP)):
        invoke_cli("label", "d", *SPLIT, "--append", *group)
    (folder / ".mlimages-written").unlink()
    invoke_cli("label", "d", *SPLIT, "--append")


@pytest.mark.parametrize("address", ["", "memory://settings"])
def test_the_settings_recorded_last_are_read_again(tmp_path: Path, address: str) -> None:
    folder = as_path(address or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for settings in ("a", "b", "a", "a"):
        record_settings(folder / "one.txt", settings)
        record_settings(folder / "other.txt", "c")
    found = [read_settings(folder / name) for name in ("one.txt", "other.txt", "third.txt")]
    assert found == ["a", "c", ""]


@pytest.mark.parametrize("kind", ["folder", "classes from names", "text", "table", "table with --images", "two levels"])
def test_folders_above_the_dataset_are_no_part_of_a_group(
    tmp_path: Path, invoke_cli: RunCli, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "P5_project"
    names = {f"{name}/{name}_P{number % 4}_{number}.jpg": name for name in ("cat", "dog") for number in range(8)}
    images(folder, *(f"d/{name}" for name in names))
    (folder / "d/labels.txt").write_text("".join(f"{name} {int('dog' in name)}\n" for name in names))
    (folder / "d/t.csv").write_text("path,label\n" + "".join(f"{name},{each}\n" for name, each in names.items()))
    (folder / "tables").mkdir()
    (folder / "tables/t.csv").write_bytes((folder / "d/t.csv").read_bytes())
    source, *options = {
        "folder": ["d"],
        "classes from names": ["d", "--class-from", "cat|dog"],
        "text": ["d/labels.txt"],
        "table": ["d/t.csv"],
        "table with --images": ["tables/t.csv", "--images", "{}d"],
        "two levels": ["d", "--leaf"],
    }[kind]
    splits = []
    for place in (folder, tmp_path, folder / "d"):
        monkeypatch.chdir(place)
        for prefix in ("", f"{folder}/"):
            above = prefix or {folder: "", tmp_path: "P5_project/"}.get(place, "../")
            for group in (r"P\d", r"^(?:cat|dog)/[a-z]+_(P\d)"):
                command = ("label", f"{above}{source}", *(option.format(above) for option in options))
                done = invoke_cli(*command, "-o", tmp_path / "l.txt", "--split", "0.5,0.5", "--group", group)
                assert f"--group: 4 groups; {group} matches 16 of 16 paths" in done.stderr
                splits.append([item.path.name for item in LabelFile(tmp_path / "l_train.txt")])
    assert all(split == splits[0] for split in splits)
    assert not find_split_patients(tmp_path / "l_train.txt", tmp_path / "l_val.txt")


def test_a_message_counts_the_images_of_an_earlier_split_that_match(folder: Path, invoke_cli: RunCli) -> None:
    invoke_cli("label", "d", *SPLIT)
    images(folder, "d/covid/S1_1.jpg", "d/normal/S1_2.jpg")
    done = invoke_cli("label", "d", *SPLIT, "--append", "--group", "^[^/]+/(S1)")
    assert "--group: 1 group; ^[^/]+/(S1) matches 2 of 22 paths, and 0 of 20 that are already split\n" in done.stderr
    refused = invoke_cli("label", f"../{folder.name}/d", *SPLIT, "--group", "^d/", check=False).stderr
    assert "--group ^d/ matches none of the 22 paths (covid/P0_0.jpg ...): correct the regular" in refused
    assert f"which is matched in the paths relative to ../{folder.name}/d" in refused


@pytest.mark.parametrize(("group", "is_refused"), [(r"^[^/]+/(P\d+)", True), (r"P\d+", False)])
def test_a_group_that_matches_no_image_of_the_split_made_with_it_is_refused(
    folder: Path, invoke_cli: RunCli, group: str, is_refused: bool
) -> None:
    invoke_cli("label", "d", *SPLIT, "--group", group)
    images(folder, *(f"e/{name}/P{number}_new.jpg" for name in ("covid", "normal") for number in range(5)))
    before = read_files(folder)
    done = invoke_cli("label", "e", *SPLIT, "--append", "--group", group, check=False)
    if is_refused:
        assert f"--group {group} matches none of the 20 images that are already split with it" in done.stderr
        assert "relative to e, such as ../d/" in done.stderr
        assert read_files(folder) == before
    assert not find_split_patients(folder / "l_train.txt", folder / "l_val.txt")


def test_a_path_outside_the_folder_of_a_group_is_matched_relative_to_it(tmp_path: Path) -> None:
    paths = [tmp_path / "a/P1/x.jpg", tmp_path / "b/P2.jpg"]
    assert group_by_pattern(paths, r"^P\d", folder=tmp_path / "a") == {paths[0]: "P1"}
    assert group_by_pattern(paths, r"^\.\./b/(P\d)", folder=tmp_path / "a") == {paths[1]: "P2"}
