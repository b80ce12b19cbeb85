"""Files of a run folder that a person edited or made: a run that would replace one is refused before it trains."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlimages.core import InputError
from mlimages.training import export_run, fine_tune
from tests.training.conftest import config_for, write_colours

MINE = b"a person's work"
INITIAL = [
    "classes.txt", "left_out.tsv", "mean.npy", "suspects.tsv", "train.txt", "train_class_def.txt", "val.txt",
    "val_class_def.txt",
]  # fmt: skip
EXPORTED = ["confusion.png", "curves.png", "model.onnx", "model.onnx.data", "report.html"]
REPLACED = ["metrics.csv", "result.json", "val_predictions.csv", *EXPORTED]
KEPT = ["README.md", "left_out.tsv", "log.txt", "notes.txt", "suspects.tsv"]

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The label file of a finished run."""
    labels = write_colours(tmp_path_factory.mktemp("finished"))
    fine_tune(config_for(labels, model="lenet5", epochs=1))
    return labels


@pytest.fixture
def run(finished: Path) -> Path:
    """A finished run, which the test may change."""
    copy = finished.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(finished.parent / "run", copy))


@pytest.mark.parametrize("name", [*INITIAL, *REPLACED])
def test_a_run_that_would_replace_an_edited_file_is_refused_before_it_trains(
    name: str, finished: Path, run: Path
) -> None:
    if name in INITIAL:  # a run without a complete epoch starts again
        (run / "state.safetensors").unlink()
        (run / "result.json").unlink()
    with (run / name).open("ab") as file:
        file.write(MINE)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    config = config_for(finished, out=run, model="lenet5", epochs=2)
    with pytest.raises(InputError, match=rf"{name} exists and was not written by mlimages, or was edited since"):
        fine_tune(config)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_resumed_run_keeps_the_edited_files_that_it_does_not_replace(finished: Path, run: Path) -> None:
    for name in KEPT:
        with (run / name).open("ab") as file:
            file.write(MINE)
    before = {name: (run / name).read_bytes() for name in KEPT}
    fine_tune(config_for(finished, out=run, model="lenet5", epochs=2))
    assert {name: (run / name).read_bytes()[: len(before[name])] for name in KEPT} == before
    fine_tune(config_for(finished, out=run, model="lenet5", epochs=3))


def test_a_run_that_exports_nothing_keeps_edited_exports(finished: Path, run: Path) -> None:
    for name in EXPORTED:
        (run / name).write_bytes(MINE)
    fine_tune(config_for(finished, out=run, model="lenet5", epochs=2), export=False)
    assert {(run / name).read_bytes() for name in EXPORTED} == {MINE}


def test_a_missing_report_is_written_beside_an_edited_file_that_it_does_not_replace(finished: Path, run: Path) -> None:
    (run / "report.html").unlink()
    (run / "model.onnx.data").write_bytes(MINE)
    fine_tune(config_for(finished, out=run, model="lenet5", epochs=1))
    assert (run / "report.html").exists()
    assert (run / "model.onnx.data").read_bytes() == MINE


def test_a_finished_run_is_not_exported_if_it_would_replace_an_edited_plot(finished: Path, run: Path) -> None:
    (run / "model.onnx").unlink()
    (run / "curves.png").write_bytes(MINE)
    with pytest.raises(InputError, match=r"curves\.png exists"):
        fine_tune(config_for(finished, out=run, model="lenet5", epochs=1))
    assert not (run / "model.onnx").exists()


def test_a_run_replaces_edited_files_with_overwrite_but_never_the_weights_file_of_another_model(
    finished: Path, run: Path
) -> None:
    for name in REPLACED:
        (run / name).write_bytes(MINE)
    config = config_for(finished, out=run, model="lenet5", epochs=2)
    (run / "result.json").unlink()
    fine_tune(config, overwrite=True)
    assert {name for name in REPLACED if (run / name).read_bytes() == MINE} == {"model.onnx.data"}


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_an_export_into_the_run_folder_replaces_no_edited_file(name: str, run: Path) -> None:
    (run / name).write_bytes(MINE)
    with pytest.raises(InputError, match=name):
        export_run(run, run / "model.onnx")
    assert (run / name).read_bytes() == MINE


@pytest.mark.parametrize(
    "name", ["log.txt", "model.onnx", "model.onnx.data", "report.html", "train.txt", "train_class_def.txt"]
)
def test_a_run_does_not_start_in_a_folder_with_a_persons_file_of_that_name(
    name: str, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_bytes(MINE)
    with pytest.raises(InputError, match=f"not a run folder and contains {name}: choose another output folder with -o"):
        fine_tune(replace(config_for(finished), out=tmp_path / "new"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
