"""Fine-tuning from label file to run folder, in Python and from the command line."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mlimages.core import (
    ExportError,
    ImageProperty,
    InputError,
    ModelError,
    Normalization,
    Prediction,
    Preprocessing,
    write_text_output,
)
from mlimages.inference import OnnxBundle, Predictor, evaluate
from mlimages.labels import LabelFile
from mlimages.reports import draw_run, read_run
from mlimages.training import FineTuneConfig, FineTuneResult, export_run, fine_tune, load_run
from mlimages.training.run import EpochMetrics
from tests.conftest import cli_in
from tests.training.conftest import COLOURS, config_for, read_metrics, write_colours


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> FineTuneResult:
    """A run of two epochs with its exported file."""
    return fine_tune(config_for(write_colours(tmp_path_factory.mktemp("exported")), epochs=2))


def test_a_run_leaves_all_that_its_folder_promises(colours: Path) -> None:
    noted: list[EpochMetrics] = []

    class Note:
        def on_epoch_end(self, metrics: EpochMetrics) -> None:
            noted.append(metrics)

    result = fine_tune(config_for(colours, epochs=6), export=False, callbacks=[Note()])
    run = result.run
    assert (run / "classes.txt").read_text() == "blue\ngreen\nred\n"
    assert (
        [int(row["epoch"]) for row in read_metrics(run)] == [1, 2, 3, 4, 5, 6] == [metrics.epoch for metrics in noted]
    )
    train, val = LabelFile(run / "train.txt"), LabelFile(run / "val.txt")
    assert train.class_names == val.class_names == ("blue", "green", "red")
    assert {item.path.resolve() for item in [*train, *val]} == set((colours.parent / "set").resolve().rglob("*.png"))
    assert (result.train_images, result.val_images) == (len(list(train)), len(list(val)))
    assert json.loads((run / "result.json").read_text())["val_accuracy"] == result.val_accuracy
    assert "epoch 6" in (run / "log.txt").read_text()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(colours: Path) -> None:
    config = config_for(colours, epochs=2, augment="light")
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        fine_tune(replace(config, seed=seed, out=colours.parent / f"run{number}"), export=False)
        weights.append(load_file(colours.parent / f"run{number}" / "last.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["fc6.weight"], weights[2]["fc6.weight"])


def test_images_that_turn_bad_while_training_do_not_end_it(colours: Path) -> None:
    config = config_for(colours, cache=False, batch_size=5)

    class Spoil:
        def on_epoch_end(self, metrics: EpochMetrics) -> None:
            if metrics.epoch == 1:
                for part in ("train", "val"):
                    next(iter(LabelFile(config.out / f"{part}.txt"))).path.write_bytes(b"gone")

    result = fine_tune(config, export=False, callbacks=[Spoil()])
    assert (result.epochs, result.broken) == (3, ())
    assert result.val_images == len(list(LabelFile(config.out / "val.txt"))) - 1
    assert "can no longer be decoded" in (config.out / "log.txt").read_text()


def one_image_class(labels: Path) -> None:
    lines = [line for line in labels.read_text().splitlines() if "red" not in line]
    labels.write_text("\n".join([*lines, "set/red/00.png 2\n"]))


def one_good_image_class(labels: Path) -> None:
    for number in range(1, 12):
        (labels.parent / f"set/red/{number:02}.png").write_bytes(b"<!doctype html>")


def number_without_a_name(labels: Path) -> None:
    (labels.parent / "labels_class_def.txt").write_text("0 blue\n1 green\n")


def only_training_images(labels: Path) -> None:
    (labels.parent / "val.txt").write_text("set/red/00.png 2\nset/blue/00.png 0\n")


def same_image_in_both(labels: Path) -> None:
    only_training_images(labels)
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(lines[:-1]))
    with (labels.parent / "val.txt").open("a") as out:
        out.write(lines[-1])


def nothing_to_validate_on(labels: Path) -> None:
    (labels.parent / "val.txt").write_text("missing.png 0\n")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (one_image_class, "fewer than 2 training images of red \\(1\\)"),
        (one_good_image_class, "fewer than 2 usable training images of red \\(1\\)"),
        (number_without_a_name, "expected a class index from 0 to 1"),
        (only_training_images, "all validation images are also training images: leave out --val"),
        (same_image_in_both, "2 images in both the training and the validation set"),
        (nothing_to_validate_on, "no usable validation images"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_what_to_do(colours: Path, spoil: object, expected: str) -> None:
    spoil(colours)  # type: ignore[operator]
    val = colours.parent / "val.txt"
    with pytest.raises(InputError, match=expected):
        fine_tune(config_for(colours, val=val if val.exists() else None), export=False)
    assert not (colours.parent / "run" / "config.json").exists()


def test_one_image_of_each_class_suffices_where_validation_images_are_given(colours: Path) -> None:
    lines = colours.read_text().splitlines(keepends=True)
    (colours.parent / "val.txt").write_text("".join(line for n, line in enumerate(lines) if n % 12))
    colours.write_text("".join(lines[::12]))
    started = fine_tune(config_for(colours, epochs=1, val=colours.parent / "val.txt"), export=False)
    weights = started.run / "last.safetensors"
    for freeze in ("none", "head"):  # the latter with a closed-form head and an output `known`
        config = config_for(colours, val=colours.parent / "val.txt", weights=str(weights), freeze=freeze)
        result = fine_tune(replace(config, out=colours.parent / freeze), export=False)
        assert (result.train_images, result.val_images) == (3, 33)
    bundle = export_run(result.run, result.run / "model.onnx")
    (answer,) = Predictor(bundle)([next(iter(LabelFile(colours))).path])
    assert isinstance(answer, Prediction)
    assert answer.known is not None


def test_at_the_terminal_stands_what_changes_a_run_and_not_each_image_or_pillows_remarks(tmp_path: Path) -> None:
    code = (
        "import logging, warnings; from mlimages.cli.main import _global_options\n"
        "from mlimages.training.run import log_to_file\n"
        "from pathlib import Path; _global_options(False, False); warnings.warn('odd EXIF')\n"
        "with log_to_file(Path('log.txt')):\n"
        "    logging.getLogger('mlimages.training.features').warning('computed anew')\n"
        "    logging.getLogger('mlimages.dataset.training_data').warning('skipped a.jpg')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == "mlimages: computed anew\n"


def test_a_command_that_loaded_torch_ends_without_a_word() -> None:
    code = "import sys, torchvision; from mlimages.cli.main import main; sys.argv[1:] = ['--version']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.train
def test_the_command_line_trains_exports_and_goes_on(exported: FineTuneResult) -> None:
    folder = exported.run.parent
    run_cli = cli_in(folder)
    command = ["finetune", "labels.txt", "--model", "cifar10_cnn", "--weights", "none", "--freeze", "none"]
    done = run_cli(*command, "--epochs", "2", "--seed", "1", "-o", "cli", "--json")
    result = json.loads(done.stdout)
    assert exported.val_accuracy == result["val_accuracy"]
    assert_same_files(folder / "cli", exported.run)
    image = folder / "set" / "red" / "00.png"
    (row,) = json.loads(run_cli("predict", "cli", image, "--json").stdout)
    (answer,) = Predictor(exported.run)([image])
    assert isinstance(answer, Prediction)
    assert [(one["class_name"], one["probability"]) for one in row["top"]] == [
        (one.class_name, one.probability) for one in answer.top
    ]
    keys = (
        "run model freeze classes train_images val_images val_accuracy val_interval probe_accuracy epochs seconds onnx"
    )
    assert set(keys.split()) <= result.keys()
    assert "mlimages predict cli/model.onnx" in done.stderr
    assert " -o cli\n" in (folder / "cli" / "README.md").read_text(), "the model card"
    loss = json.loads(run_cli("evaluate", "cli", "cli/val.txt", "--json").stdout)["loss"]
    assert loss == pytest.approx(read_run(folder / "cli").epochs[result["best_epoch"] - 1]["val_loss"], rel=1e-4)
    written = (folder / result["onnx"]).stat().st_mtime_ns
    again = run_cli("finetune", "--resume", "cli", "--json")
    assert (folder / result["onnx"]).stat().st_mtime_ns == written, "a finished run is not exported again"
    assert json.loads(again.stdout)["val_accuracy"] == result["val_accuracy"]
    assert "cli is already finished" in again.stderr


def assert_same_files(one: Path, other: Path) -> None:
    """Two runs with the same settings wrote the same files, but for times and their own names."""
    contents = [{path.name: path.read_bytes() for path in run.iterdir()} for run in (one, other)]
    timed = {
        ".mlimages-written",
        "README.md",
        "log.txt",
        "report.html",
        "result.json",
        "model.onnx",
        "state.safetensors",
    }
    compared = {"config.json", "metrics.csv"}
    assert contents[0].keys() == contents[1].keys() >= {*timed, *compared, "val_predictions.csv", "confusion.png"}
    others = contents[0].keys() - timed - compared
    assert sorted(name for name in others if contents[0][name] != contents[1][name]) == []
    settings = [json.loads(content["config.json"]) for content in contents]
    rows = [list(csv.DictReader(content["metrics.csv"].decode().splitlines())) for content in contents]
    for each in (settings[0]["config"], settings[1]["config"]):
        del each["out"]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert (settings[0], rows[0]) == (settings[1], rows[1])


PREPROCESSING = Preprocessing(ImageProperty(32), Normalization(mean=(0.5,) * 3, std=(0.5,) * 3))


class Small(nn.Sequential):
    """A network of one's own, which loads only tensors of its version, as torchvision's MNASNet does."""

    _version = 3

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
        )

    def _load_from_state_dict(
        self, state: dict[str, torch.Tensor], prefix: str, metadata: dict[str, Any], *others: Any
    ) -> None:
        assert metadata["version"] == self._version
        super()._load_from_state_dict(state, prefix, metadata, *others)


def test_a_network_of_ones_own_is_trained_as_one_by_name(colours: Path) -> None:
    config = FineTuneConfig(colours, colours.parent / "run", epochs=6, lr=0.05, optimizer="sgd", schedule="none")
    torch.manual_seed(0)
    network = Small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = fine_tune(config, network=network, preprocessing=PREPROCESSING)
    assert (result.model, result.freeze, result.val_accuracy > 0.6) == ("Small", "none", True)
    assert result.onnx is not None
    trained = load_file(result.run / "best.safetensors")
    assert not torch.equal(trained["0.weight"], before["0.weight"])
    assert fine_tune(config, network=Small(), preprocessing=PREPROCESSING).val_accuracy == result.val_accuracy
    with pytest.raises(ModelError, match="unknown model 'Small': if this is a custom network, pass it in Python"):
        load_run(result.run)
    assert OnnxBundle.read(result.run).provenance.command == ""
    with pytest.raises(InputError, match="must be passed together"):
        fine_tune(config, network=network)


def network_with(first: int = 8, *, layers: int = 5) -> nn.Sequential:
    """A network with batch norm, of which the width of the first layer and the number of layers can be chosen."""
    parts = (nn.Conv2d(3, first, 5, stride=2), nn.BatchNorm2d(first), nn.ReLU(), nn.Conv2d(first, 8, 3), nn.ReLU())
    return nn.Sequential(*parts[:layers], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize("other", [{"first": 6}, {"layers": 3}, {"layers": 2}], ids=str)
def test_a_network_of_other_layers_is_not_taken_for_that_of_the_run(colours: Path, other: dict[str, int]) -> None:
    config = FineTuneConfig(colours, colours.parent / "run", epochs=1)
    for network, wrong in ((network_with(), network_with(**other)), (network_with(**other), network_with())):
        out = colours.parent / f"run of {len(network)} and {network[0].weight.shape[0]}"
        fine_tune(replace(config, out=out), network=network, preprocessing=PREPROCESSING, export=False)
        with pytest.raises(ModelError, match=r"the layers of this network differ from those .*: use the same network"):
            fine_tune(replace(config, out=out, epochs=2), network=wrong, preprocessing=PREPROCESSING, export=False)
        for name in ("best", "last"):
            with pytest.raises(ModelError, match="the layers of this network differ from those that were trained"):
                load_run(out, name, network=wrong)


class WithDepths(nn.Module):
    """A network that has a module by the name of the head on the lower layers."""

    def __init__(self) -> None:
        super().__init__()
        self.depths, self.fc = nn.Conv2d(3, 8, 5, stride=2), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.depths(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["last layer", "all depths"])
@pytest.mark.parametrize("freeze", ["none", "head"])
@pytest.mark.parametrize("build", [network_with, WithDepths])
def test_a_network_of_ones_own_is_loaded_and_exported_as_it_was_trained(
    colours: Path, build: Callable[[], nn.Module], freeze: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimages.training.finetune.LOWER_LAYERS_SHARES", (share,))
    config = FineTuneConfig(colours, colours.parent / "run", epochs=1, freeze=freeze)
    network = build()
    result = fine_tune(config, network=deepcopy(network), preprocessing=PREPROCESSING)
    assert result.depths_share == (share if (build, freeze) == (network_with, "head") else 0.0)
    again = export_run(result.run, colours.parent / "again.onnx", network=deepcopy(network))  # compares the outputs
    assert again.class_names == result.classes
    found = evaluate(colours.parent / "again.onnx", result.run / "val.txt")
    assert found.accuracy.value == pytest.approx(result.val_accuracy)


@pytest.mark.parametrize("name", ["", "first", "Best", "best.safetensors"])
def test_a_run_has_the_checkpoints_best_and_last_only(exported: FineTuneResult, name: str) -> None:
    with pytest.raises(InputError, match=f"checkpoint is '{name}': it must be one of best, last"):
        load_run(exported.run, name)


class OfItsContents(Small):
    """A network whose layers depend on the values of the images, which ONNX's exporter refuses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_a_run_whose_network_cannot_be_exported_keeps_its_results(colours: Path) -> None:
    config, run = FineTuneConfig(colours, colours.parent / "run", epochs=1), colours.parent / "run"
    for _ in range(2):  # also of the finished run
        with pytest.raises(ExportError, match=r"PyTorch cannot convert OfItsContents to ONNX \(.+\): use the weights"):
            fine_tune(config, network=OfItsContents(), preprocessing=PREPROCESSING)
    assert not (run / "model.onnx").exists()
    result = fine_tune(config, network=OfItsContents(), preprocessing=PREPROCESSING, export=False)
    assert (result.onnx, result.val_images, result.epochs) == (None, 7, 1)
    assert draw_run(run).exists()
    assert load_run(run, network=OfItsContents()).class_names == tuple(COLOURS)


@pytest.mark.parametrize("missing", ["model.onnx", "report.html"])
def test_the_same_command_finishes_an_export_that_was_killed(exported: FineTuneResult, missing: str) -> None:
    config, run = config_for(exported.run.parent / "labels.txt", epochs=2), exported.run
    written = (run / "result.json").read_text()
    write_text_output(run / "result.json", json.dumps({**json.loads(written), "onnx": None}), overwrite=True)
    (run / ".export.killed").mkdir(exist_ok=True)  # a folder of the user
    (run / missing).unlink()
    assert fine_tune(config) == exported
    assert (run / "result.json").read_text() == written
    assert (run / missing).exists()
    assert (run / ".export.killed").exists()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_recipes_of_tutorials_are_settings(colours: Path, optimizer: str) -> None:
    config = config_for(colours, optimizer=optimizer, lr=0.01, schedule="exponential:0.5", epochs=2)
    fine_tune(config, export=False)
    assert [float(row["lr"]) for row in read_metrics(config.out)] == [0.01, 0.005]
    with pytest.raises(InputError, match=r"unknown schedule 'step:1.5:0.1': use cosine, exponential:0.97, step:30:0.1"):
        config_for(colours, schedule="step:1.5:0.1")
