"""Quantize an exported network, if that makes it faster on this machine without losing accuracy."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from mlimages import images
from mlimages.core import ImageError, InputError, NoProgress, Progress, as_path, counted, wilson_interval
from mlimages.export.onnx_writer import prepend_preprocessing, strip_preprocessing, with_new_probe
from mlimages.export.preprocessing_graph import PIXELS
from mlimages.inference import BundleSession, OnnxBundle, matched
from mlimages.labels import LabelFile

CALIBRATION_IMAGES = 100
"""Number of evenly spaced images that the ranges of activations come from; the others measure the accuracy."""

MIN_SPEEDUP = 1.05
"""A variant is written only if it is at least this many times as fast as the original."""

PROBE_TOLERANCE = 0.1
"""Integer kernels round differently from one processor to another."""

TIMED_IMAGES, TIMED_ROUNDS = 8, 7


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant of the network, measured on this machine.

    Attributes:
        accuracy: share of correct predictions (0..1).
        images_per_s: images per second of CPU time on one core, preprocessing included, decoding excluded.
    """

    name: str
    accuracy: float
    images_per_s: float
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.name} ({self.accuracy:.1%}, {self.images_per_s:.0f} images/s, {self.size_bytes / 1e6:.1f} MB)"


@dataclass(frozen=True, slots=True, repr=False)
class Quantization:
    """The variants that were measured.

    Attributes:
        trials: the original, then the variants.
        count: number of images that the accuracies were measured on.
        chosen: the variant that was written; None if no variant is fast and accurate enough.
    """

    trials: tuple[Trial, ...]
    count: int
    chosen: Trial | None

    def __repr__(self) -> str:
        chosen = self.chosen.name if self.chosen else None
        return f"Quantization({', '.join(map(str, self.trials))}; {self.count} images; chosen: {chosen})"


def quantize(
    bundle: OnnxBundle | str | os.PathLike[str],
    calibration: LabelFile | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_drop: float = 1.0,
    fp16: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Measure 8-bit integer (and 16-bit float) variants of a network, and write the fastest to `out` if it pays off.

    Weights are quantized per channel, activations per tensor with static ranges. The preprocessing is not quantized.

    Args:
        bundle: an exported file with preprocessing.
        calibration: a label file or its path, best with 200 images or more; classes are matched by name.
        out: the .onnx file to write.
        max_drop: largest accepted loss of accuracy, in percentage points.
        fp16: also measure 16-bit floats.

    Raises:
        BundleError: the file is not an mlimages bundle, or has no preprocessing.
        InputError: the label file has a class that the bundle does not know, or fewer than two images that can be
            decoded.

    Examples:
        >>> from mlimages import quantize
        >>> from mlimages.export import TrainedNetwork, export_network
        >>> from mlimages.networks import build_model
        >>> model = build_model("lenet5", classes=2, weights="none")
        >>> trained = TrainedNetwork(model.network, model.preprocessing, ("cats", "dogs"), model.name)
        >>> bundle = export_network(trained, "pets.onnx", validation="labels.txt")
        >>> result = quantize("pets.onnx", "labels.txt", "pets-int8.onnx")
        >>> [trial.name for trial in result.trials]
        ['original', 'int8', 'int8, reduced range']
    """
    progress = progress or NoProgress()
    bundle = bundle if isinstance(bundle, OnnxBundle) else OnnxBundle.read(Path(bundle))
    labels = calibration if isinstance(calibration, LabelFile) else LabelFile(as_path(calibration))
    samples = _load_samples(bundle, labels, progress)
    calibration_set, test_set = _split(samples)
    with tempfile.TemporaryDirectory() as folder:
        pixels = [sample.pixels for sample in calibration_set]
        variants = _write_variants(bundle, pixels, Path(folder), fp16=fp16, progress=progress)
        trials = _measure({"original": bundle, **variants}, test_set, progress)
        chosen = _best(trials, max_drop)
        if chosen:
            interval = wilson_interval(round(chosen.accuracy * len(test_set)), len(test_set))
            provenance = replace(
                bundle.provenance,
                parity=None,
                accuracy=(chosen.accuracy, *interval),
                accuracy_count=len(test_set),
                quantization=tuple(asdict(trial) for trial in trials),
            )
            variant = variants[chosen.name]
            replace(variant, path=as_path(out), provenance=provenance).write(variant.path)
    return Quantization(trials, len(test_set), chosen)


@dataclass(frozen=True, slots=True)
class _Sample:
    """A class index of the bundle, and uint8 pixels `(h, w, C)` from `images.load_pixels`."""

    label: int
    pixels: NDArray[np.uint8]


def _load_samples(bundle: OnnxBundle, labels: LabelFile, progress: Progress) -> list[_Sample]:
    items = matched(labels, bundle)
    progress.start("decode", len(items), "images")
    samples = []
    for item in items:
        with suppress(ImageError):
            samples.append(_Sample(item.label, images.load_pixels(item.path, bundle.preprocessing.image)))
        progress.advance()
    progress.close()
    if len(samples) < 2:
        found = counted(len(samples), "image")
        raise InputError(f"{labels.path}: {found} can be decoded: quantization needs at least 2, better 200")
    return samples


def _split(samples: Sequence[_Sample]) -> tuple[list[_Sample], list[_Sample]]:
    """Evenly spaced samples for the calibration of ranges, and the others to measure the accuracy."""
    count = min(CALIBRATION_IMAGES, len(samples) // 2)
    indices = {n * len(samples) // count for n in range(count)}
    calibration_set = [samples[index] for index in sorted(indices)]
    return calibration_set, [sample for index, sample in enumerate(samples) if index not in indices]


def _write_variants(
    bundle: OnnxBundle, pixels: Sequence[NDArray[np.uint8]], folder: Path, *, fp16: bool, progress: Progress
) -> dict[str, OnnxBundle]:
    stripped, network = folder / "stripped.onnx", folder / "network.onnx"
    onnx.save(strip_preprocessing(onnx.load(bundle.path), bundle.preprocessing), stripped)
    quant_pre_process(stripped, network, skip_symbolic_shape=True)
    writers: dict[str, Callable[[Path], None]] = {
        "int8": lambda path: _write_int8(network, path, pixels, reduce_range=False),
        "int8, reduced range": lambda path: _write_int8(network, path, pixels, reduce_range=True),
    }
    if fp16:
        writers["float16"] = lambda path: _write_float16(network, path)
    progress.start("quantize", len(writers), "variants")
    variants = {}
    for name, write in writers.items():
        path = folder / f"{name}.onnx"
        write(path)
        model = onnx.load(path)
        prepend_preprocessing(model, bundle.preprocessing, exact=bundle.exact_resize)
        path.write_bytes(model.SerializeToString())
        variants[name] = with_new_probe(replace(bundle, path=path), tolerance=PROBE_TOLERANCE)
        progress.advance()
    progress.close()
    return variants


def _write_int8(network: Path, path: Path, pixels: Sequence[NDArray[np.uint8]], *, reduce_range: bool) -> None:
    quantize_static(
        network,
        path,
        _CalibrationPixels(pixels),
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _write_float16(network: Path, path: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(network), keep_io_types=True), path)


class _CalibrationPixels(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Calibration images as batches of one."""

    def __init__(self, pixels: Sequence[NDArray[np.uint8]]) -> None:
        self._remaining = iter(pixels)

    def get_next(self) -> Mapping[str, NDArray[np.uint8]] | None:
        pixels = next(self._remaining, None)
        return None if pixels is None else {PIXELS: pixels[None]}


def _measure(bundles: Mapping[str, OnnxBundle], test_set: Sequence[_Sample], progress: Progress) -> tuple[Trial, ...]:
    sessions = {name: BundleSession(bundle) for name, bundle in bundles.items()}
    progress.start("measure", len(sessions) * len(test_set), "images")
    accuracies = {}
    for name, session in sessions.items():
        correct = 0
        for sample in test_set:
            correct += int(session.run([sample.pixels])[0].argmax()) == sample.label
            progress.advance()
        accuracies[name] = correct / len(test_set)
    progress.close()
    speeds = _images_per_s(sessions, [sample.pixels for sample in test_set[:TIMED_IMAGES]])
    return tuple(
        Trial(name, accuracies[name], speeds[name], bundle.path.stat().st_size) for name, bundle in bundles.items()
    )


def _images_per_s(sessions: Mapping[str, BundleSession], pixels: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Images per second of CPU time, median over rounds in which the sessions alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(TIMED_ROUNDS):
        for name, session in sessions.items():
            start = time.process_time()
            for image in pixels:
                session.run([image])
            seconds[name].append((time.process_time() - start) / len(pixels))
    return {name: 1 / median(rounds) for name, rounds in seconds.items()}


def _best(trials: Sequence[Trial], max_drop: float) -> Trial | None:
    """The fastest variant that is clearly faster than the original, and accurate enough."""
    original, *variants = trials
    candidates = [
        trial
        for trial in variants
        if trial.images_per_s >= MIN_SPEEDUP * original.images_per_s
        and trial.accuracy >= original.accuracy - max_drop / 100 - 1e-9
    ]
    return max(candidates, key=lambda trial: trial.images_per_s, default=None)
