"""The command in an exported file, which repeats the run."""

import shlex
from pathlib import Path

import pytest

from mlimages import training
from mlimages.core import ImageProperty, InputError, Normalization, Preprocessing
from mlimages.reports import RunFiles, RunFolder, read_settings
from mlimages.training import FineTuneConfig
from mlimages.training.run import write_settings
from mlimages.training.run_export import make_finetune_command
from tests.conftest import RunCli
from tests.training.conftest import config_for


def command_of(config: FineTuneConfig) -> str:
    """The command for a run with these settings."""
    preprocessing, files = Preprocessing(ImageProperty(32), Normalization()), RunFiles(config.out)
    write_settings(files, config, preprocessing)
    stored = read_settings(files)
    return make_finetune_command(
        RunFolder(config.out, stored["config"], stored["defaults"], preprocessing, ("a", "b"), (), None)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.0, "momentum": 0.0, "optimizer": "sgd"},
        {"cache": False},
        {"gray": True, "bgr": False},
        {"gray": False, "bgr": True},
        {"size": 96},
        {"size": (96, 64)},
        {"std": (0.2, 0.3, 0.4), "mean": "channel", "scale": 127.5},
        {"mean": "means/mean.npy", "weights": "net.pt"},
        {"class_from": "/([a-z]+)/", "images": "set"},
        {"class_from": "set/../([a-z]+)"},
        {"time_budget_s": 5400.0, "early_stop": 3, "lr": 0.01, "schedule": "step:30:0.1", "rotate_deg": 10.0},
        {"skip_unavailable": True},
    ],
    ids=str,
)
def test_the_command_of_a_run_has_all_its_settings(
    settings: dict[str, object], colours: Path, invoke_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, given = config_for(colours, **settings), list[FineTuneConfig]()

    def record(config: FineTuneConfig, **_: object) -> None:
        given.append(config)
        raise InputError("recorded")

    monkeypatch.setattr(training, "fine_tune", record)
    monkeypatch.setattr("mlimages.cli.train.open_splits", lambda *_: {})
    program, *words = shlex.split(command_of(config))
    assert invoke_cli(*words, check=False).stderr.endswith("recorded\n")
    assert (program, [each.to_json() for each in given]) == ("mlimages", [config.to_json()])


def test_a_run_that_no_command_repeats_has_none(colours: Path) -> None:
    assert command_of(config_for(colours, val_share=0.3)) == ""


@pytest.mark.parametrize("path", ["{}/secret/labels.txt", "../secret/labels.txt", "runs/../../secret/labels.txt"])
def test_a_command_discloses_no_folder_outside_the_current_one(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = FineTuneConfig(path.format(tmp_path), tmp_path / "here/run")
    assert command_of(config) == "mlimages finetune labels.txt -o run"
