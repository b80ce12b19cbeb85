"""A probe finds where a network tells classes apart, at the price of one forward pass."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

from mlimages.core import InputError, ModelError, Proportion, cache_dir, wilson_interval
from mlimages.labels import LabelFile, label_dir_auto
from mlimages.networks import CutPoint, FeatureHooks, build_model, find_cut_points
from mlimages.reports import LayerScore, ModelScore, ModelScores, ProbeResult, sort_best_first
from mlimages.reports import format_probe as lines_of
from mlimages.training import extract_features, probe_layers, probe_models, probing
from mlimages.training.head import fit_ridge
from tests.conftest import RunCli


@pytest.mark.parametrize(
    ("model", "cuts"),
    [
        ("alexnet", ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]),
        ("lenet5", ["conv1", "conv2", "fc3", "fc4"]),
        ("resnet18", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("mobilenet_v2", [f"features.{number}" for number in range(19)]),
        ("timm:vit_tiny_patch16_224", ["patch_embed", *(f"blocks.{number}" for number in range(12))]),
    ],
)  # fmt: skip
def test_the_cuts_are_the_layers_that_people_name(model: str, cuts: list[str]) -> None:
    network = build_model(model, num_classes=3, weights="none")
    assert [cut.last_layer for cut in find_cut_points(network)] == cuts


def test_a_cut_gives_what_the_next_layer_takes_in_averaged_over_positions() -> None:
    model = build_model("lenet5", num_classes=3, weights="none")
    cuts = find_cut_points(model)
    x = torch.rand(4, 1, 28, 28)
    with FeatureHooks(model.network, cuts) as hooks, torch.no_grad():
        model.network(x)
        rows = hooks.collect_features()
        first = nn.Sequential(*list(model.network.children())[:3])(x)  # conv1, relu, pool
    assert rows.shape == (4, sum(cut.num_features for cut in cuts))
    assert torch.allclose(rows[:, :6], first.mean(dim=(2, 3)))
    assert not any(module._forward_pre_hooks for module in model.network.modules())


class Windows(nn.Module):
    """Applies a layer to the four quarters of each image, which it stacks along the batch (Hiera, Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Conv2d(3, 5, 1), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quarters = x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        y: torch.Tensor = self.head(self.inner(quarters).mean(dim=(2, 3)).unflatten(0, (-1, 4)).mean(dim=1))
        return y


def test_the_features_of_a_layer_that_takes_windows_are_averaged_over_those_of_an_image_of_the_last_batch() -> None:
    x, network = torch.rand(3, 3, 8, 8), Windows()
    cuts = (CutPoint("input", "inner", 3), CutPoint("inner", "head", 5))
    with FeatureHooks(network, cuts) as hooks, torch.no_grad():
        network(torch.rand(2, 3, 8, 8))
        network(x)
        rows = hooks.collect_features()
        assert torch.allclose(rows[:, :3], x.mean(dim=(2, 3)), atol=1e-6)
        assert torch.allclose(rows[:, 3:], network.inner(x).mean(dim=(2, 3)), atol=1e-6)


def test_a_layer_that_takes_a_table_of_positions_is_no_cut() -> None:
    model = build_model("timm:swinv2_tiny_window8_256", num_classes=3, weights="none")
    cuts = find_cut_points(model)
    assert not [cut for cut in cuts if "cpb_mlp" in cut.next_layer]
    with FeatureHooks(model.network, cuts) as hooks, torch.no_grad():
        model.network(torch.rand(3, 3, 256, 256))
        assert hooks.collect_features().shape == (3, sum(cut.num_features for cut in cuts))


@pytest.fixture
def stripes(tmp_path: Path) -> LabelFile:
    """Three classes of the same mean colour: only texture tells them apart."""
    chance = np.random.default_rng(0)
    for number, (name, period) in enumerate([("fine", 2), ("middle", 4), ("wide", 8)]):
        for n in range(14):
            columns = (np.arange(28) + chance.integers(period)) // (period // 2) % 2
            pixels = np.clip(np.tile(columns * 160 + 40, (28, 1)) + chance.normal(0, 25, (28, 28)), 0, 255)
            path = tmp_path / "images" / name / f"{number}-{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return label_dir_auto(tmp_path / "images").labels.write(tmp_path / "labels.txt")


def test_texture_is_seen_by_random_convolutions_and_more_images_do_not_hurt(stripes: LabelFile) -> None:
    found = probe_layers(stripes, model="lenet5", weights="none")
    assert (found.num_images, found.num_classes, found.num_broken_images) == (42, 3, 0)
    assert max(score.accuracy.value for score in found.layer_scores) > 0.8
    assert [point.images_per_class for point in found.learning_curve] == [5, 10]
    assert found.learning_curve[0].accuracy.value <= found.learning_curve[1].accuracy.value + 0.1
    values = [point.accuracy.value for point in found.learning_curve]
    assert found.gain_from_last_doubling
    assert found.gain_from_last_doubling.value == pytest.approx(values[1] - values[0])


@pytest.mark.parametrize(
    ("fewest", "sizes"),
    [(6, []), (7, [5]), (12, [5]), (13, [5, 10]), (24, [5, 10]), (25, [5, 10, 20]), (26, [5, 10, 20])],
)
def test_a_learning_curve_keeps_a_fifth_of_the_smallest_class_back(fewest: int, sizes: list[int]) -> None:
    assert list(probing._iter_curve_sizes(fewest)) == sizes


def test_a_learning_curve_grows_by_images_that_it_is_not_tested_on(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], (25, 40, 60)))
    taken: list[set[int]] = []
    held_out: list[set[int]] = []
    right: list[float] = []

    def fit(features: np.ndarray, given: np.ndarray, classes: int) -> SimpleNamespace:
        assert np.array_equal(given, labels[features[:, 0]])
        taken.append(set(features[:, 0]))
        return SimpleNamespace(head=SimpleNamespace(compute_probabilities=probabilities))

    def probabilities(features: np.ndarray) -> np.ndarray:
        predicted = features[:, 0] * len(taken) // 5 % 3
        held_out.append(set(features[:, 0]))
        right.append(np.mean(predicted == labels[features[:, 0]]))
        return np.eye(3)[predicted]

    monkeypatch.setattr(probing, "fit_ridge", fit)
    curve, gain = probing._compute_learning_curve(np.arange(125)[:, None], labels, 3, seed=4)
    for first in range(0, 30, 3):
        few, more, most = taken[first : first + 3]
        assert few < more < most
        assert held_out[first : first + 3] == [set(range(125)) - most] * 3
        assert [list(np.bincount(labels[list(each)])) for each in (few, more, most)] == [[n] * 3 for n in (5, 10, 20)]
    assert len({frozenset(each) for each in taken}) == 30
    runs = np.reshape(right, (10, 3))
    shares = [Proportion(mean, *wilson_interval(round(mean * 65), 65)) for mean in runs.mean(axis=0)]
    assert [(point.images_per_class, point.accuracy) for point in curve] == list(zip((5, 10, 20), shares, strict=True))
    differences = runs[:, 2] - runs[:, 1]
    assert gain is not None
    low, high = stats.norm.interval(0.95, differences.mean(), stats.sem(differences))
    assert (gain.value, gain.low, gain.high) == pytest.approx((differences.mean(), low, high), abs=1e-12)


def test_the_same_seed_finds_the_same_and_a_second_probe_computes_nothing(stripes: LabelFile) -> None:
    def cached() -> dict[Path, int]:
        return {path: path.stat().st_size for path in cache_dir("probe").rglob("*.rows")}

    first = probe_layers(stripes, model="lenet5", weights="none", seed=3)
    before = cached()
    assert probe_layers(stripes, model="lenet5", weights="none", seed=3) == first
    assert cached() == before != {}


def test_broken_images_and_copies_count_once_or_not_at_all(stripes: LabelFile) -> None:
    root = stripes.path.parent
    original = root / "images/fine/0-0.png"
    (root / "images/wide/broken.png").write_bytes(original.read_bytes()[:40])
    (root / "images/fine/copy.png").write_bytes(original.read_bytes())
    found = probe_layers(label_dir_auto(root / "images").labels, model="lenet5", weights="none")
    assert (found.num_images, found.num_broken_images) == (42, 1)


def test_of_many_images_the_same_share_of_each_class_is_tried(stripes: LabelFile) -> None:
    assert probe_layers(stripes, model="lenet5", weights="none", max_images=21).num_images == 21


def test_too_few_images_are_one_clear_error(stripes: LabelFile) -> None:
    one = stripes.filter(lambda item: item.label > 0 or item.path.name == "0-0.png")
    with pytest.raises(InputError, match="but found 1 usable image of 'fine'"):
        probe_layers(one, model="lenet5", weights="none")


def test_a_probe_of_no_network_says_so(stripes: LabelFile) -> None:
    with pytest.raises(InputError, match="no network to probe"):
        probe_models(stripes, [])


def test_what_is_within_noise_of_the_best_is_frozen_as_high_as_can_be() -> None:
    share = Proportion(0.9, 0.8, 0.95)
    scores = (LayerScore("conv1", 8, share, False), LayerScore("conv2", 8, share, True))
    gains = {(0.03, 0.02, 0.05): (True, "would help:"), (0.042, -0.024, 0.107): (None, "it is unclear"),
             (0.003, -0.01, 0.015): (False, "would hardly help:")}  # fmt: skip
    for gain, (helps, said) in gains.items():
        probed = ProbeResult("net", 50, 2, 0, scores, "conv2", (), Proportion(*gain))
        assert probed.more_images_would_help is helps
        assert said in list(lines_of(probed))[-2]
    text = "\n".join(lines_of(probed))
    assert "recommended: --freeze conv2" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "more images would hardly help" in text


@pytest.mark.parametrize(
    ("accuracies", "classes", "chance"),
    [((0.0, 0.9), 2, "50.0"), ((0.3, 0.9), 3, "33.3"), ((0.5, 0.9), 2, ""), ((0.34, 0.9), 3, "")],
)
def test_an_accuracy_below_that_of_guessing_is_explained(
    accuracies: tuple[float, ...], classes: int, chance: str
) -> None:
    scores = tuple(LayerScore(f"conv{n}", 8, Proportion(each, 0, 1), True) for n, each in enumerate(accuracies))
    text = "\n".join(lines_of(ProbeResult("net", 24, classes, 0, scores, "conv1", (), None)))
    assert (f"an accuracy below {chance} means that the layer does not separate" in text) == bool(chance)
    assert max(map(len, text.splitlines())) <= 80


def test_leave_one_out_on_features_without_information_stays_below_guessing_on_balanced_classes() -> None:
    labels = np.arange(24) % 2
    fit = fit_ridge(np.ones((24, 4), np.float32), labels, 2)
    assert (fit.loo_probabilities.argmax(axis=1) == labels).sum() == 0


def test_the_command_prints_tables_and_draws_a_plot(stripes: LabelFile, tmp_path: Path, invoke_cli: RunCli) -> None:
    words = ["probe", stripes.path, "--model", "lenet5", "--weights", "none", "--size", "28", "--gray"]
    done = invoke_cli(*words)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.count("#") > 50
    told = json.loads(invoke_cli(*words, "--json").stdout)
    assert f"--model lenet5 --weights none --size 28 --gray --freeze {told['freeze']}" in done.stderr
    with Image.open(tmp_path / "probe.png") as plot:
        assert min(plot.size) > 300


def test_several_networks_are_compared_and_an_unavailable_one_is_a_line(
    stripes: LabelFile, tmp_path: Path, invoke_cli: RunCli
) -> None:
    models = [word for name in ("lenet5", "mnist_cnn", "nosuch") for word in ("--model", name)]
    done = invoke_cli("probe", stripes.path, *models)
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert {"lenet5", "mnist_cnn"} < rows.keys()
    assert rows["nosuch:"].startswith("nosuch: unknown model 'nosuch'")
    assert f"--model {done.stdout.splitlines()[1].split()[0]} --freeze" in done.stderr
    assert (tmp_path / "probe.png").stat().st_size > 5000
    refused = invoke_cli("probe", stripes.path, *models, "--weights", "none", check=False)
    assert "--weights cannot be combined with more than one --model" in refused.stderr


def test_what_another_network_does_better_in_every_respect_is_named() -> None:
    def score(name: str, accuracy: float, cpu_ms: float, onnx_mb: float) -> ModelScore:
        share = Proportion(accuracy, accuracy - 0.1, accuracy + 0.1)
        probe = ProbeResult(name, 50, 2, 0, (LayerScore("conv2", 8, share, True),), "conv2", (), None)
        return ModelScore(probe, cpu_ms, onnx_mb)

    rows = sort_best_first([score("slow", 0.8, 9, 5), score("small", 0.7, 9, 1), score("best", 0.8, 4, 5)])
    found = ModelScores(rows, {})
    assert [(each.model, found.find_dominating_model(each)) for each in rows] == [
        ("best", ""),
        ("slow", "best"),
        ("small", ""),
    ]


def test_features_are_written_for_a_classifier_of_ones_own(
    stripes: LabelFile, tmp_path: Path, invoke_cli: RunCli
) -> None:
    (tmp_path / "images/wide/broken.png").write_bytes(b"GIF89a")
    labels = label_dir_auto(tmp_path / "images").labels.write(tmp_path / "all.txt")
    words = ["features", labels.path, "--model", "lenet5", "--layer", "conv1"]
    told = json.loads(invoke_cli(*words, "--json").stdout)
    assert (told["images"], told["columns"], told["layer"]) == (42, 6, "conv1")
    with np.load("features.npz") as arrays:
        assert (arrays["features"].dtype, arrays["features"].shape) == (np.float32, (42, 6))
        assert list(arrays["class_names"]) == ["fine", "middle", "wide"]
        assert Path(str(arrays["paths"][0])).parent.name == arrays["class_names"][arrays["labels"][0]]
    assert extract_features(labels, model="lenet5").features.shape == (42, 84)
    with pytest.raises(ModelError, match="lenet5 has no features at layer 'conv9': use conv1, conv2, fc3, fc4"):
        extract_features(labels, model="lenet5", layer="conv9")
