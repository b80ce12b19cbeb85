"""The base class of network architectures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mlimages.core import ImageProperty, ModelError, Preprocessing


@dataclass(frozen=True, slots=True)
class Architecture(ABC):
    """A network architecture, its pretrained weights and their preprocessing.

    Attributes:
        name: the name that `build_model` accepts.
    """

    name: str

    @property
    @abstractmethod
    def library(self) -> str:
        """The package that implements the network, with its version, such as `torchvision 0.24.0`."""

    @property
    def has_published_weights(self) -> bool:
        """Whether pretrained weights are published."""
        return False

    @property
    def has_local_weights(self) -> bool:
        """Whether there are pretrained weights, and they are available on this machine."""
        return False

    @abstractmethod
    def build_untrained(self, num_classes: int, image_property: ImageProperty, *, will_load_weights: bool) -> nn.Module:
        """Return the randomly initialized network, on torch's default device.

        Args:
            num_classes: number of logits.
            image_property: size and channels of the input.
            will_load_weights: whether the caller will load weights into the network. Some networks are then built
                differently, such as torchvision's inception_v3 with `transform_input=True`.
        """

    def load_default_weights(self, image_property: ImageProperty) -> dict[str, Tensor]:
        """Return the library's pretrained weights.

        Raises:
            ModelError: there are no pretrained weights, or they cannot be downloaded.
        """
        raise ModelError(
            f"{self.name} has no pretrained weights: train from scratch with --weights none, or pass a file"
        )

    def convert_weights(self, state_dict: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        """Return the weights with the tensor names of `network`, and position embeddings resized for its input size."""
        return state_dict

    @abstractmethod
    def make_preprocessing(self, weights: str) -> Preprocessing:
        """Return the preprocessing that the weights (`default`, `none` or a file) expect."""


def get_download_path(url: str) -> Path:
    """Return the path at which torch.hub caches a download; with an empty URL, the folder of all downloads."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
