"""Labels that are probably wrong are found, and the list can be acted on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mlimages.cli.main import app
from mlimages.core import InputError, LabeledPath
from mlimages.labels import LabelFile, label_dir_auto, write_label_file
from mlimages.reports import (
    SuspectLabel,
    estimate_num_label_errors,
    find_suspects,
    read_suspects,
    write_suspects,
)
from mlimages.training import FineTuneConfig, fine_tune

NAMES = ("ants", "bees", "wasps")
PATHS = tuple(Path(f"{number}.png") for number in range(40))


def test_the_most_doubtful_come_first_and_a_tenth_is_the_most() -> None:
    labels = np.arange(40) % 3
    probabilities = np.full((40, 3), 0.1)
    probabilities[np.arange(40), labels] = 0.8
    for place, own in [(3, 0.30), (7, 0.05), (11, 0.20), (20, 0.25), (31, 0.35)]:
        probabilities[place] = (1 - own) * 0.1
        probabilities[place, (labels[place] + 1) % 3] = (1 - own) * 0.9
        probabilities[place, labels[place]] = own
    suspects = find_suspects(PATHS, labels, probabilities, NAMES)
    assert [suspect.path.stem for suspect in suspects] == ["7", "11", "20", "3"]
    assert suspects[0] == SuspectLabel(PATHS[7], "bees", "wasps", 0.95)


def test_an_image_predicted_as_labelled_is_no_suspect_however_unsure() -> None:
    labels = np.zeros(40, np.int64)
    probabilities = np.tile([0.4, 0.3, 0.3], (40, 1))
    assert find_suspects(PATHS, labels, probabilities, NAMES) == ()


@pytest.mark.parametrize(("count", "most"), [(2, 1), (5, 1), (14, 1), (16, 2), (40, 4)])
def test_at_least_one_suspect_of_a_small_dataset_is_listed(count: int, most: int) -> None:
    """Else the page of a run would say that the predictions agree with all labels."""
    probabilities = np.tile([0.2, 0.8, 0.0], (count, 1))
    assert len(find_suspects(PATHS[:count], np.zeros(count, np.int64), probabilities, NAMES)) == most


def test_the_count_is_that_of_the_confident_joint() -> None:
    # The worked example of Northcutt et al.: a class's threshold is its images' mean probability.
    labels = np.array([0, 0, 0, 1, 1, 1])
    own = np.array([0.9, 0.8, 0.1, 0.7, 0.6, 0.5])
    probabilities = np.stack([np.where(labels == 0, own, 1 - own), np.where(labels == 0, 1 - own, own)], axis=1)
    # thresholds 0.6 and 0.6: the third image is of class 1 with 0.9; the last reaches neither
    assert estimate_num_label_errors(labels, probabilities) == 1


def test_the_list_survives_names_with_tabs_and_spaces(tmp_path: Path) -> None:
    suspects = (SuspectLabel(tmp_path / "a b/ünï\tx.png", "ants", "black bees", 0.9731),)
    write_suspects(suspects, tmp_path / "run/suspects.tsv")
    found = read_suspects(tmp_path / "run/suspects.tsv")
    assert found is not None
    assert [each.path.resolve() for each in found] == [suspects[0].path]
    assert (found[0].label, found[0].likely_label, found[0].confidence) == ("ants", "black bees", 0.9731)
    assert read_suspects(tmp_path / "nothing.tsv") is None


@pytest.mark.parametrize("edit", [lambda text: f"{text}\n\n", lambda text: text.replace("\n", "\r\n\r\n")])
def test_blank_lines_of_a_list_that_a_person_edited_are_skipped(tmp_path: Path, edit: Callable[[str], str]) -> None:
    path = tmp_path / "suspects.tsv"
    write_suspects([SuspectLabel(tmp_path / f"{n}.png", "ants", "bees", 0.9) for n in range(2)], path)
    expected = read_suspects(path)
    path.write_bytes(edit(path.read_text()).encode())
    assert read_suspects(path) == expected


@pytest.mark.parametrize("row", [b"a.png", b"a.png\tants\tbees\tmost", b"\xff\tants\tbees\t0.9", bytes(200_000)])
def test_a_list_that_is_damaged_is_an_error_that_names_it(tmp_path: Path, row: bytes) -> None:
    (tmp_path / "suspects.tsv").write_bytes(b"path\tlabel\tlikely_label\tconfidence\n" + row + b"\n")
    with pytest.raises(InputError, match=r"suspects\.tsv is damaged"):
        read_suspects(tmp_path / "suspects.tsv")


def test_label_drops_what_the_list_holds(tmp_path: Path) -> None:
    items = [LabeledPath(tmp_path / f"images/{n} {n}.png", n % 2) for n in range(4)]
    for item in items:
        item.path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(item.path)
    write_label_file(tmp_path / "labels.txt", items, ["ants", "bees"])
    suspects, labels, out = (str(tmp_path / name) for name in ("runs/first/suspects.tsv", "labels.txt", "cleaner.txt"))
    write_suspects([SuspectLabel(items[2].path, "ants", "bees", 0.9)], Path(suspects))
    assert CliRunner().invoke(app, ["label", "--drop", suspects, labels, "-o", out]).exit_code == 0
    assert [item.path.name for item in LabelFile(tmp_path / "cleaner.txt")] == ["0 0.png", "1 1.png", "3 3.png"]


@pytest.mark.realdata
@pytest.mark.train
def test_flipped_labels_are_found_among_the_first_tenth(tmp_path: Path, test_data: Path) -> None:
    items = [item for item in label_dir_auto(test_data / "hymenoptera_data/train").labels if item.path.suffix == ".jpg"]
    shares = []
    for seed in range(3):
        flipped = set(np.random.default_rng(seed).choice(len(items), round(0.05 * len(items)), replace=False).tolist())
        wrong = [LabeledPath(item.path, item.label ^ (n in flipped)) for n, item in enumerate(items)]
        write_label_file(tmp_path / f"labels{seed}.txt", wrong, ["ants", "bees"])
        run = fine_tune(
            FineTuneConfig(
                tmp_path / f"labels{seed}.txt", tmp_path / f"run{seed}", model="mobilenet_v2", epochs=1,
                weights=str(test_data / "weights/mobilenet_v2_torchvision.pth"),
            ),
            export=False,
        ).run  # fmt: skip
        listed = read_suspects(run / "suspects.tsv") or ()
        first = {suspect.path.resolve() for suspect in listed[: round(0.1 * len(items))]}
        shares.append(sum(items[n].path.resolve() in first for n in flipped) / len(flipped))
    assert min(shares) >= 0.8, shares
