"""What --mean, --std, --scale, --bgr and --gray make of an image, in training and in the ONNX file."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mlimages.core import DEFAULT_MODEL, ImageProperty, InputError, Normalization, Preprocessing, RunError
from mlimages.dataset import TrainingData
from mlimages.images import load_pixels
from mlimages.inference import Predictor
from mlimages.labels import LabelFile
from mlimages.networks import Normalize, build_model
from mlimages.reports import RunFiles
from mlimages.training import FineTuneConfig, TrainedRun, fine_tune, load_run
from mlimages.training.inputs import CustomNetwork, read_inputs
from tests.conftest import RunCli
from tests.training.conftest import config_for

Numbers = NDArray[np.float64]
CUSTOM_PREPROCESSING = Preprocessing(ImageProperty(32), Normalization(mean=(0.5,) * 3, std=(0.5,)))
MEAN = np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8)


def training_mean(run: Path) -> Numbers:
    pixels = [load_pixels(item.path, load_run(run).preprocessing.image) for item in LabelFile(run / "train.txt")]
    return np.mean(pixels, axis=(0, 1, 2))


FORMULAS: dict[str, tuple[dict[str, object], Callable[[Numbers, Path], Numbers]]] = {
    "as the network says": ({}, lambda x, run: x / 255),
    "mean image as numbers": ({"mean": "mean.npy"}, lambda x, run: (x - MEAN) / 255),
    "mean image as an image": ({"mean": "mean.png"}, lambda x, run: (x - MEAN) / 255),
    "mean by channel": ({"mean": "channel"}, lambda x, run: (x - training_mean(run)) / 255),
    "no mean": ({"mean": "none"}, lambda x, run: x / 255),
    "std by channel": ({"std": (0.2, 0.3, 0.4)}, lambda x, run: x / 255 / [0.2, 0.3, 0.4]),
    "one std": ({"std": (0.5,)}, lambda x, run: x / 255 / 0.5),
    "scale": ({"scale": 16.0}, lambda x, run: x / 16),
    "blue first": ({"bgr": True}, lambda x, run: x[..., ::-1] / 255),
    "gray": ({"gray": True}, lambda x, run: x / 255),
    "all": (
        {"mean": "channel", "std": (0.2, 0.3, 0.4), "scale": 127.5, "bgr": True},
        lambda x, run: ((x - training_mean(run)) / 127.5 / [0.2, 0.3, 0.4])[..., ::-1],
    ),
}


@pytest.mark.parametrize(("options", "formula"), FORMULAS.values(), ids=FORMULAS)
def test_each_option_makes_the_numbers_that_it_promises(
    colours: Path, options: dict[str, object], formula: Callable[[Numbers, Path], Numbers]
) -> None:
    write_mean(colours.parent)
    if str(options.get("mean", "")).startswith("mean."):
        options = {**options, "mean": str(colours.parent / str(options["mean"]))}
    result = fine_tune(config_for(colours, epochs=1, **options), export=False)
    loaded = load_run(result.run)
    assert loaded.results["val_accuracy"] == result.val_accuracy
    assert_answers(loaded, result.run, formula)


CUSTOM: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "size": ({"size": (40, 24)}, {"width": 40, "height": 24}),
    "resize": ({"resize": "squash"}, {"resize": "squash"}),
    "gray": ({"gray": True}, {"gray_scale": True}),
    "mean": ({"mean": "none"}, {"mean": [0.0, 0.0, 0.0]}),
    "mean image": ({"mean": "mean.npy"}, {"mean_image": "mean.npy"}),
    "std": ({"std": (3.0,)}, {"std": [3.0]}),
    "scale": ({"scale": 127.5}, {"scale": 127.5, "mean": [1.0, 1.0, 1.0]}),
    "bgr": ({"bgr": True}, {"bgr": True}),
}


@pytest.mark.parametrize(
    ("options", "normalization", "message"),
    [
        ({"model": "alexnet"}, {}, "model 'alexnet' with weights 'default' cannot be combined with a custom network"),
        ({"weights": "w.npz"}, {}, "with weights 'w.npz' cannot be combined with a custom network"),
        ({}, {"mean_image": "mean.npy"}, r"\(mean_image='mean.npy'\) is only the name .* FineTuneConfig\(mean=\)"),
    ],
)
def test_what_a_custom_network_would_not_use_is_refused_before_anything_is_written(
    colours: Path, options: dict[str, Any], normalization: dict[str, Any], message: str
) -> None:
    write_mean(colours.parent)
    preprocessing = Preprocessing(ImageProperty(32), Normalization(**normalization))
    config = FineTuneConfig(colours, colours.parent / "run", epochs=1, **options)
    with pytest.raises(InputError, match=message):
        fine_tune(config, network=custom_network(), preprocessing=preprocessing)
    assert not config.out.exists()


def test_the_mean_image_that_is_advised_for_a_custom_network_is_that_of_its_preprocessing(
    colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = colours.parent / "mean.png"
    TrainingData(colours, ImageProperty(32, resize="crop")).make_mean_image(path)
    config = FineTuneConfig(colours, "run", freeze="none", mean=str(path.with_suffix(".npy")))
    custom = CustomNetwork(custom_network(), CUSTOM_PREPROCESSING)
    read_inputs(config, RunFiles(config.out), custom)
    (warning,) = caplog.messages
    advice = warning.rpartition("recreate it with ")[2].strip("`")
    names = {"TrainingData": TrainingData, "ImageProperty": ImageProperty, "LABELS": colours, "PATH": path}
    eval(advice.replace("PATH", "PATH, overwrite=True"), names)
    read_inputs(config, RunFiles(config.out), custom)
    assert caplog.messages == [warning]


@pytest.mark.parametrize(("options", "changed"), CUSTOM.values(), ids=CUSTOM)
def test_options_replace_values_of_the_preprocessing_of_a_custom_network_which_is_resumed_with_no_other(
    colours: Path, options: dict[str, Any], changed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mean(colours.parent)
    monkeypatch.chdir(colours.parent)
    config = FineTuneConfig(colours, "run", epochs=1, **options)
    fine_tune(config, network=custom_network(), preprocessing=CUSTOM_PREPROCESSING, export=False)
    before = Path("run/config.json").read_text()
    found, given = json.loads(before)["preprocessing"], json.loads(json.dumps(asdict(CUSTOM_PREPROCESSING)))
    flat, flat_given = ({**each["image"], **each["normalization"]} for each in (found, given))
    assert {name: value for name, value in flat.items() if value != flat_given[name] and name != "shorter_px"} == {
        name: value for name, value in changed.items() if value != flat_given[name]
    }
    stored, config = load_run(config.out, network=custom_network()).preprocessing, replace(config, epochs=2)
    other = replace(CUSTOM_PREPROCESSING, image=replace(CUSTOM_PREPROCESSING.image, interpolation="bicubic"))
    with pytest.raises(RunError, match=r"differs .*interpolation was 'bilinear' and is now 'bicubic'"):
        fine_tune(config, network=custom_network(), preprocessing=other)
    if "bgr" not in options:
        other = replace(CUSTOM_PREPROCESSING, normalization=replace(CUSTOM_PREPROCESSING.normalization, bgr=True))
        with pytest.raises(RunError, match=r"of Sequential differs .*bgr was False and is now True"):
            fine_tune(config, network=custom_network(), preprocessing=other)
    assert Path("run/config.json").read_text() == before
    for epochs, same in ((2, stored), (3, CUSTOM_PREPROCESSING)):
        config = replace(config, epochs=epochs)
        assert fine_tune(config, network=custom_network(), preprocessing=same, export=False).epochs == epochs


def custom_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3))


def test_the_command_line_hands_them_on_and_the_onnx_file_keeps_them(colours: Path, invoke_cli: RunCli) -> None:
    write_mean(colours.parent)
    options = ["--mean", "mean.npy", "--std", "0.2,0.3,0.4", "--scale", "127.5", "--bgr"]
    invoke_cli("finetune", "labels.txt", "-o", "run", "--model", "cifar10_cnn", "--weights", "none", "--freeze", "none",
            "--epochs", "1", *options)  # fmt: skip
    again = invoke_cli("mean", "labels.txt", "--model", "run", "-o", "again.png")
    assert "--model cifar10_cnn --size 32 --mean again.npy" in again.stderr
    run = colours.parent / "run"
    expected = assert_answers(load_run(run), run, lambda x, run: ((x - MEAN) / 127.5 / [0.2, 0.3, 0.4])[..., ::-1])
    predictor = Predictor(run / "model.onnx")
    served = predictor.compute_probabilities([predictor.decode(path)[0] for path in expected])
    assert np.allclose(served, [*expected.values()], atol=1e-4)


def write_mean(folder: Path) -> None:
    np.save(folder / "mean.npy", MEAN.transpose(2, 0, 1).astype(np.float32))
    Image.fromarray(MEAN).save(folder / "mean.png")


def assert_answers(
    loaded: TrainedRun, run: Path, formula: Callable[[Numbers, Path], Numbers]
) -> dict[Path, list[float]]:
    """The run's own predictions are those of its network on the numbers that `formula` gives for (N, H, W, C)."""
    image = loaded.preprocessing.image
    with (run / "val_predictions.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    paths = [run / row["path"] for row in rows]
    expected = [[float(row[name]) for name in loaded.class_names] for row in rows]
    pixels = np.stack([load_pixels(path, image) for path in paths])  # (N, H, W, C)
    wanted = torch.from_numpy(formula(pixels.astype(np.float64), run).transpose(0, 3, 1, 2).copy()).float()
    assert torch.allclose(
        Normalize(loaded.preprocessing.normalization, loaded.mean_image)(torch.from_numpy(pixels)), wanted, atol=1e-4
    )
    network = build_model("cifar10_cnn", num_classes=3, weights=run / "best.safetensors", gray=image.gray_scale).network
    assert torch.allclose(network(wanted).softmax(1), torch.tensor(expected), atol=1e-4)
    assert not loaded.network.training
    assert torch.equal(loaded.network(wanted), network(wanted))
    return dict(zip(paths, expected, strict=True))


@pytest.mark.parametrize("mean", ["", "none", "channel", "mean.png"])
def test_a_network_for_color_images_gets_the_gray_channel_three_times_with_any_mean(
    mean: str, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(MEAN[..., 0]).save(colours.parent / "mean.png")
    options = {"mean": str(colours.parent / mean) if mean.endswith(".png") else mean, "gray": True, "size": 32}
    config = config_for(colours, model=DEFAULT_MODEL, weights="default", freeze="head", epochs=1, **options)
    result = fine_tune(config, export=False)
    assert load_run(result.run).preprocessing.input_shape == (3, 32, 32)
    assert result.probe_accuracy is not None
    assert "cannot be cached" not in caplog.text
