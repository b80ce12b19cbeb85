"""Network architectures by name: built-in, torchvision and timm, with their weights and preprocessing."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from mlimages.core import DEFAULT_MODEL, ImageProperty, Interpolation, ModelError, Normalization, Preprocessing
from mlimages.networks.base_architecture import Architecture, get_download_path
from mlimages.networks.builtin_nets import BUILTIN_NETS

_TENSOR_NAME_REPLACEMENTS = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
"""Regular expressions for tensor names of DenseNet and vision transformers in torchvision's published files, with their
replacements for the current version."""


class BuiltinArchitecture(Architecture):
    """Architecture of a built-in network."""

    @property
    def library(self) -> str:
        return format_package_version("mlimages")

    def build_untrained(self, num_classes: int, image_property: ImageProperty, *, will_load_weights: bool) -> nn.Module:
        size = (image_property.height, image_property.width)
        layers = BUILTIN_NETS[self.name].make_layers(num_classes, image_property.channels, size)
        return nn.Sequential(OrderedDict(layers))

    def make_preprocessing(self, weights: str) -> Preprocessing:
        return BUILTIN_NETS[self.name].preprocessing


class TorchvisionArchitecture(Architecture):
    """Architecture of a torchvision classifier."""

    @property
    def library(self) -> str:
        return format_package_version("torchvision")

    @property
    def has_published_weights(self) -> bool:
        return True

    def build_untrained(self, num_classes: int, image_property: ImageProperty, *, will_load_weights: bool) -> nn.Module:
        options = self._choose_builder_options(image_property, will_load_weights=will_load_weights)
        build_network = partial(torchvision_models.get_model, self.name, weights=None, num_classes=num_classes)
        network: nn.Module = _call_without_warnings(build_network, **options)
        return network

    def _choose_builder_options(self, image_property: ImageProperty, *, will_load_weights: bool) -> dict[str, Any]:
        """Return the arguments of torchvision's builder that depend on the image size or on `will_load_weights`.

        torchvision's builder sets these arguments itself only if it also loads the weights.
        """
        if self.name in ("googlenet", "inception_v3"):
            # The auxiliary classifiers are used only in training.
            pretrained = {"transform_input": True, "init_weights": False} if will_load_weights else {}
            return {"aux_logits": False, **pretrained}
        if self.name.startswith("vgg"):
            return {"init_weights": not will_load_weights}
        if self.name.startswith("vit_"):
            if image_property.width != image_property.height:
                raise ModelError(
                    f"{self.name} accepts only square images, not {image_property.width} x {image_property.height} px: "
                    "use a square size"
                )
            return {"image_size": image_property.width}
        return {"input_size": image_property.shape[1:]} if self.name.startswith("maxvit") else {}

    @property
    def has_local_weights(self) -> bool:
        return self._weights_file.is_file()

    @property
    def _weights_file(self) -> Path:
        return get_download_path(self._find_weights_entry("default").url)

    def load_default_weights(self, image_property: ImageProperty) -> dict[str, Tensor]:
        weights, file = self._find_weights_entry("default"), self._weights_file
        try:
            return dict(weights.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the weights {file.name} of {self.name} are not in {file.parent} and cannot be downloaded from "
                f"{weights.url} ({error}): put the file into that folder, or pass its path with --weights"
            ) from error

    def convert_weights(self, state_dict: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        for pattern, replacement in _TENSOR_NAME_REPLACEMENTS:
            state_dict = {pattern.sub(replacement, name): tensor for name, tensor in state_dict.items()}
        embedding = state_dict.get("encoder.pos_embedding")
        if not isinstance(network, VisionTransformer) or embedding is None or embedding.ndim != 3:
            return state_dict
        size, patch = network.image_size, network.patch_size
        return dict(_call_without_warnings(interpolate_embeddings, size, patch, OrderedDict(state_dict)))

    def make_preprocessing(self, weights: str) -> Preprocessing:
        preset = self._find_weights_entry(weights).transforms()
        interpolation: Interpolation = "bicubic" if preset.interpolation.value == "bicubic" else "bilinear"
        image_property = ImageProperty(
            preset.crop_size[0], shorter_px=preset.resize_size[0], interpolation=interpolation
        )
        return Preprocessing(image_property, Normalization(mean=tuple(preset.mean), std=tuple(preset.std)))

    def _find_weights_entry(self, weights: str) -> Any:
        """Return the member of torchvision's weights enum whose URL and preprocessing apply, such as IMAGENET1K_V2.

        For `default`, it is the newest member. For `none` or a file, only the preprocessing is needed: it is that of
        the first member, which most files expect (resize to 256, crop of 224).
        """
        entries = torchvision_models.get_model_weights(self.name)
        return entries.DEFAULT if weights == "default" else next(iter(entries))


def find_architecture(name: str) -> Architecture:
    """Return the architecture of this name.

    Raises:
        ModelError: there is no such architecture; the message suggests similar names. Names of timm, `timm:NAME`, are
            not checked.
    """
    if name.startswith("timm:") or name == DEFAULT_MODEL:
        # Imported late: timm takes half a second.
        from mlimages.networks.timm_architecture import EfficientNetLite0Architecture, TimmArchitecture

        return EfficientNetLite0Architecture(name) if name == DEFAULT_MODEL else TimmArchitecture(name)
    if name in BUILTIN_NETS:
        return BuiltinArchitecture(name)
    torchvision_names = sorted(torchvision_models.list_models(module=torchvision_models))
    if name in torchvision_names:
        return TorchvisionArchitecture(name)
    if name[:1].isupper():  # the name of a class, in the settings of a run
        raise ModelError(
            f"unknown model {name!r}: if this is a custom network, pass it in Python as the argument `network` of "
            "fine_tune, export_run or load_run"
        )
    similar = difflib.get_close_matches(name, [DEFAULT_MODEL, *BUILTIN_NETS, *torchvision_names])
    raise ModelError(
        f"unknown model {name!r}: "
        + (f"did you mean {' or '.join(similar)}? Or " if similar else "")
        + f"use {', '.join([DEFAULT_MODEL, *BUILTIN_NETS])}, a torchvision classifier, or timm:NAME for any timm model"
    )


def has_local_weights(name: str) -> bool:
    """Return whether a network has pretrained weights, and they are available on this machine.

    Examples:
        >>> from mlimages.networks import has_local_weights
        >>> has_local_weights("efficientnet_lite0")
        True
    """
    return find_architecture(name).has_local_weights


def format_package_version(package: str) -> str:
    """Return the name and version of an installed package, such as `torchvision 0.24.0`."""
    return f"{package} {importlib.metadata.version(package)}"


def _call_without_warnings(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of torchvision without its warnings about slow or deprecated initialization."""
    with warnings.catch_warnings(action="ignore"):
        return function(*args, **options)
