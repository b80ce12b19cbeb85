"""A bundle in fewer bits, kept only where it is faster on this machine and still right."""

from __future__ import annotations

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
from mlimages.core import ImageError, InputError, LabeledPath, NoProgress, Progress, wilson_interval
from mlimages.export.onnx_writer import prepend_preparation, strip_preparation, with_own_probe
from mlimages.export.preprocessing_graph import PIXELS
from mlimages.inference import BundleSession, OnnxBundle, matched
from mlimages.labels import LabelFile

CALIBRATION_PICTURES = 100
"""The ranges of activations are taken from this many pictures, spread evenly; accuracy from the others."""

FASTER = 1.05
"""A trial must do at least this many times the pictures per second of the file as it is."""

PROBE_TOLERANCE = 0.1
"""Integer kernels round otherwise from one processor to the next."""

_TIMED_PICTURES, _TIMED_ROUNDS = 8, 7


@dataclass(frozen=True, slots=True)
class Trial:
    """One form of the network, measured on this machine.

    Attributes:
        accuracy: share of right answers (0..1).
        images_per_s: of one core, network and preparation inside, without decoding.
    """

    name: str
    accuracy: float
    images_per_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Quantization:
    """What was tried, the file as it is first.

    Attributes:
        count: pictures that the accuracies were measured on.
        chosen: the trial that was written; None where none was faster within the drop.
    """

    trials: tuple[Trial, ...]
    count: int
    chosen: Trial | None


def quantize(
    bundle: OnnxBundle,
    calibration: LabelFile,
    out: Path,
    *,
    max_drop: float = 1.0,
    fp16: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Try 8-bit integers (and 16-bit floats), and write the fastest to `out` if it pays.

    Args:
        calibration: pictures with labels; classes are matched by name.
        max_drop: accuracy that may be lost, in percentage points.
        fp16: try 16-bit floats too.

    Raises:
        InputError: fewer than two pictures can be used, or a class is not the bundle's.
    """
    progress = progress or NoProgress()
    samples = _samples(bundle, matched(calibration, bundle), progress)
    ranges, judged = _parted(samples)
    with tempfile.TemporaryDirectory() as folder:
        candidates = _candidates(bundle, [pixels for _, pixels in ranges], Path(folder), fp16=fp16, progress=progress)
        trials = _measured({"as it is": bundle, **candidates}, judged, progress)
        chosen = _best(trials, max_drop)
        if chosen:
            told = replace(
                candidates[chosen.name],
                path=out,
                provenance=replace(
                    bundle.provenance,
                    parity=None,
                    accuracy=(chosen.accuracy, *wilson_interval(round(chosen.accuracy * len(judged)), len(judged))),
                    accuracy_count=len(judged),
                    quantization=tuple(asdict(trial) for trial in trials),
                ),
            )
            told.write(candidates[chosen.name].path)
    return Quantization(trials, len(judged), chosen)


_Sample = tuple[int, NDArray[np.uint8]]
"""A class number and prepared pixels `(h, w, C)`."""


def _samples(bundle: OnnxBundle, items: Sequence[LabeledPath], progress: Progress) -> list[_Sample]:
    progress.start("decode", len(items), "pictures")
    samples = []
    for item in items:
        with suppress(ImageError):
            samples.append((item.label, images.load_pixels(item.path, bundle.preprocessing.image)))
        progress.advance()
    progress.close()
    if len(samples) < 2:
        raise InputError("quantizing needs pictures: at least two that can be used, better a hundred")
    return samples


def _parted(samples: Sequence[_Sample]) -> tuple[list[_Sample], list[_Sample]]:
    """Those that give the ranges, spread evenly, and those that give the accuracy."""
    count = min(CALIBRATION_PICTURES, len(samples) // 2)
    chosen = {n * len(samples) // count for n in range(count)}
    return [samples[n] for n in sorted(chosen)], [one for n, one in enumerate(samples) if n not in chosen]


def _candidates(
    bundle: OnnxBundle, pixels: Sequence[NDArray[np.uint8]], folder: Path, *, fp16: bool, progress: Progress
) -> dict[str, OnnxBundle]:
    stripped, network = folder / "stripped.onnx", folder / "network.onnx"
    onnx.save(strip_preparation(onnx.load(bundle.path), bundle.preprocessing), stripped)
    quant_pre_process(stripped, network, skip_symbolic_shape=True)
    makers: dict[str, Callable[[Path], None]] = {
        "int8": lambda target: _to_int8(network, target, pixels, reduce_range=False),
        "int8, reduced range": lambda target: _to_int8(network, target, pixels, reduce_range=True),
    }
    if fp16:
        makers["float16"] = lambda target: _to_float16(network, target)
    progress.start("quantize", len(makers), "forms")
    made = {}
    for name, make in makers.items():
        target = folder / f"{name}.onnx"
        make(target)
        model = onnx.load(target)
        prepend_preparation(model, bundle.preprocessing, exact=bundle.exact_resize)
        target.write_bytes(model.SerializeToString())
        made[name] = with_own_probe(replace(bundle, path=target), tolerance=PROBE_TOLERANCE)
        progress.advance()
    progress.close()
    return made


def _to_int8(network: Path, target: Path, pixels: Sequence[NDArray[np.uint8]], *, reduce_range: bool) -> None:
    """8-bit weights per channel and activations, static; ranges are the least and greatest seen."""
    quantize_static(
        network,
        target,
        _Pixels(pixels),
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _to_float16(network: Path, target: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(network), keep_io_types=True), target)


class _Pixels(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Prepared pictures, one at a time."""

    def __init__(self, pixels: Sequence[NDArray[np.uint8]]) -> None:
        self._left = iter(pixels)

    def get_next(self) -> Mapping[str, NDArray[np.uint8]] | None:
        picture = next(self._left, None)
        return None if picture is None else {PIXELS: picture[None]}


def _measured(bundles: Mapping[str, OnnxBundle], judged: Sequence[_Sample], progress: Progress) -> tuple[Trial, ...]:
    sessions = {name: BundleSession(bundle) for name, bundle in bundles.items()}
    progress.start("measure", len(sessions) * len(judged), "pictures")
    accuracies = {}
    for name, session in sessions.items():
        right = 0
        for label, pixels in judged:
            right += int(session.run([pixels])[0].argmax()) == label
            progress.advance()
        accuracies[name] = right / len(judged)
    progress.close()
    speeds = _speeds(sessions, [pixels for _, pixels in judged[:_TIMED_PICTURES]])
    return tuple(
        Trial(name, accuracies[name], speeds[name], bundle.path.stat().st_size) for name, bundle in bundles.items()
    )


def _speeds(sessions: Mapping[str, BundleSession], pixels: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Pictures per second of processor time, the sessions in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(_TIMED_ROUNDS):
        for name, session in sessions.items():
            begin = time.process_time()
            for one in pixels:
                session.run([one])
            seconds[name].append((time.process_time() - begin) / len(pixels))
    return {name: 1 / median(each) for name, each in seconds.items()}


def _best(trials: Sequence[Trial], max_drop: float) -> Trial | None:
    """The fastest within the drop, if it is clearly faster than the first."""
    before, *others = trials
    good = [
        trial
        for trial in others
        if trial.images_per_s >= FASTER * before.images_per_s
        and trial.accuracy >= before.accuracy - max_drop / 100 - 1e-9
    ]
    return max(good, key=lambda trial: trial.images_per_s, default=None)
