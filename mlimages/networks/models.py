"""Build a network by name, with its weights and the preprocessing that they expect."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from mlimages.core import ImageProperty, ModelError, Preprocessing, Resize, require
from mlimages.networks.architectures import Architecture, find_architecture
from mlimages.networks.input_size import check_input_size
from mlimages.networks.weights import load_weights, read_weights

require("training", "train", "onnx", "onnxscript", "safetensors", "timm")  # these are imported late


@dataclass(frozen=True, slots=True, repr=False)
class Model:
    """A network with what is known of it.

    Attributes:
        name: as `build_model` takes it.
        network: float32 `(N, C, H, W)`, as `Normalize` returns it, to logits `(N, classes)`; in eval mode.
        library: the package with the code of the network, and its version.
        preprocessing: what the weights expect.
        head: module path of the classifier, the last layer.
        layers: module paths of well-known layers (conv1 ... fc8) by name.
        pretrained: whether the weights come from a file or from the library.
    """

    name: str
    network: nn.Module
    library: str
    preprocessing: Preprocessing
    head: str
    layers: Mapping[str, str] = field(default_factory=dict)
    pretrained: bool = False

    def __repr__(self) -> str:
        image = self.preprocessing.image
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        weights = "pretrained" if self.pretrained else "random weights"
        channels = "gray" if image.gray_scale else "RGB"
        return (
            f"Model({self.name!r}, {parameters:,} parameters, {weights}, {image.width} x {image.height} px {channels})"
        )


def build_model(
    name: str,
    *,
    classes: int,
    weights: str | os.PathLike[str] = "default",
    size: int | None = None,
    resize: Resize | None = None,
    gray: bool | None = None,
    seed: int = 0,
) -> Model:
    """Build a network with a classifier for `classes` classes.

    Args:
        name: a built-in network (`lenet5`, `alex`, ...), a torchvision classifier, or `timm:NAME`.
        classes: number of logits.
        weights: `default` for the library's pretrained weights, `none` for random weights, or a .safetensors, .npz,
            .pth or .pt file.
        size: width and height of the input in pixels; by default what the weights were trained with.
        resize: how images are resized; by default as for the weights.
        gray: read images as grayscale; a network with three input channels gets the channel three times.
        seed: random seed of the classifier, or of all weights with `none`.

    Raises:
        ModelError: the name is unknown, the weights cannot be loaded or do not fit, or the network cannot take images
            of this size.

    Examples:
        >>> import torch
        >>> from mlimages.networks import build_model
        >>> model = build_model("lenet5", classes=10, weights="none")
        >>> model
        Model('lenet5', 61,706 parameters, random weights, 28 x 28 px gray)
        >>> model.network(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    architecture = find_architecture(name)
    source = os.fspath(weights)
    preprocessing = architecture.preprocessing(source)
    image = _override(preprocessing.image, size=size, resize=resize, gray=gray)
    native_px = preprocessing.image.width
    check_input_size(lambda px: architecture.build(classes, _with_size(image, px)), name, image, native_px=native_px)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source == "none":
            network = architecture.build(classes, image)
        else:
            network = _build_with_weights(architecture, classes, image, source)
    return Model(
        name=name,
        network=network.eval(),
        library=architecture.library,
        preprocessing=replace(preprocessing, image=image),
        head=find_head(network, classes),
        layers=well_known_layers(network),
        pretrained=source != "none",
    )


def find_head(network: nn.Module, classes: int) -> str:
    """The module path of the last layer with one output per class."""
    heads: list[str] = [
        path
        for path, module in network.named_modules()
        if getattr(module, "out_features", None) == classes or getattr(module, "out_channels", None) == classes
    ]
    if not heads:
        raise ModelError(f"this network has no last layer with {classes} outputs")
    return heads[-1]


def well_known_layers(network: nn.Module) -> dict[str, str]:
    """Module paths of the layers of AlexNet and VGG by their names in the literature (conv1, conv3_2, fc7).

    A batch norm belongs to the convolution before it; `conv3` is the last layer of VGG's third block.
    """
    features, classifier = getattr(network, "features", None), getattr(network, "classifier", None)
    if type(network).__name__ not in ("AlexNet", "VGG") or features is None or classifier is None:
        return {}
    blocks: list[list[str]] = [[]]
    for index, layer in enumerate(features):
        if isinstance(layer, nn.Conv2d):
            blocks[-1].append(f"features.{index}")
        elif isinstance(layer, nn.BatchNorm2d):
            blocks[-1][-1] = f"features.{index}"
        elif isinstance(layer, nn.MaxPool2d) and type(network).__name__ == "VGG":
            blocks.append([])
    names: dict[str, str] = {}
    if type(network).__name__ == "AlexNet":
        names = {f"conv{n}": path for n, path in enumerate(blocks[0], start=1)}
    else:
        for block, paths in enumerate(filter(None, blocks), start=1):
            names |= {f"conv{block}_{n}": path for n, path in enumerate(paths, start=1)}
            names[f"conv{block}"] = paths[-1]
    linear = [f"classifier.{index}" for index, layer in enumerate(classifier) if isinstance(layer, nn.Linear)]
    return names | {f"fc{n}": path for n, path in enumerate(linear, start=6)}


def _override(image: ImageProperty, *, size: int | None, resize: Resize | None, gray: bool | None) -> ImageProperty:
    if size is not None:
        image = _with_size(image, size)
    if resize is not None:
        image = replace(image, resize=resize)
    return image if gray is None else replace(image, gray_scale=gray)


def _with_size(image: ImageProperty, size_px: int) -> ImageProperty:
    """A square of this size, with the margin around the crop in proportion."""
    shorter_px = max(size_px, round(size_px * image.shorter_px / image.width))
    return replace(image, width=size_px, height=size_px, shorter_px=shorter_px)


def _build_with_weights(architecture: Architecture, classes: int, image: ImageProperty, source: str) -> nn.Module:
    """The network with pretrained weights; a classifier for other classes gets random weights."""
    state = architecture.default_weights() if source == "default" else read_weights(source)
    description = f"the default weights of {architecture.name}" if source == "default" else source
    network = _build_on_meta(architecture, classes, image)
    head = find_head(network, classes)
    if not load_weights(network, state, head=head, source=description):
        layer = network.get_submodule(head).to_empty(device="cpu")
        layer.reset_parameters()  # type: ignore[operator]  # Linear and Conv2d have it
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        network = architecture.build(classes, image)  # for buffers that are not in the file
        load_weights(network, state, head=head, source=description)
    return network


def _build_on_meta(architecture: Architecture, classes: int, image: ImageProperty) -> nn.Module:
    """Build without values: millions of random numbers that are then replaced would take seconds."""
    try:
        with torch.device("meta"):
            return architecture.build(classes, image)
    except NotImplementedError:  # the network computes with values while it is built
        return architecture.build(classes, image)
