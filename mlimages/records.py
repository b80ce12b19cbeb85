"""Frozen values that travel between the rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from mlimages.errors import InputError

Resize = Literal["shorter", "crop", "downscale", "position", "squash", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]


class Fault(StrEnum):
    """Why one picture cannot be used; the same codes in `check`, `predict`, `serve` and training."""

    MISSING = "missing"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not-an-image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_PIXELS = "too-many-pixels"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One picture wanted: where it is, which class it is for, and what its provider says of it."""

    url: str
    label: str
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabeledPath:
    """One line of a label file: a picture's path and its class number."""

    path: Path
    label: int


@dataclass(frozen=True, slots=True)
class ImageProperty:
    """The geometry of a picture as the network sees it.

    Attributes:
        width, height: of the result, in pixels; height 0 means the same as width.
        resize: `shorter` scales the shorter side to `shorter_px` and crops the centre
            (torchvision's Resize + CenterCrop; it must hold the crop); `crop` crops the centre; `downscale` halves
            while both sides stay large enough, then crops the centre; `position` crops
            at `position`; `squash` ignores the aspect; `letterbox` fits the whole picture in.
            Where a crop is larger than the picture, the rest is black.
        shorter_px: for `shorter`; 0 means the larger of width and height.
        position: left, top of the crop for `position`, in pixels.
        gray_scale: one channel (ITU-R 601-2 luma) in place of three.
    """

    width: int
    height: int = 0
    resize: Resize = "shorter"
    shorter_px: int = 0
    position: tuple[int, int] = (0, 0)
    interpolation: Interpolation = "bilinear"
    gray_scale: bool = False

    def __post_init__(self) -> None:
        if not self.height:
            object.__setattr__(self, "height", self.width)
        if not self.shorter_px:
            object.__setattr__(self, "shorter_px", max(self.width, self.height))
        if self.shorter_px < max(self.width, self.height):
            raise InputError(
                f"a shorter side of {self.shorter_px} px cannot hold a crop of {self.width} x {self.height}: "
                "take a larger shorter_px or a smaller crop"
            )

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return 1 if self.gray_scale else 3


@dataclass(frozen=True, slots=True)
class Normalization:
    """From uint8 pixels to the network's numbers: `(pixels / scale - mean) / std`, by channel.

    Attributes:
        scale: what a pixel is divided by (255 gives 0..1).
        mean, std: one figure per channel, in units of `pixels / scale`, in the order RGB.
        mean_image: path of a float32 `(C, H, W)` .npy in 0..255, subtracted before
            dividing by `scale`; then `mean` is not used.
        bgr: the network's channel order is blue, green, red (Caffe).
    """

    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    mean_image: str = ""
    bgr: bool = False


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """All that happens between an upright RGB picture and the network's input."""

    image: ImageProperty
    normalization: Normalization

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `dataclasses.asdict`, for JSON on disk (tuples come back as lists)."""
        image, normalization = dict(values["image"]), dict(values["normalization"])
        image["position"] = tuple(image["position"])
        normalization["mean"] = tuple(normalization["mean"])
        normalization["std"] = tuple(normalization["std"])
        return cls(ImageProperty(**image), Normalization(**normalization))


@dataclass(frozen=True, slots=True)
class BrokenImage:
    """One picture that could not be used, with its code and what was seen."""

    path: str
    fault: Fault
    detail: str


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class and its probability (0..1)."""

    class_name: str
    label: int
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says of one picture: classes by falling probability."""

    path: str
    top: tuple[ClassScore, ...]

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return self.top[0].class_name

    @property
    def probability(self) -> float:
        """The most probable class's probability (0..1)."""
        return self.top[0].probability
