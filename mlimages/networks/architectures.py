"""Network architectures by name: built-in, torchvision and timm, with their weights and preprocessing."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
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

_EARLIER_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
"""Tensor names of DenseNet and of vision transformers in torchvision's published files, and their present names."""


class Architecture(Protocol):
    """One network architecture."""

    @property
    def name(self) -> str:
        """The name that `build_model` accepts."""

    @property
    def library(self) -> str:
        """The package that implements the network, with its version, such as `torchvision 0.24.0`."""

    @property
    def has_weights(self) -> bool:
        """Whether pretrained weights are published."""

    def build(self, num_classes: int, image_property: ImageProperty, weights: str) -> nn.Module:
        """Return a network that fits `weights` (`default`, `none` or a file), on torch's default device.

        Its weights are random; `weights` is not loaded.
        """

    @property
    def has_local_weights(self) -> bool:
        """Whether the pretrained weights are available on this machine."""

    def default_weights(self, image_property: ImageProperty) -> dict[str, Tensor]:
        """Return the library's pretrained weights.

        Raises:
            ModelError: there are none, or they cannot be downloaded.
        """

    def convert_weights(self, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        """Convert weights to the names of `network`, and resize position embeddings."""

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

    def build(self, num_classes: int, image_property: ImageProperty, weights: str) -> nn.Module:
        return self.net.build(
            num_classes=num_classes,
            channels=image_property.channels,
            size=(image_property.height, image_property.width),
        )

    @property
    def has_local_weights(self) -> bool:
        return False

    def default_weights(self, image_property: ImageProperty) -> dict[str, Tensor]:
        raise ModelError(
            f"{self.name} has no pretrained weights: train from scratch with --weights none, or pass a file"
        )

    def convert_weights(self, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
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

    def build(self, num_classes: int, image_property: ImageProperty, weights: str) -> nn.Module:
        options = {
            "weights": None,
            "num_classes": num_classes,
            **self._choose_builder_options(image_property, is_pretrained=weights != "none"),
        }
        network: nn.Module = _without_warnings(torchvision_models.get_model, self.name, **options)
        return network

    def _choose_builder_options(self, image_property: ImageProperty, *, is_pretrained: bool) -> dict[str, Any]:
        """Return the keyword arguments of torchvision's builder for the image size, as torchvision derives them from
        the weights."""
        if self.name in ("googlenet", "inception_v3"):
            # The auxiliary classifiers are used only in training.
            pretrained = {"transform_input": True, "init_weights": False} if is_pretrained else {}
            return {"aux_logits": False, **pretrained}
        if self.name.startswith("vgg"):
            return {"init_weights": not is_pretrained}
        if self.name.startswith("vit_"):
            if image_property.width != image_property.height:
                raise ModelError(
                    f"{self.name} accepts only square images, not {image_property.width} x {image_property.height} px"
                )
            return {"image_size": image_property.width}
        return {"input_size": image_property.shape[1:]} if self.name.startswith("maxvit") else {}

    @property
    def has_local_weights(self) -> bool:
        return self._find_cached_file(self._find_weights_entry("default")).is_file()

    def _find_cached_file(self, weights_entry: Any) -> Path:
        return Path(torch.hub.get_dir(), "checkpoints", weights_entry.url.rpartition("/")[2])

    def default_weights(self, image_property: ImageProperty) -> dict[str, Tensor]:
        weights = self._find_weights_entry("default")
        file = self._find_cached_file(weights)
        try:
            return dict(weights.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the weights {file.name} of {self.name} are not in {file.parent} and cannot be downloaded from "
                f"{weights.url} ({error}): put the file into that folder, or pass its path with --weights"
            ) from error

    def convert_weights(self, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        for earlier, present in _EARLIER_NAMES:
            state = {earlier.sub(present, name): tensor for name, tensor in state.items()}
        embedding = state.get("encoder.pos_embedding")
        if not isinstance(network, VisionTransformer) or embedding is None or embedding.ndim != 3:
            return state
        size, patch = network.image_size, network.patch_size
        return dict(_without_warnings(interpolate_embeddings, size, patch, OrderedDict(state)))

    def preprocessing(self, weights: str) -> Preprocessing:
        preset = self._find_weights_entry(weights).transforms()
        interpolation: Interpolation = "bicubic" if preset.interpolation.value == "bicubic" else "bilinear"
        image_property = ImageProperty(
            preset.crop_size[0], shorter_px=preset.resize_size[0], interpolation=interpolation
        )
        return Preprocessing(image_property, Normalization(mean=tuple(preset.mean), std=tuple(preset.std)))

    def _find_weights_entry(self, weights: str) -> Any:
        # `default` is the newest recipe; other files mostly use the first one (256 -> 224).
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
    if name[:1].isupper():  # the name of a class, in the settings of a run
        raise ModelError(
            f"unknown model {name!r}: a run with a network of your own needs this network, in Python: "
            "network=... of fine_tune, export_run or load_run"
        )
    similar = difflib.get_close_matches(name, [DEFAULT_MODEL, *BUILTIN_NETS, *torchvision_names], n=MAX_SUGGESTIONS)
    raise ModelError(
        f"unknown model {name!r}: "
        + (f"did you mean {' or '.join(similar)}? Or " if similar else "")
        + f"use {', '.join([DEFAULT_MODEL, *BUILTIN_NETS])}, a torchvision classifier, or timm:NAME for any timm model"
    )


def has_local_weights(name: str) -> bool:
    """Return whether the pretrained weights of a network are available on this machine.

    Examples:
        >>> from mlimages.networks import has_local_weights
        >>> has_local_weights("efficientnet_lite0")
        True
    """
    return find_architecture(name).has_local_weights


def package_version(package: str) -> str:
    """Return the name of an installed package with its version."""
    return f"{package} {importlib.metadata.version(package)}"


def _without_warnings(builder: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a builder and suppress its warnings about slow or deprecated initialization."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return builder(*args, **options)
