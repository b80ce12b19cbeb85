"""Network architectures by name: built-in, torchvision and timm, with their weights and preprocessing."""

from __future__ import annotations

import difflib
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from mlimages.core import ImageProperty, Interpolation, ModelError, Normalization, Preprocessing
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

    def build(self, classes: int, image: ImageProperty) -> nn.Module:
        """Return the network with random weights on torch's default device."""

    def default_weights(self) -> dict[str, Tensor]:
        """Return the pretrained weights of the library.

        Raises:
            ModelError: there are none, or they cannot be downloaded.
        """

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

    def build(self, classes: int, image: ImageProperty) -> nn.Module:
        return self.net.build(classes=classes, channels=image.channels, size=image.width)

    def default_weights(self) -> dict[str, Tensor]:
        raise ModelError(
            f"{self.name} has no pretrained weights: train from scratch with --weights none, or give a file"
        )

    def preprocessing(self, weights: str) -> Preprocessing:
        return self.net.preprocessing


@dataclass(frozen=True, slots=True)
class TorchvisionArchitecture:
    """A classifier of torchvision."""

    name: str

    @property
    def library(self) -> str:
        return package_version("torchvision")

    def build(self, classes: int, image: ImageProperty) -> nn.Module:
        # The auxiliary classifiers of GoogLeNet and Inception are used in training only.
        options = {"aux_logits": False} if self.name in ("googlenet", "inception_v3") else {}
        return _without_warnings(torchvision_models.get_model, self.name, weights=None, num_classes=classes, **options)

    def default_weights(self) -> dict[str, Tensor]:
        weights = self._weights_entry("default")
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        file_name = weights.url.rpartition("/")[2]
        try:
            state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the weights {file_name} of {self.name} are not in {folder} and cannot be downloaded from "
                f"{weights.url} ({error}): put the file there, or give one with --weights PATH"
            ) from error
        return {name: tensor for name, tensor in state.items() if not name.startswith(("aux1.", "aux2.", "AuxLogits."))}

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
    if name.startswith("timm:"):
        from mlimages.networks.timm_architecture import TimmArchitecture  # imported late: timm takes half a second

        return TimmArchitecture(name.removeprefix("timm:"))
    if name in BUILTIN_NETS:
        return BuiltinArchitecture(BUILTIN_NETS[name], name)
    torchvision_names = sorted(torchvision_models.list_models(module=torchvision_models))
    if name in torchvision_names:
        return TorchvisionArchitecture(name)
    similar = difflib.get_close_matches(name, [*BUILTIN_NETS, *torchvision_names], n=MAX_SUGGESTIONS)
    raise ModelError(
        f"unknown model {name!r}"
        + (f"; did you mean {' or '.join(similar)}?" if similar else "")
        + f" Use {', '.join(BUILTIN_NETS)}, a torchvision classifier, or timm:NAME for any timm model"
    )


def package_version(package: str) -> str:
    """The name of an installed package and its version."""
    return f"{package} {importlib.metadata.version(package)}"


def _without_warnings(builder: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    """Call a library's builder without its warnings about slow or deprecated initialization."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return builder(*args, **options)
