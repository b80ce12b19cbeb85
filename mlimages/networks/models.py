"""Build a network by name, with its weights and the preprocessing that they expect."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from mlimages.core import ImageProperty, ModelError, Preprocessing, Resize, check_at_least, check_seed, require_extra
from mlimages.networks.architectures import find_architecture
from mlimages.networks.base_architecture import Architecture
from mlimages.networks.input_size import check_input_size
from mlimages.networks.weights import is_in_modules, load_weights, read_weights, remove_prefix, rename_tensors_by_order

require_extra("training", "train", "onnx", "onnxscript", "safetensors", "timm")  # these are imported late


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class Model:
    """A network with its preprocessing and metadata.

    Attributes:
        name: the name that `build_model` accepts, or the class name of a custom network.
        network: maps normalized images, float32 `(N, C, H, W)`, to logits `(N, classes)`; in eval mode.
        library: the package that implements the network, with its version. For a custom network, its Python module and
            a hash of its `repr`.
        preprocessing: the preprocessing that the weights expect, with the chosen size, resize and grayscale.
        heads: module paths of the classifiers: the last layer, or several parallel layers (DeiT, LeViT).
        layer_aliases: module paths of the layers of AlexNet and VGG by their common names (conv1 ... fc8).
        pretrained: whether the weights of this model are pretrained, from a file or from the library, and not random.
        has_published_weights: whether the library offers pretrained weights for the network, used here or not.
    """

    name: str
    network: nn.Module
    library: str
    preprocessing: Preprocessing
    heads: tuple[str, ...]
    layer_aliases: Mapping[str, str] = field(default_factory=dict)
    pretrained: bool = False
    has_published_weights: bool = True

    @property
    def head(self) -> str:
        """Module path of the classifier; of the first one if there are several."""
        return self.heads[0]

    def is_head(self, name: str) -> bool:
        """Return whether a module or a parameter belongs to a classifier."""
        return is_in_modules(name, self.heads)

    def zero_other_heads(self) -> None:
        """Set the parameters of all classifiers but the first to zero.

        Afterwards, the logits of the network are those of the first classifier or, if the network averages its n
        classifiers instead of adding them, 1/n of those.
        """
        for head in self.heads[1:]:
            for parameter in self.network.get_submodule(head).parameters():
                nn.init.zeros_(parameter)

    def __repr__(self) -> str:
        prop = self.preprocessing.image
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        weights = "pretrained" if self.pretrained else "random weights"
        channels = "gray" if prop.gray_scale else "RGB"
        return f"Model({self.name!r}, {parameters:,} parameters, {weights}, {prop.width} x {prop.height} px {channels})"


def build_model(
    name: str,
    *,
    num_classes: int,
    weights: str | os.PathLike[str] = "default",
    size: int | tuple[int, int] | None = None,
    resize: Resize | None = None,
    gray: bool | None = None,
    seed: int = 0,
) -> Model:
    """Build a network with a classifier for `num_classes` classes.

    Args:
        name: `efficientnet_lite0`, a built-in network (`lenet5`, `alex`, ...), a torchvision classifier, or
            `timm:NAME`.
        num_classes: number of logits.
        weights: `default` for the library's pretrained weights (random ones for a network without any), `none` for
            random weights, or a .safetensors, .npz, .pth, .pt, .ckpt, .bin or .tar file.
        size: width and height of the input in pixels, one number for a square; by default the size that the weights
            were trained with.
        resize: resize method; by default that of the weights.
        gray: convert images to grayscale; a network with three input channels gets the gray channel three times.
        seed: random seed of the classifier, or of all weights with `none`.

    Raises:
        InputError: `num_classes` or `seed` is out of range.
        ModelError: the name is unknown, the weights cannot be loaded or do not fit, or the network cannot take images
            of this size.

    Examples:
        >>> import torch
        >>> from mlimages.networks import build_model
        >>> model = build_model("lenet5", num_classes=10, weights="none")
        >>> model
        Model('lenet5', 61,706 parameters, random weights, 28 x 28 px gray)
        >>> model.network(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    check_at_least(1, num_classes=num_classes)
    check_seed(seed)
    architecture = find_architecture(name)
    source = os.fspath(weights)
    if source == "default" and not architecture.has_published_weights:
        source = "none"
    preprocessing = architecture.make_preprocessing(source)
    image_property = override_image_property(preprocessing.image, size=size, resize=resize, gray=gray)
    # From a gray image and three channel means, Normalize returns three channels.
    has_one_channel = image_property.gray_scale and len(preprocessing.normalization.mean) == 1
    normalized_property, default = replace(image_property, gray_scale=has_one_channel), preprocessing.image
    build = partial(architecture.build_untrained, num_classes, will_load_weights=source != "none")
    if (image_property.width, image_property.height) != (default.width, default.height):
        check_input_size(build, name, normalized_property, default_image_property=default)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source == "none":
            network = build(normalized_property)
        else:
            network = _build_with_weights(architecture, num_classes, normalized_property, source)
    return Model(
        name=name,
        network=network.eval(),
        library=architecture.library,
        preprocessing=replace(preprocessing, image=image_property),
        heads=find_heads(network, num_classes),
        layer_aliases=find_layer_aliases(network),
        pretrained=source != "none",
        has_published_weights=architecture.has_published_weights,
    )


def wrap_network(network: nn.Module, preprocessing: Preprocessing, *, num_classes: int, pretrained: bool) -> Model:
    """Return a custom network, set to eval mode, as a `Model` with its preprocessing and the path of its classifier.

    Args:
        network: maps float32 `(N, C, H, W)` to logits `(N, classes)`; its last layer with `num_classes` outputs is
            the classifier.
        preprocessing: preprocessing of each image.
        num_classes: number of logits.
        pretrained: whether the network has pretrained weights.

    Raises:
        ModelError: no layer has one output per class.

    Examples:
        >>> from torch import nn
        >>> from mlimages import ImageProperty, Normalization, Preprocessing
        >>> from mlimages.networks import wrap_network
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        >>> wrap_network(network, Preprocessing(ImageProperty(32), Normalization()), num_classes=2, pretrained=False)
        Model('Sequential', 626 parameters, random weights, 32 x 32 px RGB)
    """
    code = hashlib.sha256(repr(network).encode()).hexdigest()[:16]
    return Model(
        name=type(network).__name__,
        network=network.eval(),
        library=f"{type(network).__module__} {code}",
        preprocessing=preprocessing,
        heads=find_heads(network, num_classes),
        pretrained=pretrained,
        has_published_weights=False,
    )


def resolve_weights_and_freeze(name: str, *, weights: str, freeze: str) -> tuple[str, str]:
    """Return `weights` and `freeze`, with automatic values replaced by those for this network.

    - `weights="default"` becomes `none` if the network has no pretrained weights.
    - `freeze="auto"` becomes `head` or, if the network has no pretrained weights and no weights file is given, `none`.

    Other values are returned unchanged.

    Raises:
        ModelError: there is no such network; or it has pretrained weights, but `weights="none"` is combined with
            `freeze="auto"`, which would freeze random weights.

    Examples:
        >>> from mlimages.networks import resolve_weights_and_freeze
        >>> resolve_weights_and_freeze("lenet5", weights="default", freeze="auto")
        ('none', 'none')
        >>> resolve_weights_and_freeze("alexnet", weights="default", freeze="auto")
        ('default', 'head')
    """
    has_weights = find_architecture(name).has_published_weights
    if weights == "default" and not has_weights:
        weights = "none"
    if freeze == "auto" and weights == "none" and has_weights:
        raise ModelError(
            f"{name} with --weights none starts from random weights: train all layers with --freeze none, or "
            "omit --weights"
        )
    freeze = freeze if freeze != "auto" else "none" if weights == "none" else "head"
    if weights == "none" and freeze != "none":
        logger.warning("the frozen layers of %s have random weights and are not trained: try --freeze none", name)
    return weights, freeze


def find_heads(network: nn.Module, num_classes: int) -> tuple[str, ...]:
    """Return the module paths of the classifiers, which have one output per class.

    They are the classifiers that timm names for this network. If timm names none, or none has one output per class, the
    last layer with one output per class is the classifier.

    Raises:
        ModelError: no layer has one output per class.
    """
    named = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    paths = [path for path, module in network.named_modules() if _count_outputs(module) == num_classes]
    heads = tuple(path for path in ([named] if isinstance(named, str) else named) if path in paths)
    if not heads and not paths:
        raise ModelError(
            f"no layer of this network has {num_classes} outputs, one per class: choose a classification network"
        )
    return heads or (paths[-1],)


def _count_outputs(module: nn.Module) -> int | None:
    return getattr(module, "out_features", None) or getattr(module, "out_channels", None)


def find_layer_aliases(network: nn.Module) -> dict[str, str]:
    """Return the module paths of the layers of AlexNet and VGG by their common names (conv1, conv3_2, fc7).

    If a batch norm follows a convolution, the path is that of the batch norm. `conv3` is the last layer of VGG's third
    block. For other networks, the result is empty; the modules of built-in networks already have such names.

    Examples:
        >>> from mlimages.networks import build_model, find_layer_aliases
        >>> find_layer_aliases(build_model("alexnet", num_classes=2, weights="none").network)["conv5"]
        'features.10'
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


def override_image_property(
    image_property: ImageProperty, *, size: int | tuple[int, int] | None, resize: Resize | None, gray: bool | None
) -> ImageProperty:
    """Return a copy of `image_property`, changed by those of `size`, `resize` and `gray` that are not None."""
    if size is not None:
        width, height = (size, size) if isinstance(size, int) else size
        # The margin around the crop keeps its proportion.
        margin = image_property.shorter_px / max(image_property.width, image_property.height)
        larger = max(width, height)
        shorter_px = max(larger, round(larger * margin))
        image_property = replace(image_property, width=width, height=height, shorter_px=shorter_px)
    if resize is not None:
        image_property = replace(image_property, resize=resize)
    return image_property if gray is None else replace(image_property, gray_scale=gray)


def _build_with_weights(
    architecture: Architecture, num_classes: int, image_property: ImageProperty, weights: str
) -> nn.Module:
    """Build a network and load its weights; if they have no classifier for `num_classes`, initialize it at random."""
    weights_name = f"the default weights of {architecture.name}" if weights == "default" else weights
    network = _build_on_meta(architecture, num_classes, image_property)
    heads = find_heads(network, num_classes)
    if weights == "default":
        state_dict = architecture.load_default_weights(image_property)
    else:
        if "lite0" in architecture.name:
            from mlimages.networks.timm_architecture import check_lite0_weights

            check_lite0_weights(architecture.name, weights)
        state_dict = remove_prefix(read_weights(weights), network, weights_name=weights_name)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items() if not is_in_modules(name, heads)}
    if any(name not in state_dict or state_dict[name].shape != shape for name, shape in shapes.items()):
        state_dict = architecture.convert_weights(state_dict, network)
    if not weights.endswith(".safetensors"):  # its tensors are sorted by name
        state_dict = rename_tensors_by_order(network, state_dict, heads=heads, weights_name=weights_name)
    is_complete = load_weights(network, state_dict, heads=heads, weights_name=weights_name)
    if not is_complete:
        is_complete = all(_initialize_on_cpu(network.get_submodule(head)) for head in heads)
    if not is_complete or any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        # Initializes the tensors that are not in the file.
        network = architecture.build_untrained(num_classes, image_property, will_load_weights=True)
        load_weights(network, state_dict, heads=heads, weights_name=weights_name)
    return network


def _initialize_on_cpu(layer: nn.Module) -> bool:
    """Move a layer from the meta device to the CPU and initialize it.

    Return False if the layer is moved but not initialized, since it has no method `reset_parameters`.
    """
    layer.to_empty(device="cpu")
    if not hasattr(layer, "reset_parameters"):
        return False
    layer.reset_parameters()  # type: ignore[operator]
    return True


def _build_on_meta(architecture: Architecture, num_classes: int, image_property: ImageProperty) -> nn.Module:
    """Build the network on the meta device, since its weights are loaded later and need no initialization.

    If its constructor fails on the meta device, build it on torch's default device.
    """
    try:
        with torch.device("meta"):
            return architecture.build_untrained(num_classes, image_property, will_load_weights=True)
    except (NotImplementedError, RuntimeError):  # the constructor of the network needs values
        return architecture.build_untrained(num_classes, image_property, will_load_weights=True)
