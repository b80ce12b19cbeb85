"""`label --group`: images of one group stay in one split, also when images are appended."""

import re
from itertools import chain
from pathlib import Path

import pytest

from mlimages.core import as_path, read_settings, record_settings
from mlimages.labels import LabelFile
from tests.conftest import RunCli
from tests.labels.test_appending import images

GROUP = r"P\d+"
SPLIT = ("-o", "l.txt", "--split", "0.5,0.5")


def add_patients(folder: Path, *numbers: int) -> None:
    images(folder, *(f"d/{name}/P{number % 5}_{number}.jpg" for name in ("covid", "normal") for number in numbers))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add_patients(tmp_path, *range(10))
    return tmp_path


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


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
