"""All settings of a fine-tuning run in one value, as it is kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mlimages.core import InputError, Resize, as_path, is_remote
from mlimages.networks import Device
from mlimages.training.views import Wanted

Optimizer = Literal["adamw", "sgd"]
ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True, slots=True)
class FineTuneConfig:
    """What is trained on what, and how.

    Attributes:
        labels: label file to train on.
        out: the run folder.
        val: label file to validate on; without one, `val_share` of `labels` is set aside by `seed`.
        val_share: see `val`; near-duplicates stay on one side.
        model, weights: as `build_model` takes them.
        freeze, freeze_regex: as `freeze` takes them.
        size, resize, gray: how a picture comes to the network, where not as its weights expect.
        mean: a `.npy` or `.png` mean image, `channel` (the training pictures' mean by channel) or `none`.
        std, scale, bgr: see `Normalization`, where not as the weights expect.
        epochs: passes over the training pictures.
        lr: highest learning rate; 0 chooses one by what is trained.
        optimizer, momentum, weight_decay, batch_size, label_smoothing: as the field means them.
        class_weights: `balanced` counts a class the more the rarer it is.
        augment, rotate_deg: see `Augment`; `auto` is `light` where pretrained layers below the head learn too, else
            `none`.
        early_stop: stop after so many epochs without a better validation accuracy; 0 never.
        time_budget_s: stop training after so many seconds; 0 never.
        interpolate: at the end choose, on the validation pictures, a mean of the weights at the start and the best.
        seed: of all chance.
        cache: keep decoded pictures and the frozen part's outputs on disk.
        cache_gb: how much disk, in 1e9 bytes.
        device: `auto` takes a GPU where there is one.
    """

    labels: Path
    out: Path
    val: Path | None = None
    val_share: float = 0.2
    model: str = "alexnet"
    weights: str = "default"
    freeze: str = "head"
    freeze_regex: str = ""
    size: int | None = None
    resize: Resize | None = None
    gray: bool | None = None
    mean: str = ""
    std: tuple[float, ...] = ()
    scale: float = 0.0
    bgr: bool | None = None
    epochs: int = 20
    lr: float = 0.0
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    batch_size: int = 32
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    augment: Wanted = "auto"
    rotate_deg: float = 0.0
    early_stop: int = 0
    time_budget_s: float = 0.0
    interpolate: bool = False
    seed: int = 0
    cache: bool = True
    cache_gb: float = 10.0
    device: Device = "auto"

    def __post_init__(self) -> None:
        for name in ("labels", "out", "val"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_path(value))
        if is_remote(self.out):
            raise InputError(
                f"{self.out}: a run's folder lies on this machine: only labels and pictures may be elsewhere"
            )
        object.__setattr__(self, "weights", str(self.weights))
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError("epochs and batch size count from 1")
        if not 0 < self.val_share < 1:
            raise InputError(f"the share set aside for validation lies between 0 and 1, not {self.val_share}")

    @property
    def pixel_bytes(self) -> int:
        """How much disk decoded pictures may take."""
        return int(self.cache_gb * 1e9 / 2)

    @property
    def feature_bytes(self) -> int:
        """How much disk the frozen part's outputs may take."""
        return int(self.cache_gb * 1e9 / 2)

    def to_json(self) -> str:
        """The settings as text; paths absolute, so that a run can be resumed from any folder."""
        values = asdict(self)
        for name in ("labels", "out", "val"):
            values[name] = str(values[name].absolute()) if values[name] is not None else None
        if self.weights not in ("default", "none"):
            values["weights"] = str(Path(self.weights).absolute())
        return json.dumps(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FineTuneConfig:
        """The inverse of `to_json`; unknown keys are those of a newer version and are left out."""
        known = {field.name for field in fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        return cls(**{**kept, "std": tuple(kept.get("std", ()))})
