"""Network architectures by name: built-in, torchvision and timm, with their weights and preprocessing."""

from __future__ import annotations

import difflib
import importlib.metadata
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from mlimages.core import DEFAULT_MODEL, ImageProperty, Interpolation, ModelError, Normalization, Preprocessing
from mlimages.networks.builtin_nets import BUILTIN_NETS, BuiltinNet

MAX_SUGGESTIONS = 3


class Architecture(Protocol):
    """One network architecture."""

    @property
    def name(self) -> str:
        """The name as `build_model` takes it."""

    @property
    def library(self) -> str:
        """The package with the code of the network and its version, such as `torchvision 0.24.0`."""

    @property
    def has_weights(self) -> bool:
        """Whether pretrained weights are published."""

    def build(self, classes: int, image: ImageProperty, weights: str) -> nn.Module:
        """Return the network as `weights` (`default`, `none` or a file) need it, on torch's default device.

        Its own weights are random.
        """

    @property
    def has_local_weights(self) -> bool:
        """Whether the pretrained weights are on this machine."""

    def default_weights(self, image: ImageProperty) -> dict[str, Tensor]:
        """Return the pretrained weights of the library, for images of this size.

        Raises:
            ModelError: there are none, or they cannot be downloaded.
        """

    def convert(self, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        """Return weights of a file as `network` needs them: names of other formats, position embeddings resized."""

    def preprocessing(self, weights: str) -> Preprocessing:
        """Return the preprocessing that the weights (`default`, `none` or a file) expect."""


@dataclass(frozen=True, slots=True)
class BuiltinArchitecture:
    """A network of `builtin_nets`."""

    net: BuiltinNet
    name: str

    @property
    def library(self) -> str:
        return package_version("mlimages")

    @property
    def has_weights(self) -> bool:
        return False

    def build(self, classes: int, image: ImageProperty, weights: str) -> nn.Module:
        return self.net.build(classes=classes, channels=image.channels, size=(image.height, image.width))

    @property
    def has_local_weights(self) -> bool:
        return False

    def default_weights(self, image: ImageProperty) -> dict[str, Tensor]:
        raise ModelError(
            f"{self.name} has no pretrained weights: train from scratch with --weights none, or give a file"
        )

    def convert(self, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        return state

    def preprocessing(self, weights: str) -> Preprocessing:
        return self.net.preprocessing


@dataclass(frozen=True, slots=True)
class TorchvisionArchitecture:
    """A classifier of torchvision."""

    name: str

    @property
    def library(self) -> str:
        return package_version("torchvision")

    @property
    def has_weights(self) -> bool:
        return True

    def build(self, classes: int, image: ImageProperty, weights: str) -> nn.Module:
        options = {"weights": None, "num_classes": classes, **self._options(image, is_pretrained=weights != "none")}
        network: nn.Module = _without_warnings(torchvision_models.get_model, self.name, **options)
        return network

    def _options(self, image: ImageProperty, *, is_pretrained: bool) -> dict[str, Any]:
        """What torchvision's builder derives from the entry of the weights, at the size of the images."""
        if self.name in ("googlenet", "inception_v3"):
            # The auxiliary classifiers are used in training only.
            pretrained = {"transform_input": True, "init_weights": False} if is_pretrained else {}
            return {"aux_logits": False, **pretrained}
        if self.name.startswith("vgg"):
            return {"init_weights": not is_pretrained}
        if self.name.startswith("vit_"):
            if image.width != image.height:
                raise ModelError(f"{self.name} takes square images only, not {image.width} x {image.height} px")
            return {"image_size": image.width}
        return {"input_size": image.shape[1:]} if self.name.startswith("maxvit") else {}

    @property
    def has_local_weights(self) -> bool:
        return self._file(self._weights_entry("default")).is_file()

    def _file(self, entry: Any) -> Path:
        return Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])

    def default_weights(self, image: ImageProperty) -> dict[str, Tensor]:
        weights = self._weights_entry("default")
        file = self._file(weights)
        try:
            return dict(weights.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the weights {file.name} of {self.name} are not in {file.parent} and cannot be downloaded from "
                f"{weights.url} ({error}): put the file there, or give one with --weights PATH"
            ) from error

    def convert(self, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        embedding = state.get("encoder.pos_embedding")
        if not isinstance(network, VisionTransformer) or embedding is None or embedding.ndim != 3:
            return state
        size, patch = network.image_size, network.patch_size
        return dict(_without_warnings(interpolate_embeddings, size, patch, OrderedDict(state)))

    def preprocessing(self, weights: str) -> Preprocessing:
        preset = self._weights_entry(weights).transforms()
        interpolation: Interpolation = "bicubic" if preset.interpolation.value == "bicubic" else "bilinear"
        image = ImageProperty(preset.crop_size[0], shorter_px=preset.resize_size[0], interpolation=interpolation)
        return Preprocessing(image, Normalization(mean=tuple(preset.mean), std=tuple(preset.std)))

    def _weights_entry(self, weights: str) -> Any:
        # `default` is the newest recipe; files from elsewhere mostly follow the first one (256 -> 224).
        entries = torchvision_models.get_model_weights(self.name)
        return entries.DEFAULT if weights == "default" else next(iter(entries))


def find_architecture(name: str) -> Architecture:
    """Return the architecture of this name.

    Raises:
        ModelError: there is none; the message suggests similar names.
    """
    if name.startswith("timm:") or name == DEFAULT_MODEL:
        # Imported late: timm takes half a second.
        from mlimages.networks.timm_architecture import PackagedArchitecture, TimmArchitecture

        return PackagedArchitecture() if name == DEFAULT_MODEL else TimmArchitecture(name.removeprefix("timm:"))
    if name in BUILTIN_NETS:
        return BuiltinArchitecture(BUILTIN_NETS[name], name)
    torchvision_names = sorted(torchvision_models.list_models(module=torchvision_models))
    if name in torchvision_names:
        return TorchvisionArchitecture(name)
    similar = difflib.get_close_matches(name, [DEFAULT_MODEL, *BUILTIN_NETS, *torchvision_names], n=MAX_SUGGESTIONS)
    raise ModelError(
        f"unknown model {name!r}"
        + (f"; did you mean {' or '.join(similar)}?" if similar else "")
        + f" Use {', '.join([DEFAULT_MODEL, *BUILTIN_NETS])}, a torchvision classifier, or timm:NAME for any timm model"
    )


def has_local_weights(name: str) -> bool:
    """Return whether the pretrained weights of a network are on this machine.

    Examples:
        >>> from mlimages.networks import has_local_weights
        >>> has_local_weights("efficientnet_lite0")
        True
    """
    return find_architecture(name).has_local_weights


def package_version(package: str) -> str:
    """The name of an installed package and its version."""
    return f"{package} {importlib.metadata.version(package)}"


def _without_warnings(builder: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a library's function without its warnings about slow or deprecated initialization."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return builder(*args, **options)
