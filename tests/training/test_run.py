"""A run that was stopped, however rudely, goes on as if it had not been."""

import json
import logging
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from mlimages.core import InputError, MlimagesError, RunError
from mlimages.inference import OnnxBundle
from mlimages.labels import label_dir_auto
from mlimages.networks import build_model
from mlimages.reports import RunFiles
from mlimages.training import fine_tune, finetune, load_run, read_config, run_export, run_images
from mlimages.training.checkpoints import (
    TrainingState,
    copy_trained_tensors,
    load_state,
    load_trained_tensors,
    save_checkpoints,
)
from mlimages.training.run import log_to_file
from mlimages.training.run_export import export_run, read_exported_bundle, warn_about_lost_options
from tests.conftest import RunCli, fork_server
from tests.run_folders import StopsAfter
from tests.training.conftest import config_for, read_metrics, write_colours

EPOCHS = 8


def epochs_of(run: Path) -> list[str]:
    return [row["epoch"] for row in read_metrics(run)]


def killed_in(run: Path, labels: Path, *, after: int) -> None:
    """Start training in another process and kill it once `after` epochs are written; it waits before the last one."""
    code = (
        "import signal\n"
        "from mlimages.training import FineTuneConfig, fine_tune\n"
        "class WaitsForTheKill:\n"
        "    def on_epoch_end(self, metrics):\n"
        f"        if metrics.epoch == {EPOCHS - 1}: signal.pause()\n"
        f"fine_tune(FineTuneConfig(labels={str(labels)!r}, out={str(run)!r}, model='cifar10_cnn', weights='none',"
        f" freeze='none', epochs={EPOCHS}, seed=1, augment='light', batch_size=4), export=False,"
        " callbacks=[WaitsForTheKill()])"
    )
    process = fork_server().start(["-c", code], labels.parent, dict(os.environ), torch=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((run / "metrics.csv").exists() and len(epochs_of(run)) >= after):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.train
def test_a_run_killed_in_mid_epoch_and_resumed_ends_with_the_same_weights(colours: Path) -> None:
    config = config_for(colours, epochs=EPOCHS, augment="light", batch_size=4)
    fine_tune(replace(config, out=colours.parent / "whole"), export=False)
    cut = colours.parent / "cut"
    killed_in(cut, colours, after=2)
    assert 2 <= len(epochs_of(cut)) < EPOCHS
    (cut / ".export.abc").mkdir()  # a person's
    fine_tune(read_config(cut), export=False)
    assert {path.name for path in cut.glob(".*")} == {".export.abc", ".mlimages-written"}
    assert_same(colours.parent / "whole", cut)
    assert epochs_of(cut) == [str(epoch) for epoch in range(1, EPOCHS + 1)]


def assert_same(one: Path, other: Path) -> None:
    """The networks of two runs are the same, to the bit."""
    for name in ("best.safetensors", "last.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class Killed(BaseException):
    """What a test raises where a process would be killed: nothing is written on the way out."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs that nothing stopped."""
    return fine_tune(config_for(write_colours(tmp_path_factory.mktemp("whole"))), export=False).run


def kill_at(patch: pytest.MonkeyPatch, name: str, *, call: int, before: bool) -> None:
    """Have the process die at a call of a function of `finetune`, before or after what it does."""
    real, calls = getattr(finetune, name), []

    def stop(*args: object) -> None:
        calls.append(1)
        if len(calls) < call or not before:
            real(*args)
        if len(calls) >= call:
            patch.setattr(finetune, "save_checkpoints", lambda *args: None)
            raise Killed

    patch.setattr(finetune, name, stop)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("name", "call"), [("save_state", 2), ("write_metrics", 2), ("write_metrics", 3)])
def test_a_run_killed_around_any_write_goes_on_the_same(
    colours: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int, before: bool
) -> None:
    cut = config_for(colours)
    with monkeypatch.context() as patch:
        kill_at(patch, name, call=call, before=before)
        with pytest.raises(Killed):
            fine_tune(cut, export=False)
    assert not (cut.out / "best.safetensors").exists()
    fine_tune(read_config(cut.out), export=False)
    assert_same(whole, cut.out)
    assert epochs_of(cut.out) == ["1", "2", "3"]


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("better", [True, False])
def test_both_networks_of_a_run_that_was_stopped_can_be_read(
    colours: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool, better: bool
) -> None:
    """Its best epoch is its last, or, at this learning rate, the closed-form head before it; one file is older."""
    options = {"weights": str(pretrained), "freeze": "conv4", "lr": 1e-4 if better else 10.0}
    config = config_for(colours, epochs=2, **options, out=tmp_path / "stopped")
    whole = replace(config, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # the same schedule, stopped after its first epoch: what is to be found
        fine_tune(whole, export=False, callbacks=[StopsAfter(1)])
    with monkeypatch.context() as patch:
        if killed:
            kill_at(patch, "write_metrics", call=1, before=False)
        with pytest.raises(Killed if killed else KeyboardInterrupt):
            fine_tune(config, export=False, callbacks=[StopsAfter(1)])
    assert (config.out / "best.safetensors").exists() is not killed
    for checkpoint in ("best", "last"):
        expected = load_file(whole.out / f"{checkpoint}.safetensors")
        for older in (None, pretrained):
            if older and killed:
                other_head = {name: tensor[:3].clone() for name, tensor in load_file(older).items() if "fc6" in name}
                save_file({**load_file(older), **other_head}, config.out / f"{checkpoint}.safetensors")
            run = load_run(config.out, checkpoint)
            found = run.network.state_dict()
            assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
            assert run.weights.name == ("state.safetensors" if killed else f"{checkpoint}.safetensors")


def test_whole_networks_are_written_every_ten_minutes_at_least(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(colours, epochs=2)
    monkeypatch.setattr(finetune, "NETWORK_SAVE_INTERVAL_S", 0)
    kill_at(monkeypatch, "save_state", call=2, before=True)
    with pytest.raises(Killed):
        fine_tune(config, export=False)
    plain = build_model("cifar10_cnn", num_classes=3, weights=config.out / "last.safetensors").network.state_dict()
    state = load_state(RunFiles(config.out))
    assert state is not None
    assert all(torch.equal(tensor, plain[name]) for name, tensor in state.trained_tensors.items())


def test_networks_with_tied_weights_and_every_kind_of_numbers_are_saved_whole(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last))
    network[1].weight = network[0].weight
    network.register_buffer("flag", torch.tensor(True))
    network.register_buffer("empty", torch.zeros(0, 3))
    network.register_buffer("not_saved", torch.ones(2), persistent=False)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8):
        network.register_buffer(f"as_{str(dtype)[6:]}", torch.arange(7).to(dtype).reshape(7, 1))
    state = TrainingState(
        trained_tensors=copy_trained_tensors(network), best_trained_tensors=copy_trained_tensors(network)
    )
    save_checkpoints(network, state, RunFiles(tmp_path))
    load_trained_tensors(network, state.trained_tensors)
    for path in (tmp_path / "best.safetensors", tmp_path / "last.safetensors"):
        found = load_file(path)
        assert found.keys() == network.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in network.state_dict().items())


@pytest.mark.train
@pytest.mark.parametrize("model", ["squeezenet1_1", "timm:test_resnet"])
def test_best_and_last_load_in_the_library_that_made_the_network(colours: Path, model: str) -> None:
    config = config_for(colours, model=model, size=64, epochs=1)
    fine_tune(config, export=False)
    for name in ("best.safetensors", "last.safetensors"):
        if model.startswith("timm:"):
            timm.create_model(model.removeprefix("timm:"), num_classes=3, checkpoint_path=str(config.out / name))
        else:
            torchvision.models.get_model(model, num_classes=3).load_state_dict(load_file(config.out / name))


def test_a_run_moved_elsewhere_is_gone_on_with_where_it_lies(colours: Path) -> None:
    fine_tune(config_for(colours, epochs=1), export=False)
    moved = colours.parent / "elsewhere"
    (colours.parent / "run").rename(moved)
    assert fine_tune(read_config(moved), export=False).run == moved
    (deeper := moved.parent / "deep/er").mkdir(parents=True)
    moved.rename(deeper / "run")
    with pytest.raises(
        InputError,
        match=r"36 of 36 images are missing: train\.txt and val\.txt in .*run contain paths relative to that folder",
    ):
        fine_tune(replace(read_config(deeper / "run"), epochs=2), export=False)


@pytest.mark.parametrize("spoil", ["config.json", "state.safetensors"])
def test_a_damaged_run_folder_is_one_clear_error(colours: Path, spoil: str) -> None:
    config = config_for(colours, epochs=1)
    fine_tune(config, export=False)
    (config.out / "result.json").unlink()  # a run that has ended needs its state no more
    (config.out / spoil).write_bytes(b"\x00" * 64)
    with pytest.raises(RunError, match=spoil):
        fine_tune(config, export=False)


def test_the_state_of_a_run_without_a_head_on_all_depths_is_read(tmp_path: Path) -> None:
    figures = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
    metadata = {"version": 2, "history": [{**figures, "seconds": 1.0}], "best_epoch": 1, "best_score": [0.5, -1.0],
                "probe_accuracy": None, "frozen_digest": "", "seconds": 1.0}  # fmt: skip
    save_file({"model.w": torch.ones(1)}, tmp_path / "state.safetensors", metadata={"mlimages": json.dumps(metadata)})
    state = load_state(RunFiles(tmp_path))
    assert state is not None
    assert (state.best_epoch, state.lower_layers_share, dict(state.prediction_set_thresholds)) == (1, 0.0, {})


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)


def test_training_stops_early_and_within_its_time_and_says_so(colours: Path, caplog: pytest.LogCaptureFixture) -> None:
    early = config_for(colours, epochs=500, early_stop=2, lr=1e-9)
    stopped = fine_tune(early, export=False)
    assert stopped.epochs == stopped.best_epoch + 2 < 500
    reason = "the validation score has not improved for 2 epochs (--early-stop 2)"
    assert f"stopped after {stopped.epochs} of 500 epochs: {reason}" in caplog.text
    fine_tune(replace(early, epochs=600), export=False)  # trains no epoch
    assert f"stopped after {stopped.epochs} of 600 epochs: {reason}" in caplog.text
    timed = config_for(colours, epochs=500, time_budget_s=0.001, out=colours.parent / "timed")
    assert fine_tune(timed, export=False).epochs == 1
    assert "stopped after 1 of 500 epochs: the time limit is reached (--time-budget 0.001s)" in caplog.text


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "freeze": ({"freeze": "conv9"}, "no layer 'conv9'"),
    "mean": ({"mean": "nowhere.npy"}, "nowhere.npy cannot be read as a mean image"),
    "size of the mean": ({"mean": "small.npy"}, "but the network expects"),
    "NaN in the mean": ({"mean": "nan.npy"}, "NaN or infinite"),
    "device": ({"device": "mps"}, "PyTorch finds no mps device"),
    "spelling of the device": ({"device": "gpu"}, "device is 'gpu': it must be one of auto, cpu, cuda, mps"),
    "optimizer": ({"optimizer": "adm"}, "optimizer is 'adm': it must be one of adamw, adam, sgd"),
    "lr": ({"lr": -1.0}, "lr is -1.0: it must be at least 0"),
    "lr of no number": ({"lr": float("nan")}, "lr is nan: it must be at least 0"),
    "momentum": ({"momentum": 1.5}, "momentum is 1.5: it must be from 0 to 1"),
    "two numbers in std": ({"std": (1.0, 2.0)}, "std is 1.0, 2.0: it must be one or three numbers greater than 0"),
    "zeros in std": ({"std": (0.0, 0.0, 0.0)}, "std is 0.0, 0.0, 0.0: it must be one or three numbers greater than 0"),
    "std of other channels": ({"model": "lenet5", "std": (1.0, 1.0, 1.0)}, "std has 3 values, but the network has 1"),
    "weights": ({"weights": "nowhere.pth"}, "no weights file at nowhere.pth"),
    "NaN in weights": ({"weights": "nan.safetensors"}, "nan.safetensors is damaged: NaN or infinity in conv2.weight"),
    "model": ({"model": "cifar10"}, "unknown model 'cifar10'"),
    "size": ({"size": 3}, "does not support 3 x 3 px"),
    "val": ({"val": Path("nowhere.txt")}, "nowhere.txt"),
    "out": ({"out": Path("labels.txt")}, "labels.txt is a file: choose another output folder with -o"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_needs_no_image_is_refused_before_one_is_read_and_leaves_nothing(
    colours: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(colours.parent)
    np.save("small.npy", np.zeros((3, 8, 8), np.float32))
    np.save("nan.npy", np.full((3, 32, 32), np.nan, np.float32))
    state = build_model("cifar10_cnn", num_classes=3, weights="none").network.state_dict()
    state["conv2.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, "nan.safetensors")
    monkeypatch.setattr(run_images, "decode_images_distributed", None)
    before = sorted(colours.parent.rglob("*"))
    with pytest.raises(MlimagesError, match=re.escape(message)):
        fine_tune(config_for(colours, **options))
    assert sorted(colours.parent.rglob("*")) == before


def test_a_folder_without_an_epoch_that_ended_is_taken_by_a_corrected_command(
    colours: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = config_for(colours, seed=3, batch_size=5, mean="none")
    with monkeypatch.context() as patch:
        kill_at(patch, "save_state", call=1, before=True)
        with pytest.raises(Killed):
            fine_tune(wrong, export=False)
    assert (wrong.out / "config.json").exists()
    fine_tune(config_for(colours), export=False)
    assert_same(whole, wrong.out)
    for name in ("train.txt", "val.txt", "left_out.tsv"):
        assert (wrong.out / name).read_text() == (whole / name).read_text()


@pytest.mark.parametrize("name", ["a\u2028b.png", "a\x85\x0cb.png", 'a "b".png', "a\tb.png", '"a.png'])
def test_an_image_of_any_name_that_was_left_out_is_no_change(
    colours: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (colours.parent / "set/red" / name).write_bytes(b"<!doctype html>")
    labels = label_dir_auto(colours.parent / "set").labels.write(colours.parent / "all.txt")
    config = config_for(labels.path, epochs=1)
    first = fine_tune(config, export=False)
    assert [(Path(each.path).name, each.fault) for each in first.broken] == [(name, "not-an-image")]
    assert first.train_images + first.val_images == 36
    fine_tune(config, export=False)
    assert "has changed since" not in caplog.text


def test_a_left_out_file_that_is_no_table_is_ignored(colours: Path) -> None:
    config = config_for(colours, epochs=1)
    fine_tune(config, export=False)
    (config.out / "left_out.tsv").write_text(f'"{"a" * 200_000}')
    fine_tune(config, export=False)


def test_a_finished_run_started_again_says_so_and_does_nothing(
    colours: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(colours, epochs=2)
    first = fine_tune(config, export=False)
    files = {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}
    monkeypatch.setattr(finetune, "read_inputs", None)
    assert fine_tune(config, export=False) == first
    assert "is already finished" in caplog.text
    assert "has changed" not in caplog.text
    rows = colours.read_text().splitlines(keepends=True)
    colours.write_text("".join([rows[0].replace(" 0", " 1"), *rows[2:]]))  # one relabelled, one taken out
    assert fine_tune(config, export=False) == first
    assert f"{colours} has changed since {config.out} was started (rows added: 1, removed: 2)" in caplog.text
    colours.unlink()
    assert fine_tune(config, export=False) == first
    assert {path: path.stat().st_mtime_ns for path in config.out.rglob("*")} == files


def test_a_finished_run_is_given_more_epochs_and_goes_on(colours: Path) -> None:
    config = config_for(colours, epochs=2)
    first = fine_tune(config, export=False)
    more = replace(read_config(config.out), epochs=4)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(more, export=False, callbacks=[StopsAfter(3)])
    assert not (config.out / "result.json").exists()
    assert read_config(config.out).epochs == 4
    last = fine_tune(read_config(config.out), export=False)
    assert (first.epochs, last.epochs) == (2, 4)
    assert epochs_of(config.out) == ["1", "2", "3", "4"]
    with pytest.raises(RunError, match="epochs was 4 and is now 3"):
        fine_tune(replace(config, epochs=3), export=False)


def test_a_loss_that_is_not_finite_stops_the_run_at_once_and_names_the_learning_rate(colours: Path) -> None:
    config = config_for(colours, epochs=3, lr=1e30, optimizer="sgd", batch_size=4)
    with pytest.raises(
        RunError, match=r"not finite in epoch 1, at a peak learning rate of 1e\+30: leave out --lr, or try"
    ):
        fine_tune(config, export=False)
    assert not (config.out / "best.safetensors").exists()


def test_a_run_whose_weights_were_changed_is_not_gone_on_with(colours: Path, tmp_path: Path) -> None:
    config = config_for(colours, weights=str(tmp_path / "w.safetensors"), freeze="conv4", epochs=2)
    for seed, error in ((1, KeyboardInterrupt), (2, RunError)):
        state = build_model("cifar10_cnn", num_classes=10, weights="none", seed=seed).network.state_dict()
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(error, match="differ from those that this run started with" if error is RunError else None):
            fine_tune(config, export=False, callbacks=[StopsAfter(1)])


@pytest.mark.train
def test_beside_resume_the_command_takes_epochs_and_names_all_else(colours: Path, run_cli: RunCli) -> None:
    fine_tune(config_for(colours, epochs=1))
    refused = run_cli("finetune", "--resume", "run", "--lr", "0.1", "--freeze", "none", check=False)
    assert refused.returncode == 1
    assert "of which only --epochs can be changed: omit --freeze, --lr" in refused.stderr
    done = run_cli("finetune", "--resume", "run", "--epochs", "2", "--json")
    assert json.loads(done.stdout)["epochs"] == 2


def test_extending_a_run_names_the_export_options_that_are_lost(
    tmp_path: Path, cnn_bundle: OnnxBundle, caplog: pytest.LogCaptureFixture
) -> None:
    files, now = RunFiles(tmp_path / "run"), cnn_bundle
    warn_about_lost_options(files, None, now)
    warn_about_lost_options(files, now, now)
    assert not caplog.messages
    before = replace(now, temperature=2.0, unknown_below=0.5, exact_resize=True)
    warn_about_lost_options(files, replace(before, provenance=replace(now.provenance, target="web")), now)
    assert "previously exported with --calibrate --unknown=FRACTION --exact --target=web: " in caplog.text
    assert read_exported_bundle(files) is None


@pytest.mark.train
def test_a_run_compares_a_large_network_on_a_few_images_and_the_command_on_all(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_export, "LARGE_NETWORK_BYTES", 100)
    monkeypatch.setattr(run_export, "LARGE_NETWORK_IMAGES", 3)
    result = fine_tune(config_for(colours, epochs=1))
    provenance = OnnxBundle.read(result.run / "model.onnx").provenance
    assert provenance.num_evaluated_images == result.val_images > 3
    assert provenance.parity
    assert provenance.parity.num_images == 3
    whole = export_run(result.run, colours.parent / "whole.onnx").provenance.parity
    assert whole
    assert whole.num_images == result.val_images


def test_another_path_to_the_same_labels_is_no_other_setting(tmp_path: Path, colours: Path) -> None:
    config = config_for(colours, epochs=1)
    fine_tune(config, export=False)
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to(colours.parent)
    for folder in (tmp_path / "inner" / "..", tmp_path / "link"):
        fine_tune(replace(config, labels=folder / colours.name), export=False)
    (tmp_path / "other.txt").write_text(colours.read_text())
    with pytest.raises(RunError, match="other settings"):
        fine_tune(replace(config, labels=tmp_path / "other.txt"), export=False)


@pytest.mark.parametrize("propagates", [True, False])
def test_a_log_file_leaves_the_logger_as_it_was_and_the_application_its_warnings(
    propagates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("mlimages")
    monkeypatch.setattr(logger, "propagate", propagates)
    before = logger.level, logger.propagate, [*logger.handlers]
    with log_to_file(tmp_path / "log.txt"):
        logger.info("first epoch")
        logger.warning("slow")
    assert caplog.messages == ["slow"]
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert "first epoch" in (tmp_path / "log.txt").read_text()
