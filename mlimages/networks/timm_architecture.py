"""Networks of timm, named `timm:NAME`."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import timm
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from timm.data.config import resolve_model_data_config
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn

from mlimages.core import ImageProperty, Interpolation, ModelError, Normalization, Preprocessing, Resize

WEIGHTS_FILE = "model.safetensors"
"""The file that timm looks for first in a repository."""

METADATA_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class TimmArchitecture:
    """A model of timm."""

    timm_name: str

    @property
    def name(self) -> str:
        return f"timm:{self.timm_name}"

    @property
    def library(self) -> str:
        return f"timm {timm.__version__}"

    def build(self, classes: int, image: ImageProperty) -> nn.Module:
        return self._create(num_classes=classes)

    def default_weights(self) -> dict[str, Tensor]:
        config = timm.get_pretrained_cfg(self.timm_name)
        repository = getattr(config, "hf_hub_id", None)
        file_name = getattr(config, "hf_hub_filename", None) or WEIGHTS_FILE
        try:
            if repository:
                _check_available(repository, file_name)
            return self._create(pretrained=True).state_dict()
        except ModelError:
            raise
        except Exception as error:  # the Hub client raises errors of many kinds
            source = f"{repository}/{file_name}" if repository else getattr(config, "url", None) or self.timm_name
            raise ModelError(
                f"the weights {source} of {self.name} are not in {constants.HF_HUB_CACHE} and cannot be downloaded "
                f"({type(error).__name__}): give a file with --weights PATH"
            ) from error

    def preprocessing(self, weights: str) -> Preprocessing:
        config: dict[str, Any] = resolve_model_data_config(self._create())
        _, height, width = config["input_size"]
        size, shorter_px = (width, height), math.floor(width / config["crop_pct"])
        resize: Resize = "squash" if config.get("crop_mode") == "squash" else "shorter"
        interpolation: Interpolation = "bicubic" if config["interpolation"] == "bicubic" else "bilinear"
        image = ImageProperty(*size, shorter_px=max(shorter_px, *size), resize=resize, interpolation=interpolation)
        return Preprocessing(image, Normalization(mean=tuple(config["mean"]), std=tuple(config["std"])))

    def _create(self, **options: Any) -> nn.Module:
        try:
            network: nn.Module = timm.create_model(self.timm_name, **options)
        except RuntimeError as error:
            if not any(message in str(error) for message in ("nknown model", "Invalid pretrained tag")):
                raise
            raise ModelError(
                f"timm {timm.__version__} has no model {self.timm_name!r}: timm.list_models() lists all"
            ) from None
        return network


def _check_available(repository: str, file_name: str) -> None:
    """Request an uncached file's metadata once: without a connection, the Hub client would retry for a minute."""
    if not isinstance(try_to_load_from_cache(repository, file_name), str):
        with suppress(EntryNotFoundError):  # timm then tries an older file name
            get_hf_file_metadata(hf_hub_url(repository, file_name), timeout=METADATA_TIMEOUT_S)


def untraceable() -> tuple[tuple[type[nn.Module], ...], tuple[Any, ...]]:
    """Modules and functions of timm that symbolic tracing must treat as leaves."""
    return tuple(get_notrace_modules()), tuple(get_notrace_functions())
