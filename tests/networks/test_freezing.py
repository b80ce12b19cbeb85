"""Freezing by layer name, in order of execution and throughout training; and splitting at the frozen layers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mlimages.core import ImageProperty, ModelError, Normalization, Preprocessing
from mlimages.networks import (
    FrozenLayers,
    Model,
    build_model,
    flatten_features,
    freeze,
    split_network,
    unflatten_features,
    wrap_network,
)
from mlimages.networks.freezing import trace

Rearrange = Callable[[torch.Tensor], torch.Tensor]


def frozen_names(model: Model) -> list[str]:
    return [name for name, parameter in model.network.named_parameters() if not parameter.requires_grad]


def test_a_well_known_name_freezes_up_to_and_including_that_layer() -> None:
    with torch.device("meta"):
        model = build_model("alexnet", num_classes=2, weights="none", size=63)
    freeze(model, "conv5")
    assert frozen_names(model) == [f"features.{n}.{what}" for n in (0, 3, 6, 8, 10) for what in ("weight", "bias")]
    freeze(model, "fc7")
    assert len(frozen_names(model)) == 14


def test_head_freezes_all_but_the_last_layer_and_none_nothing() -> None:
    model = build_model("lenet5", num_classes=2, weights="none")
    freeze(model)
    assert [n for n, p in model.network.named_parameters() if p.requires_grad] == ["fc5.weight", "fc5.bias"]
    freeze(model, "none")
    assert frozen_names(model) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upto": "conv9"}, "no layer 'conv9'"),
        ({"upto": "fc5"}, "freezing up to 'fc5' leaves no layer of lenet5 to train"),
    ],
)
def test_a_layer_that_cannot_be_frozen_is_an_error(options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        freeze(build_model("lenet5", num_classes=2, weights="none"), **options)


def test_frozen_batch_norm_and_dropout_stay_in_eval_mode() -> None:
    model = build_model("mobilenet_v2", num_classes=2, weights="none", size=32)
    part = freeze(model, "features.17")
    before = part.digest(model.network)
    optimizer = torch.optim.SGD([p for p in model.network.parameters() if p.requires_grad], 0.1)
    model.network.train()
    for seed in range(2):
        torch.manual_seed(seed)
        loss = model.network(torch.rand(4, 3, 32, 32)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert part.digest(model.network) == before
    norms = {path: m for path, m in model.network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert [path for path, norm in norms.items() if norm.training] == ["features.18.1"]
    freeze(model, "none")
    model.network.train()
    assert all(norm.training for norm in norms.values())


def test_a_pretrained_network_keeps_the_statistics_of_all_batch_norms(tmp_path: Path) -> None:
    fresh = build_model("mobilenet_v2", num_classes=2, weights="none", size=32)
    save_file(fresh.network.state_dict(), tmp_path / "w.safetensors")
    model = build_model("mobilenet_v2", num_classes=2, weights=tmp_path / "w.safetensors", size=32)
    freeze(model, "features.17")
    model.network.train()
    model.network(torch.rand(4, 3, 32, 32))
    norm = model.network.get_submodule("features.18.1")
    assert norm.weight.requires_grad
    assert torch.equal(norm.running_mean, fresh.network.get_submodule("features.18.1").running_mean)


def test_dropout_is_off_between_frozen_layers_and_on_above_them() -> None:
    model = build_model("cifar10_cnn", num_classes=2, weights="none")
    freeze(model, "conv3")
    model.network.train()
    assert {name: m.training for name, m in model.network.named_children() if isinstance(m, nn.Dropout)} == {
        "drop2": False,
        "drop4": True,
        "drop5": True,
    }


@pytest.mark.parametrize(
    ("name", "upto", "shapes"),
    [
        ("squeezenet1_0", "features.7", ((256, 27, 27),)),
        ("cifar10_cnn", "conv2", ((32, 15, 15),)),
        ("mobilenet_v3_small", "head", ((1024,),)),
        ("resnet18", "layer3", ((256, 14, 14),)),
        ("timm:vit_tiny_patch16_224", "blocks.8", ((197, 192),)),
        ("timm:convnext_atto", "stages.2", ((160, 14, 14),)),
    ],
)
def test_both_parts_together_compute_the_network(name: str, upto: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    model = build_model(name, num_classes=3, weights="none")
    image = model.preprocessing.image
    x = torch.rand(2, image.channels, image.height, image.width)
    parts = split_network(model.network, freeze(model, upto), x)
    assert parts is not None
    assert parts.feature_shapes == shapes
    with torch.no_grad():
        rows = flatten_features(parts.lower_part(x))
        logits = parts.upper_part(*unflatten_features(rows, parts.feature_shapes))
        assert torch.equal(logits, model.network(x))
    trained = {id(p) for p in parts.upper_part.parameters() if p.requires_grad}
    assert trained == {id(p) for p in model.network.parameters() if p.requires_grad}


def test_trained_and_random_layers_are_never_in_the_lower_part() -> None:
    model = build_model("resnet18", num_classes=3, weights="none", size=64)
    whole = freeze(model, "layer1")
    part = FrozenLayers(whole.parameter_names - {"bn1.weight", "bn1.bias"}, whole.module_paths - {"bn1"})
    for parameter in model.network.get_submodule("bn1").parameters():
        parameter.requires_grad_(True)  # the first batch norm learns: nothing behind it is fixed
    parts = split_network(model.network, part, torch.rand(2, 3, 64, 64))
    assert parts is not None
    assert parts.feature_shapes == ((64, 32, 32),)


class Rearranged(nn.Module):
    """Its layers `inner` and `second` take tensors whose rows are not images."""

    def __init__(self, split: Rearrange, merge: Rearrange) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
        self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 2)
        self.split, self.merge = split, merge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.inner(self.split(self.first(x))))
        return self.head(self.merge(y))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("split", "merge", "shapes"),
    [
        (
            lambda x: x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 3, 5, 1).flatten(0, 2),
            lambda y: y.mean((1, 2)).unflatten(0, (-1, 4)).mean(1),
            ((2, 2, 4, 4, 4),),
        ),
        (lambda x: x.flatten(2).permute(2, 0, 1), lambda y: y.mean(0), ((4, 64),)),
    ],
    ids=["attention windows", "tokens first"],
)
def test_a_network_is_split_where_its_features_have_one_row_per_image(
    split: Rearrange, merge: Rearrange, shapes: tuple[tuple[int, ...], ...]
) -> None:
    network, x = Rearranged(split, merge), torch.rand(2, 3, 8, 8)
    model = wrap_network(network, Preprocessing(ImageProperty(8), Normalization()), num_classes=2, pretrained=False)
    parts = split_network(network, freeze(model, "inner"), x)
    assert parts is not None
    assert parts.feature_shapes == shapes
    rows = flatten_features(parts.lower_part(x))
    assert len(rows) == len(x)
    assert torch.equal(parts.upper_part(*unflatten_features(rows, parts.feature_shapes)), network(x))


class Branching(nn.Sequential):
    """A network whose forward depends on values, which symbolic tracing does not allow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.mean() > 0 else -x)  # type: ignore[no-any-return]


def test_a_network_that_cannot_be_traced_runs_whole_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    network = Branching(nn.Conv2d(3, 8, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    model = wrap_network(network, Preprocessing(ImageProperty(32), Normalization()), num_classes=2, pretrained=True)
    frozen = freeze(model)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["3.weight", "3.bias"]
    assert split_network(network, frozen, torch.zeros(2, 3, 32, 32)) is None
    assert "every epoch runs the whole network" in caplog.text


class Inner(nn.Module):
    """A module with a parameter of its own, children and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x * self.scale))  # type: ignore[no-any-return]


class Outer(nn.Module):
    """Its parameter `offset` comes first; a constant is made in `forward`."""

    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))
        self.first, self.second = Inner(), Inner()
        self.head = nn.Linear(3, 2)
        self.branches = branches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.offset + torch.tensor([0.5])
        if self.branches and x.mean() > 9:
            return x
        return self.head(self.second(self.first(x)).mean((2, 3)))  # type: ignore[no-any-return]


INNER = ("scale", "conv.weight", "conv.bias", "norm.weight", "norm.bias")


@pytest.mark.parametrize("branches", [False, True], ids=["traced", "by the order of definition"])
@pytest.mark.parametrize(
    ("upto", "expected", "modules"),
    [
        ("offset", ["offset"], []),
        ("first.conv", ["offset", *(f"first.{name}" for name in INNER[:3])], ["first.conv"]),
        ("first", ["offset", *(f"first.{name}" for name in INNER)], ["first", "first.conv", "first.norm"]),
        ("second.conv", ["offset", *(f"first.{n}" for n in INNER), *(f"second.{n}" for n in INNER[:3])],
         ["first", "first.conv", "first.norm", "second.conv"]),
        ("head", ["offset", *(f"{inner}.{name}" for inner in ("first", "second") for name in INNER)],
         [f"{inner}{name}" for inner in ("first", "second") for name in ("", ".conv", ".norm")]),
        ("none", [], []),
    ],
)  # fmt: skip
def test_parameters_outside_of_layers_are_frozen_in_their_order(
    upto: str, expected: list[str], modules: list[str], branches: bool
) -> None:
    network = Outer(branches=branches)
    model = wrap_network(network, Preprocessing(ImageProperty(8), Normalization()), num_classes=2, pretrained=False)
    part = freeze(model, upto)
    assert frozen_names(model) == expected
    assert sorted(part.module_paths) == sorted(modules)
    assert part.parameter_names == set(expected)
    network.train()
    assert {path for path, module in network.named_modules() if path and not module.training} == set(modules)


def test_head_also_freezes_layers_that_the_forward_pass_does_not_use() -> None:
    network = Outer(branches=False)
    network.add_module("auxiliary", Inner())  # as layers used only in training
    model = wrap_network(network, Preprocessing(ImageProperty(8), Normalization()), num_classes=2, pretrained=False)
    part = freeze(model, "head")
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert "auxiliary" in part.module_paths


def test_the_digest_is_of_frozen_parameters_and_of_buffers_of_frozen_modules() -> None:
    network = Outer(branches=False)
    model = wrap_network(network, Preprocessing(ImageProperty(8), Normalization()), num_classes=2, pretrained=False)
    part = freeze(model, "first")
    before = part.digest(network)
    changes = {
        "first.scale": True, "first.norm.running_mean": True, "first.norm.running_var": True, "offset": True,
        "second.scale": False, "second.norm.running_mean": False, "head.bias": False,
    }  # fmt: skip
    for name, matters in changes.items():
        state = network.state_dict()
        state[name] += 1
        assert (part.digest(network) != before) == matters, name
        state[name] -= 1
        assert part.digest(network) == before


def test_a_trace_calls_each_layer_and_keeps_the_constants_that_it_needs() -> None:
    network = Outer(branches=False)
    graph = trace(network)
    assert graph is not None
    called = [node.target for node in graph.nodes if node.op in ("call_module", "get_attr")]
    assert called == [
        "offset", "_tensor_constant0", "first.scale", "first.conv", "first.norm", "second.scale", "second.conv",
        "second.norm", "head",
    ]  # fmt: skip
    assert torch.equal(network._tensor_constant0, torch.tensor([0.5]))  # type: ignore[arg-type]
    assert trace(Outer(branches=True)) is None


def test_an_unknown_layer_is_answered_with_at_most_three_like_it() -> None:
    with torch.device("meta"):
        model = build_model("alexnet", num_classes=2, weights="none", size=63)
    names = "conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8, features, avgpool, classifier, head, none"
    for wrong, like in (("conv9", "; did you mean conv5 or conv4 or conv3?"), ("x", ".")):
        with pytest.raises(ModelError) as error:
            freeze(model, wrong)
        assert str(error.value) == (
            f"alexnet has no layer {wrong!r}{like} Use {names}, or a module path such as features.10"
        )
