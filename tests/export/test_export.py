"""A network is exported to a file that computes the same, or not at all."""

import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import nn

import mlimages
from mlimages import images
from mlimages.core import (
    ExportError,
    ImageProperty,
    InputError,
    LabeledPath,
    NoProgress,
    Normalization,
    Preprocessing,
    RunError,
    TargetRuntime,
)
from mlimages.export import RUNTIMES, ExportOptions, TrainedNetwork, export_network, serialization
from mlimages.export import parity as parity_module
from mlimages.export.parity import compute_network_outputs
from mlimages.export.preprocessing_graph import build_preprocessing_graph
from mlimages.export.targets import load_in_runtime
from mlimages.inference import OnnxBundle, to_graph_input
from mlimages.labels import write_label_file
from mlimages.training import export_run
from tests.deploying import exported, made_image, made_images, trained

pytestmark = pytest.mark.train


class Channels(nn.Module):
    """The mean of each channel as logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def channels(prop: ImageProperty, normalization: Normalization | None = None, **options: object) -> TrainedNetwork:
    preprocessing = Preprocessing(prop, normalization or Normalization(255.0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    return TrainedNetwork(Channels(), preprocessing, ("red", "green", "blue")[: prop.channels], "channels", **options)  # type: ignore[arg-type]


def run_file(path: Path, x: np.ndarray, *outputs: str, name: str = "image") -> list[np.ndarray]:  # type: ignore[type-arg]
    """Outputs of a file, in ONNX Runtime itself, by default the logits."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(outputs or ["logits"], {name: x})  # type: ignore[type-arg]
    return found


NETWORKS = ["lenet5", "squeezenet1_1", "timm:test_vit.r160_in1k", "timm:test_convnext.r160_in1k",
            "timm:test_efficientnet.r160_in1k"]  # fmt: skip
MORE_NETWORKS = ["alexnet", "vgg11_bn", "resnet18", "mobilenet_v3_small", "cifar10_cnn"]
COUNT = int(os.environ.get("MLIMAGES_COMPARED_IMAGES", "3"))
"""Images on which runtimes are compared; with more than in CI, on more networks too."""


@pytest.mark.parametrize("name", NETWORKS + MORE_NETWORKS * (COUNT > 3))
def test_torch_onnx_runtime_and_openvino_answer_the_same_for_every_kind_of_network(name: str, tmp_path: Path) -> None:
    network, items = trained(name, classes=5), made_images(tmp_path / "images", COUNT)
    bundle = export_network(network, tmp_path / "model.onnx", validation=items)
    assert (bundle.provenance.parity.num_images, bundle.provenance.parity.max_relative_difference < 5e-2) == (
        COUNT,
        True,
    )
    prop = network.preprocessing.image
    pixels = [images.load_pixels(item.path, prop) for item in items]
    x = to_graph_input(pixels, prop)  # what the file crops and leaves as it is
    expected = network.compute_logits(pixels)
    found = {"ONNX Runtime": run_file(bundle.path, x)[0]}
    if run := load_in_runtime("openvino", bundle.path):
        found["OpenVINO"] = np.concatenate([run(one[None]) for one in x])
    for runtime, logits in found.items():
        largest = np.abs(expected).max(axis=1, keepdims=True)
        assert np.abs((logits - expected) / largest).max() < parity_module.LOGIT_TOLERANCE, runtime


class Attention(nn.Module):
    """Attention between four patches with a bias for their relative position."""

    def __init__(self, *heads: int) -> None:
        super().__init__()
        self.heads, self.biases = heads, nn.Parameter(torch.randn(7, *heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (
            nn.functional.adaptive_avg_pool2d(x, (4, 8))
            .permute(0, 2, 3, 1)
            .reshape(-1, 4, *self.heads, 24 // math.prod(self.heads))
        )
        x = x.movedim(1, -2)  # (N, *heads, 4, D)
        offsets = torch.arange(4)[:, None] - torch.arange(4) + 3
        bias = self.biases[offsets].movedim((0, 1), (-2, -1)).unsqueeze(0)  # (1, *heads, 4, 4)
        x = nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=bias)
        return x.movedim(-2, 1).reshape(x.shape[0], 4, 24).mean(1)[:, :3]


@pytest.mark.parametrize("heads", [(), (4,), (2, 2)], ids=["as in SAM", "as in BEiT", "as in Hiera"])
def test_attention_with_a_bias_is_exported(heads: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    attention = replace(channels(ImageProperty(32)), network=Attention(*heads).eval())
    bundle = export_network(attention, tmp_path / "model.onnx", validation=made_images(tmp_path / "images", 3))
    assert bundle.provenance.parity.num_images == 3


def test_the_file_takes_batches_of_images_of_any_size_and_returns_logits_and_probabilities(
    cnn_bundle: OnnxBundle,
) -> None:
    session = ort.InferenceSession(cnn_bundle.path, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()
    assert (model_input.name, model_input.type, model_input.shape[3]) == ("image", "tensor(uint8)", 3)
    for count, size in ((1, (33, 47)), (3, (200, 20)), (5, (32, 32))):
        batch = np.stack([np.asarray(made_image(n, *size)) for n in range(count)])
        logits, probabilities = session.run(["logits", "probabilities"], {"image": batch})
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(probabilities, odds / odds.sum(axis=1, keepdims=True), rtol=1e-5)
        assert logits.shape == (count, 3)


def test_the_file_is_valid_onnx_of_the_lowest_opset_with_its_weights_inside(cnn_bundle: OnnxBundle) -> None:
    model = onnx.load(cnn_bundle.path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 8  # ONNX Runtime 1.16 refuses 10
    assert not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)
    assert model.graph.input[0].type.denotation == "IMAGE"


@pytest.mark.parametrize("target", get_args(TargetRuntime))
def test_the_file_for_a_runtime_is_compared_in_that_runtime_where_it_is_installed(
    target: TargetRuntime, cnn_bundle: OnnxBundle, tmp_path: Path
) -> None:
    bundle = cnn_bundle
    if target != "onnxruntime":
        bundle = exported("cifar10_cnn", tmp_path, count=3, options=ExportOptions(target=target))
    runtime, parity = RUNTIMES[target], bundle.provenance.target_parity
    assert OnnxBundle.read(bundle.path).provenance.target == target
    assert bundle.includes_preprocessing == (target not in ("tensorrt", "opencv"))
    assert (parity is not None) == runtime.has_loader
    assert parity is None or (
        parity.num_images == 3 and parity.max_relative_difference < parity_module.RESIZE_TOLERANCE
    )
    assert parity or not runtime.load_model or runtime.parity_skip_reason


def test_a_runtime_that_answers_otherwise_or_cannot_load_the_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openers = {
        "not match": lambda package, path: lambda x: np.array([[1, 0, 0]], np.float32),
        "cannot load": lambda package, path: 1 / 0,
    }
    for message, opener in openers.items():
        runtime = replace(RUNTIMES["openvino"], load_model=opener, package="numpy")
        monkeypatch.setitem(RUNTIMES, "openvino", runtime)
        with pytest.raises(ExportError, match=message):
            exported("lenet5", tmp_path, count=2, options=ExportOptions(target="openvino"))
        assert not (tmp_path / "model.onnx").exists()


def test_the_exact_resize_is_refused_for_a_runtime_that_does_not_compute_it() -> None:
    with pytest.raises(InputError, match="OpenVINO does not support the exact resize"):
        ExportOptions(exact_resize=True, target="openvino")


@pytest.mark.parametrize("options", [ExportOptions(calibrate=True), ExportOptions(known_share=0.95)])
def test_calibration_without_a_validation_image_is_an_error_that_names_the_first_image(
    options: ExportOptions, tmp_path: Path
) -> None:
    missing = [LabeledPath(tmp_path / "gone" / "a.jpg", 0), LabeledPath(tmp_path / "gone" / "b.jpg", 1)]
    message = rf"none of the 2 validation images can be read \(the first is {tmp_path / 'gone' / 'a.jpg'}\)"
    with pytest.raises(InputError, match=message):
        export_network(trained("lenet5"), tmp_path / "a.onnx", validation=missing, options=options)
    with pytest.raises(InputError, match="there are no validation images"):
        export_network(trained("lenet5"), tmp_path / "a.onnx", validation=[], options=options)
    assert list(tmp_path.iterdir()) == []


def test_an_export_without_a_validation_image_says_that_nothing_was_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = [LabeledPath(tmp_path / "gone" / "a.jpg", 0)]
    export_network(trained("lenet5"), tmp_path / "a.onnx", validation=missing)
    assert f"the only validation image, {tmp_path / 'gone' / 'a.jpg'}, cannot be read" in caplog.text


def test_the_file_contains_no_path_of_the_machine_that_wrote_it(cnn_bundle: OnnxBundle) -> None:
    assert str(Path(mlimages.__file__).parent).encode() not in cnn_bundle.path.read_bytes()
    assert b"site-packages" not in cnn_bundle.path.read_bytes()


@pytest.mark.parametrize("resize", ["shorter", "crop", "downscale", "position", "squash", "letterbox"])
def test_full_size_images_give_the_logits_of_preprocessed_ones_for_every_kind_of_resize(
    resize: str, tmp_path: Path
) -> None:
    network = channels(ImageProperty(40, 30, resize=resize, interpolation="bicubic"))  # type: ignore[arg-type]
    export_network(network, tmp_path / "a.onnx", validation=made_images(tmp_path / "p", 4))
    image = made_image(9, 120, 75)
    (logits,) = run_file(tmp_path / "a.onnx", np.asarray(image)[None])
    expected = network.compute_logits([images.prepare_pixels(image, network.preprocessing.image)])
    np.testing.assert_allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize(
    "normalization",
    [Normalization(1.0, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), bgr=True), Normalization(255.0, (0.0,), (1.0,))],
    ids=["caffe", "one value"],
)
def test_every_normalization_is_inside_the_file(normalization: Normalization, tmp_path: Path) -> None:
    network = channels(ImageProperty(16), normalization)
    bundle = export_network(network, tmp_path / "a.onnx", validation=made_images(tmp_path / "p", 3))
    assert bundle.provenance.parity.max_relative_difference < 1e-2


def test_a_mean_image_is_inside_the_file_without_its_local_path(tmp_path: Path) -> None:
    mean = np.random.default_rng(0).uniform(0, 255, (3, 16, 16)).astype(np.float32)
    normalization = Normalization(255.0, mean_image=str(tmp_path / "secret" / "mean.npy"))
    network = channels(ImageProperty(16), normalization, mean_image=mean)
    bundle = export_network(network, tmp_path / "a.onnx", validation=made_images(tmp_path / "p", 3))
    assert bundle.preprocessing.normalization.mean_image == "mean.npy"
    assert b"secret" not in bundle.path.read_bytes()


def test_without_preprocessing_the_file_takes_normalized_input(tmp_path: Path) -> None:
    network = trained("lenet5")
    options = ExportOptions(include_preprocessing=False)
    bundle = export_network(network, tmp_path / "a.onnx", validation=made_images(tmp_path / "p", 3), options=options)
    session = ort.InferenceSession(bundle.path, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()
    assert (model_input.type, model_input.shape[1:]) == ("tensor(float)", [1, 28, 28])
    pixels = [images.prepare_pixels(made_image(1), network.preprocessing.image)]
    (logits,) = session.run(["logits"], {model_input.name: network.normalize_pixels(pixels).numpy()})
    np.testing.assert_allclose(logits, network.compute_logits(pixels), rtol=1e-3, atol=1e-5)


class OtherLogits(TrainedNetwork):
    """Returns logits that the exported network does not return."""

    __slots__ = ()

    def compute_logits(self, pixels: object) -> np.ndarray:  # type: ignore[type-arg]
        logits = TrainedNetwork.compute_logits(self, pixels)  # type: ignore[arg-type]
        return np.where(logits == logits.max(axis=1, keepdims=True), logits - 9, logits)


def test_a_file_with_other_outputs_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    right = trained("lenet5")
    wrong = OtherLogits(right.network, right.preprocessing, right.class_names, right.model_name)
    (tmp_path / "a.onnx").write_text("the old one")
    with pytest.raises(
        ExportError, match=r"difference is for .*\d\d\.png: the network predicts class\d, the file class\d"
    ):
        export_network(wrong, tmp_path / "a.onnx", validation=made_images(tmp_path / "p", 5), overwrite=True)
    assert (tmp_path / "a.onnx").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "p"]


class OneLevel(nn.Module):
    """Two classes that differ by a single level of a single pixel."""

    def __init__(self, expected: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("expected", expected)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        off = (x - self.expected).abs().amax(dim=(1, 2, 3))
        return torch.stack([torch.ones_like(off), 2 * (off > 0.5).float()], dim=1)


def test_the_exact_resize_is_used_where_one_level_changes_the_class(tmp_path: Path) -> None:
    item, prop = made_images(tmp_path / "p", 1)[0], ImageProperty(40, resize="squash")
    fast = ort.InferenceSession(build_preprocessing_graph(prop).SerializeToString())
    for seed in itertools.count():  # until the fast resize differs somewhere
        pixels = images.prepare_pixels(made_image(seed, 97, 83), prop)
        if (fast.run(None, {"image": np.asarray(made_image(seed, 97, 83))[None]})[0][0] != pixels).any():
            break
    made_image(seed, 97, 83).save(item.path)
    expected = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    network = TrainedNetwork(
        OneLevel(expected), Preprocessing(prop, Normalization(1.0)), ("same", "other"), "one level"
    )
    bundle = export_network(network, tmp_path / "a.onnx", validation=[item])
    (logits,) = run_file(bundle.path, np.asarray(Image.open(item.path))[None])
    assert bundle.exact_resize
    assert logits.argmax() == 0


def test_the_temperature_calibrates_without_changing_any_class(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    options = ExportOptions(calibrate=True, known_share=0.75)
    network, items = trained("cifar10_cnn"), made_images(tmp_path / "images", 12)
    logits = compute_network_outputs(network, items, progress=NoProgress()).logits
    classes = [row.argmax() if n % 3 else row.argmin() for n, row in enumerate(logits)]  # two thirds are right
    items = [replace(item, label=int(label)) for item, label in zip(items, classes, strict=True)]
    calibrated = export_network(network, tmp_path / "a.onnx", validation=items, options=options)
    assert cnn_bundle.temperature == 1.0
    assert calibrated.temperature != 1.0
    assert calibrated.provenance.calibration_error is not None
    (logits, before), (same_logits, after) = (
        run_file(bundle.path, np.asarray(made_image(3))[None], "logits", "probabilities")
        for bundle in (cnn_bundle, calibrated)
    )
    np.testing.assert_allclose(logits, same_logits, rtol=1e-5)
    assert before.argmax() == after.argmax()
    odds = np.exp((logits - logits.max()) / calibrated.temperature)
    np.testing.assert_allclose(after, odds / odds.sum(), rtol=1e-4)


@pytest.mark.parametrize("guesses", ["wrong classes", "equal probabilities"])
def test_probabilities_without_information_are_not_calibrated_and_nothing_is_written(
    guesses: str, tmp_path: Path
) -> None:
    network, items = trained("lenet5"), made_images(tmp_path / "images", 6)
    if guesses == "equal probabilities":
        for parameter in network.network.parameters():
            torch.nn.init.zeros_(parameter)
    logits = compute_network_outputs(network, items, progress=NoProgress()).logits
    items = [replace(item, label=int(row.argmin())) for item, row in zip(items, logits, strict=True)]
    before = export_network(network, tmp_path / "a.onnx", validation=items).path.read_bytes()
    message = (
        "--calibrate cannot fit a temperature: .* carry no information about the true classes of 6 validation images"
    )
    with pytest.raises(InputError, match=message):
        export_network(network, tmp_path / "a.onnx", validation=items, options=ExportOptions(calibrate=True))
    assert (tmp_path / "a.onnx").read_bytes() == before


def test_large_weights_are_written_beside_the_file_and_replaced_together_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serialization, "MAX_EMBEDDED_WEIGHTS_BYTES", 10_000)
    bundle, data = exported("lenet5", tmp_path, count=2), tmp_path / "model.onnx.data"
    before = data.read_bytes()
    assert bundle.path.stat().st_size < 100_000 < len(before)
    assert data.stat().st_mode == bundle.path.stat().st_mode
    assert run_file(bundle.path, np.asarray(made_image(1))[None])[0].shape == (1, 3)
    exported("lenet5", tmp_path, count=2)
    assert data.read_bytes() == before
    monkeypatch.setattr(parity_module, "LOGIT_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="nothing was written"):
        export_network(trained("lenet5", seed=1), tmp_path / "model.onnx", validation=made_images(tmp_path / "p", 2))
    assert data.read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))
    monkeypatch.undo()
    exported("lenet5", tmp_path, count=2)
    assert not data.exists(), "a small file has its weights inside"


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        export_run(tmp_path, tmp_path / "a.onnx")


def test_a_bundle_contains_its_provenance(cnn_bundle: OnnxBundle) -> None:
    values = json.loads(cnn_bundle.to_json())
    assert values["v"] == 1
    assert values["class_names"] == ["class0", "class1", "class2"]
    assert {"mlimages", "onnxruntime", "torch"} <= set(values["provenance"]["versions"])
    assert values["provenance"]["created"].startswith("20")
    assert len(values["provenance"]["accuracy"]) == 3


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_of_every_kind_are_taken_and_folders_created(tmp_path: Path, kind: type) -> None:
    write_label_file(tmp_path / "val.txt", made_images(tmp_path / "p", 3), ("class0", "class1", "class2"))
    out = kind(tmp_path / "new" / "a.onnx")
    bundle = export_network(trained("lenet5"), out, validation=kind(tmp_path / "val.txt"))
    assert bundle.provenance.parity.num_images == 3
    assert OnnxBundle.read(tmp_path / "new" / "a.onnx") == bundle


def test_one_class_name_in_place_of_a_list_is_a_type_error() -> None:
    network = trained("lenet5")
    with pytest.raises(TypeError, match=r"class_names='cats': expected a list of names"):
        TrainedNetwork(network.network, network.preprocessing, "cats", "lenet5")  # type: ignore[arg-type]


def test_the_repr_of_a_trained_network_is_one_line() -> None:
    assert repr(trained("lenet5", classes=7)) == (
        "TrainedNetwork('lenet5', 28 x 28 px, classes: class0, class1, class2, class3, class4 and 2 more)"
    )


def test_new_metadata_replaces_the_old_and_leaves_the_network(cnn_bundle: OnnxBundle, tmp_path: Path) -> None:
    copy = replace(cnn_bundle, path=tmp_path / "copy.onnx", class_names=("x" * 300, "y"))
    copy.write(cnn_bundle.path)
    copy.write(copy.path)
    before, after = onnx.load(cnn_bundle.path), onnx.load(copy.path)
    names = [entry.key for entry in after.metadata_props]
    assert names == sorted({entry.key for entry in before.metadata_props})
    assert OnnxBundle.read(copy.path).class_names == copy.class_names
    for model in (before, after):
        del model.metadata_props[:]
    assert before == after
