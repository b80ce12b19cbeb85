"""The result of `quantize`: measurements of all variants, and which one was written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlimages.core import format_percent
from mlimages.inference import MIN_CONFORMAL_IMAGES, describe_training_use


@dataclass(frozen=True, slots=True)
class VariantTrial:
    """Accuracy, speed and size of a variant of a network, measured on this machine.

    Attributes:
        name: "original", "int8", "int8, reduced range" or "float16".
        accuracy: share of correct predictions (0..1), or the mean average precision of a multi-label model.
        images_per_s: images per second of CPU time on one core, including preprocessing, without decoding.
        size_bytes: size of the .onnx file.
        calibration_error: expected calibration error (0..1) of the probabilities.
        known_share: share of images (0..1) that are not predicted as "unknown": their highest probability is at least
            the file's threshold, and their output `known`, if the file has it, at least 0.5.
    """

    name: str
    accuracy: float
    images_per_s: float
    size_bytes: int
    calibration_error: float = 0.0
    known_share: float = 1.0

    def __str__(self) -> str:
        speed_and_size = f"{self.images_per_s:.0f} images/s, {self.size_bytes / 1e6:.1f} MB"
        return f"{self.name} ({format_percent(self.accuracy)}, {speed_and_size})"

    def to_dict(self) -> dict[str, str | float]:
        """Return the measurements as JSON types."""
        values = asdict(self)
        values["known"] = values.pop("known_share")
        return values


@dataclass(frozen=True, slots=True, repr=False)
class Quantization:
    """Result of `quantize`.

    Attributes:
        trials: measurements of the original, then of the variants.
        num_images: number of images on which the accuracy was measured.
        written_trial: the variant that was written; None if no variant is fast and accurate enough.
        rejection_reasons: why each variant in `trials[1:]` was rejected; "" if it was accepted.
        score_name: the metric in `VariantTrial.accuracy`: "accuracy", or "mAP" for a multi-label model.
        num_in_splits: how many of the `num_images` images are in the model's training set, and how many in its
            validation set. None if unknown: the model file is not in the run folder of its training, which lists both
            sets, or listed images were moved and cannot be recognized.
        keeps_thresholds: whether the thresholds of prediction sets, and the calibration of the in-distribution score
            (the output `known`), were copied from the original instead of being measured again, because there were
            fewer than 19 images outside the model's training set.
        num_missing_run_images: number of images in the run folder's train.txt and val.txt that do not exist.
        num_held_out: how many of the `num_images` images count as held out: those that the run folder's train.txt does
            not list. If the model file is not in a run folder, the training set is unknown, and all images count.
    """

    trials: tuple[VariantTrial, ...]
    num_images: int
    written_trial: VariantTrial | None
    rejection_reasons: tuple[str, ...] = ()
    score_name: str = "accuracy"
    num_in_splits: tuple[int, int] | None = None
    keeps_thresholds: bool = False
    num_missing_run_images: int = 0
    num_held_out: int = 0

    def __repr__(self) -> str:
        written = self.written_trial.name if self.written_trial else None
        return f"Quantization({', '.join(map(str, self.trials))}; {self.num_images} images; written: {written})"

    @property
    def training_note(self) -> str:
        """Text on how many of the evaluated images the training used, or that this is unknown; "" if it used none."""
        return describe_training_use(
            self.num_in_splits, score_name=self.score_name, num_missing_images=self.num_missing_run_images
        )

    @property
    def thresholds_note(self) -> str:
        """Text on why the thresholds were not measured again; "" if `keeps_thresholds` is false."""
        if not self.keeps_thresholds:
            return ""
        return (
            "kept the original thresholds of prediction sets and calibration of `known`: measuring them requires at "
            f"least {MIN_CONFORMAL_IMAGES} images that the run did not use for training, but there "
            f"{'is' if self.num_held_out == 1 else 'are'} only {self.num_held_out}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        num_in_training_set, num_in_validation_set = self.num_in_splits or (None, None)
        return {
            "trials": [trial.to_dict() for trial in self.trials],
            "count": self.num_images,
            "chosen": self.written_trial and self.written_trial.to_dict(),
            "refusals": self.rejection_reasons,
            "score_name": self.score_name,
            "trained_on": num_in_training_set,
            "chosen_on": num_in_validation_set,
            "keeps_thresholds": self.keeps_thresholds,
        }
