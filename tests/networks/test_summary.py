"""A summary shows what the network does."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import mlimages
from mlimages.cli import main as cli
from mlimages.core import (
    BundleError,
    ImageProperty,
    InputError,
    ModelError,
    NetworkSummary,
    Normalization,
    Preprocessing,
    Window,
)
from mlimages.export import TrainedNetwork
from mlimages.export.onnx_writer import write_onnx
from mlimages.inference import OnnxBundle
from mlimages.networks import summarize, summarize_model
from mlimages.reports import describe_bundle, summarize_onnx
from mlimages.training import draw_layer, feature_maps, summarize_run_network
from tests.conftest import RunCli
from tests.run_folders import make_run


@pytest.fixture
def small_net() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 11, stride=4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(8, 4, 3, padding=2, dilation=2),
        nn.Flatten(),
        nn.Linear(4 * 27 * 27, 5),
    )
    net[0].requires_grad_(False)
    return net


def summary_of(net: nn.Module, size: int = 227) -> NetworkSummary:
    return summarize(net, (3, size, size), title="net")


def test_each_layer_has_its_shape_parameters_state_and_multiply_adds(small_net: nn.Sequential) -> None:
    conv, relu, pool, dilated, flatten, linear = summary_of(small_net).layers
    assert (conv.name, conv.kind, conv.output, conv.state) == ("0", "conv", (8, 55, 55), "frozen")
    assert (conv.parameters, conv.multiply_adds) == (8 * 3 * 11 * 11 + 8, 8 * 3 * 11 * 11 * 55 * 55)
    assert (relu.parameters, relu.state, relu.arithmetic) == (0, "", "")
    assert (pool.output, dilated.output, flatten.output) == ((8, 27, 27), (4, 27, 27), (2916,))
    assert (dilated.state, linear.multiply_adds) == ("trained", 2916 * 5)


def test_the_arithmetic_of_each_width_is_shown(small_net: nn.Sequential) -> None:
    shown = {layer.name: layer.arithmetic for layer in summary_of(small_net).layers}
    assert shown["0"] == "(227 + 2*0 - 11)/4 + 1 = 55"
    assert shown["2"] == "(55 + 2*0 - 3)/2 + 1 = 27"
    assert shown["3"] == "(27 + 2*2 - 5)/1 + 1 = 27"
    assert shown["4"] == "4*27*27 = 2916"
    assert shown["5"] == "4*27*27 = 2916 -> 5"


def test_a_size_that_does_not_divide_evenly_is_marked() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 11, stride=4))
    summary = summary_of(net, 230)
    assert (summary.layers[0].even, summary.layers[0].lost_px) == (False, 3)
    text = str(summary)
    assert "(230 + 2*0 - 11)/4 + 1 = 55.75 !" in text
    assert "columns that no window covers, by layer: 0 3" in text
    assert all(layer.even for layer in summary_of(net, 227).layers)


@pytest.mark.parametrize("n", range(7, 40))
@pytest.mark.parametrize(
    ("size", "stride", "padding", "ceil"),
    [(3, 2, 0, False), (3, 2, 0, True), (2, 2, 1, True), (1, 2, 0, True), (7, 4, 3, False)],
)
def test_the_formula_matches_torch(n: int, size: int, stride: int, padding: int, ceil: bool) -> None:
    pool = nn.MaxPool2d(size, stride, padding=padding, ceil_mode=ceil)
    width = pool(torch.zeros(1, 1, n, n)).shape[-1]
    layer = summarize(nn.Sequential(pool), (1, n, n)).layers[0]
    assert layer.output == (1, width, width)
    window = Window(size, stride, padding, ceil)
    assert window.output_width(n) == width  # torch drops a last window with padding only
    assert layer.arithmetic == window.width_formula(n)


def test_lost_columns_do_not_change_the_output() -> None:
    conv = nn.Conv2d(1, 1, 5, stride=3, padding=1)
    lost = summarize(nn.Sequential(conv), (1, 14, 14)).layers[0].lost_px
    image = torch.rand(1, 1, 14, 14)
    changed = image.clone()
    changed[..., 14 - lost :] = 9.0
    assert lost > 0
    assert torch.equal(conv(image), conv(changed))
    changed[..., 14 - lost - 1] = 9.0
    assert not torch.equal(conv(image), conv(changed))


def test_totals_count_shared_parameters_once_and_operations_between_layers() -> None:
    class SharedAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8, bias=False)
            self.second = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.second(self.first(x.flatten(2)))  # (N, 3, 8)
            return nn.functional.scaled_dot_product_attention(y, y, y)

    summary = summarize(SharedAttention(), (3, 2, 4))
    assert summary.parameters == 64
    assert summary.multiply_adds == 2 * 3 * 64 + 2 * 3 * 3 * 8
    assert "between the layers" in str(summary)


def test_summarizing_does_not_change_the_network(small_net: nn.Sequential) -> None:
    small_net.train()
    before = {name: value.clone() for name, value in small_net.state_dict().items()}
    summary_of(small_net)
    assert small_net.training
    assert all(torch.equal(before[name], value) for name, value in small_net.state_dict().items())
    assert not any(module._forward_hooks for module in small_net.modules())


def test_an_invalid_size_is_an_error_that_names_the_layer(small_net: nn.Sequential) -> None:
    with pytest.raises(ModelError, match=r"net does not support 20 x 20 px: layer 5 fails: "):
        summary_of(small_net, 20)


class Failing(nn.Module):
    """Its own `forward` fails after its layer."""

    def __init__(self, fail: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.fail = nn.Conv2d(3, 4, 3), fail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fail(self.conv(x))


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (lambda x: x.view(2, 144), "net does not support 20 x 20 px: shape"),
        (lambda x: {6: x}[x.shape[-1]], "net does not support 20 x 20 px: "),
        (lambda x: x if x.sum() > 0 else -x, "net cannot be summarized, since its code reads the values of tensors: "),
    ],
)
def test_a_failure_outside_the_layers_names_none(fail: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        summary_of(Failing(fail), 20)
    assert "layer" not in str(error.value)


def test_alexnet_at_227_pixels_has_the_published_widths() -> None:
    with torch.device("meta"):
        summary = summarize_model("alex", size=227, freeze="conv5")
    layers = {layer.name: layer for layer in summary.layers}
    assert [layers[name].output[-1] for name in ("conv1", "pool1", "pool2", "pool5")] == [55, 27, 13, 6]
    assert layers["conv1"].arithmetic == "(227 + 2*0 - 11)/4 + 1 = 55"
    assert layers["fc6"].arithmetic == "256*6*6 = 9216 -> 4096"
    assert [layers[name].state for name in ("conv5", "fc6")] == ["frozen", "trained"]
    assert summary.parameters - summary.trained_parameters == sum(layers[f"conv{n}"].parameters for n in range(1, 6))


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    # Parameters and "GFLOPS" as torchvision publishes them beside its weights.
    [("alexnet", 61_100_840, 0.71), ("vgg11_bn", 132_868_840, 7.61), ("resnet18", 11_689_512, 1.81),
     ("mobilenet_v2", 3_504_872, 0.30), ("vit_b_32", 88_224_232, 4.41), ("squeezenet1_0", 1_248_424, 0.82)],
)  # fmt: skip
def test_totals_are_those_that_torchvision_publishes(name: str, parameters: int, multiply_adds: float) -> None:
    with torch.device("meta"):
        summary = summarize_model(name)
    assert summary.parameters == parameters
    assert summary.multiply_adds / 1e9 == pytest.approx(multiply_adds, abs=0.01)


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "timm:convnext_atto", "mnist_cnn"])
def test_every_kind_of_network_is_summarized(name: str) -> None:
    with torch.device("meta"):
        layers = summarize_model(name, num_classes=7).layers
    assert layers[-1].output == (7,)


def test_the_command_prints_a_table_of_80_columns(run_cli: RunCli) -> None:
    done = run_cli("summary", "alex", "--size", 227, "--freeze", "conv5")
    assert max(map(len, done.stdout.splitlines())) <= 80
    row = "conv1   conv     96x55x55  34.9K    105.4M frozen  (227 + 2*0 - 11)/4 + 1 = 55"
    assert row in done.stdout
    assert done.stderr == "next: mlimages finetune labels.txt --model alex --size 227 --freeze conv5 -o runs/first\n"


def test_the_command_gives_every_layer_as_json() -> None:
    summary = json.loads(CliRunner().invoke(cli.app, ["summary", "lenet5", "--json"]).stdout)
    assert summary["input"] == [1, 28, 28]
    assert [layer["name"] for layer in summary["layers"]][:3] == ["conv1", "relu1", "pool1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alex", "--size", "20"], "alex does not support 20 x 20 px: layer pool2"),
        (["nosuch"], "unknown model 'nosuch'"),
        (["alex", "--freeze", "conv9"], "alex has no layer 'conv9'"),
    ],
    ids=["size", "name", "layer"],
)
def test_an_invalid_argument_is_one_error(words: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        CliRunner().invoke(cli.app, ["summary", *words], catch_exceptions=False)


class NormWithActivation(nn.BatchNorm2d):
    """A batch norm with modules of its own, as in timm."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


class UsesWeights(nn.Module):
    """Uses the weights of a module without calling it, and scales the result by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.proj, self.gamma = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gamma * self.proj(nn.functional.linear(x, self.hidden.weight))


def test_a_layer_that_consists_of_modules_is_listed_with_all_its_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), NormWithActivation(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), UsesWeights())
    found = summarize(net, (3, 8, 8))
    assert [(layer.name, layer.kind, layer.parameters) for layer in found.layers] == [
        ("0", "conv", 112), ("1", "norm", 8), ("2", "pool", 0), ("3", "flatten", 0), ("4", "usesweights", 44),
    ]  # fmt: skip
    assert "belong to no layer" not in str(found)


def test_a_layer_that_is_called_by_keyword_is_listed_like_any_other() -> None:
    class Block(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](input=self[0](x))

    found = summarize(nn.Sequential(Block(nn.Flatten(), nn.Linear(12, 4))), (3, 2, 2))
    assert [(layer.name, layer.output) for layer in found.layers] == [("0.0", (12,)), ("0.1", (4,))]


def test_a_module_with_a_layer_that_it_never_uses_is_listed_as_its_other_layers() -> None:
    class Block(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
            self.unused = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](self[0](x))

    found = summarize(nn.Sequential(Block(), nn.Flatten()), (3, 8, 8))
    assert [layer.name for layer in found.layers] == ["0.0", "0.1", "1"]
    assert "20 parameters belong to no layer" in str(found)


@pytest.mark.parametrize(
    ("name", "embeddings"),
    [
        ("efficientnet_lite0", 0),
        ("timm:regnety_002", 0),
        ("timm:mobilevit_xxs", 0),
        ("timm:densenet121", 0),
        ("timm:skresnet18", 0),
        ("timm:mobilenetv4_conv_small", 0),
        ("timm:vit_tiny_patch16_224", 192 + 197 * 192),
        ("timm:eva02_tiny_patch14_224", 192 + 257 * 192),
    ],
)
def test_the_parameters_of_the_layers_add_up_except_for_embeddings(name: str, embeddings: int) -> None:
    found = summarize_model(name)
    assert found.parameters - sum(layer.parameters for layer in found.layers) == embeddings
    assert found.multiply_adds >= sum(layer.multiply_adds for layer in found.layers)
    note = f"{embeddings:,} parameters belong to no layer (such as embeddings and constants)"
    assert (note in str(found)) == bool(embeddings)


def test_attention_is_one_layer() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(2)
            x = self.parts[0](x, x, x)[0]
            return self.parts[1](x)

    rows = summarize(nn.Sequential(Block()), (3, 2, 4)).layers
    assert [(row.name, row.kind, row.parameters) for row in rows] == [
        ("0.parts.0", "attention", 288), ("0.parts.1", "linear", 72),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 2))
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    preprocessing = Preprocessing(ImageProperty(32), Normalization(mean=(0.5,) * 3, std=(0.5,) * 3))
    bundle, _ = write_onnx(TrainedNetwork(net.eval(), preprocessing, ("ants", "bees"), "net"), path)
    bundle.write(path)
    return path


def test_a_file_that_is_no_model_adds_nothing_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lenet5").write_text("notes")
    assert CliRunner().invoke(cli.app, ["summary", "lenet5"]).stdout == f"{summarize_model('lenet5')}\n"


@pytest.mark.train
def test_an_exported_file_is_summarized_with_its_metadata(exported: Path) -> None:
    summary = json.loads(CliRunner().invoke(cli.app, ["summary", str(exported), "--json"]).stdout)
    conv, pool, linear = summary["layers"]
    assert (summary["input"], conv["output"], pool["output"], linear["output"]) == (
        [3, 32, 32],
        [8, 14, 14],
        [8, 7, 7],
        [2],
    )
    assert conv["arithmetic"] == "(32 + 2*0 - 5)/2 + 1 = 14.50"
    assert (conv["even"], conv["parameters"], conv["multiply_adds"]) == (False, 608, 600 * 14 * 14)
    assert linear["multiply_adds"] == 2 * 392
    text = str(summarize_onnx(exported))
    assert "classes: ants, bees" in text
    assert "shorter side to 32 px, centre crop 32 x 32 px, in the graph" in text
    assert "image uint8 (N, H, W, 3) -> logits float (N, 2), probabilities float (N, 2); opset" in text
    assert "logits may differ by 0.5 % of the largest one; passed" in text
    assert "metadata for other tools: Image.BitmapPixelFormat" in text


@pytest.mark.train
def test_the_summary_of_a_file_that_fails_its_probe_says_so(exported: Path, tmp_path: Path) -> None:
    bundle = OnnxBundle.read(exported)
    wrong = replace(bundle.parity_test_image, logits=tuple(2 * logit for logit in bundle.parity_test_image.logits))
    replace(bundle, path=tmp_path / "altered.onnx", parity_test_image=wrong).write(exported)
    assert "FAILED" in summarize_onnx(tmp_path / "altered.onnx").notes[-1]


@pytest.mark.parametrize(
    ("metadata", "note"),
    [
        ({}, "no mlimages metadata: classes and preprocessing are unknown"),
        ({"mlimages": '{"v": 0}'}, "net.onnx is from another version of mlimages: export it again with this version"),
        ({"mlimages": '{"v": 1}'}, "net.onnx has damaged mlimages metadata"),
        ({"mlimages": "{"}, "net.onnx has damaged mlimages metadata"),
    ],
    ids=["none", "version", "incomplete", "damaged"],
)
def test_metadata_that_cannot_be_read_is_described_as_it_is(metadata: dict[str, str], note: str) -> None:
    (found,) = describe_bundle(Path("net.onnx"), metadata)
    assert found.startswith(note)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("Conv", ["w"]),
        ("ConvInteger", ["w"]),
        ("QLinearConv", ["scale", "zero", "w", "scale", "zero", "scale", "zero"]),
    ],
)
def test_each_kind_of_convolution_gives_the_size_of_the_input(tmp_path: Path, kind: str, inputs: list[str]) -> None:
    """As with preprocessing in the graph, whose input has another size."""
    types = {"w": onnx.TensorProto.UINT8, "scale": onnx.TensorProto.FLOAT, "zero": onnx.TensorProto.UINT8}
    if kind == "Conv":
        types["w"] = onnx.TensorProto.FLOAT
    output_type = {"ConvInteger": onnx.TensorProto.INT32}.get(kind, types["w"])
    x = onnx.helper.make_tensor_value_info("x", types["w"], ("N", "h", "w", 3))
    image = onnx.helper.make_tensor_value_info("image", types["w"], ("N", 3, 64, 48))
    y = onnx.helper.make_tensor_value_info("y", output_type, ("N", 8, 62, 46))
    nodes = [onnx.helper.make_node("Resize", ["x"], ["image"]), onnx.helper.make_node(kind, ["image", *inputs], ["y"])]
    weights = [
        onnx.helper.make_tensor(
            name, types[name], (8, 3, 3, 3) if name == "w" else (), [1] * (216 if name == "w" else 1)
        )
        for name in dict.fromkeys(inputs)
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], weights, value_info=[image])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "s.onnx")
    summary = summarize_onnx(tmp_path / "s.onnx")
    assert str(summary).splitlines()[0] == "s.onnx: input 3 x 64 x 48"
    assert [(layer.name, layer.multiply_adds) for layer in summary.layers] == [("w", 216 * 62 * 46)]


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        (("N", 3, 64, 48), "s.onnx: input 3 x 64 x 48"),
        (("N", 64, 48, 3), "s.onnx: input 3 x 64 x 48"),
        (("N", 3, "h", "w"), "s.onnx: input 3 x ? x ?"),
        (("N", 10), "s.onnx"),
    ],
)
def test_the_input_of_a_file_without_convolutions_is_that_of_its_graph(
    tmp_path: Path, shape: tuple[int | str, ...], line: str
) -> None:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "s.onnx")
    assert str(summarize_onnx(tmp_path / "s.onnx")).splitlines()[0] == line


@pytest.mark.parametrize("content", [None, b"", b"GIF89a not a model"], ids=["missing", "empty", "image"])
def test_a_file_that_is_not_onnx_is_an_error_that_names_it(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"x\.onnx"):
        summarize_onnx(tmp_path / "x.onnx")


def test_a_run_folder_is_summarized_with_its_frozen_layers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", freeze="conv2", model="lenet5")
    states = {layer.name: layer.state for layer in summarize_run_network(run).layers if layer.state}
    assert states == {"conv1": "frozen", "conv2": "frozen", "fc3": "trained", "fc4": "trained", "fc5": "trained"}


def test_the_filters_and_feature_maps_of_a_layer_are_drawn(tmp_path: Path) -> None:
    image, out = tmp_path / "digit.png", tmp_path / "maps.png"
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(image)
    words = ["show", "lenet5", str(image), "--layer", "conv1", "-o", str(out)]
    told = CliRunner().invoke(cli.app, [*words, "--json"], catch_exceptions=False).stdout
    assert json.loads(told) == {"sheet": str(out), "tiles": 1 + 6 + 6}  # the image, the filters, the maps
    with Image.open(out) as sheet:
        assert sheet.width > 6 * 84
    for layer, message in (("conv9", "did you mean conv2"), ("fc3", r"not a feature map \(C, H, W\) but \(120,\)")):
        with pytest.raises(ModelError, match=message):
            CliRunner().invoke(cli.app, [*words[:4], layer], catch_exceptions=False)
    for name in ("maps.jpg", "maps", "maps.html.gz"):
        with pytest.raises(InputError, match=f"{name}: a contact sheet must be a .png or .html file"):
            draw_layer("lenet5", image, layer="conv1", out=tmp_path / name)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(("limit", "counted"), [(4, "the first 4 of 6"), (6, "6"), (256, "6")])
def test_a_sheet_says_how_many_feature_maps_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, counted: str
) -> None:
    monkeypatch.setattr(feature_maps, "MAX_FEATURE_MAPS", limit)
    Image.new("L", (28, 28)).save(tmp_path / "digit.png")
    rows = draw_layer("lenet5", tmp_path / "digit.png", layer="conv1", out=tmp_path / "maps.html")
    assert [len(row.tiles) for row in rows] == [1, min(limit, 6), min(limit, 6)]
    assert f">{counted} maps of 28 x 28, each scaled from" in (tmp_path / "maps.html").read_text()


def test_the_documented_network_of_ones_own_is_summarized(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(mlimages.__file__).parents[1] / "docs/how-to/network.md"
    code = next(block.split("```")[0] for block in page.read_text().split("```python\n") if "summarize(" in block)
    exec(code, {})
    printed = capsys.readouterr().out
    assert "(227 + 2*2 - 5)/2 + 1 = 114" in printed
    assert "(227 + 2*0 - 11)/4 + 1 = 55" in printed
    assert max(map(len, printed.splitlines())) <= 80
