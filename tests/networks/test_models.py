"""Networks by name, their weights from files, and the sizes that they can take."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mlimages.core import ModelError
from mlimages.networks import build_model
from mlimages.networks.weights import read_weights
from tests.servers import cut, serve


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [("lenet5", 28, 1), ("mnist_cnn", 28, 1), ("cifar10_cnn", 32, 3), ("alex", 227, 3), ("squeezenet1_1", 224, 3)],
)
def test_a_name_gives_a_network_with_its_preprocessing(name: str, size: int, channels: int) -> None:
    model = build_model(name, classes=3, weights="none")
    assert (model.preprocessing.image.width, model.preprocessing.image.channels) == (size, channels)
    assert model.network(torch.zeros(2, channels, size, size)).shape == (2, 3)
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
    state = build_model("alex-grouped", classes=7, weights="none").network.state_dict()
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_the_mnist_network_narrows_as_its_tutorial_says() -> None:
    network = build_model("mnist_cnn", classes=10, weights="none").network
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
def test_weights_come_from_every_kind_of_file_and_another_head_is_made_anew(tmp_path: Path, suffix: str) -> None:
    whole = build_model("lenet5", classes=10, weights="none", seed=1).network.state_dict()
    path = save(whole, tmp_path / f"w{suffix}")
    same = build_model("lenet5", classes=10, weights=path)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in same.network.state_dict().items())
    other = build_model("lenet5", classes=4, weights=path).network.state_dict()
    assert other["fc5.weight"].shape == (4, 84)
    assert torch.equal(other["fc4.weight"], whole["fc4.weight"])


def test_a_library_network_is_filled_exactly_without_being_drawn_first(tmp_path: Path) -> None:
    whole = build_model("resnet18", classes=3, weights="none", seed=5).network
    path = save(whole.state_dict(), tmp_path / "r.pth")
    filled = build_model("resnet18", classes=3, weights=path).network
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(filled(x), whole(x))


def test_a_mismatch_lists_the_first_missing_unexpected_and_misshaped_names(tmp_path: Path) -> None:
    state = dict(build_model("lenet5", classes=10, weights="none").network.state_dict())
    state["conv2.weight"] = torch.zeros(16, 6, 3, 3)
    state["extra.weight"] = state.pop("fc4.weight")
    with pytest.raises(ModelError) as error:
        build_model("lenet5", classes=10, weights=save(state, tmp_path / "w.npz"))
    assert "missing: fc4.weight" in str(error.value)
    assert "unexpected: extra.weight" in str(error.value)
    assert "conv2.weight (16, 6, 3, 3) for (16, 6, 5, 5)" in str(error.value)


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (Path("sprung"), "yes")


def test_no_code_of_a_weights_file_is_ever_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")
    np.savez(tmp_path / "trap.npz", **{"conv1.weight": np.array([Trap()], dtype=object)})
    for name in ("trap.pth", "trap.npz"):
        with pytest.raises(ModelError, match="cannot be read"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.npz", "cut.pth"])
def test_a_damaged_weights_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" + b"\x80" * 40)
    with pytest.raises(ModelError, match=name):
        read_weights(tmp_path / name)


def test_default_weights_offline_say_which_file_was_wanted_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ModelError) as error:
        build_model("alexnet", classes=2)
    assert "alexnet-owt-7be5be79.pth" in str(error.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(error.value)
    assert "--weights PATH" in str(error.value)


def test_timm_weights_out_of_reach_are_asked_for_once_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with serve() as hub:
        hub.fallback = cut(b"")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.base)
        with pytest.raises(ModelError) as error:
            build_model("timm:test_vit.r160_in1k", classes=2)
    assert "test_vit.r160_in1k/model.safetensors" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "--weights PATH" in str(error.value)
    assert len(hub.requests) == 1


def test_an_unknown_name_says_what_is_near() -> None:
    with pytest.raises(ModelError, match="resnet18"):
        build_model("resnet", classes=2)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("alex", 224, "fc6 is made for 9216 numbers and would get 6400; the nearest sizes that fit: 227"),
        ("lenet5", 8, r"conv2 is left with nothing: \(4 \+ 2\*0 - 5\)/1 \+ 1 = 0; the nearest sizes that fit: 12"),
        ("alexnet", 40, "the nearest sizes that fit: 63"),
        ("alex", 20, "the nearest sizes that fit: 227"),
        ("vit_b_16", 200, "the nearest sizes that fit: 224"),
    ],
)
def test_a_size_that_does_not_fit_names_the_layer_and_the_nearest_that_do(name: str, size: int, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_model(name, classes=2, weights="none", size=size)


def test_a_size_keeps_the_margin_around_the_crop_in_proportion() -> None:
    image = build_model("squeezenet1_0", classes=2, weights="none", size=112).preprocessing.image
    assert (image.width, image.shorter_px) == (112, 128)


def test_the_layers_of_alexnet_and_vgg_go_by_their_names() -> None:
    alexnet = build_model("alexnet", classes=2, weights="none").layers
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


def test_gray_pictures_go_into_a_network_of_three_channels() -> None:
    model = build_model("squeezenet1_0", classes=2, weights="none", gray=True)
    assert model.preprocessing.image.channels == 1
    assert len(model.preprocessing.normalization.mean) == 3


def test_alexnet_from_scratch_starts_with_a_signal_that_reaches_its_end() -> None:
    pictures = torch.rand(8, 3, 227, 227, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.inference_mode():
        logits = build_model("alex", classes=3, weights="none").network(pictures)  # (N, 3)
    assert logits.std(dim=0).mean() > 0.01, "torch's own start gives 0.00003: nothing is learned"
