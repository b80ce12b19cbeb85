"""Several training processes, started by torchrun or by RANK and WORLD_SIZE, give the weights of one."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlimages.core import InputError, RunError, cache_dir
from mlimages.networks import build_model, freeze
from mlimages.reports import RunFiles
from mlimages.training import FineTuneConfig, distributed, fine_tune, read_config
from mlimages.training.array_store import KEY_BYTES
from tests.conftest import fork_server
from tests.forked import Forked
from tests.run_folders import StopsAfter
from tests.training.conftest import config_for, read_metrics

pytestmark = pytest.mark.train

# Forward passes in full precision, so that only the order of sums differs between runs.
FULL_PRECISION = "torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: False"
JOB = f"""
import json, os, torch
from mlimages.training import FineTuneConfig, fine_tune
{FULL_PRECISION}
torch.set_num_threads(1)  # as torchrun has it: the processes share the cores
rank = os.environ["RANK"]
for line in open("configs.jsonl"):
    result = fine_tune(FineTuneConfig.from_dict(json.loads(line.replace("RANK", rank))), export=False)
    with open(f"accuracies{{rank}}.txt", "a") as out:
        print(result.val_accuracy, file=out)
"""
COMMAND = f"""
import os, signal, torch
from mlimages.cli.main import main
from mlimages.training.loop import Trainer
train_epoch, epochs = Trainer.train_epoch, iter(range(12))
Trainer.train_epoch = lambda *args, **kw: signal.pause() if next(epochs) == 11 else train_epoch(*args, **kw)
{FULL_PRECISION}
with open(f"pid{{os.environ['RANK']}}", "w") as pid:
    pid.write(str(os.getpid()))
main()
"""
TRAINER = """
import sys, torch
from contextlib import nullcontext
from torch import nn
from mlimages.training import distributed
from mlimages.training.features import Batch
from mlimages.training import FineTuneConfig
from mlimages.training.loop import Schedule, Trainer
from mlimages.training.objective import CrossEntropy
from mlimages.training.image_set import split_into_chunks
from mlimages.core import NoProgress

torch.manual_seed(0)
images, labels = torch.randn(7, 3, 6, 6), torch.arange(7) % 2
network = nn.ModuleDict({
    "frozen": nn.Conv2d(3, 8, 3).requires_grad_(False), "kernel": nn.Conv2d(8, 8, 1), "dropout": nn.Dropout(0.5),
    "unused": nn.Linear(8, 8), "head": nn.Linear(8, 2),
}).to(memory_format=torch.channels_last)

class Source:
    def batches(self, images_, order, *, batch_size, choose_view):
        for chunk in split_into_chunks(order, batch_size):
            own = [index for index in chunk if index % distributed.world_size() == distributed.rank()]
            x = images[own] if own else torch.zeros(1, 3, 6, 6)
            yield Batch((x,), labels[own], tuple(own), tuple(chunk.index(index) for index in own), len(chunk))

    def compute_logits(self, inputs):
        x = network["kernel"](network["frozen"](inputs[0])).relu()
        return network["head"](network["dropout"](x.mean((2, 3))))

distributed.init_process_group(torch.device("cpu"))
trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
config = FineTuneConfig("unused", "unused", batch_size=2, label_smoothing=0.1, class_weights="balanced", seed=1)
schedule = Schedule(0.01, 3, 3, warmup_ratio=0.0)
trainer = Trainer(network, Source(), torch.optim.AdamW(trained, weight_decay=0.1), schedule,
                  config=config, autocast=nullcontext,
                  objective=CrossEntropy(config, torch.tensor([0, 0, 0, 0, 1]), 2, torch.device("cpu")))
for epoch in (1, 2, 3):
    metrics = trainer.train_epoch(images, epoch=epoch, num_views=1, deadline=float("inf"), progress=NoProgress())
if distributed.is_main_process():
    torch.save([metrics.loss, metrics.num_correct, metrics.num_images, dict(network.state_dict())], sys.argv[1])
"""
CNN = {"model": "cifar10_cnn", "optimizer": "sgd"}
KINDS: Mapping[str, Mapping[str, object]] = {
    "pixels": {**CNN, "weights": "none", "freeze": "none", "batch_size": 8},
    "features": {
        **CNN,
        "freeze": "conv4",
        "augment": "light",
        "class_weights": "balanced",
        "batch_size": 7,
        "lr": 1e-4,
    },  # at a rate at which the loss falls: one that diverges multiplies the rounding of sums
    "frozen batch norm": {"model": "resnet18", "size": 64, "freeze": "layer3", "lr": 1e-4, "epochs": 1},
    "stochastic depth": {
        "model": "efficientnet_b0",
        "size": 64,
        "freeze": "features.5",
        "lr": 1e-5,
        "epochs": 1,
        "batch_size": 12,
    },
}
BATCH_NORM = {"model": "resnet18", "weights": "none", "size": 32, "freeze": "layer3", "epochs": 2, "batch_size": 10}


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of weights for each model of KINDS."""
    folder = tmp_path_factory.mktemp("weights")
    for model in {str(options["model"]) for options in KINDS.values()}:
        network = build_model(model, num_classes=10, weights="none", seed=9).network.train()
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = 1.0
        if model != "cifar10_cnn":
            network(
                2 * torch.randn(32, 3, 1, 1) + torch.randn(32, 3, 64, 64)
            )  # else random weights give infinite losses
        save_file(network.state_dict(), folder / f"{model}.safetensors")
    return folder


@pytest.fixture
def configs(colours: Path, weights: Path) -> dict[str, FineTuneConfig]:
    return {
        kind: config_for(
            colours,
            **{"weights": weights / f"{options['model']}.safetensors", "lr": 0.01, "optimizer": "sgd", **options},
        )
        for kind, options in KINDS.items()
    }


def write_job(configs: list[FineTuneConfig], folder: Path) -> None:
    (folder / "job.py").write_text(JOB)
    (folder / "configs.jsonl").write_text("".join(f"{config.to_json()}\n" for config in configs))


def environment(**env: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}


def torchrun(words: list[str], folder: Path) -> Forked:
    words = ["-m", "torch.distributed.run", "--standalone", *words]
    return fork_server().start(words, folder, environment(), torch=True)


def started(words: list[str], folder: Path, *, processes: int) -> list[Forked]:
    """Start processes as srun, mpirun and PyTorchJob do: RANK and WORLD_SIZE are set, there is no torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = environment(WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    return [fork_server().start(words, folder, {**env, "RANK": str(rank)}, torch=True) for rank in range(processes)]


def output_of(job: Forked) -> str:
    done = job.communicate(240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rows_of(run: Path) -> int:
    return len(read_metrics(run)) if (run / "metrics.csv").exists() else 0


def assert_same_weights(one: Path, other: Path, *, within: float = 1e-4) -> None:
    """Within a share of each tensor's largest number, or of one where only rounding makes them other than 0."""
    others = load_file(other / "last.safetensors")
    for name, tensor in load_file(one / "last.safetensors").items():
        worst = float((tensor.float() - others[name].float()).abs().max())
        assert worst <= within * float(tensor.float().abs().max()) + 1e-5, (name, worst)


def assert_computed_once(cache: str) -> None:
    """Each process has computed an equal part of what is cached, and nothing was computed twice."""
    writers = []
    for folder in cache_dir(cache).iterdir():
        written = [keys.read_bytes() for keys in folder.glob("*.keys")]
        keys = [part[at : at + KEY_BYTES] for part in written for at in range(0, len(part), KEY_BYTES)]
        assert len(keys) == len(set(keys))
        assert len({*map(len, written)}) == 1
        writers.append(len(written))
    assert max(writers) == 2


def test_two_processes_give_the_weights_and_figures_of_one(configs: dict[str, FineTuneConfig], tmp_path: Path) -> None:
    """With dropout, frozen batch norm, stochastic depth, class weights, an uneven last batch, a resumed run."""
    resumed = replace(configs["features"], out=tmp_path / "two" / "resumed")
    with pytest.raises(KeyboardInterrupt):
        fine_tune(resumed, export=False, callbacks=[StopsAfter(1)])
    runs = {kind: replace(config, out=tmp_path / "two" / kind) for kind, config in configs.items()}
    write_job([*runs.values(), resumed], tmp_path)
    output_of(torchrun(["--nproc-per-node", "2", "job.py"], tmp_path))
    assert_computed_once("pixels")
    assert_computed_once("features")
    for kind, config in configs.items():
        alone = fine_tune(replace(config, out=tmp_path / "one" / kind), export=False)
        assert_same_weights(tmp_path / "one" / kind, tmp_path / "two" / kind)
        figures = json.loads((tmp_path / "two" / kind / "result.json").read_text())
        assert figures["val_accuracy"] == alone.val_accuracy
        assert (figures["train_images"], figures["val_images"]) == (alone.train_images, alone.val_images)
        assert (tmp_path / "two" / kind / "log.txt").read_text().count("epoch 1: ") == 1, "only the main process writes"
        assert (tmp_path / "two" / kind / "val.txt").read_text() == (alone.run / "val.txt").read_text()
    assert_same_weights(tmp_path / "one" / "features", resumed.out)


def test_more_processes_than_images_to_train_and_to_validate_on(
    configs: dict[str, FineTuneConfig], tmp_path: Path
) -> None:
    """Started by RANK and WORLD_SIZE.

    Whatever is shared (decoding, features, head inputs, batches, validation), some processes have an empty share.
    """
    (tmp_path / "few.txt").write_text(
        "".join(f"set/{name}/0{n}.png {n % 2}\n" for name in ("red", "blue") for n in (0, 1))
    )
    (tmp_path / "val.txt").write_text("set/red/05.png 0\nset/green/06.png 1\n")
    for name in ("few", "val"):
        (tmp_path / f"{name}_class_def.txt").write_text("0 even\n1 odd\n")
    few = {"labels": tmp_path / "few.txt", "val": tmp_path / "val.txt", "batch_size": 3}
    cases = {kind: replace(configs[kind], **few) for kind in ("pixels", "features")}  # type: ignore[arg-type]
    cases["no cache"] = replace(cases["features"], cache=False)
    cases["batch norm"] = replace(config_for(tmp_path / "few.txt", **BATCH_NORM), val=few["val"])
    write_job([replace(case, out=tmp_path / "five" / kind) for kind, case in cases.items()], tmp_path)
    for job in started(["job.py"], tmp_path, processes=5):
        output_of(job)
    assert len({(tmp_path / f"accuracies{rank}.txt").read_text() for rank in range(5)}) == 1, "all give the same result"
    for kind, case in cases.items():
        alone = fine_tune(replace(case, out=tmp_path / "one" / kind), export=False)
        assert json.loads((tmp_path / "five" / kind / "result.json").read_text())["val_images"] == alone.val_images == 2
        if kind != "batch norm":
            assert_same_weights(alone.run, tmp_path / "five" / kind)
    note = "batch norm is not synchronized on CPUs: statistics are per process (about 2 images per step)"
    assert (tmp_path / "five" / "batch norm" / "log.txt").read_text().count(note) == 1


def test_unused_and_frozen_parameters_and_batches_of_which_a_process_has_no_image(tmp_path: Path) -> None:
    """Seven images in batches of two and three over three processes: each has no image of some batch."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    for job in [
        fork_server().start(["trainer.py", "one"], tmp_path, environment(), torch=True),
        *started(["trainer.py", "three"], tmp_path, processes=3),
    ]:
        assert "Warning" not in output_of(job)
    (loss, *counts, weights), (other_loss, *other_counts, others) = (
        torch.load(tmp_path / name) for name in ("one", "three")
    )
    assert counts == other_counts == [counts[0], 7]
    assert loss == pytest.approx(other_loss, abs=1e-5)
    for name, tensor in weights.items():
        assert torch.allclose(tensor, others[name], atol=1e-6), name


LAUNCH = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT: set",
        ),
        ({**LAUNCH, "RANK": "3"}, "127.0.0.1:1: "),
        *(
            ({**LAUNCH, name: value}, f"the environment variable {name} is '{value}': it must be a whole number")
            for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK")
            for value in ("one", "-1", "")
        ),
    ],
)
def test_an_incomplete_or_wrong_environment_is_one_sentence(
    env: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "CONNECT_TIMEOUT", timedelta(seconds=2))
    with pytest.raises((InputError, RunError), match=message):
        distributed.init_process_group(torch.device("cpu"))


def test_a_second_run_into_the_same_folder_is_refused(configs: dict[str, FineTuneConfig]) -> None:
    config = configs["pixels"]
    with RunFiles(config.out).lock(), pytest.raises(RunError, match=r"another process is training in .*run: wait"):
        fine_tune(config, export=False)
    fine_tune(config, export=False)
    assert not (config.out / ".lock").exists()


def test_a_process_that_dies_ends_the_job_and_one_alone_goes_on(
    configs: dict[str, FineTuneConfig], tmp_path: Path
) -> None:
    config = replace(configs["pixels"], epochs=12, batch_size=4, out=tmp_path / "two")
    (tmp_path / "command.py").write_text(COMMAND)
    words = f"finetune {config.labels} -o {config.out} --model cifar10_cnn --weights none --freeze none --epochs 12"
    options = f"--lr {config.lr} --optimizer sgd --batch-size 4 --seed {config.seed}"
    job = torchrun(["--nproc-per-node", "2", "command.py", *words.split(), *options.split()], tmp_path)
    deadline = time.monotonic() + 120
    while rows_of(config.out) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGKILL)
    done = job.communicate(120)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    lines = [line for line in output.splitlines() if line.startswith("mlimages: ")]
    assert len(lines) == 1, output
    assert lines[0].startswith(
        ("mlimages: another training process exited", "mlimages: stopped by SIGTERM: another training process failed")
    )
    assert "mlimages finetune --resume" in lines[0]
    assert output.count("Traceback") == 1, output  # torchrun's own
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
    config = replace(configs["pixels"], labels=tmp_path / "labelsRANK.txt")
    write_job([config], tmp_path)
    output = torchrun(["--nproc-per-node", "2", "job.py"], tmp_path).communicate(120).stderr
    assert "the label files and run folder differ between the training processes" in output


def test_an_error_of_all_processes_is_printed_once_and_named_in_torchruns_summary(tmp_path: Path) -> None:
    """An error before the processes are connected: none waits for one that has exited until torchrun kills it."""
    (tmp_path / "labels.txt").touch()
    (tmp_path / "labels_class_def.txt").write_text("0 a\n1 b\n")
    words = ["--nproc-per-node", "2", "-m", "mlimages", "finetune", "labels.txt", "--model", "lenet5"]
    job = torchrun([*words, "--weights", "none", "--freeze", "none", "-o", "run"], tmp_path)
    output = job.communicate(120).stderr
    message = "labels.txt lists no images"
    assert output.count(f"mlimages: {message}") == 1, output
    assert message in output.partition("Root Cause")[2], output
    assert "SIGKILL" not in output, output


@pytest.mark.parametrize("name", ["resnet18", "timm:efficientnet_lite0"])
def test_on_gpus_the_batch_norms_that_train_become_torchs_sync_batch_norm(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    model = build_model(name, num_classes=2, weights="none", size=64)
    network, x = model.network, torch.rand(2, 3, 64, 64)
    before, tensors = network(x), {key: value.clone() for key, value in network.state_dict().items()}
    freeze(model, "layer3" if name == "resnet18" else "blocks.3")
    distributed.convert_sync_batch_norm(network, torch.device("cuda"), batch_size=2)
    assert torch.allclose(network(x), before)
    assert all(torch.equal(tensors[key], value) for key, value in network.state_dict().items())
    network.train()
    trains = {
        isinstance(module, nn.SyncBatchNorm): module.training
        for module in network.modules()
        if isinstance(module, _BatchNorm)
    }
    assert trains == {True: True, False: False}


def test_a_batch_too_small_for_batch_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    network = build_model("resnet18", num_classes=2, weights="none", size=64).network
    with pytest.raises(InputError, match="use --batch-size 8 or more"):
        distributed.convert_sync_batch_norm(network, torch.device("cpu"), batch_size=7)
