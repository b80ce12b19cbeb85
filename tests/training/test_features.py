"""The frozen part's outputs: computed once, kept, reused, and equal to those computed again."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mlimages.core import MissingExtraError, RunError, cache_dir
from mlimages.labels import LabelFile
from mlimages.networks import Normalize, build_model, freeze, split_network
from mlimages.reports import RunFiles
from mlimages.training import FineTuneConfig, fine_tune, probe_layers, read_config
from mlimages.training.array_store import ArrayStore
from mlimages.training.checkpoints import load_state
from mlimages.training.compute_backend import ComputeBackend, Workload, choose_backend, count_gmacs
from mlimages.training.feature_extractor import ConversionError, FrozenFeatureExtractor
from mlimages.training.features import make_feature_cache_key
from tests.training.conftest import config_for

KEYS = [bytes([n]) * 32 for n in range(6)]


class KeepsPositions(nn.Module):
    """Keeps the positions of its inputs between calls, as ConViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)
        self.register_buffer("positions", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.positions) != x.shape[-1]:
            self.positions = torch.arange(x.shape[-1], dtype=torch.float32)
        y: torch.Tensor = self.linear(x + self.positions)
        return y


def test_counting_multiply_adds_leaves_what_a_network_keeps_between_calls() -> None:
    network = KeepsPositions()
    assert count_gmacs(network, torch.zeros(2, 3, 4, 8)) == pytest.approx(3 * 4 * 8 * 5 / 1e9)
    assert torch.equal(network.positions, torch.zeros(1))
    assert network(torch.zeros(1, 8)).detach().numpy().shape == (1, 5)


@pytest.mark.parametrize(("max_gmacs", "batch_size"), [(128.0, 8), (1e-12, 2)])  # the last two together
def test_a_large_network_computes_fewer_images_at_once(
    colours: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_gmacs: float, batch_size: int
) -> None:
    monkeypatch.setenv("MLIMAGES_CACHE", str(tmp_path))
    monkeypatch.setattr("mlimages.training.features.MAX_FROZEN_BATCH_GMACS", max_gmacs)
    with mock.patch.object(
        FrozenFeatureExtractor, "__call__", autospec=True, side_effect=FrozenFeatureExtractor.__call__
    ) as run:
        fine_tune(replace(frozen_config(colours, pretrained), out=tmp_path / "run"), export=False)
    assert max(len(call.args[1]) for call in run.call_args_list) == batch_size


def test_rows_are_read_back_in_any_order_from_several_writers(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    for part in (slice(0, 2), slice(2, 6)):
        ArrayStore(tmp_path, (4,), np.float32).append(KEYS[part], rows[part])
    store = ArrayStore(tmp_path, (4,), np.float32)
    assert np.array_equal(store.read_rows(KEYS[::-1]), rows[::-1])
    assert b"x" * 32 not in store


@pytest.mark.parametrize(("suffix", "cut"), [(".rows", 7), (".keys", 5)])
def test_what_a_killed_writer_left_half_written_is_not_there(tmp_path: Path, suffix: str, cut: int) -> None:
    ArrayStore(tmp_path, (4,), np.float32).append(KEYS, np.ones((6, 4), np.float32))
    (file,) = tmp_path.glob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:-cut])
    store = ArrayStore(tmp_path, (4,), np.float32)
    assert [key in store for key in KEYS] == [True] * 5 + [False]


def test_the_rows_of_any_dataset_used_longest_ago_make_room() -> None:
    folders = [cache_dir(kind) / "key" for kind in ("pixels", "pixels", "features", "probe")]
    for age, folder in enumerate(folders):  # two datasets of one geometry share a folder
        ArrayStore(folder, (100,), np.uint8).append([KEYS[age]], np.ones((1, 100), np.uint8))
        for path in folder.glob("*.keys"):
            if path.stat().st_mtime > 1_000:
                os.utime(path, (age, age))
    own = ArrayStore(folders[0], (100,), np.uint8)
    assert KEYS[0] in own  # and is used now
    own.evict_files(3 * 132, reserved_bytes=100)
    assert [KEYS[age] in ArrayStore(folder, (100,), np.uint8) for age, folder in enumerate(folders)] == [
        True,
        False,
        False,
        True,
    ]


def frozen_config(labels: Path, weights: Path, **options: object) -> FineTuneConfig:
    return config_for(labels, **{"weights": str(weights), "freeze": "conv4", **options})


@pytest.mark.parametrize("augment", ["none", "light"])
def test_training_on_the_cache_gives_the_weights_of_training_without(
    colours: Path, pretrained: Path, augment: str
) -> None:
    weights = []
    for cache in (True, False):
        out = colours.parent / f"cache-{cache}"
        config = frozen_config(colours, pretrained, augment=augment, optimizer="sgd", lr=0.001, cache=cache)
        fine_tune(replace(config, out=out), export=False)
        weights.append(load_file(out / "last.safetensors"))
    start = load_file(pretrained)
    for name, cached in weights[0].items():
        assert torch.allclose(cached, weights[1][name], atol=1e-4 * float(cached.abs().max()), rtol=1e-4), (
            name,
            (cached - weights[1][name]).abs().max(),
            cached.abs().max(),
        )
        if name.startswith("conv"):
            assert torch.equal(cached, start[name])
    assert not torch.allclose(weights[0]["fc5.weight"], start["fc5.weight"], atol=1e-5)


class Stages:
    """A `Progress` that notes what was done."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.stages += [what] if total else []

    def advance(self, count: int = 1, **figures: object) -> None: ...

    def close(self) -> None: ...


def stages_of(config: FineTuneConfig) -> list[str]:
    progress = Stages()
    fine_tune(config, export=False, progress=progress)
    return [stage for stage in progress.stages if stage in ("decode", "frozen part", "train")]


def test_a_second_run_computes_nothing_again(colours: Path, pretrained: Path) -> None:
    first, second = (frozen_config(colours, pretrained, out=colours.parent / f"run{n}") for n in range(2))
    assert stages_of(first) == ["decode", "frozen part", "frozen part", "train"]  # validation set, then training set
    assert stages_of(second) == ["decode", "train"]


TWINS = ("timm:mobilenetv3_small_100", "timm:tf_mobilenetv3_small_100")
"""Networks of the same tensors, which pad in other ways."""


@pytest.fixture
def twin_weights(tmp_path: Path) -> Path:
    state, other = (build_model(name, num_classes=3, weights="none").network.state_dict() for name in TWINS)
    assert {name: tensor.shape for name, tensor in state.items()} == {name: t.shape for name, t in other.items()}
    save_file(state, tmp_path / "twins.safetensors")
    return tmp_path / "twins.safetensors"


def test_two_networks_of_equal_tensors_do_not_share_features(colours: Path, twin_weights: Path) -> None:
    rows = []
    for name in TWINS:
        config = frozen_config(colours, twin_weights, model=name, freeze="head", size=32, epochs=1)
        assert "frozen part" in stages_of(replace(config, out=colours.parent / name.removeprefix("timm:")))
        (store,) = set(cache_dir("features").iterdir()) - {folder for folder, _ in rows}
        rows.append((store, ArrayStore(store, (1024,), np.float32)))
    digests = [hashlib.sha256(item.path.read_bytes()).digest() for item in LabelFile(colours)]
    first, second = (store.read_rows(digests) for _, store in rows)
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


def test_a_probe_of_two_networks_of_equal_tensors_does_not_share_features(colours: Path, twin_weights: Path) -> None:
    for number, name in enumerate(TWINS, start=1):
        progress = Stages()
        probe_layers(LabelFile(colours), model=name, weights=twin_weights, size=32, progress=progress)
        assert "forward" in progress.stages
        assert len(list(cache_dir("probe").iterdir())) == number


def test_whatever_decides_the_features_decides_the_name_of_their_cache() -> None:
    model = build_model("lenet5", num_classes=3, weights="none")
    normalization, image = model.preprocessing.normalization, model.preprocessing.image
    same = {
        "layers": ["fc4", [84]],
        "weights_digest": "sha256:0",
        "preprocessing": model.preprocessing,
        "precision": "fp32",
    }
    normalize = Normalize(normalization)
    others = [
        make_feature_cache_key(replace(model, name="mnist_cnn"), normalize, **same),
        make_feature_cache_key(replace(model, library="mlimages 0"), normalize, **same),
        make_feature_cache_key(model, Normalize(normalization, np.ones((1, 28, 28), np.float32)), **same),
        *(
            make_feature_cache_key(model, normalize, **{**same, name: other})
            for name, other in {
                "layers": ["fc3", [84]],
                "weights_digest": "sha256:1",
                "preprocessing": replace(model.preprocessing, image=replace(image, resize="squash")),
                "precision": "bf16",
            }.items()
        ),
    ]
    assert len({make_feature_cache_key(model, normalize, **same), *others}) == 1 + len(others)


def test_a_cache_beyond_its_budget_says_so_and_trains_all_the_same(colours: Path, pretrained: Path) -> None:
    result = fine_tune(frozen_config(colours, pretrained, cache_gb=1e-4), export=False)
    assert result.epochs == 3
    assert "recomputed in each epoch" in (result.run / "log.txt").read_text()
    assert not list(cache_dir("features").glob("*/*.rows"))


def test_openvino_gives_what_the_frozen_part_gives() -> None:
    model = build_model("timm:vit_tiny_patch16_224", num_classes=2, weights="none")
    x = torch.rand(3, *model.preprocessing.image.shape)
    halves = split_network(model.network, freeze(model, "head"), x)
    assert halves is not None
    run = FrozenFeatureExtractor(halves.lower_part, "openvino", torch.device("cpu"))
    with pytest.raises(ConversionError, match="only on CPUs"):  # a run that is continued on another device
        FrozenFeatureExtractor(halves.lower_part, "openvino", torch.device("meta"))(x, "fp32")
    with torch.inference_mode():
        run(x[:2], "fp32")  # batches may have any size
        (want,) = halves.lower_part(x)
        for precision, bound in (("fp32", 1e-5), ("bf16", 0.1)):
            (got,) = run(x, precision)  # type: ignore[arg-type]
            assert got.shape == want.shape
            assert float((got - want).norm()) < bound * float(want.norm()), precision


def test_openvino_opens_no_socket_and_its_telemetry_can_be_imported_afterwards() -> None:
    code = """
import socket, sys, torch

def refuse(*args, **options): raise SystemExit("a socket was opened")

socket.socket.__init__ = socket.getaddrinfo = socket.create_connection = refuse
from mlimages.training.feature_extractor import FrozenFeatureExtractor
network = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)))
network.graph.output_node().args = ((network.graph.output_node().args[0],),)
network.recompile()
with torch.inference_mode():
    FrozenFeatureExtractor(network, "openvino", torch.device("cpu"))(torch.zeros(2, 1, 8, 8), "fp32")
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


MANY = Workload("alexnet", 0.7, num_train_views=1000, num_val_images=200)


@pytest.mark.parametrize(
    ("work", "has_bf16", "option", "wanted"),
    [
        (MANY, True, "auto", ComputeBackend("openvino", "bf16")),
        (MANY, False, "auto", ComputeBackend("openvino", "fp32")),
        (MANY, True, "fp32", ComputeBackend()),
        (
            replace(MANY, num_train_views=40, num_val_images=10),
            True,
            "auto",
            ComputeBackend(),
        ),  # conversion would cost more than it saves
        (replace(MANY, model_name="lenet5", gmacs=1e-4), True, "auto", ComputeBackend()),
        (None, True, "auto", ComputeBackend()),
    ],
)
def test_processor_network_and_number_of_images_decide_the_computation(
    work: Workload | None, has_bf16: bool, option: Literal["auto", "fp32"], wanted: ComputeBackend
) -> None:
    with mock.patch("mlimages.training.compute_backend.has_fast_bf16", return_value=has_bf16):
        assert choose_backend(work, option, device=torch.device("cpu"), is_frozen=True) == wanted


@pytest.mark.parametrize("bound", [1.0, 0.0])
def test_bfloat16_gives_no_figures_and_is_left_if_features_differ_too_much(
    colours: Path, pretrained: Path, bound: float
) -> None:
    results = []
    for way in (ComputeBackend("openvino", "bf16"), ComputeBackend("openvino", "fp32")):
        config = frozen_config(colours, pretrained, out=colours.parent / f"run-{way.frozen_precision}")
        with (
            mock.patch("mlimages.training.training_job.choose_backend", return_value=way),
            mock.patch("mlimages.training.feature_cache.MAX_RELATIVE_DIFFERENCE", bound),
        ):
            results.append(fine_tune(config, export=False))
    computations = [json.loads((result.run / "config.json").read_text())["computation"] for result in results]
    logs = [(result.run / "log.txt").read_text() for result in results]
    assert computations[1] == {"library": "openvino", "frozen": "fp32", "trained": "fp32"}
    assert ("the frozen layers run with OpenVINO in fp32 instead of OpenVINO in bf16" in logs[0]) == (bound == 0)
    if bound:
        assert computations[0]["frozen"] == "bf16"
        assert ("leave-one-out" in logs[0], "leave-one-out" in logs[1]) == (False, True)
        assert load_state(RunFiles(results[0].run)).prediction_set_thresholds == {}  # type: ignore[union-attr]
        more = replace(read_config(results[0].run), epochs=4)
        with (
            mock.patch("mlimages.training.inputs.find_spec", return_value=None),
            pytest.raises(MissingExtraError, match="a run that uses OpenVINO"),
        ):
            fine_tune(more, export=False)
        settings = results[0].run / "config.json"
        written = settings.read_text()
        settings.write_text(written.replace('"openvino"', '"onnx"'))
        with pytest.raises(RunError, match="library or precision in `computation` is unknown"):
            fine_tune(more, export=False)
        settings.write_text(written)
        with mock.patch("mlimages.training.training_job.has_fast_bf16", return_value=False):
            fine_tune(more, export=False)  # without another choice
        assert "slow on this processor" in (results[0].run / "log.txt").read_text()
        assert json.loads((results[0].run / "config.json").read_text())["computation"] == computations[0]
    else:
        weights = [load_file(result.run / "last.safetensors") for result in results]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_network_that_openvino_cannot_convert_runs_in_pytorch(colours: Path, pretrained: Path) -> None:
    with (
        mock.patch("mlimages.training.training_job.choose_backend", return_value=ComputeBackend("openvino", "bf16")),
        mock.patch(
            "mlimages.training.feature_extractor._convert_to_openvino", side_effect=RuntimeError("unknown layer")
        ),
    ):
        result = fine_tune(frozen_config(colours, pretrained), export=False)
    assert json.loads((result.run / "config.json").read_text())["computation"]["library"] == "torch"
    assert "OpenVINO cannot convert the frozen layers" in (result.run / "log.txt").read_text()
