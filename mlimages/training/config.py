"""Settings of a fine-tuning run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from mlimages.core import (
    DEFAULT_MODEL,
    MAX_SEED,
    Device,
    InputError,
    Option,
    Resize,
    as_path,
    check_options,
    document_fields,
    is_remote,
    parse_size,
)
from mlimages.labels import TableOptions

Optimizer = Literal["adamw", "adam", "sgd"]
ClassWeights = Literal["none", "balanced"]
HeadChoice = Literal["auto", "last", "all-depths"]
Augmentation = Literal["auto", "none", "flip", "light", "strong"]
PrecisionChoice = Literal["auto", "fp32"]

_SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600}


def parse_numbers(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas, such as `0.229,0.224,0.225`.

    Raises:
        InputError: a part is not a number.
    """
    numbers = tuple(_parse_number(part) for part in text.split(",") if part)
    if any(map(math.isnan, numbers)):
        raise InputError(f"{text!r} is not a list of numbers: use one number, or several such as 0.229,0.224,0.225")
    return numbers


def parse_learning_rate(text: str) -> float:
    """Parse a learning rate; return 0 for `auto`, as in `FineTuneConfig.lr`.

    Raises:
        InputError: `text` is not a positive number.
    """
    if text == "auto":
        return 0.0
    value = _parse_number(text)
    if not 0 < value < math.inf:
        raise InputError(f"the learning rate must be a number greater than 0, or auto, not {text}")
    return value


def parse_scale(text: str) -> float:
    """Parse the divisor of the pixel values (`--scale`).

    Raises:
        InputError: `text` is not a positive number.
    """
    value = _parse_number(text)
    if not 0 < value < math.inf:
        raise InputError(f"the scale must be a number greater than 0, not {text}")
    return value


def validate_schedule(text: str) -> str:
    """Return `text` if it is a learning rate schedule: `cosine`, `exponential:GAMMA`, `step:EPOCHS:GAMMA` or `none`.

    Raises:
        InputError: `text` is not a schedule.
    """
    kind, *numbers = text.split(":")
    values = [_parse_number(number) for number in numbers]
    count = {"cosine": 0, "none": 0, "exponential": 1, "step": 2}.get(kind)
    if count != len(values) or not all(0 < value < math.inf for value in values) or (kind == "step" and values[0] % 1):
        raise InputError(f"unknown schedule {text!r}: use cosine, exponential:0.97, step:30:0.1 or none")
    return text


def parse_duration(text: str) -> float:
    """Parse a duration such as `90`, `90s`, `10m` or `2h`; return seconds.

    Raises:
        InputError: `text` is not a duration.
    """
    unit = text[-1:] if text[-1:] in _SECONDS_PER_UNIT else ""
    seconds = _parse_number(text.removesuffix(unit)) * _SECONDS_PER_UNIT.get(unit, 1)
    if not 0 <= seconds < math.inf:
        raise InputError(f"{text!r} is not a duration: use seconds, or a value such as 90s, 10m or 2h")
    return seconds


def _parse_number(text: str) -> float:
    """Return the number, or NaN if `text` is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


@document_fields
@dataclass(frozen=True, slots=True)
class FineTuneConfig(TableOptions):
    """Settings of a fine-tuning run, as stored in the run folder's `config.json`.

    Paths may be `str | os.PathLike`.

    Raises:
        InputError: a value has the wrong type or is out of range, or two settings contradict each other.

    >>> FineTuneConfig("cats.txt", "runs/cats", model="resnet18", epochs=5).batch_size
    32
    """

    labels: Annotated[Path, Option("Label file, or folder of class folders, to train on.", metavar="LABELS|FOLDER")]
    out: Annotated[Path, Option("Run folder.", "Output", ("-o", "--out"), metavar="RUN", default_text="runs/LABELS")]
    val: Annotated[
        Path | None,
        Option("Label file or folder to validate on.", "Data", metavar="LABELS|FOLDER",
               default_text="the split val of LABELS, or else a fifth of LABELS"),
    ] = None  # fmt: skip
    skip_unavailable: Annotated[
        bool, Option("Skip remote images that cannot be downloaded.", "Data", is_advanced=True)
    ] = False
    val_share: Annotated[float, Option("Fraction of LABELS set aside for validation.", is_internal=True)] = 0.2
    seed: Annotated[int, Option("Random seed.", "Data", min=0, max=MAX_SEED)] = 0
    augment: Annotated[
        Augmentation,
        Option(
            "Data augmentation. auto: light if pretrained layers before the head are fine-tuned, otherwise none.",
            "Data",
        ),
    ] = "auto"
    rotate_deg: Annotated[
        float,
        Option("Augment with rotations of up to DEG degrees.", "Data", ("--rotate",), "DEG", 0, 180, is_advanced=True),
    ] = 0.0
    size: Annotated[
        int | tuple[int, int] | None,
        Option(
            "Input width and height in pixels.",
            "Data",
            metavar="N|WxH",
            parse=parse_size,
            default_text="the network's native size",
        ),
    ] = None
    resize: Annotated[
        Resize | None, Option("Resize method.", "Data", default_text="from the pretrained weights", is_advanced=True)
    ] = None
    mean: Annotated[
        str,
        Option(
            "Mean to subtract. FILE: a mean image (.npy, .png). channel: the training set's mean per channel.",
            "Data",
            metavar="FILE|channel|none",
            default_text="from the pretrained weights",
            is_advanced=True,
        ),
    ] = ""
    std: Annotated[
        tuple[float, ...],
        Option(
            "Standard deviation to divide by, after --scale; one number or one per channel.",
            "Data",
            metavar="X[,Y,Z]",
            parse=parse_numbers,
            default_text="from the pretrained weights",
            is_advanced=True,
        ),
    ] = ()
    scale: Annotated[
        float,
        Option(
            "Divide pixel values (0 to 255) by this number.",
            "Data",
            min=0,
            metavar="X",
            parse=parse_scale,
            default_text="from the pretrained weights",
            is_advanced=True,
        ),
    ] = 0.0
    gray: Annotated[
        bool | None, Option("Convert images to grayscale.", "Data", ("--gray/--no-gray",), is_advanced=True,
                            default_text="from the pretrained weights"),
    ] = None  # fmt: skip
    bgr: Annotated[
        bool | None,
        Option("Use the channel order BGR, as Caffe networks expect.", "Data", ("--bgr/--no-bgr",), is_advanced=True,
               default_text="from the pretrained weights"),
    ] = None  # fmt: skip
    model: Annotated[
        str,
        Option("Network: a torchvision name such as alexnet or vgg16, timm:NAME, lenet5 ...", "Model", metavar="NAME"),
    ] = DEFAULT_MODEL
    weights: Annotated[str, Option("Pretrained weights.", "Model", metavar="default|none|FILE")] = "default"
    freeze: Annotated[
        str,
        Option(
            "Freeze every layer up to and including this one; head: train only the classifier; none: train all layers.",
            "Model",
            metavar="LAYER|head|none",
            default_text="head, or none for a network without pretrained weights",
        ),
    ] = "auto"
    head: Annotated[
        HeadChoice,
        Option(
            "Input of the classifier. last: output of the layer before it. all-depths: outputs of all layers before "
            "it. auto: with --freeze head, all-depths if its leave-one-out error is significantly lower, otherwise "
            "last.",
            "Model",
        ),
    ] = "auto"
    epochs: Annotated[int, Option("Number of epochs.", "Optimization", min=1)] = 20
    batch_size: Annotated[int, Option("Batch size.", "Optimization", min=1)] = 32
    lr: Annotated[
        float,
        Option("Peak learning rate. auto: depends on the optimizer and on the layers that are trained.", "Optimization",
               min=0, metavar="auto|X", parse=parse_learning_rate, default_text="auto"),
    ] = 0.0  # fmt: skip
    optimizer: Annotated[Optimizer, Option("Optimizer.", "Optimization", is_advanced=True)] = "adamw"
    schedule: Annotated[
        str,
        Option(
            "Learning rate schedule: cosine (with warmup, if the weights are pretrained), exponential (multiply by "
            "GAMMA after each epoch), step (multiply by GAMMA after every N epochs) or none.",
            "Optimization",
            metavar="cosine|exponential:GAMMA|step:N:GAMMA|none",
            parse=validate_schedule,
            default_text="cosine",
            is_advanced=True,
        ),
    ] = "cosine"
    momentum: Annotated[
        float, Option("Momentum of --optimizer sgd.", "Optimization", min=0, max=1, is_advanced=True)
    ] = 0.9
    weight_decay: Annotated[float, Option("Weight decay.", "Optimization", min=0, is_advanced=True)] = 0.01
    label_smoothing: Annotated[float, Option("Label smoothing.", "Optimization", min=0, max=0.99, is_advanced=True)] = (
        0.0
    )
    class_weights: Annotated[
        ClassWeights,
        Option("Weights of the classes in the loss. balanced: inversely proportional to the number of images of each "
               "class; in a multi-label run, the images with a class and those without it have the same total weight.",
               "Optimization", is_advanced=True),
    ] = "none"  # fmt: skip
    early_stop: Annotated[
        int,
        Option("Stop if the validation accuracy or mAP has not improved for N epochs; a lower loss at the same "
               "accuracy is an improvement. 0: never.", "Optimization", min=0, is_advanced=True),
    ] = 0  # fmt: skip
    time_budget_s: Annotated[
        float,
        Option(
            "Stop training when the run has taken this long, such as 90m or 2h.",
            "Optimization",
            ("--time-budget",),
            "TIME",
            min=0,
            parse=parse_duration,
            is_advanced=True,
        ),
    ] = 0.0
    device: Annotated[Device, Option("Device.", "Optimization", is_advanced=True)] = "auto"
    precision: Annotated[
        PrecisionChoice,
        Option(
            "auto: bfloat16 and OpenVINO where they are faster on this processor; fp32: always float32 in PyTorch.",
            "Optimization",
            is_advanced=True,
        ),
    ] = "auto"
    cache: Annotated[
        bool,
        Option("Cache decoded images and frozen features on disk.", "Cache", ("--cache/--no-cache",), is_advanced=True),
    ] = True
    cache_gb: Annotated[
        float,
        Option(
            "Maximum size of the cache in gigabytes, for all datasets together. The images of a run, or its features, "
            "are not cached if they need more than half of it.",
            "Cache",
            metavar="GB",
            min=0,
            is_advanced=True,
        ),
    ] = 10.0

    def __post_init__(self) -> None:
        for name in ("labels", "out", "val", "images"):
            if (value := getattr(self, name)) is not None or name in ("labels", "out"):
                object.__setattr__(self, name, as_path(value))
        if is_remote(self.out):
            raise InputError(
                f"{self.out}: a run folder must be on this machine; only label files and images may be remote"
            )
        for name in ("weights", "mean"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, str(value))
        check_options(self)
        validate_schedule(self.schedule)
        if len(self.std) not in (0, 1, 3) or not all(0 < value < math.inf for value in self.std):
            raise InputError(f"std is {', '.join(map(str, self.std))}: it must be one or three numbers greater than 0")
        if self.head == "all-depths" and (self.freeze not in ("head", "auto") or self.weights == "none"):
            raise InputError(
                "--head all-depths requires --freeze head and pretrained weights: use both, or --head last"
            )
        if not 0 < self.val_share < 1:
            raise InputError(f"val_share is {self.val_share}: it must be greater than 0 and less than 1")

    @property
    def mean_file(self) -> Path | None:
        """Path of the mean image if `mean` is a file, otherwise None."""
        return None if self.mean in ("", "none", "channel") else as_path(self.mean)

    @property
    def cache_bytes(self) -> int:
        """Maximum size of the cache in bytes."""
        return int(self.cache_gb * 1e9)

    def to_json(self) -> str:
        """Return the settings as JSON text, with absolute paths, so that a run can be resumed from any folder."""
        values = asdict(self)
        for name in ("labels", "out", "val", "images"):
            values[name] = str(values[name].absolute()) if values[name] is not None else None
        if self.weights not in ("default", "none"):
            values["weights"] = str(Path(self.weights).absolute())
        if self.mean_file:
            values["mean"] = str(self.mean_file.absolute())
        return json.dumps(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FineTuneConfig:
        """Create settings from the parsed JSON of `to_json`; unknown keys, from a newer version, are ignored."""
        known = {field.name for field in fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        size = kept.get("size")
        return cls(
            **{**kept, "std": tuple(kept.get("std", ())), "size": tuple(size) if isinstance(size, list) else size}
        )
