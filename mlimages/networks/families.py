"""Who makes a network: our own nets, torchvision, timm; each with its weights and what they expect."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from mlimages.core import ImageProperty, Interpolation, ModelError, Normalization, Preprocessing
from mlimages.networks.nets import Net


class Family(Protocol):
    """One network's maker."""

    @property
    def name(self) -> str:
        """As a person types it."""

    @property
    def library(self) -> str:
        """The package whose code the network is, with its version: `torchvision 0.24.0`."""

    def build(self, classes: int, image: ImageProperty) -> nn.Module:
        """The network with random weights, on torch's current default device."""

    def pretrained(self) -> dict[str, Tensor]:
        """The library's own weights.

        Raises:
            ModelError: there are none, or they cannot be fetched.
        """

    def preprocessing(self, weights: str) -> Preprocessing:
        """What the weights (`default`, `none` or a file) expect."""


@dataclass(frozen=True, slots=True)
class OwnFamily:
    """A network of `nets`."""

    net: Net
    name: str

    @property
    def library(self) -> str:
        return with_version("mlimages")

    def build(self, classes: int, image: ImageProperty) -> nn.Module:
        return self.net.build(classes=classes, channels=image.channels, size=image.width)

    def pretrained(self) -> dict[str, Tensor]:
        raise ModelError(f"{self.name} has no published weights: train it with --weights none, or give a file")

    def preprocessing(self, weights: str) -> Preprocessing:
        return self.net.preprocessing


@dataclass(frozen=True, slots=True)
class TorchvisionFamily:
    """A classifier of torchvision."""

    name: str

    @property
    def library(self) -> str:
        return with_version("torchvision")

    def build(self, classes: int, image: ImageProperty) -> nn.Module:
        # GoogLeNet and Inception train with two more heads, which answer nothing afterwards.
        options = {"aux_logits": False} if self.name in ("googlenet", "inception_v3") else {}
        return without_warnings(torchvision_models.get_model, self.name, weights=None, num_classes=classes, **options)

    def pretrained(self) -> dict[str, Tensor]:
        weights = self._weights("default")
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        file_name = weights.url.rpartition("/")[2]
        try:
            state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the weights {file_name} of {self.name} are not in {folder} and could not be fetched from "
                f"{weights.url} ({error}): put the file there, or give one with --weights PATH"
            ) from error
        return {name: tensor for name, tensor in state.items() if not name.startswith(("aux1.", "aux2.", "AuxLogits."))}

    def preprocessing(self, weights: str) -> Preprocessing:
        preset = self._weights(weights).transforms()
        interpolation: Interpolation = "bicubic" if preset.interpolation.value == "bicubic" else "bilinear"
        image = ImageProperty(preset.crop_size[0], shorter_px=preset.resize_size[0], interpolation=interpolation)
        return Preprocessing(image, Normalization(mean=tuple(preset.mean), std=tuple(preset.std)))

    def _weights(self, wanted: str) -> Any:
        # `default` is the newest recipe; files from elsewhere mostly follow the first one (256 -> 224).
        known = torchvision_models.get_model_weights(self.name)
        return known.DEFAULT if wanted == "default" else next(iter(known))


def with_version(package: str) -> str:
    """An installed package and its version."""
    return f"{package} {importlib.metadata.version(package)}"


def torchvision_names() -> list[str]:
    """Every classifier of torchvision, sorted."""
    return sorted(torchvision_models.list_models(module=torchvision_models))


def without_warnings(make: Any, *args: Any, **options: Any) -> nn.Module:
    """Call a library's builder without its notes on slow or deprecated initialisation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: nn.Module = make(*args, **options)
    return network
