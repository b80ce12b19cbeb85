"""Runs side by side: what differs, and whether it is more than noise."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlimages.cli.main import app
from mlimages.core import InputError, RunError
from mlimages.reports import compare_runs, format_comparison, read_run, render_comparison
from tests.conftest import RunCli
from tests.run_folders import make_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    good = make_run(tmp_path / "runs/good", wrong=[0], model="resnet18", lr=0.01)
    near = make_run(tmp_path / "runs/near", wrong=[1, 2, 3], model="alexnet", lr=0.01)
    bad = make_run(tmp_path / "runs/bad", wrong=list(range(2, 20)), model="lenet5", lr=0.01)
    (good / "model.onnx").write_bytes(bytes(2000))
    return [bad, near, good]


def test_runs_are_ordered_and_tested_against_the_best(runs: list[Path]) -> None:
    compared = compare_runs(runs)
    assert [each.path.name for each in compared] == ["good", "near", "bad"]
    good, near, bad = (each.test_against_best for each in compared)
    assert good is None
    assert near
    assert (near.num_shared_images, near.num_gained, near.num_lost) == (24, 1, 3)
    assert near.p_value == pytest.approx(2 * (1 + 4) / 16)
    assert near.is_within_noise
    assert bad
    assert bad.p_value == pytest.approx(2 * sum(math.comb(19, k) for k in (0, 1)) / 2**19)
    assert not bad.is_within_noise
    assert bad.difference.value == pytest.approx(-17 / 24)


def test_an_automatic_learning_rate_is_called_auto(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(lr), wrong=[0], model="alexnet", lr=lr) for lr in (0.0, 0.01)]
    assert [each.differing_settings for each in compare_runs(runs)] == [{"lr": "auto"}, {"lr": "0.01"}]


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ("/data/a/labels.txt", "/data/b/labels.txt", ("a/labels.txt", "b/labels.txt")),
        ("/data/a/photos/labels.txt", "/data/b/photos/labels.txt", ("a/photos/labels.txt", "b/photos/labels.txt")),
        ("/data/cats.txt", "/data/dogs.txt", ("cats.txt", "dogs.txt")),
        ("s3://one/labels.txt", "s3://two/labels.txt", ("one/labels.txt", "two/labels.txt")),
        ("/labels.txt", "/a/labels.txt", ("/labels.txt", "a/labels.txt")),
        ("/data/labels.txt", None, ("labels.txt", "-")),
    ],
)
@pytest.mark.parametrize("name", ["labels", "val", "weights", "mean"])
def test_paths_that_differ_in_a_folder_alone_differ(
    tmp_path: Path, name: str, first: str, second: str | None, shown: tuple[str, str]
) -> None:
    settings: list[dict[str, object]] = [{name: first}, {name: second}]
    runs = [make_run(tmp_path / f"runs/{n}", per_class=2, wrong=[0][n:], **each) for n, each in enumerate(settings)]
    differing = [each.differing_settings for each in compare_runs(runs[::-1])]
    assert differing == [{name: shown[1]}, {name: shown[0]}]


def test_runs_with_the_same_settings_differ_only_in_their_folder(tmp_path: Path) -> None:
    runs = compare_runs([make_run(tmp_path / name, wrong=[0], out=str(tmp_path / name)) for name in ("a", "b")])
    assert list(format_comparison(runs))[-1] == "no setting differs, other than the run folder"
    assert "No setting differs, other than the run folder." in render_comparison(runs)


def test_runs_with_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name / "first", wrong=[0], lr=lr) for name, lr in (("cats", 0.1), ("dogs", 0.2))]
    compared = compare_runs([runs[0] / "../first", runs[1]])  # a name has no dots
    assert list(format_comparison(compared))[-3].split() == ["setting", "cats/first", "dogs/first"]
    page = render_comparison(compared)
    assert page.count(">cats/first</th>") == page.count(">dogs/first</th>") == 2


def test_runs_with_equal_scores_keep_their_order(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, wrong=[0]) for name in ("b", "a", "c")]
    assert [each.path for each in compare_runs(runs)] == runs


def test_a_run_with_the_lower_score_can_be_better_on_the_shared_images(runs: list[Path]) -> None:
    """The best run has the higher accuracy only because of images that the other run lacks."""
    bad, _, good = runs
    lines = (bad / "val_predictions.csv").read_text().splitlines(keepends=True)
    added = [line.replace("images/", "others/") for line in (good / "val_predictions.csv").read_text().splitlines(True)]
    (bad / "val_predictions.csv").write_text("".join([*lines, *added[2:] * 20]))
    lines = (good / "val_predictions.csv").read_text().splitlines(keepends=True)
    wrong = [line.replace("images/", "else/").replace("0.9", "0.01") for line in lines[1:7]]
    (good / "val_predictions.csv").write_text("".join([*lines, *wrong]))
    best, other = compare_runs([bad, good])
    assert best.path == bad
    assert list(format_comparison([best, other]))[2].endswith("+70.8, better (p 7.6e-05)")


def test_the_size_includes_external_weights(runs: list[Path]) -> None:
    (runs[2] / "model.onnx.data").write_bytes(bytes(5000))
    (runs[1] / "best.safetensors").write_bytes(bytes(300))
    assert [each.size_bytes for each in compare_runs(runs)] == [7000, 300, 0]


@pytest.mark.parametrize("name", ["val_predictions.csv", "result.json"])
def test_a_run_that_has_not_ended_is_refused(runs: list[Path], name: str) -> None:
    """Without result.json, it was resumed with more epochs, and its predictions are those of the fewer epochs."""
    (runs[0] / name).unlink()
    assert read_run(runs[0]).predictions is None
    with pytest.raises(RunError, match="is not finished"):
        compare_runs(runs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["s3://photos/a", "s3://photos/b"], "s3://photos/a: use a path on this machine"),
        (["", "b"], "the path is empty"),
        ("a", "at least two"),
        (Path("a"), "at least two"),
        ([], "at least two"),
    ],
)
def test_paths_that_cannot_be_compared_are_refused_as_they_were_given(given: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_runs(given)


def test_images_of_one_run_alone_are_not_compared(runs: list[Path]) -> None:
    predictions = runs[1] / "val_predictions.csv"
    predictions.write_text("".join(predictions.read_text().splitlines(keepends=True)[:13]))
    assert [each.test_against_best.num_shared_images for each in compare_runs(runs) if each.test_against_best] == [
        12,
        24,
    ]
    predictions.write_text(predictions.read_text().replace("images/", "others/"))
    first, *others = list(format_comparison(compare_runs(runs)))[1:4]
    assert first.endswith(" -")  # no winner
    note = "no image in common: 12 images of this run no longer at their paths"
    assert sum(line.endswith(note) for line in others) == 1


def test_the_same_images_behind_links_are_compared(runs: list[Path], tmp_path: Path) -> None:
    near, good = (runs[index] / "val_predictions.csv" for index in (1, 2))
    for image in (tmp_path / "runs/images").glob("*/*.png"):
        link = tmp_path / "links" / image.relative_to(tmp_path / "runs/images")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(image)
    (tmp_path / "folder").symlink_to(tmp_path / "runs/images")
    for predictions, folder in ((near, "links"), (good, "folder")):
        predictions.write_text(predictions.read_text().replace("../images/", f"../../{folder}/"))
    tests = [each.test_against_best for each in compare_runs(runs)]
    assert [test and test.num_shared_images for test in tests] == [None, 24, 24]


@pytest.mark.parametrize("moved", [1, 2])
def test_a_run_whose_images_were_moved_says_that_they_are_missing(runs: list[Path], moved: int) -> None:
    predictions = runs[moved] / "val_predictions.csv"
    predictions.write_text(predictions.read_text().replace("images/", "moved/"))
    compared = compare_runs(runs[1:])
    assert [each.to_dict()["missing"] for each in compared] == [24 * (moved == 2), 24 * (moved == 1)]
    whose = "the first run" if moved == 2 else "this run"
    expected = f"no image in common: 24 images of {whose} no longer at their paths"
    assert list(format_comparison(compared))[2].endswith(expected)
    assert expected in render_comparison(compared)


def test_a_relative_path_to_a_run_names_the_same_images(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs[0].parent)
    assert compare_runs([Path("bad"), runs[2]])[1].test_against_best == compare_runs(runs)[2].test_against_best


def test_one_run_is_refused(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs[0].parent)
    for other in (runs[0], Path(runs[0].name), Path("..") / runs[0].parent.name / runs[0].name):
        with pytest.raises(InputError, match="at least two"):
            compare_runs([runs[0], other])


def test_the_command_prints_both_tables(run_cli: RunCli, runs: list[Path]) -> None:
    done = run_cli("compare", "runs/bad", "runs/near", "runs/good")
    lines = done.stdout.splitlines()
    assert " ".join(lines[1].split()) == "runs/good 95.8 % 80 to 99 % 24 4 s 0.0 MB best"
    assert lines[2].endswith("-8.3, not significant (p 0.62)")
    assert lines[3].endswith("-70.8, worse (p 7.6e-05)")
    assert [line.split() for line in lines[5:]] == [
        ["setting", "good", "near", "bad"],
        ["model", "resnet18", "alexnet", "lenet5"],
    ]
    assert max(map(len, lines)) <= 80
    printed = json.loads(CliRunner().invoke(app, ["compare", *map(str, runs), "--json"]).stdout)
    assert [each["against_best"] and each["against_best"]["within_noise"] for each in printed] == [None, True, False]
