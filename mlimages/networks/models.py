"""A name becomes a network with the preprocessing that its weights expect."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from mlimages.core import ImageProperty, ModelError, Preprocessing, Resize, require
from mlimages.networks.families import Family, OwnFamily, TorchvisionFamily, torchvision_names
from mlimages.networks.input_size import check_size
from mlimages.networks.nets import NETS
from mlimages.networks.weights import fit_weights, read_weights

require("training", "train", "onnx", "onnxscript", "safetensors", "timm")  # which are imported late


@dataclass(frozen=True, slots=True)
class Model:
    """A network and all that belongs to it.

    Attributes:
        name: as `build_model` takes it.
        library: the package whose code the network is, with its version.
        network: float32 `(N, C, H, W)`, as `Normalize` gives it, to logits `(N, classes)`; in eval mode.
        preprocessing: what the weights expect.
        head: module path of the last layer, the one that is made anew for other classes.
        layers: well-known layer names (conv1 ... fc8) and the module paths behind them.
        pretrained: whether the weights came from a file or their library.
    """

    name: str
    library: str
    network: nn.Module
    preprocessing: Preprocessing
    head: str
    layers: Mapping[str, str] = field(default_factory=dict)
    pretrained: bool = False


def build_model(
    name: str,
    *,
    classes: int,
    weights: str | Path = "default",
    size: int | None = None,
    resize: Resize | None = None,
    gray: bool | None = None,
    seed: int = 0,
) -> Model:
    """Build the network `name` with a head for `classes` classes.

    Args:
        name: one of our own (`lenet5`, `alex` ...), a torchvision classifier, or `timm:NAME`.
        classes: how many logits it gives.
        weights: `default` (the library's pretrained ones), `none`, or a file of tensors.
        size: width and height in pixels, where it is not to be what the weights were made for.
        resize: how a picture comes to that size, likewise.
        gray: feed one channel; a network of three gets it three times.
        seed: of what starts at random: the head, or everything with `none`.

    Raises:
        ModelError: the name is unknown, the weights cannot be had or do not fit, or the network
            cannot take pictures of this size.
    """
    family = find_family(name)
    source = str(weights)
    preprocessing = family.preprocessing(source)
    image = _override(preprocessing.image, size=size, resize=resize, gray=gray)
    native = preprocessing.image.width
    check_size(lambda pixels: family.build(classes, _sized(image, pixels)), name, image, native=native)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family.build(classes, image) if source == "none" else _filled(family, classes, image, source)
    return Model(
        name=name,
        library=family.library,
        network=network.eval(),
        preprocessing=replace(preprocessing, image=image),
        head=head_of(network, classes),
        layers=layer_names(network),
        pretrained=source != "none",
    )


def find_family(name: str) -> Family:
    """Who makes the network of this name.

    Raises:
        ModelError: nobody does; says which names are near.
    """
    if name.startswith("timm:"):
        from mlimages.networks.timm_family import TimmFamily  # timm costs half a second that few runs need

        return TimmFamily(name.removeprefix("timm:"))
    if name in NETS:
        return OwnFamily(NETS[name], name)
    known = torchvision_names()
    if name in known:
        return TorchvisionFamily(name)
    near = difflib.get_close_matches(name, [*NETS, *known], n=3)
    raise ModelError(
        f"no network is called {name!r}"
        + (f"; near it: {', '.join(near)}" if near else f": take one of {', '.join(NETS)}, a torchvision name")
        + " (any timm model is timm:NAME)"
    )


def head_of(network: nn.Module, classes: int) -> str:
    """Module path of the last layer that gives one number per class."""
    heads: list[str] = [
        path
        for path, module in network.named_modules()
        if getattr(module, "out_features", None) == classes or getattr(module, "out_channels", None) == classes
    ]
    if not heads:
        raise ModelError(f"this network has no last layer of {classes} classes")
    return heads[-1]


def layer_names(network: nn.Module) -> dict[str, str]:
    """The literature's names of AlexNet's and VGG's layers (conv1, conv3_2, fc7) and where they lie.

    A batch norm behind a convolution belongs to it; `conv3` is the last layer of VGG's third block.
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
    dense = [f"classifier.{index}" for index, layer in enumerate(classifier) if isinstance(layer, nn.Linear)]
    return names | {f"fc{n}": path for n, path in enumerate(dense, start=6)}


def _override(image: ImageProperty, *, size: int | None, resize: Resize | None, gray: bool | None) -> ImageProperty:
    if size is not None:
        image = _sized(image, size)
    if resize is not None:
        image = replace(image, resize=resize)
    return image if gray is None else replace(image, gray_scale=gray)


def _sized(image: ImageProperty, pixels: int) -> ImageProperty:
    """A square picture, its margin before the crop in proportion."""
    shorter = max(pixels, round(pixels * image.shorter_px / image.width))
    return replace(image, width=pixels, height=pixels, shorter_px=shorter)


def _filled(family: Family, classes: int, image: ImageProperty, source: str) -> nn.Module:
    """A network with weights; what they do not fill (another head) starts at random."""
    state = family.pretrained() if source == "default" else read_weights(Path(source))
    said = f"the default weights of {family.name}" if source == "default" else source
    network = _without_numbers(family, classes, image)
    head = head_of(network, classes)
    if not fit_weights(network, state, head=head, source=said):
        layer = network.get_submodule(head).to_empty(device="cpu")
        layer.reset_parameters()  # type: ignore[operator]  # every Linear and Conv2d has it
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        network = family.build(classes, image)  # buffers that no file holds are made only by building in earnest
        fit_weights(network, state, head=head, source=said)
    return network


def _without_numbers(family: Family, classes: int, image: ImageProperty) -> nn.Module:
    """Build on the meta device: drawing millions of random numbers that are then replaced costs seconds."""
    try:
        with torch.device("meta"):
            return family.build(classes, image)
    except NotImplementedError:  # a network that computes while it is built
        return family.build(classes, image)
