"""Quantize an exported network if that makes it faster on this machine at almost the same accuracy."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
    pluralize,
    require_writable,
)
from mlimages.export.quantization_result import Quantization, VariantTrial
from mlimages.export.quantized_variants import Runner, make_runner, write_variants
from mlimages.inference import (
    KNOWN_THRESHOLD,
    MIN_CONFORMAL_IMAGES,
    InDistributionCalibration,
    OnnxBundle,
    PredictionSetThresholds,
    Provenance,
    align_class_indices,
    compute_conformal_thresholds,
    find_images_in_splits,
    measure_model_size,
)
from mlimages.labels import LabelFile, find_source, open_labels

NUM_CALIBRATION_IMAGES = 100
"""Maximum number of images that calibrate the ranges of activations; the accuracy is measured on the others."""

MIN_SPEEDUP = 1.05
"""A variant is written only if it is at least this many times as fast as the original."""

SIMILAR_SPEED_RATIO = 1.05
"""Of variants whose speeds differ by less than this factor, the most accurate one is written."""

NUM_TIMED_IMAGES, NUM_TIMED_ROUNDS = 8, 7


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

    Among variants of nearly the same speed (within 5 %), the most accurate one is written. Weights are quantized per
    channel, activations per tensor with static ranges. The preprocessing, the last layer, the softmax and its
    temperature are not quantized.

    The written file contains the accuracy and the calibration error measured here. Two more values are measured only on
    images outside the model's training set: the thresholds of prediction sets, and the share of images that count as
    in-distribution (output `known`). If there are fewer than 19 such images, these two are copied from the original.

    Args:
        bundle: an exported file.
        calibration: a label file, its path, or a folder of class folders, preferably with at least 200 images; its
            classes are matched with those of the bundle by name.
        out: the .onnx file to write, if a variant is fast and accurate enough.
        max_drop: largest accepted drop in accuracy (mean average precision of a multi-label model), in percentage
            points. In a single-label model, one more wrong image is always accepted, unless `max_drop` is 0.
        fp16: also measure a float16 variant.
        overwrite: replace an existing file even if mlimages did not write it or it was changed afterwards.
        progress: shows the number of images processed.

    Returns:
        The measurements of the original and of all variants, and which variant was written.

    Raises:
        BundleError: the file is not an mlimages bundle, or it has no preprocessing and needs a mean image.
        InputError: the bundle is already quantized; the label file has a class that is not in the bundle, or fewer than
            two images that can be decoded; `out` is the bundle itself; or `overwrite` is false and `out` exists but was
            not written by mlimages or was changed afterwards.

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
        in_splits = find_images_in_splits([sample.item for sample in test_set], bundle)
        is_held_out = ~np.array(in_splits.in_train) if in_splits else np.ones(len(test_set), bool)  # (N,)
        measurements = _measure_variants({"original": bundle, **variants}, test_set, is_held_out, progress)
        trials = tuple(each.trial for each in measurements)
        score_name = bundle.task.score_name
        rejection_reasons = tuple(
            _describe_rejection(trial, trials[0], len(test_set), max_drop, score_name) for trial in trials[1:]
        )
        chosen = _choose_variant(measurements[1:], rejection_reasons)
        has_thresholds = bundle.known is not None or bundle.prediction_sets is not None
        result = Quantization(
            trials,
            len(test_set),
            chosen.trial if chosen else None,
            rejection_reasons,
            score_name,
            in_splits.counts if in_splits else None,
            num_missing_run_images=in_splits.num_missing if in_splits else 0,
            num_held_out=int(is_held_out.sum()),
            keeps_thresholds=chosen is not None and has_thresholds and int(is_held_out.sum()) < MIN_CONFORMAL_IMAGES,
        )
        if chosen:
            variant = variants[chosen.trial.name]
            written = replace(
                variant,
                path=out,
                known=chosen.known,
                prediction_sets=chosen.prediction_sets,
                provenance=_update_provenance(bundle, chosen, result),
            )
            written.write(variant.path, overwrite=overwrite)
    return result


@dataclass(frozen=True, slots=True)
class _Sample:
    """A labelled image and its preprocessed pixels, uint8 `(h, w, C)`."""

    item: LabeledPath
    pixels: NDArray[np.uint8]


def _load_samples(bundle: OnnxBundle, labels: LabelFile, progress: Progress) -> list[_Sample]:
    """Decode and preprocess the labelled images; skip those that cannot be decoded.

    Raises:
        InputError: fewer than two images can be decoded, or the labels do not match the classes of the bundle.
    """
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
            f"{find_source(labels)}: only {pluralize(len(samples), 'image')} can be decoded, "
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
    """Accuracy, speed, size and calibration of the original model or of a quantized variant.

    Attributes:
        trial: accuracy, speed and size.
        score: `trial.accuracy` with its 95 % interval.
        calibration_error_before_scaling: calibration error without temperature scaling.
        known, prediction_sets: calibration of the output `known`, and thresholds of prediction sets, for the written
            file if this variant is chosen; each is None if the original file has none.
    """

    trial: VariantTrial
    score: Proportion
    calibration_error_before_scaling: float
    known: InDistributionCalibration | None
    prediction_sets: PredictionSetThresholds | None


def _measure_variants(
    bundles: Mapping[str, OnnxBundle], samples: Sequence[_Sample], is_held_out: NDArray[np.bool_], progress: Progress
) -> list[_Measurement]:
    """Measure each file on all samples, but its thresholds only on the held-out samples.

    `is_held_out` `(N,)` is false for samples in the training set of the model's run.
    """
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
        is_in_distribution = np.ones(len(samples), bool)  # (N,)
        if bundle.known:
            is_in_distribution = np.concatenate([row[2] for row in rows]) >= KNOWN_THRESHOLD
        is_known = is_in_distribution & (probabilities.max(axis=1) >= bundle.unknown_below)  # (N,)
        task, targets = bundle.task, bundle.task.make_targets(items, len(bundle.class_names))
        score = task.score(probabilities, targets)
        trial = VariantTrial(
            name=name,
            accuracy=score.value,
            images_per_s=speeds[name],
            size_bytes=measure_model_size(bundle.path),
            calibration_error=task.compute_calibration_error(probabilities, targets),
            known_share=float(is_known.mean()),
        )
        uncalibrated = task.compute_probabilities(logits)
        error = task.compute_calibration_error(uncalibrated, targets)
        thresholds = _measure_thresholds(
            bundle, uncalibrated[is_held_out], targets[is_held_out], is_in_distribution[is_held_out]
        )
        measurements.append(_Measurement(trial, score, error, *thresholds))
    progress.close()
    return measurements


def _measure_thresholds(
    bundle: OnnxBundle,
    probabilities: NDArray[np.floating],
    targets: NDArray[Any],
    is_in_distribution: NDArray[np.bool_],
) -> tuple[InDistributionCalibration | None, PredictionSetThresholds | None]:
    """Measure how often the output `known` accepts held-out samples, and the thresholds of prediction sets on them.

    With fewer than MIN_CONFORMAL_IMAGES held-out samples, return those stored in `bundle`, unchanged. The first value
    is None if the model has no output `known`, the second if it has no prediction sets.

    Args:
        bundle: the model before or after quantization.
        probabilities, targets: probabilities without temperature scaling, and targets, of the held-out samples.
        is_in_distribution: for each held-out sample, whether its in-distribution score (the output `known`) is at least
            0.5, `(N,)`.
    """
    known, sets, count = bundle.known, bundle.prediction_sets, len(is_in_distribution)
    if count < MIN_CONFORMAL_IMAGES:
        return known, sets
    return (
        known and replace(known, share=float(is_in_distribution.mean()), count=count),
        sets and PredictionSetThresholds("calibration", count, compute_conformal_thresholds(probabilities, targets)),
    )


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
        reasons.append(f"loses {drop * 100:.1f} points of {score_name}, more than the maximum drop of {max_drop:g}")
    return " and ".join(reasons)


def _choose_variant(measurements: Sequence[_Measurement], rejection_reasons: Sequence[str]) -> _Measurement | None:
    """Return the most accurate of the accepted variants that are nearly as fast as the fastest; None without any."""
    accepted = [each for each, reason in zip(measurements, rejection_reasons, strict=True) if not reason]
    fastest = max((each.trial.images_per_s for each in accepted), default=0.0)
    fast = [each for each in accepted if each.trial.images_per_s * SIMILAR_SPEED_RATIO >= fastest]
    return max(fast, key=lambda each: (each.trial.accuracy, each.trial.images_per_s), default=None)


def _update_provenance(bundle: OnnxBundle, measurement: _Measurement, result: Quantization) -> Provenance:
    """Return the bundle's provenance for a variant: with its own measurements, and without the parity results."""
    errors = (measurement.calibration_error_before_scaling, measurement.trial.calibration_error)
    score = (measurement.score.value, measurement.score.low, measurement.score.high)
    return replace(
        bundle.provenance,
        parity=None,
        target_parity=None,
        accuracy=None if bundle.multi_label else score,
        mean_ap=score if bundle.multi_label else None,
        num_evaluated_images=result.num_images,
        num_in_splits=result.num_in_splits,
        calibration_error=errors if bundle.provenance.calibration_error else None,
        quantization=tuple(each.to_dict() for each in result.trials),
    )
