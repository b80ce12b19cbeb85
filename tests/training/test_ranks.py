"""Several processes, started by torchrun, train as one does."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlimages import label_dir_auto
from mlimages.core import cache_dir
from mlimages.networks import build_model
from mlimages.training import FineTuneConfig, fine_tune, read_config
from mlimages.training.row_store import KEY_BYTES
from mlimages.training.run import EpochFigures
from tests.training.test_finetune import colours, config_for  # noqa: F401  # a fixture among them

pytestmark = pytest.mark.train

# The whole of a step in full precision, so that only the order of sums differs.
JOB = """
import json, os, torch
from mlimages import label_dir_auto
from mlimages.files import cache_dir
from mlimages.learning import FineTuneConfig, fine_tune
torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: False
with open(f"pid{os.environ['RANK']}", "w") as pid:
    pid.write(str(os.getpid()))
for line in open("configs.jsonl"):
    fine_tune(FineTuneConfig.from_dict(json.loads(line.replace("RANK", os.environ["RANK"]))), export=False)
"""
CNN = {"model": "cifar10_cnn", "optimizer": "sgd"}
KINDS: Mapping[str, Mapping[str, object]] = {
    "pixels": {**CNN, "weights": "none", "freeze": "none", "batch_size": 8},
    "features": {**CNN, "freeze": "conv4", "augment": "light", "class_weights": "balanced", "batch_size": 7},
    "batch norm": {"model": "resnet18", "weights": "none", "size": 64, "freeze": "layer3", "lr": 1e-4, "epochs": 1},
    "dropped branches": {
        "model": "efficientnet_b0",
        "weights": "none",
        "size": 64,
        "freeze": "features.5",
        "lr": 1e-5,
        "epochs": 1,
        "batch_size": 12,
    },
}


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.fixture
def configs(colours: Path, tmp_path: Path) -> dict[str, FineTuneConfig]:  # noqa: F811
    weights = tmp_path / "w.safetensors"
    save_file(build_model("cifar10_cnn", classes=10, weights="none", seed=9).network.state_dict(), weights)
    shared = {"weights": str(weights), "lr": 0.01, "optimizer": "sgd"}
    return {kind: config_for(colours, **{**shared, **options}) for kind, options in KINDS.items()}


def torchrun(processes: int, configs: list[FineTuneConfig], folder: Path) -> subprocess.Popen[str]:
    (folder / "job.py").write_text(JOB)
    (folder / "configs.jsonl").write_text("".join(f"{config.to_json()}\n" for config in configs))
    return started(["--nproc-per-node", str(processes), "job.py"], folder)


def started(words: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows_of(run: Path) -> int:
    return len((run / "metrics.csv").read_text().splitlines()) - 1 if (run / "metrics.csv").exists() else 0


def assert_same_weights(one: Path, other: Path, *, within: float = 1e-4) -> None:
    """Within a share of each tensor's largest number, or of one where only rounding makes them other than 0."""
    others = load_file(other / "last.safetensors")
    for name, tensor in load_file(one / "last.safetensors").items():
        worst = float((tensor.float() - others[name].float()).abs().max())
        assert worst <= within * float(tensor.float().abs().max()) + 1e-5, (name, worst)


def assert_computed_once(room: str) -> None:
    """What the processes keep on disk each has computed in equal part, and nothing twice."""
    writers = []
    for folder in cache_dir(room).iterdir():
        written = [keys.read_bytes() for keys in folder.glob("*.keys")]
        keys = [part[at : at + KEY_BYTES] for part in written for at in range(0, len(part), KEY_BYTES)]
        assert len(keys) == len(set(keys))
        assert len({*map(len, written)}) == 1
        writers.append(len(written))
    assert max(writers) == 2


class StopsAfter:
    """A callback that interrupts a run."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def epoch_ended(self, figures: EpochFigures) -> None:
        if figures.epoch == self._epoch:
            raise KeyboardInterrupt


def test_two_processes_give_the_weights_and_figures_of_one(configs: dict[str, FineTuneConfig], tmp_path: Path) -> None:
    """Dropout, batch norm, dropped branches, a closed-form head, class weights, an uneven last batch, a resumed run."""
    resumed = replace(configs["features"], out=tmp_path / "two" / "resumed")
    with pytest.raises(KeyboardInterrupt):
        fine_tune(resumed, export=False, callbacks=[StopsAfter(1)])
    runs = {kind: replace(config, out=tmp_path / "two" / kind) for kind, config in configs.items()}
    job = torchrun(2, [*runs.values(), resumed], tmp_path)
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, said
    assert_computed_once("pixels")
    assert_computed_once("features")
    for kind, config in configs.items():
        alone = fine_tune(replace(config, out=tmp_path / "one" / kind), export=False)
        assert_same_weights(tmp_path / "one" / kind, tmp_path / "two" / kind)
        figures = json.loads((tmp_path / "two" / kind / "result.json").read_text())
        assert figures["val_accuracy"] == alone.val_accuracy
        assert (figures["train_images"], figures["val_images"]) == (alone.train_images, alone.val_images)
        assert (tmp_path / "two" / kind / "log.txt").read_text().count("epoch 1: ") == 1, "the first alone writes"
        assert (tmp_path / "two" / kind / "val.txt").read_text() == (alone.run / "val.txt").read_text()
    assert_same_weights(tmp_path / "one" / "features", resumed.out)


def test_a_process_that_dies_ends_the_job_and_one_alone_goes_on(
    configs: dict[str, FineTuneConfig], tmp_path: Path
) -> None:
    config = replace(configs["pixels"], epochs=12, batch_size=4, out=tmp_path / "two")
    job = torchrun(2, [config], tmp_path)
    while job.poll() is None and rows_of(config.out) < 2:
        pass
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGKILL)
    said, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "of the job's is gone" in said or "another process of this job is gone" in said, said
    assert "mlimages finetune --resume" in said
    before = rows_of(config.out)
    assert 2 <= before < 12
    fine_tune(read_config(config.out), export=False)
    fine_tune(replace(config, out=tmp_path / "one"), export=False)
    assert_same_weights(tmp_path / "one", config.out, within=1e-3)


def test_processes_that_see_different_label_files_say_so(configs: dict[str, FineTuneConfig], tmp_path: Path) -> None:
    lines = configs["pixels"].labels.read_text().splitlines(keepends=True)
    for number in range(2):
        (tmp_path / f"labels{number}.txt").write_text("".join(lines[number:]))
        (tmp_path / f"labels{number}_class_def.txt").write_text("0 blue\n1 green\n2 red\n")
    said, _ = torchrun(2, [replace(configs["pixels"], labels=tmp_path / "labelsRANK.txt")], tmp_path).communicate()
    assert "each see another label files and run folder: put it on a disk that all machines share" in said


def test_what_ends_all_processes_alike_is_said_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.jpg").write_bytes(b"no picture")
    labels = label_dir_auto(tmp_path / "set").labels.write(tmp_path / "labels.txt")
    words = ["--nproc-per-node", "2", "-m", "mlimages", "finetune", str(labels.path), "--model", "lenet5"]
    said, _ = started([*words, "--weights", "none", "--freeze", "none", "-o", "run"], tmp_path).communicate()
    assert said.count("mlimages: class 'a' has 1 picture to train on") == 1, said
