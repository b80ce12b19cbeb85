"""The size, resize method and channels of a mean image are those of the network for which it is advised."""

import logging
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RunCli


@pytest.mark.parametrize(
    "command", ["mean data -o m.png --size {}", "augment data -o a.npz --size {}", "show data -o s.html --size {}"]
)
def test_commands_take_the_size_as_finetune_does(data: Path, invoke_cli: RunCli, command: str) -> None:
    invoke_cli(*command.format("24x16").split())
    if command.startswith("mean"):
        assert np.load("m.npy").shape == (3, 16, 24)
    if command.startswith("augment"):
        assert np.load("a.npz")["x"].shape == (8, 16, 24, 3)
    for wrong in ("0", "24x", "x", "-3", "1x2x3"):
        refused = invoke_cli(*command.format(wrong).split(), "--force", check=False)
        assert f"'{wrong}' is not a size in pixels" in refused.stderr


@pytest.mark.parametrize(
    ("settings", "before"),
    [
        ("--size 64x32", "--size 64"),
        ("--size 64", "--size 64 --resize crop"),
        ("--size 64", "--model cifar10_cnn"),
        ("--size 64 --resize squash", "--size 64"),
        ("--size 48x64 --resize letterbox --gray", "--size 32"),
        ("--gray", "--size 32"),
        ("", "--size 64"),
    ],
)
def test_the_advised_mean_image_is_accepted_without_a_warning(
    data: Path, invoke_cli: RunCli, caplog: pytest.LogCaptureFixture, settings: str, before: str
) -> None:
    words = ["finetune", "data", "--model", "cifar10_cnn", "--epochs", "1", *settings.split(), "--mean", "m.npy"]
    advice = f"mean data {before}"
    for number in range(3):  # the first advice may lead to a second one, about how the images are resized
        invoke_cli(*shlex.split(advice), "-o", "m.png")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trained = invoke_cli(*words, "-o", f"run{number}", check=False)
        said = [each.getMessage() for each in caplog.records if "recreate it" in each.getMessage()]
        if trained.returncode == 0 and not said:
            assert number > 0
            return
        text = said[0] if said else trained.stderr
        advice = text.rpartition("`mlimages ")[2].partition("`")[0].replace("LABELS", "data")
    pytest.fail(f"the advice does not help: {advice}")


def test_the_command_after_mean_trains_with_the_mean_image(
    data: Path, invoke_cli: RunCli, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = "--size 64x32", "--model cifar10_cnn --size 48 --resize crop --gray", "--model run1", "--model rgb"
    invoke_cli(*["finetune", "data", "--model", "lenet5", "--no-gray", "--epochs", "1", "-o", "rgb"])
    for number, options in enumerate(sizes):
        ended = invoke_cli("mean", "data", *options.split(), "-o", f"{number}.png")
        following = shlex.split(ended.stderr.splitlines()[-1].partition("next: mlimages ")[2])
        model = [] if "--model" in following else ["--model", "cifar10_cnn"]
        invoke_cli(*following, *model, "--epochs", "1", "-o", f"run{number}")
    assert "recreate it" not in caplog.text


def test_a_mean_image_in_colour_is_advised_for_a_network_whose_default_is_gray(
    data: Path, invoke_cli: RunCli, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["finetune", "data", "--model", "lenet5", "--no-gray", "--epochs", "1", "--mean", "m.npy", "-o", "run"]
    invoke_cli(*["mean", "data", "--size", "64", "-o", "m.png"])
    assert invoke_cli(*words, check=False).returncode == 1
    assert "recreate it with `mlimages mean LABELS --model lenet5 --no-gray`" in caplog.text
    caplog.clear()
    ended = invoke_cli(*["mean", "data", "--model", "lenet5", "--no-gray", "-o", "m.png"])
    assert ended.stderr.endswith("next: mlimages finetune data --model lenet5 --no-gray --mean m.npy\n")
    invoke_cli(*words)
    assert "recreate it" not in caplog.text


def test_a_run_folder_has_its_own_size(data: Path, invoke_cli: RunCli) -> None:
    refused = invoke_cli("mean", "data", "--model", "data", "--size", "8", check=False)
    assert (refused.returncode, "a run folder cannot be combined" in refused.stderr) == (2, True)
