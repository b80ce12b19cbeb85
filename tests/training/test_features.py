"""The frozen part's outputs: computed once, kept, reused, and equal to those computed again."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlimages.core import cache_dir
from mlimages.labels import LabelFile
from mlimages.networks import Normalize, build_model, freeze, split_network
from mlimages.training import FineTuneConfig, fine_tune, probe_cuts
from mlimages.training.cache import RowStore
from mlimages.training.features import features_key
from mlimages.training.frozen_runtime import open_frozen
from tests.training.test_finetune import colours  # noqa: F401  # a fixture

KEYS = [bytes([n]) * 32 for n in range(6)]


def test_rows_are_read_back_in_any_order_from_several_writers(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    for part in (slice(0, 2), slice(2, 6)):
        RowStore(tmp_path, (4,), np.float32).append(KEYS[part], rows[part])
    store = RowStore(tmp_path, (4,), np.float32)
    assert np.array_equal(store.rows(KEYS[::-1]), rows[::-1])
    assert b"x" * 32 not in store


@pytest.mark.parametrize(("suffix", "cut"), [(".rows", 7), (".keys", 5)])
def test_what_a_killed_writer_left_half_written_is_not_there(tmp_path: Path, suffix: str, cut: int) -> None:
    RowStore(tmp_path, (4,), np.float32).append(KEYS, np.ones((6, 4), np.float32))
    (file,) = tmp_path.glob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:-cut])
    store = RowStore(tmp_path, (4,), np.float32)
    assert [key in store for key in KEYS] == [True] * 5 + [False]


def test_the_rows_of_any_dataset_used_longest_ago_make_room() -> None:
    folders = [cache_dir(kind) / "key" for kind in ("pixels", "pixels", "features", "probe")]
    for age, folder in enumerate(folders):  # two datasets of one geometry share a folder
        RowStore(folder, (100,), np.uint8).append([KEYS[age]], np.ones((1, 100), np.uint8))
        for path in folder.glob("*.keys"):
            if path.stat().st_mtime > 1_000:
                os.utime(path, (age, age))
    own = RowStore(folders[0], (100,), np.uint8)
    assert KEYS[0] in own  # and is used now
    own.trim(3 * 132, needed=100)
    assert [KEYS[age] in RowStore(folder, (100,), np.uint8) for age, folder in enumerate(folders)] == [
        True,
        False,
        False,
        True,
    ]


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    save_file(
        build_model("cifar10_cnn", classes=10, weights="none", seed=9).network.state_dict(), tmp_path / "w.safetensors"
    )
    return tmp_path / "w.safetensors"


def config_for(labels: Path, weights: Path, **options: object) -> FineTuneConfig:
    settings = {"model": "cifar10_cnn", "weights": str(weights), "freeze": "conv4", "epochs": 3, **options}
    return FineTuneConfig(labels=labels, out=labels.parent / "run", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("augment", ["none", "light"])
def test_training_on_the_cache_gives_the_weights_of_training_without(
    colours: Path,  # noqa: F811
    pretrained: Path,
    augment: str,
) -> None:
    weights = []
    for cache in (True, False):
        out = colours.parent / f"cache-{cache}"
        config = config_for(colours, pretrained, augment=augment, optimizer="sgd", lr=0.001, cache=cache)
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


def test_a_second_run_computes_nothing_again(colours: Path, pretrained: Path) -> None:  # noqa: F811
    first, second = (replace(config_for(colours, pretrained), out=colours.parent / f"run{n}") for n in range(2))
    assert stages_of(first) == ["decode", "frozen part", "train"]
    assert stages_of(second) == ["decode", "train"]


TWINS = ("timm:efficientnet_b0", "timm:tf_efficientnet_b0")
"""Networks of the same tensors, which pad in other ways."""


@pytest.fixture
def twin_weights(tmp_path: Path) -> Path:
    state, other = (build_model(name, classes=3, weights="none").network.state_dict() for name in TWINS)
    assert {name: tensor.shape for name, tensor in state.items()} == {name: t.shape for name, t in other.items()}
    save_file(state, tmp_path / "twins.safetensors")
    return tmp_path / "twins.safetensors"


def test_two_networks_of_equal_tensors_do_not_share_features(colours: Path, twin_weights: Path) -> None:  # noqa: F811
    rows = []
    for name in TWINS:
        config = config_for(colours, twin_weights, model=name, freeze="head", size=32, epochs=1)
        assert "frozen part" in stages_of(replace(config, out=colours.parent / name.removeprefix("timm:")))
        (store,) = set(cache_dir("features").iterdir()) - {folder for folder, _ in rows}
        rows.append((store, RowStore(store, (1280,), np.float32)))
    digests = [image_digest(item.path) for item in LabelFile(colours)]
    first, second = (store.rows(digests) for _, store in rows)
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


def test_a_probe_of_two_networks_of_equal_tensors_does_not_share_features(
    colours: Path,  # noqa: F811
    twin_weights: Path,
) -> None:
    for number, name in enumerate(TWINS, start=1):
        progress = Stages()
        probe_cuts(LabelFile(colours), model=name, weights=twin_weights, size=32, progress=progress)
        assert "forward" in progress.stages
        assert len(list(cache_dir("probe").iterdir())) == number


def image_digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def test_whatever_decides_the_features_decides_the_name_of_their_cache() -> None:
    model = build_model("lenet5", classes=3, weights="none")
    normalization, image = model.preprocessing.normalization, model.preprocessing.image
    same = {"cut": ["fc4", [84]], "digest": "sha256:0", "preprocessing": model.preprocessing, "precision": "fp32"}
    normalize = Normalize(normalization)
    others = [
        features_key(replace(model, name="mnist_cnn"), normalize, **same),
        features_key(replace(model, library="mlimages 0"), normalize, **same),
        features_key(model, Normalize(normalization, np.ones((1, 28, 28), np.float32)), **same),
        *(
            features_key(model, normalize, **{**same, name: other})
            for name, other in {
                "cut": ["fc3", [84]],
                "digest": "sha256:1",
                "preprocessing": replace(model.preprocessing, image=replace(image, resize="squash")),
                "precision": "bf16",
            }.items()
        ),
    ]
    assert len({features_key(model, normalize, **same), *others}) == 1 + len(others)


def test_a_cache_beyond_its_budget_says_so_and_trains_all_the_same(colours: Path, pretrained: Path) -> None:  # noqa: F811
    result = fine_tune(config_for(colours, pretrained, cache_gb=1e-4), export=False)
    assert result.epochs == 3
    assert "recomputed in each epoch" in (result.run / "log.txt").read_text()
    assert not list(cache_dir("features").glob("*/*.rows"))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "resnet18", "alex-grouped"])
def test_onnx_runtime_gives_what_the_frozen_part_gives(name: str) -> None:
    model = build_model(name, classes=2, weights="none")
    image = model.preprocessing.image
    x = torch.rand(2, 3, image.height, image.width)
    halves = split_network(model.network, freeze(model), x)
    assert halves is not None
    run = open_frozen(halves.lower, x[:1])
    assert run is not None
    with torch.inference_mode():
        for got, want in zip(run(x), halves.lower(x), strict=True):
            assert torch.allclose(got, want, atol=1e-5)


def test_a_frozen_part_that_cannot_be_written_for_onnx_runtime_runs_eagerly() -> None:
    model = build_model("timm:vit_tiny_patch16_224", classes=2, weights="none")
    halves = split_network(model.network, freeze(model), torch.rand(2, 3, 224, 224))
    assert halves is not None
    assert open_frozen(halves.lower, torch.rand(1, 3, 224, 224)) is None
