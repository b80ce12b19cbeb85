"""Networks of timm, by `timm:NAME`."""

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

FILE = "model.safetensors"
"""What timm looks for first in a repository."""

REACH_S = 5.0


@dataclass(frozen=True, slots=True)
class TimmFamily:
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

    def pretrained(self) -> dict[str, Tensor]:
        wanted = timm.get_pretrained_cfg(self.timm_name)
        repository, file_name = getattr(wanted, "hf_hub_id", None), getattr(wanted, "hf_hub_filename", None) or FILE
        try:
            if repository:
                _demand_within_reach(repository, file_name)
            return self._create(pretrained=True).state_dict()
        except ModelError:
            raise
        except Exception as error:  # the hub's client has many
            where = f"{repository}/{file_name}" if repository else getattr(wanted, "url", None) or self.timm_name
            raise ModelError(
                f"the weights {where} of {self.name} are not in {constants.HF_HUB_CACHE} and could not be fetched "
                f"({type(error).__name__}): give a file with --weights PATH"
            ) from error

    def preprocessing(self, weights: str) -> Preprocessing:
        expected: dict[str, Any] = resolve_model_data_config(self._create())
        _, height, width = expected["input_size"]
        size, side = (width, height), math.floor(width / expected["crop_pct"])
        resize: Resize = "squash" if expected.get("crop_mode") == "squash" else "shorter"
        interpolation: Interpolation = "bicubic" if expected["interpolation"] == "bicubic" else "bilinear"
        image = ImageProperty(*size, shorter_px=max(side, *size), resize=resize, interpolation=interpolation)
        return Preprocessing(image, Normalization(mean=tuple(expected["mean"]), std=tuple(expected["std"])))

    def _create(self, **options: Any) -> nn.Module:
        try:
            network: nn.Module = timm.create_model(self.timm_name, **options)
        except RuntimeError as error:
            if not any(said in str(error) for said in ("nknown model", "Invalid pretrained tag")):
                raise
            raise ModelError(
                f"timm {timm.__version__} knows no model {self.timm_name!r}: see timm.list_models()"
            ) from None
        return network


def _demand_within_reach(repository: str, file_name: str) -> None:
    """Ask once for a file that is not in the cache: offline, the hub's client would try again for a minute."""
    if not isinstance(try_to_load_from_cache(repository, file_name), str):
        with suppress(EntryNotFoundError):  # then timm knows an older name
            get_hf_file_metadata(hf_hub_url(repository, file_name), timeout=REACH_S)


def traced_whole() -> tuple[tuple[type[nn.Module], ...], tuple[Any, ...]]:
    """Modules and functions that symbolic tracing must not look into."""
    return tuple(get_notrace_modules()), tuple(get_notrace_functions())
