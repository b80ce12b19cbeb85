"""A run that was stopped, however rudely, goes on as if it had not been."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mlimages.core import RunError
from mlimages.training import fine_tune, load_run, read_config
from mlimages.training.checkpoint_writer import Snapshots
from tests.training.test_finetune import colours, config_for  # noqa: F401  # a fixture among them

EPOCHS = 8


def rows_of(run: Path) -> list[str]:
    with (run / "metrics.csv").open() as lines:
        return [row["epoch"] for row in csv.DictReader(lines)]


def killed_in(run: Path, labels: Path, *, after: int) -> None:
    """Start training in another process and kill it once `after` epochs are written."""
    code = (
        "from mlimages.training import FineTuneConfig, fine_tune\n"
        f"fine_tune(FineTuneConfig(labels={str(labels)!r}, out={str(run)!r}, model='cifar10_cnn', weights='none',"
        f" freeze='none', epochs={EPOCHS}, seed=1, augment='light', batch_size=4), export=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "metrics.csv").exists() and len(rows_of(run)) >= after:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.train
def test_a_run_killed_in_mid_epoch_and_resumed_ends_with_the_same_weights(colours: Path) -> None:  # noqa: F811
    config = config_for(colours, epochs=EPOCHS, augment="light", batch_size=4)
    fine_tune(replace(config, out=colours.parent / "whole"), export=False)
    cut = colours.parent / "cut"
    killed_in(cut, colours, after=2)
    assert 2 <= len(rows_of(cut)) < EPOCHS
    (cut / ".export.abc").mkdir()  # had it died while it exported
    (cut / ".export.abc/model.onnx").touch()
    fine_tune(read_config(cut), export=False)
    assert not list(cut.glob(".*"))
    whole, resumed = (load_file(colours.parent / name / "last.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert rows_of(cut) == [str(epoch) for epoch in range(1, EPOCHS + 1)]


def test_a_run_stopped_between_any_two_files_goes_on_the_same(
    colours: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlimages.training import finetune

    config = config_for(colours, epochs=3)
    fine_tune(replace(config, out=colours.parent / "whole"), export=False)
    wanted = load_file(colours.parent / "whole" / "best.safetensors")
    for where, name in ((Snapshots, "save"), (finetune, "save_progress"), (finetune, "write_metrics")):
        run = colours.parent / name
        real, calls = getattr(where, name), []

        def stop(*args: object, real: object = real, calls: list[int] = calls, **options: object) -> None:
            real(*args, **options)  # type: ignore[operator]
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(where, name, stop)
            with pytest.raises(KeyboardInterrupt):
                fine_tune(replace(config, out=run), export=False)
        fine_tune(read_config(run), export=False)
        resumed = load_file(run / "best.safetensors")
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in wanted.items()), name
        assert rows_of(run) == ["1", "2", "3"]


def test_a_run_moved_elsewhere_is_gone_on_with_where_it_lies(colours: Path) -> None:  # noqa: F811
    fine_tune(config_for(colours, epochs=1), export=False)
    moved = colours.parent / "elsewhere"
    (colours.parent / "run").rename(moved)
    assert fine_tune(read_config(moved), export=False).run == moved


@pytest.mark.parametrize("spoil", ["config.json", "state.safetensors"])
def test_a_damaged_run_folder_is_one_clear_error(colours: Path, spoil: str) -> None:  # noqa: F811
    config = config_for(colours, epochs=1)
    fine_tune(config, export=False)
    (config.out / spoil).write_bytes(b"\x00" * 64)
    with pytest.raises(RunError, match=spoil):
        fine_tune(config, export=False)


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)


def test_training_stops_early_and_within_its_time(colours: Path) -> None:  # noqa: F811
    stopped = fine_tune(config_for(colours, epochs=500, early_stop=2, lr=1e-9), export=False)
    assert stopped.epochs == stopped.best_epoch + 2 < 500
    timed = replace(config_for(colours, epochs=500, time_budget_s=0.001), out=colours.parent / "timed")
    assert fine_tune(timed, export=False).epochs == 1
