"""A folder is the same however its path is written: `.`, `..`, `a/..`, `../a/`."""

import os
import re
import shutil
from pathlib import Path

import pytest

from mlimages import LabelFile, TrainingData
from mlimages.core import ImageProperty, InputError
from mlimages.inference import OnnxBundle
from mlimages.labels import write_label_file
from tests.conftest import RunCli

SPELLINGS = [".", "..", "ants/..", "../photos/"]  # pathlib makes "./" and "../photos/." the same
READERS = {
    "label": "label {} -o ../out/labels.txt",
    "as folders": "label {} --as-folders ../out/linked",
    "check": "check {} --report ../out/check.html",
    "mean": "mean {} --size 8 --per-class -o ../out/mean.png",
    "augment": "augment {} --size 8 -o ../out/augmented",
    "show": "show {} -o ../out/sheet.html",
    "features": "features {} --model lenet5 --weights none -o ../out/features.npz",
    "probe": "probe {} --model lenet5 --weights none -o ../out/probe.png",
    "finetune": "finetune {} --model lenet5 --weights none --epochs 1",
    "evaluate": "evaluate ../MODEL {} --report ../out/report.html",
    "predict": "predict ../MODEL {} --copy-to ../out/sorted",
    "explain": "explain ../MODEL {} -o ../out/explained",
}


@pytest.fixture
def photos(data: Path) -> Path:
    """The folder `set/photos`, with two classes of four images."""
    (data.parent / "set").mkdir()
    return data.rename(data.parent / "set/photos")


def run_in(folder: Path, invoke_cli: RunCli, command: str, *, check: bool = True) -> str:
    os.chdir(folder)  # `invoke_cli` restores it
    done = invoke_cli(*command.split(), check=check)
    assert check or done.returncode in (1, 2)
    return done.stdout + done.stderr


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("command", READERS)
def test_every_command_reads_the_folder_and_names_it(
    photos: Path, invoke_cli: RunCli, cnn_bundle: OnnxBundle, command: str, spelling: str
) -> None:
    if command == "evaluate":
        for old, new in (("ants", "class0"), ("bees", "class1")):
            (photos / old).rename(photos / new)
        spelling = spelling.replace("ants", "class0")
    words = READERS[command].replace("../MODEL", str(cnn_bundle.path)).format(spelling)
    out = photos.parent.parent / "out" if spelling == ".." else photos.parent / "out"
    printed = run_in(photos, invoke_cli, words.replace("../out", str(out)))
    name = photos.parent.name if spelling == ".." else photos.name
    if command == "finetune":
        assert (photos / "runs" / name / "model.onnx").exists()
        assert [path.name for path in (photos / "runs").iterdir()] == [name]
        assert f"mlimages predict runs/{name}/model.onnx" in printed
    if command in ("evaluate", "show"):
        (page,) = out.glob("*.html")
        assert re.search(rf"<title>[^<]*\b{name}</title>", page.read_text())


@pytest.mark.parametrize("options", ["--label 0", "--class-from [0-9]"])
def test_images_directly_in_the_current_folder_are_linked_into_class_folders(
    photos: Path, invoke_cli: RunCli, options: str
) -> None:
    out = photos.parent / "linked"
    run_in(photos / "ants", invoke_cli, f"label . {options} -o ../list.txt --as-folders {out}")
    assert sorted(path.name for path in out.glob("*/*")) == ["1.jpg", "3.jpg", "5.jpg", "7.jpg"]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("command", ["mean {} --size 8", "augment {} --size 8 -o ../../out", "show {}"])
def test_a_split_dataset_is_refused_or_read_however_its_path_is_written(
    photos: Path, invoke_cli: RunCli, command: str, spelling: str
) -> None:
    for name in ("ants", "bees"):
        shutil.copytree(photos / name, photos / "val" / name)
        shutil.move(photos / name, photos / "train" / name)
    where = photos / "train" if spelling == ".." else photos
    words = command.format(spelling.replace("ants", "train"))
    printed = run_in(where, invoke_cli, words, check=command.startswith("show"))
    assert command.startswith("show") or "expected one: use one of its subfolders" in printed


@pytest.mark.parametrize("spelling", [".", "..", "ants/..", "ants", "/"])
@pytest.mark.parametrize(
    "command",
    [
        "label ../other -o {}",
        "label ../other -o {} --force",
        "label ../other -o {} --split 0.5,0.5",
        "label ../other -o {} --append",
        "mean . --size 8 -o {}",
        "check . --report {} --force",
        "augment ../other --size 8 -o {}",
        "augment ../other --size 8 --as npz --force -o {}",
        "show . -o {}",
        "show lenet5 ants/1.jpg --layer conv1 -o {}",
        "features . --model lenet5 --weights none -o {}",
        "probe . --model lenet5 --weights none -o {}",
        "export ../run -o {}",
        "quantize MODEL --calibration . -o {}",
        "evaluate MODEL . --report {} --force",
    ],
)
def test_a_folder_in_place_of_an_output_file_is_refused_and_nothing_is_written(
    photos: Path, invoke_cli: RunCli, cnn_bundle: OnnxBundle, command: str, spelling: str
) -> None:
    shutil.copytree(photos, photos.parent / "other")
    before = sorted(photos.parent.rglob("*"))
    printed = run_in(photos, invoke_cli, command.replace("MODEL", str(cnn_bundle.path)).format(spelling), check=False)
    assert re.search(r"is a folder: expected|expected a file name that ends in|already exists: move|must be", printed)
    assert sorted(photos.parent.rglob("*")) == before


@pytest.mark.parametrize("path", [".", "..", "ants/..", "ants", "/", "mean.jpg", "mean"])
def test_in_python_too_a_path_that_is_not_one_of_a_file_is_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(photos)
    data = TrainingData(".", ImageProperty(8))
    writers = [lambda: data.make_mean_image(path), lambda: data.make_mean_image("../mean.png").write(path)]
    if Path(path).is_dir():
        writers.append(lambda: write_label_file(path, data.labels, ("ants", "bees")))
        writers.append(lambda: LabelFile("list.txt", items=lambda: data.labels).write(path, overwrite=True))
    for write in writers:
        with pytest.raises(InputError, match="expected"):
            write()


def test_advice_about_an_edited_file_beside_the_label_file_does_not_name_an_option_for_another(
    photos: Path, invoke_cli: RunCli
) -> None:
    run_in(photos, invoke_cli, "label . -o ../set.txt")
    run_in(photos, invoke_cli, "mean ../set.txt --size 8 -o ../mean.png")
    with (photos.parent / "set_used_in_mean.txt").open("a") as out:
        out.write("# note\n")
    printed = run_in(photos, invoke_cli, "mean ../set.txt --size 8 -o ../other.png", check=False)
    assert re.search("set_used_in_mean.txt exists.*: move or rename it, or replace it with --force", printed)
    assert "-o" not in printed.splitlines()[-1]


def test_a_mean_image_is_written_to_the_name_that_is_printed(photos: Path, invoke_cli: RunCli) -> None:
    assert "../M.PNG: mean of 8 images" in run_in(photos, invoke_cli, "mean . --size 8 -o ../M.PNG")
    assert sorted(path.name for path in photos.parent.glob("M.*")) == ["M.PNG", "M.json", "M.npy"]
