"""Networks by name, weights from files, and input sizes."""

import argparse
import io
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer

from mlimages.core import DEFAULT_MODEL, ModelError
from mlimages.networks import (
    add_lower_layers_head,
    build_model,
    find_cut_points,
    freeze,
    has_local_weights,
    resolve_weights_and_freeze,
    split_network,
)
from mlimages.networks.architectures import find_architecture
from mlimages.networks.timm_architecture import find_lite0_weights
from mlimages.networks.weights import StateDict, read_weights
from tests.servers import cut, serve


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [("lenet5", 28, 1), ("mnist_cnn", 28, 1), ("cifar10_cnn", 32, 3), ("alex", 227, 3), ("squeezenet1_1", 224, 3)],
)
def test_a_network_comes_with_its_preprocessing(name: str, size: int, channels: int) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=3, weights="none")
        assert model.network(torch.zeros(2, channels, size, size)).shape == (2, 3)
    assert (model.preprocessing.image.width, model.preprocessing.image.channels) == (size, channels)
    assert not model.network.training


def test_alex_grouped_has_the_shapes_and_names_of_the_original_caffe_weights() -> None:
    shapes = {
        "conv1.weight": (96, 3, 11, 11),
        "conv2.weight": (256, 48, 5, 5),
        "conv4.weight": (384, 192, 3, 3),
        "conv5.weight": (256, 192, 3, 3),
        "fc6.weight": (4096, 9216),
        "fc8.bias": (7,),
    }
    with torch.device("meta"):
        state = build_model("alex-grouped", num_classes=7, weights="none").network.state_dict()
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_the_mnist_network_has_the_widths_of_its_tutorial() -> None:
    network = build_model("mnist_cnn", num_classes=10, weights="none").network
    widths, x = [], torch.zeros(1, 1, 28, 28)
    for layer in network.children():
        x = layer(x)
        widths.append(x.shape[-1])
    assert list(dict.fromkeys(widths)) == [26, 13, 11, 5, 800, 128, 10]


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    match path.suffix:
        case ".safetensors":
            save_file(state, path)
        case ".npz":
            np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
        case _:
            whole = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
            torch.save(whole, path, _use_new_zipfile_serialization=path.suffix == ".pth")  # .pt as before torch 1.6
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pt"])
def test_weights_are_loaded_from_every_kind_of_file_and_another_head_is_random(tmp_path: Path, suffix: str) -> None:
    whole = build_model("lenet5", num_classes=10, weights="none", seed=1).network.state_dict()
    path = save(whole, tmp_path / f"w{suffix}")
    same = build_model("lenet5", num_classes=10, weights=path)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in same.network.state_dict().items())
    other = build_model("lenet5", num_classes=4, weights=path).network.state_dict()
    assert other["fc5.weight"].shape == (4, 84)
    assert torch.equal(other["fc4.weight"], whole["fc4.weight"])


def test_weights_of_a_library_network_are_loaded_exactly(tmp_path: Path) -> None:
    original = build_model("resnet18", num_classes=3, weights="none", seed=5).network
    path = save(original.state_dict(), tmp_path / "r.pth")
    loaded = build_model("resnet18", num_classes=3, weights=path).network
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded(x), original(x))


def with_numbers_in_names(state: StateDict) -> StateDict:
    """The tensors as torchvision's published files of DenseNet, of before batch norm counted batches, name them."""
    names = (name for name in state if not name.endswith("num_batches_tracked"))
    return {re.sub(r"(layer\d+\.(?:norm|conv))([12])", r"\1.\2", name): state[name] for name in names}


def with_linear_layers(state: StateDict) -> StateDict:
    """The tensors as torchvision's published files of vision transformers name them."""
    return {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): state[name] for name in state}


@pytest.mark.parametrize(
    ("name", "rename"), [("mnasnet0_5", dict), ("densenet121", with_numbers_in_names)], ids=["version", "names"]
)
def test_published_weights_of_an_earlier_version_are_loaded_as_by_torchvision(
    name: str, rename: Callable[[StateDict], StateDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = models.get_model(name)
    published = rename(network.state_dict())

    def published_state(*args: object, **options: object) -> StateDict:
        state = OrderedDict(published)
        vars(state)["_metadata"] = {"": {"version": network._version}}
        return state

    entry = models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(type(entry), "get_state_dict", published_state)
    theirs = models.get_model(name, weights=entry).state_dict()
    torch.save(published_state(), tmp_path / "w.pth")
    save_file(published, tmp_path / "w.safetensors")
    for weights in ("default", tmp_path / "w.pth", tmp_path / "w.safetensors"):
        ours = build_model(name, num_classes=1000, weights=weights).network.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs)


@pytest.mark.parametrize(
    ("name", "rename"), [("vit_b_32", with_linear_layers), ("timm:densenet121", with_numbers_in_names)]
)
def test_earlier_names_of_tensors_are_converted(name: str, rename: Callable[[StateDict], StateDict]) -> None:
    with torch.device("meta"):
        network = build_model(name, num_classes=2, weights="none").network
    state = network.state_dict()
    published = rename(state)
    if name == "vit_b_32":
        network.load_state_dict(dict(published), assign=True)  # torchvision takes these names
    converted = find_architecture(name).convert_weights(published, network)
    assert {tensor for tensor in state if not tensor.endswith("num_batches_tracked")} == converted.keys()


def test_every_class_that_loads_earlier_versions_in_its_own_way_is_known() -> None:
    def subclasses(parent: type) -> Iterator[type]:
        for child in parent.__subclasses__():
            yield from (child, *subclasses(child))

    names = {
        child.__name__
        for child in subclasses(nn.Module)
        if "_load_from_state_dict" in vars(child)
        and re.match(r"timm\.models|torchvision\.models(?!\.(detection|quantization))", child.__module__)
    }
    assert names == {"MNASNet", "MLPBlock"}
    modules = [name for name in sys.modules if name.startswith("torchvision.models")]
    assert [name for name in modules if hasattr(sys.modules[name], "_load_state_dict")] == [models.densenet.__name__]


def test_a_mismatch_lists_the_first_missing_unexpected_and_wrongly_shaped_tensors(tmp_path: Path) -> None:
    state = dict(build_model("lenet5", num_classes=10, weights="none").network.state_dict())
    state["conv2.weight"] = torch.zeros(16, 6, 3, 3)
    state["extra.weight"] = state.pop("fc4.weight")
    with pytest.raises(ModelError) as error:
        build_model("lenet5", num_classes=10, weights=save(state, tmp_path / "w.npz"))
    assert "missing: fc4.weight" in str(error.value)
    assert "unexpected: extra.weight" in str(error.value)
    assert "wrong shape: conv2.weight (16, 6, 3, 3) instead of the network's (16, 6, 5, 5)" in str(error.value)


class Options:
    """A class of somebody's training loop."""

    def __init__(self) -> None:
        self.model = "lenet5"


def as_chainer(state: StateDict) -> StateDict:
    names = {"weight": "W", "bias": "b"}
    return {"predictor/" + "/".join([*n.split(".")[:-1], names[n.split(".")[-1]]]): t for n, t in state.items()}


def prefixed(prefix: str, state: StateDict) -> StateDict:
    return {prefix + name: tensor for name, tensor in state.items()}


CHECKPOINTS: dict[str, tuple[str, Callable[[StateDict], object]]] = {
    "timm": ("model_best.pth.tar", lambda s: {"epoch": 3, "state_dict": s, "args": argparse.Namespace(lr=0.1)}),
    "timm_ema": ("last.pth.tar", lambda s: {"state_dict": prefixed("no.", s), "state_dict_ema": s}),
    "deit_ema": ("deit.pth", lambda s: {"model": prefixed("no.", s), "model_ema": prefixed("module.", s)}),
    "lightning": (
        "epoch=3.ckpt",
        lambda s: {
            "state_dict": {**prefixed("model.", s), "loss.weight": torch.ones(2)},
            "hyper_parameters": Options(),
            "callbacks": {"best": Path("x")},
        },
    ),
    "compiled": ("w.pt", lambda s: prefixed("module._orig_mod.", s)),
    "backbone": ("w.pth", lambda s: prefixed("backbone.", {n: t for n, t in s.items() if not n.startswith("fc5")})),
    "hugging_face": ("pytorch_model.bin", lambda s: s),
    "another_part": ("w.bin", lambda s: {"mask_token": torch.zeros(3), **s, "aux.weight": torch.zeros(2)}),
    "in_order": ("w.pth", lambda s: {f"layer{n // 2}.{name[-1]}": t for n, (name, t) in enumerate(s.items())}),
    "chainer": ("w.npz", as_chainer),
    "half": ("w.pth", lambda s: {name: tensor.half() for name, tensor in s.items()}),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_other_programs_are_loaded(tmp_path: Path, kind: str) -> None:
    whole = build_model("lenet5", num_classes=10, weights="none", seed=1).network.state_dict()
    name, wrap = CHECKPOINTS[kind]
    content = wrap(dict(whole))
    if name.endswith(".npz"):
        np.savez(tmp_path / name, **content)
    else:
        torch.save(content, tmp_path / name)
    loaded = build_model("lenet5", num_classes=10, weights=tmp_path / name).network.state_dict()
    expected = [n for n in whole if not (kind == "backbone" and n.startswith("fc5"))]
    assert all(torch.allclose(loaded[n], whole[n], atol=1e-3 if kind == "half" else 0) for n in expected)


@pytest.mark.parametrize(
    ("name", "replaced"),
    [("mobilenet_v2", "classifier"), ("mobilenet_v2", "classifier.1"), ("resnet18", "fc"), ("timm:test_vit", "head")],
)
def test_weights_with_another_head_are_loaded_without_it(tmp_path: Path, name: str, replaced: str) -> None:
    model = build_model(name, num_classes=5, weights="none", seed=1)
    width = model.network.get_parameter(f"{model.head}.weight").shape[1]
    head = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))
    model.network.set_submodule(replaced, head)
    torch.save({"state_dict": prefixed("model.", model.network.state_dict())}, tmp_path / "w.ckpt")
    loaded = build_model(name, num_classes=3, weights=tmp_path / "w.ckpt", seed=2)
    own, other = loaded.network.state_dict(), model.network.state_dict()
    body = [key for key in own if not key.startswith(model.head)]
    assert len(body) > 10
    assert all(torch.equal(own[key], other[key]) for key in body)
    assert own[f"{model.head}.weight"].shape == (3, width)


def test_an_incomplete_checkpoint_with_a_prefix_is_refused_for_what_it_lacks(tmp_path: Path) -> None:
    state = build_model("mobilenet_v2", num_classes=10, weights="none").network.state_dict()
    kept = {key: tensor for key, tensor in state.items() if not key.startswith("features.1")}
    torch.save(prefixed("model.", kept), tmp_path / "w.ckpt")
    with pytest.raises(ModelError, match=r"does not match this network; missing: features\.1\.conv\.\S+, [^;]*$"):
        build_model("mobilenet_v2", num_classes=10, weights=tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    ("break_state", "message"),
    [
        (lambda s: s | {"conv2.weight": s["conv2.weight"] * torch.nan}, "NaN or infinity in conv2.weight"),
        (lambda s: s | {"fc3.bias": s["fc3.bias"] + torch.inf}, "NaN or infinity in fc3.bias"),
        (lambda s: s | {"conv2.extra": torch.zeros(2)}, "unexpected: conv2.extra"),
        (lambda s: dict(reversed(prefixed("x", s).items())), "missing: conv1.weight"),
    ],
    ids=["nan", "infinity", "more", "order"],
)
def test_weights_that_do_not_fit_or_are_damaged_are_refused(
    tmp_path: Path, break_state: Callable[[StateDict], StateDict], message: str
) -> None:
    state = dict(build_model("lenet5", num_classes=10, weights="none").network.state_dict())
    torch.save(break_state(state), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message):
        build_model("lenet5", num_classes=10, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_large_finite_weights_are_not_taken_for_infinity(tmp_path: Path, dtype: torch.dtype) -> None:
    state = dict(build_model("lenet5", num_classes=10, weights="none").network.state_dict())
    state["fc3.weight"] = torch.full_like(state["fc3.weight"], torch.finfo(dtype).max, dtype=dtype)
    torch.save(state, tmp_path / "w.pth")
    loaded = build_model("lenet5", num_classes=10, weights=tmp_path / "w.pth").network.state_dict()
    assert torch.equal(loaded["fc3.weight"].to(dtype), state["fc3.weight"])


def test_the_default_network_has_its_weights_without_a_network() -> None:
    model = build_model(DEFAULT_MODEL, num_classes=1000)
    assert (model.name, model.pretrained) == ("efficientnet_lite0", True)
    assert (model.preprocessing.normalization.mean, model.preprocessing.image.interpolation) == ((0.5,) * 3, "bicubic")
    packaged = torch.load(find_lite0_weights(), weights_only=True)
    loaded = model.network.state_dict()
    assert all(torch.equal(one, other) for one, other in zip(loaded.values(), packaged.values(), strict=True))
    same = build_model("timm:tf_efficientnet_lite0", num_classes=1000, weights=find_lite0_weights()).network
    x = torch.rand(1, 3, 224, 224)
    assert torch.equal(same(x), model.network(x))


def test_the_packaged_weights_are_refused_by_the_network_that_pads_otherwise() -> None:
    with pytest.raises(ModelError, match="use --model efficientnet_lite0, which finds the file automatically"):
        build_model("timm:efficientnet_lite0", num_classes=2, weights=find_lite0_weights())


def test_altered_packaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = tmp_path / "w.pth"
    altered.write_bytes(find_lite0_weights().read_bytes()[:-1] + b"x")
    monkeypatch.setattr("mlimages.networks.timm_architecture.find_lite0_weights", lambda: altered)
    with pytest.raises(ModelError, match=r"w\.pth is damaged: reinstall"):
        build_model(DEFAULT_MODEL, num_classes=2)


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (Path("executed"), "yes")


def test_no_code_in_a_weights_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Payload()}, tmp_path / "trap.pth")
    np.savez(tmp_path / "trap.npz", **{"conv1.weight": np.array([Payload()], dtype=object)})
    torch.save({"conv1.weight": Payload()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("trap.pth", "trap.npz", "old.pth"):
        with pytest.raises(ModelError, match=r"cannot be read|contains no tensors"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.npz", "cut.pth"])
def test_a_damaged_weights_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" + b"\x80" * 40)
    with pytest.raises(ModelError, match=name):
        read_weights(tmp_path / name)


def a_torchscript_archive() -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are not gone
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), out)
    return out.getvalue()


def a_checkpoint_cut_short() -> bytes:
    out = io.BytesIO()
    torch.save({"w": torch.zeros(1000)}, out)
    return out.getvalue()[:-500]


OTHER_CONTENT = [
    (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
    (lambda: b"", "empty"),
    (lambda: b"\n<!DOCTYPE html><title>Sign in</title>", "a web page"),
    (a_torchscript_archive, "a TorchScript archive"),
    (a_checkpoint_cut_short, "incomplete"),
]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize(("content", "message"), OTHER_CONTENT, ids=[message for _, message in OTHER_CONTENT])
def test_what_is_not_weights_is_named(tmp_path: Path, content: Callable[[], bytes], message: str, suffix: str) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content())
    with pytest.raises(ModelError, match=f"cannot be read as {suffix} weights: the file is {message}; "):
        read_weights(tmp_path / f"w{suffix}")


def test_weights_of_another_library_are_named_as_such(tmp_path: Path) -> None:
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError,
        match=r"no tensor name in common: .*another network or another library \(timm:NAME is a network of timm\)",
    ):
        build_model("mobilenet_v2", num_classes=2, weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("name", "file"),
    [("alexnet", "alexnet-owt-7be5be79.pth"), ("timm:gcvit_xxtiny.in1k", "gcvit_xxtiny_224_nvidia-d1d86009.pth")],
)
def test_offline_the_error_names_the_weights_file_and_its_folder(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ModelError) as error:
        build_model(name, num_classes=2)
    assert file in str(error.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(error.value)
    assert "with --weights" in str(error.value)
    assert not has_local_weights(name)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    (tmp_path / "hub" / "checkpoints" / file).touch()
    assert has_local_weights(name)


def test_offline_timm_weights_are_requested_once_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with serve() as hub:
        hub.fallback = cut(b"")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.base)
        with pytest.raises(ModelError) as error:
            build_model("timm:test_vit.r160_in1k", num_classes=2)
    assert "test_vit.r160_in1k/model.safetensors" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "--weights PATH" in str(error.value)
    assert len(hub.requests) == 1


class Recorder(nn.Module):
    """Stands for a network's class, and keeps the arguments that its builder derives."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__()
        self.arguments = {name: re.sub(" at 0x[0-9a-f]+", "", repr(value)) for name, value in options.items()}
        self.arguments[""] = re.sub(" at 0x[0-9a-f]+", "", repr(args))

    def load_state_dict(self, *args: object, **options: object) -> None:  # type: ignore[override]
        """The weights are not asked for."""


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_a_classifier_of_torchvision_is_built_with_the_arguments_that_its_own_builder_derives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = models.get_model_weights(name).DEFAULT
    network_class = models.get_model_builder(name).__annotations__["return"]
    monkeypatch.setattr(type(entry), "get_state_dict", lambda *args, **options: {})
    monkeypatch.setattr(sys.modules[network_class.__module__], network_class.__name__, Recorder)
    architecture = find_architecture(name)
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # its builder computes widths
        theirs = models.get_model(name, weights=entry)
        ours = architecture.build_untrained(
            1000, architecture.make_preprocessing("default").image, will_load_weights=True
        )
    if name in ("googlenet", "inception_v3"):
        assert theirs.arguments.pop("aux_logits") == "True"  # in training only; the same logits without
        assert ours.arguments.pop("aux_logits") == "False"
    if name.startswith("vit_"):
        theirs.arguments.setdefault("image_size", "224")
    assert ours.arguments == theirs.arguments


def test_an_unknown_name_suggests_similar_ones() -> None:
    with pytest.raises(ModelError, match="unknown model 'resnet81': did you mean resnet18 or "):
        build_model("resnet81", num_classes=2)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("alex", 224, "fc6 expects 9216 features but would get 6400; nearest valid sizes: 227"),
        ("lenet5", 8, r"conv2 would have an output of size \(4 \+ 2\*0 - 5\)/1 \+ 1 = 0; nearest valid sizes: 12"),
        ("alexnet", 40, "nearest valid sizes: 63"),
        ("alex", 20, "nearest valid sizes: 227"),
        ("vit_b_16", 200, "nearest valid sizes: 192 and 208"),
        ("vit_h_14", 220, "nearest valid sizes: 210 and 224"),
    ],
)
def test_an_invalid_size_is_an_error_that_names_the_layer_and_valid_sizes(name: str, size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(name, num_classes=2, weights="none", size=size)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("lenet5", (32, 28)),
        ("squeezenet1_1", (96, 64)),
        ("vit_b_16", (64, 64)),
        ("timm:vit_tiny_patch16_224", (64, 96)),
        ("timm:swin_tiny_patch4_window7_224", (64, 96)),
        ("timm:test_efficientnet", (64, 96)),
    ],
)
def test_a_network_is_built_for_images_of_another_size(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=3, weights="none", size=size)
        image = model.preprocessing.image
        assert (image.width, image.height) == size
        assert model.network(torch.zeros(2, image.channels, image.height, image.width)).shape == (2, 3)
    if "vit" in name:  # position embeddings are resized
        save_file(build_model(name, num_classes=3, weights="none").network.state_dict(), tmp_path / "w.safetensors")
        assert build_model(name, num_classes=3, weights=tmp_path / "w.safetensors", size=size).pretrained


def test_position_embeddings_of_torchvision_are_resized() -> None:
    native, small = (VisionTransformer(side, 16, 1, 2, 8, 8, num_classes=3) for side in (224, 64))
    converted = find_architecture("vit_b_16").convert_weights(native.state_dict(), small)
    assert small.load_state_dict(converted).missing_keys == []
    embeddings = [state["encoder.pos_embedding"] for state in (native.state_dict(), converted)]
    assert [tuple(each.shape) for each in embeddings] == [(1, 197, 8), (1, 17, 8)]
    assert torch.equal(embeddings[0][:, 0], embeddings[1][:, 0]), "of the class token"


def test_a_size_keeps_the_margin_around_the_crop_in_proportion() -> None:
    image = build_model("squeezenet1_0", num_classes=2, weights="none", size=112).preprocessing.image
    assert (image.width, image.shorter_px) == (112, 128)


def test_the_layers_of_alexnet_have_their_well_known_names() -> None:
    with torch.device("meta"):
        alexnet = build_model("alexnet", num_classes=2, weights="none").layer_aliases
    assert alexnet == {
        "conv1": "features.0",
        "conv2": "features.3",
        "conv3": "features.6",
        "conv4": "features.8",
        "conv5": "features.10",
        "fc6": "classifier.1",
        "fc7": "classifier.4",
        "fc8": "classifier.6",
    }


def test_gray_images_are_taken_by_a_network_with_three_channels() -> None:
    model = build_model("squeezenet1_0", num_classes=2, weights="none", gray=True)
    assert model.preprocessing.image.channels == 1
    assert len(model.preprocessing.normalization.mean) == 3
    assert model.preprocessing.input_shape == (3, 224, 224)
    assert find_cut_points(model)
    deep = add_lower_layers_head(model)
    assert deep is not None
    assert deep.network(torch.zeros(2, 3, 224, 224)).shape == (2, 2)


def test_alexnet_from_scratch_has_logits_that_depend_on_the_image() -> None:
    images = torch.rand(8, 3, 227, 227, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.inference_mode():
        logits = build_model("alex", num_classes=3, weights="none").network(images)  # (N, 3)
    assert logits.std(dim=0).mean() > 0.01, "0.00003 with torch's default initialization, from which nothing is learned"


@pytest.mark.parametrize("kind", [str, Path])
def test_weights_are_taken_by_paths_of_every_kind(tmp_path: Path, kind: type) -> None:
    original = build_model("lenet5", num_classes=3, weights="none").network
    path = save(original.state_dict(), tmp_path / "w.npz")
    loaded = build_model("lenet5", num_classes=3, weights=kind(path))
    assert torch.equal(loaded.network(torch.zeros(1, 1, 28, 28)), original(torch.zeros(1, 1, 28, 28)))


def test_the_repr_of_a_model_is_one_line() -> None:
    model = build_model("lenet5", num_classes=10, weights="none")
    assert repr(model) == "Model('lenet5', 61,706 parameters, random weights, 28 x 28 px gray)"


@pytest.mark.parametrize(
    ("model", "weights", "freeze", "expected"),
    [
        ("lenet5", "default", "auto", ("none", "none")),
        ("lenet5", "w.npz", "auto", ("w.npz", "head")),
        ("alex", "none", "conv5", ("none", "conv5")),
        ("alexnet", "default", "auto", ("default", "head")),
        ("alexnet", "none", "none", ("none", "none")),
        ("efficientnet_lite0", "default", "conv_stem", ("default", "conv_stem")),
    ],
)
def test_a_network_without_pretrained_weights_is_trained_whole(
    model: str, weights: str, freeze: str, expected: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve_weights_and_freeze(model, weights=weights, freeze=freeze) == expected
    assert ("random weights and are not trained" in caplog.text) == (freeze == "conv5")


def test_random_weights_are_taken_only_with_what_to_train() -> None:
    with pytest.raises(ModelError, match="resnet18 with --weights none starts from random weights: train all layers"):
        resolve_weights_and_freeze("resnet18", weights="none", freeze="auto")


def test_all_classifiers_of_a_distilled_network_are_found_and_trained() -> None:
    model = build_model("timm:deit_tiny_distilled_patch16_224", num_classes=3, weights="none")
    assert model.heads == ("head", "head_dist")
    frozen = freeze(model)
    trained = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    model.zero_other_heads()
    x = torch.rand(1, 3, 224, 224)
    parts = split_network(model.network, frozen, x)
    assert parts is not None
    features = parts.lower_part(x)
    with torch.no_grad():
        assert torch.allclose(model.network(x), model.network.head(features[0]) / 2, atol=1e-5)
