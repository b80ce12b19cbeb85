"""Quantize an exported network if that makes it faster on this machine at almost the same accuracy."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages import images
from mlimages.core import (
    ImageError,
    InputError,
    LabeledPath,
    NoProgress,
    Progress,
    Proportion,
    as_path,
    check_at_least,
    format_percent,
    pluralize,
    require_writable,
)
from mlimages.export.quantized_variants import Runner, make_runner, write_variants
from mlimages.inference import (
    KNOWN_THRESHOLD,
    OnnxBundle,
    PredictionSetThresholds,
    Provenance,
    align_class_indices,
    compute_conformal_thresholds,
)
from mlimages.labels import LabelFile, open_labels

NUM_CALIBRATION_IMAGES = 100
"""Maximum number of images that calibrate the ranges of activations; the accuracy is measured on the others."""

MIN_SPEEDUP = 1.05
"""A variant is written only if it is at least this many times as fast as the original."""

SIMILAR_SPEED_RATIO = 1.05
"""Of variants whose speeds differ by less than this factor, the most accurate one is written."""

NUM_TIMED_IMAGES, NUM_TIMED_ROUNDS = 8, 7


@dataclass(frozen=True, slots=True)
class VariantTrial:
    """Accuracy, speed and size of a variant of a network, measured on this machine.

    Attributes:
        name: "original", "int8", "int8, reduced range" or "float16".
        accuracy: share of correct predictions (0..1), or the mean average precision of a multi-label model.
        images_per_s: images per second of CPU time on one core, including preprocessing, without decoding.
        size_bytes: size of the .onnx file.
        calibration_error: expected calibration error (0..1) of the probabilities.
        known_share: share of images (0..1) that are not predicted as unknown.
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
        rejection_reasons: for each variant, in the order of `trials[1:]`, why it was rejected, or "".
        score_name: the metric in `VariantTrial.accuracy`: "accuracy", or "mAP" for a multi-label model.
    """

    trials: tuple[VariantTrial, ...]
    num_images: int
    written_trial: VariantTrial | None
    rejection_reasons: tuple[str, ...] = ()
    score_name: str = "accuracy"

    def __repr__(self) -> str:
        written = self.written_trial.name if self.written_trial else None
        return f"Quantization({', '.join(map(str, self.trials))}; {self.num_images} images; written: {written})"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            "trials": [trial.to_dict() for trial in self.trials],
            "count": self.num_images,
            "chosen": self.written_trial and self.written_trial.to_dict(),
            "refusals": self.rejection_reasons,
            "score_name": self.score_name,
        }


def quantize(
    bundle: OnnxBundle | str | os.PathLike[str],
    calibration: LabelFile | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_drop: float = 1.0,
    fp16: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Measure int8 and float16 variants of a network, and write the fastest one that is accurate enough.

    Weights are quantized per channel, activations per tensor with static ranges. The preprocessing, the last layer,
    the softmax and its temperature are not quantized. Accuracy, calibration error and the thresholds of prediction sets
    measured here are stored in the written file.

    Args:
        bundle: an exported file.
        calibration: a label file, its path, or a folder of class folders, preferably with at least 200 images; classes
            are matched by name.
        out: the .onnx file to write, if a variant is fast and accurate enough.
        max_drop: largest accepted drop in accuracy (mean average precision of a multi-label model), in percentage
            points. A drop by one image is always accepted in a single-label model, unless `max_drop` is 0.
        fp16: also measure a float16 variant.
        overwrite: replace a file that mlimages did not write, or that was changed since.
        progress: shows the number of images processed.

    Returns:
        The measurements of the original and of all variants, and which variant was written.

    Raises:
        BundleError: the file is not an mlimages bundle, or it has no preprocessing and needs a mean image.
        InputError: the bundle is already quantized; the label file has a class that is not in the bundle, or fewer than
            two images that can be decoded; `out` is the bundle itself; or `overwrite` is false and `out` exists but was
            not written by mlimages or was changed since.

    Examples:
        >>> from mlimages import quantize
        >>> from mlimages.export import TrainedNetwork, export_network
        >>> from mlimages.networks import build_model
        >>> model = build_model("lenet5", num_classes=2, weights="none")
        >>> trained_network = TrainedNetwork(model.network, model.preprocessing, ("cats", "dogs"), model.name)
        >>> bundle = export_network(trained_network, "pets.onnx", validation="labels.txt")
        >>> result = quantize("pets.onnx", "labels.txt", "pets-int8.onnx")
        >>> [trial.name for trial in result.trials]
        ['original', 'int8', 'int8, reduced range']
    """
    check_at_least(0.0, max_drop=max_drop)
    progress, out = progress or NoProgress(), as_path(out)
    source = bundle.path if isinstance(bundle, OnnxBundle) else bundle
    require_writable([out], overwrite=overwrite, inputs=[source])
    bundle = bundle if isinstance(bundle, OnnxBundle) else OnnxBundle.read(Path(bundle))
    if bundle.provenance.quantization:
        raise InputError(f"{bundle.path} is already quantized: quantize the original file")
    make_runner(bundle)  # a damaged file is rejected before the work
    labels = open_labels(calibration)
    samples = _load_samples(bundle, labels, progress)
    calibration_set, test_set = _split_samples(samples)
    with tempfile.TemporaryDirectory() as folder:
        pixels = [sample.pixels for sample in calibration_set]
        variants = write_variants(bundle, pixels, Path(folder), include_float16=fp16, progress=progress)
        measurements = _measure_variants({"original": bundle, **variants}, test_set, progress)
        trials = tuple(each.trial for each in measurements)
        score_name = bundle.task.score_name
        rejection_reasons = tuple(
            _describe_rejection(trial, trials[0], len(test_set), max_drop, score_name) for trial in trials[1:]
        )
        chosen = _choose_variant(measurements[1:], rejection_reasons)
        if chosen:
            variant = variants[chosen.trial.name]
            provenance = _update_provenance(bundle, chosen, trials, len(test_set))
            known = bundle.known and replace(bundle.known, share=chosen.trial.known_share, count=len(test_set))
            thresholds = chosen.prediction_set_thresholds
            sets = bundle.prediction_sets and PredictionSetThresholds("validation", len(test_set), thresholds)
            written = replace(variant, path=out, known=known, prediction_sets=sets, provenance=provenance)
            written.write(variant.path, overwrite=overwrite)
    return Quantization(trials, len(test_set), chosen.trial if chosen else None, rejection_reasons, score_name)


@dataclass(frozen=True, slots=True)
class _Sample:
    """A labelled image and its preprocessed pixels, uint8 `(h, w, C)`."""

    item: LabeledPath
    pixels: NDArray[np.uint8]


def _load_samples(bundle: OnnxBundle, labels: LabelFile, progress: Progress) -> list[_Sample]:
    items = align_class_indices(labels, bundle)
    progress.start("decode", len(items), "images")
    samples = []
    for item in items:
        with suppress(ImageError):
            samples.append(_Sample(item, images.load_pixels(item.path, bundle.preprocessing.image)))
        progress.advance()
    progress.close()
    if len(samples) < 2:
        raise InputError(
            f"{labels.path}: only {pluralize(len(samples), 'image')} can be decoded, "
            "but quantization requires at least 2, preferably 200"
        )
    return samples


def _split_samples(samples: Sequence[_Sample]) -> tuple[list[_Sample], list[_Sample]]:
    """Return evenly spaced samples for calibration, and the remaining ones, on which the accuracy is measured."""
    count = min(NUM_CALIBRATION_IMAGES, len(samples) // 2)
    indices = {n * len(samples) // count for n in range(count)}
    calibration_set = [samples[index] for index in sorted(indices)]
    return calibration_set, [sample for index, sample in enumerate(samples) if index not in indices]


@dataclass(frozen=True, slots=True)
class _Measurement:
    """A trial, its score with a 95 % interval, and two values computed from the logits before temperature scaling."""

    trial: VariantTrial
    score: Proportion
    calibration_error_before_scaling: float
    prediction_set_thresholds: Mapping[str, float]


def _measure_variants(
    bundles: Mapping[str, OnnxBundle], samples: Sequence[_Sample], progress: Progress
) -> list[_Measurement]:
    runners = {name: make_runner(bundle) for name, bundle in bundles.items()}
    items = [sample.item for sample in samples]
    speeds = _measure_images_per_s(runners, [sample.pixels for sample in samples[:NUM_TIMED_IMAGES]])
    progress.start("measure", len(runners) * len(samples), "images")
    measurements = []
    for name, bundle in bundles.items():
        rows = []
        for sample in samples:
            rows.append(runners[name]([sample.pixels]))
            progress.advance()
        logits, probabilities = (np.concatenate([row[n] for row in rows]) for n in (0, 1))  # (N, classes) each
        is_known = probabilities.max(axis=1) >= bundle.unknown_below  # (N,)
        if bundle.known:
            is_known &= np.concatenate([row[2] for row in rows]) >= KNOWN_THRESHOLD
        task, targets = bundle.task, bundle.task.make_targets(items, len(bundle.class_names))
        score = task.score(probabilities, targets)
        trial = VariantTrial(
            name=name,
            accuracy=score.value,
            images_per_s=speeds[name],
            size_bytes=bundle.path.stat().st_size,
            calibration_error=task.compute_calibration_error(probabilities, targets),
            known_share=float(is_known.mean()),
        )
        uncalibrated = task.compute_probabilities(logits)
        thresholds = compute_conformal_thresholds(uncalibrated, targets) if bundle.prediction_sets else {}
        measurements.append(
            _Measurement(trial, score, task.compute_calibration_error(uncalibrated, targets), thresholds)
        )
    progress.close()
    return measurements


def _measure_images_per_s(runners: Mapping[str, Runner], pixels: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Measure images per second of CPU time, as the median over rounds in which the variants alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(NUM_TIMED_ROUNDS):
        for name, run in runners.items():
            start = time.process_time()
            for image in pixels:
                run([image])
            seconds[name].append((time.process_time() - start) / len(pixels))
    return {name: 1 / median(rounds) for name, rounds in seconds.items()}


def _describe_rejection(
    trial: VariantTrial, original_trial: VariantTrial, num_images: int, max_drop: float, score_name: str = "accuracy"
) -> str:
    """Return why a variant is rejected; empty if it is clearly faster than the original and accurate enough."""
    speedup, drop = trial.images_per_s / original_trial.images_per_s, original_trial.accuracy - trial.accuracy
    reasons = []
    if speedup < MIN_SPEEDUP:
        reasons.append(f"too slow ({speedup:.2f} x the original speed, at least {MIN_SPEEDUP} x is required)")
    one_image = 1 / num_images if score_name == "accuracy" and max_drop else 0.0
    if drop > max(max_drop / 100, one_image) + 1e-9:
        reasons.append(f"loses {drop * 100:.1f} points of {score_name}, more than {max_drop:g}")
    return " and ".join(reasons)


def _choose_variant(measurements: Sequence[_Measurement], rejection_reasons: Sequence[str]) -> _Measurement | None:
    """Return the most accurate of the accepted variants that are nearly as fast as the fastest one."""
    accepted = [each for each, reason in zip(measurements, rejection_reasons, strict=True) if not reason]
    fastest = max((each.trial.images_per_s for each in accepted), default=0.0)
    fast = [each for each in accepted if each.trial.images_per_s * SIMILAR_SPEED_RATIO >= fastest]
    return max(fast, key=lambda each: (each.trial.accuracy, each.trial.images_per_s), default=None)


def _update_provenance(
    bundle: OnnxBundle, measurement: _Measurement, trials: Sequence[VariantTrial], num_images: int
) -> Provenance:
    """Return the provenance of a variant, without measurements that apply only to the original."""
    errors = (measurement.calibration_error_before_scaling, measurement.trial.calibration_error)
    score = (measurement.score.value, measurement.score.low, measurement.score.high)
    return replace(
        bundle.provenance,
        parity=None,
        target_parity=None,
        accuracy=None if bundle.multi_label else score,
        mean_ap=score if bundle.multi_label else None,
        num_evaluated_images=num_images,
        calibration_error=errors if bundle.provenance.calibration_error else None,
        quantization=tuple(each.to_dict() for each in trials),
    )
