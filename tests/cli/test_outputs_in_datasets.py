"""What mlimages writes into a dataset never becomes data."""

from pathlib import Path

import pytest

from mlimages import augment
from mlimages.core import ImageProperty, InputError
from mlimages.inference import OnnxBundle
from mlimages.labels import label_dir, label_dir_by_pattern, open_labels
from tests.conftest import RunCli


@pytest.mark.parametrize("folder", [".", "ants", "ants/deep", "sheets"])
@pytest.mark.parametrize(
    "command",
    [
        "show data -o {}/sheet.png",
        "mean data --size 8 --per-class -o {}/mean.png",
        "explain MODEL data -o {}",
        "show MODEL data/ants/1.jpg --layer conv1 -o {}/maps.png",
        "finetune data --model lenet5 --weights none --epochs 1 -o {}",
    ],
)
def test_an_image_that_a_command_wrote_into_a_dataset_is_left_out_and_counted(
    data: Path, invoke_cli: RunCli, cnn_bundle: OnnxBundle, command: str, folder: str
) -> None:
    model = str(cnn_bundle.path)
    if "--layer" in command:
        model = "lenet5"
    before = [str(item.path) for item in open_labels(data)]
    images = {path for path in data.rglob("*") if path.is_file()}
    invoke_cli(*command.replace("MODEL", model).format(f"data/{folder}").split())
    written = [path for path in data.rglob("*.png") if path not in images]
    assert written
    labels = open_labels(data)
    assert [str(item.path) for item in labels] == before
    assert {item.path for item in label_dir(data, 0)} == {item.path for item in label_dir_by_pattern(data, ".")}
    assert len(list(label_dir(data, 0))) == len(before)
    if folder != ".":
        assert f"left out: images that mlimages wrote: {len(written)}" in labels.notes
    assert len(invoke_cli("predict", cnn_bundle.path, "data", "--csv").stdout.splitlines()) == 1 + len(before)


@pytest.mark.parametrize("out", ["data/new", "data/ants/new", "data/train", "data"])
@pytest.mark.parametrize(
    "command",
    [
        "augment data --size 8 -o {}",
        "augment data --size 8 --split 0.5,0.5 -o {}",
        "augment data/labels.txt --size 8 -o {}",
        "augment lists/photos.txt --size 8 -o {}",
        "label data --as-folders {}",
        "label lists/photos.txt --as-folders {}",
        "predict MODEL data --copy-to {}",
    ],
)
def test_a_folder_of_images_inside_the_dataset_is_refused_before_anything_is_written(
    data: Path, invoke_cli: RunCli, cnn_bundle: OnnxBundle, command: str, out: str
) -> None:
    for label_file in ("data/labels.txt", "lists/photos.txt"):
        invoke_cli("label", "data", "-o", label_file)
    before = {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")}
    words = command.replace("MODEL", str(cnn_bundle.path)).format(out).split()
    refused = invoke_cli(*words, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[-1].startswith(f"mlimages: {out} is the dataset ")
    assert "choose a folder outside" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")} == before
    invoke_cli(*command.replace("MODEL", str(cnn_bundle.path)).format("beside").split())


def test_the_folder_around_the_only_class_root_is_part_of_the_dataset_too(data: Path, invoke_cli: RunCli) -> None:
    refused = invoke_cli("augment", ".", "--size", "8", "-o", "beside", check=False)
    assert refused.stderr == (
        "mlimages: beside is the dataset ., or inside it, where its images would later be read as part of the dataset: "
        "choose a folder "
        "outside .\n"
    )
    with pytest.raises(InputError, match="or inside it"):
        augment(data.parent, data.parent / "beside", image_property=ImageProperty(8), format="folder")
    assert sorted(path.name for path in data.parent.iterdir()) == ["data"]


def test_images_listed_in_a_flat_folder_do_not_forbid_the_folders_beside_it(data: Path, invoke_cli: RunCli) -> None:
    for n, path in enumerate(data.glob("*/*")):
        path.rename(data / path.name)
        with (data.parent / "list.csv").open("a") as out:
            out.write("path,label\n" * (not n) + f"data/{path.name},{'ab'[n % 2]}\n")
    invoke_cli("augment", "list.csv", "--size", "8", "-o", "beside")
