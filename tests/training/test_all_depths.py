"""A classifier on all depths: trained, stopped, resumed, exported and read back as one on the last layer is."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mlimages.core import ImageProperty, InputError, Normalization, Preprocessing
from mlimages.images import load_rgb
from mlimages.inference import KNOWN, LOGITS, OnnxBundle, evaluate
from mlimages.networks import (
    LOWER_HEAD_PATH,
    add_lower_layers_head,
    build_model,
    find_lower_layers_head,
    freeze,
    split_network,
    wrap_network,
)
from mlimages.training import FineTuneConfig, fine_tune, load_run, read_config
from mlimages.training.training_job import trains_below_head
from tests.training.conftest import COLOURS, config_for, draw

pytestmark = pytest.mark.train


@pytest.fixture
def config(colours: Path, pretrained: Path, tmp_path: Path) -> FineTuneConfig:
    for number in range(24):  # enough to set the threshold of `known`
        draw(tmp_path / "val" / f"{number}.png", list(COLOURS.values())[number % 3], seed=1000 + number)
    (tmp_path / "val.txt").write_text("".join(f"val/{number}.png {number % 3}\n" for number in range(24)))
    (tmp_path / "val_class_def.txt").write_text((tmp_path / "labels_class_def.txt").read_text())
    options = {"val": tmp_path / "val.txt", "weights": str(pretrained), "freeze": "auto", "head": "all-depths"}
    return config_for(colours, epochs=2, lr=0.01, **options)


def test_the_exported_file_the_checkpoint_and_the_resumed_run_are_one_classifier(config: FineTuneConfig) -> None:
    result = fine_tune(config)  # the export compares the file with the network
    assert result.depths_share > 0
    run = load_run(config.out)
    assert run.network.get_parameter(f"{LOWER_HEAD_PATH}.weight").abs().max() > 0
    bundle = OnnxBundle.read(config.out)
    assert (bundle.known.count, bundle.known.share) == (result.val_images, 0.95) if bundle.known else False
    file = ort.InferenceSession(config.out / "model.onnx")
    image = np.asarray(load_rgb(next(config.labels.parent.rglob("*.png"))))[None]
    logits, known = file.run([LOGITS, KNOWN], {"image": image})
    assert (logits.shape, known.shape, 0 < known[0] <= 1) == ((1, 3), (1,), True)
    for name, count in (("train", (result.train_images, 0)), ("val", (0, result.val_images))):
        for model in (config.out, config.out / "model.onnx"):
            found = evaluate(model, config.out / f"{name}.txt")
            assert (found.num_in_training_set, found.num_in_validation_set) == count
    fine_tune(replace(config, out=config.out.with_name("one"), epochs=1), export=False)
    fine_tune(replace(read_config(config.out.with_name("one")), epochs=2), export=False)
    again = load_run(config.out.with_name("one"), "last").network.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in again.values())
    assert load_run(config.out, "last").network.state_dict().keys() == again.keys()
    plain = build_model("cifar10_cnn", num_classes=3, weights=config.out / "best.safetensors").network
    assert load_file(config.out / "best.safetensors").keys() == plain.state_dict().keys()


def test_where_leave_one_out_prefers_the_last_layer_the_run_is_one_on_the_last_layer(
    config: FineTuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlimages.training.finetune.LOWER_LAYERS_SHARES", (0.0,))
    auto, last = (replace(config, head=head, out=config.out / head) for head in ("auto", "last"))
    results = [fine_tune(each, export=False) for each in (auto, last)]
    assert [result.depths_share for result in results] == [0, 0]
    one, other = (load_file(each.out / "last.safetensors") for each in (auto, last))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    assert LOWER_HEAD_PATH not in dict(load_run(auto.out).network.named_children())


@pytest.mark.parametrize("options", [{"freeze": "conv4"}, {"weights": "none", "freeze": "head"}], ids=str)
def test_all_depths_need_a_frozen_pretrained_network(config: FineTuneConfig, options: dict[str, str]) -> None:
    with pytest.raises(InputError, match="--head all-depths requires --freeze head and pretrained weights"):
        replace(config, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["alexnet", "timm:test_convnext"])
def test_the_layer_sees_a_row_for_each_image_and_changes_nothing_at_first(name: str) -> None:
    model = build_model(name, num_classes=3, weights="none", size=64 if name == "alexnet" else None)
    deep, image = add_lower_layers_head(model), model.preprocessing.image
    assert deep is not None
    x = torch.randn(2, 3, image.height, image.width)
    with torch.inference_mode():
        assert torch.equal(deep.network(x), model.network(x))
        parts = split_network(deep.network, freeze(model), x)
        assert parts is not None
        torch.nn.init.ones_(deep.network.get_parameter(f"{LOWER_HEAD_PATH}.weight"))
        assert torch.allclose(parts.upper_part(*parts.lower_part(x)), deep.network(x), atol=1e-3)
    width = deep.network.get_parameter(f"{LOWER_HEAD_PATH}.weight").shape[1]
    assert max(np.prod(shape) for shape in parts.feature_shapes) == max(
        width,
        model.network.get_submodule(model.head).in_features,  # type: ignore[type-var]
    )


@pytest.mark.parametrize("own", [nn.ReLU(), nn.Conv2d(8, 8, 1)])
def test_a_module_of_the_same_name_is_a_layer_like_any_other(own: nn.Module) -> None:
    layers = OrderedDict(first=nn.Conv2d(3, 8, 3), second=nn.Conv2d(8, 8, 3))
    layers |= {LOWER_HEAD_PATH: own, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(8, 3)}
    preprocessing = Preprocessing(ImageProperty(32), Normalization())
    model = wrap_network(nn.Sequential(layers), preprocessing, num_classes=3, pretrained=True)
    assert find_lower_layers_head(model.network) is None
    assert add_lower_layers_head(model) is None
    freeze(model, "second")
    assert trains_below_head(model) == isinstance(own, nn.Conv2d)


@pytest.mark.parametrize("own", [(2, 2), nn.Parameter(torch.ones(1)), torch.ones(1)])
def test_a_number_of_blocks_of_the_same_name_is_no_layer_and_a_tensor_is_kept(own: object) -> None:
    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    network, x = nn.Sequential(*layers), torch.randn(2, 3, 32, 32)
    setattr(network, LOWER_HEAD_PATH, own)
    model = wrap_network(network, Preprocessing(ImageProperty(32), Normalization()), num_classes=3, pretrained=True)
    extended = add_lower_layers_head(model)
    assert (extended is None) == isinstance(own, torch.Tensor)
    assert extended is None or torch.equal(extended.network(x), model.network(x))
    assert getattr(network, LOWER_HEAD_PATH) is own
