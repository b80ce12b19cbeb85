"""How good a bundle is on a label file: accuracy, each class, confusion, calibration and speed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mlimages.core import (
    BrokenImage,
    ClassScores,
    Confusion,
    InputError,
    LabeledPath,
    NoProgress,
    Prediction,
    Progress,
    Share,
    scores,
)
from mlimages.inference.align_classes import matched
from mlimages.inference.calibration import expected_calibration_error
from mlimages.inference.predictor import Answer, Predictor
from mlimages.labels import LabelFile


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a picture: half of the pictures took at most `p50`, 95 % at most `p95`."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        class_names: of the bundle, by number; classes that the label file lacks included.
        mistakes: wrong predictions with their true class number, the most confident first.
        broken: pictures that could not be used; they are not counted.
        loss: mean cross-entropy in nats; a probability under 1e-7 counts as 1e-7.
        calibration_error: expected calibration error, 0 (calibrated) to 1.
        unknown: pictures whose best probability is under the bundle's threshold.
        images_per_s: pictures per second on all workers together.
        decode_ms, network_ms: of one picture in one worker.
    """

    class_names: tuple[str, ...]
    confusion: Confusion
    mistakes: tuple[tuple[Prediction, int], ...]
    broken: tuple[BrokenImage, ...]
    loss: float
    calibration_error: float
    unknown: int
    images_per_s: float
    decode_ms: Timing
    network_ms: Timing

    @property
    def count(self) -> int:
        """Pictures that were answered."""
        return sum(map(sum, self.confusion))

    @property
    def accuracy(self) -> Share:
        """Right answers, with their 95 % interval."""
        return scores.accuracy(self.confusion)

    @property
    def per_class(self) -> tuple[ClassScores, ...]:
        """Precision, recall and F1 of each class."""
        return scores.class_scores(self.confusion, self.class_names)

    def to_json(self) -> str:
        """The figures, for programs; shares in 0..1, each with its 95 % interval."""
        accuracy = self.accuracy
        values = {
            "accuracy": accuracy.value,
            "interval": [accuracy.low, accuracy.high],
            "count": self.count,
            "per_class": {each.name: _class_json(each) for each in self.per_class},
            "confusion": self.confusion,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "unknown": self.unknown,
            "broken": [asdict(each) for each in self.broken],
            "images_per_s": self.images_per_s,
            "decode_ms": asdict(self.decode_ms),
            "network_ms": asdict(self.network_ms),
        }
        return json.dumps(values)


def evaluate(predictor: Predictor, labels: LabelFile, *, progress: Progress | None = None) -> Evaluation:
    """Put every picture of a label file to a bundle; class names are matched by name, never by order.

    Raises:
        InputError: the label file has a class that the bundle does not know, or no picture that can be used.
    """
    names = predictor.bundle.class_names
    items = matched(labels, predictor.bundle)
    begin = time.perf_counter()
    answers = _answers(predictor, items, progress or NoProgress())
    elapsed_s = time.perf_counter() - begin
    good = [
        (answer.result, item.label, answer)
        for answer, item in zip(answers, items, strict=True)
        if isinstance(answer.result, Prediction)
    ]
    if not good:
        raise InputError(f"{labels.path} has no picture that can be used: `mlimages check {labels.path}` says why")
    truth = np.array([label for _, label, _ in good], np.int64)  # (N,)
    probabilities = np.array([_row(result, len(names)) for result, _, _ in good])  # (N, classes)
    wrong = [(result, label) for result, label, _ in good if result.top[0].label != label]
    return Evaluation(
        class_names=names,
        confusion=scores.confusion_matrix(truth.tolist(), probabilities.argmax(axis=1).tolist(), len(names)),
        mistakes=tuple(sorted(wrong, key=lambda pair: (-pair[0].probability, pair[0].path))),
        broken=tuple(answer.result for answer in answers if isinstance(answer.result, BrokenImage)),
        loss=-float(np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-7)).mean()),
        calibration_error=expected_calibration_error(probabilities, truth),
        unknown=sum(not result.known for result, _, _ in good),
        images_per_s=len(answers) / elapsed_s,
        decode_ms=_timing([answer.decode_s for _, _, answer in good]),
        network_ms=_timing([answer.network_s for _, _, answer in good]),
    )


def _class_json(one: ClassScores) -> dict[str, object]:
    shares = {"precision": one.precision, "recall": one.recall, "f1": one.f1}
    return {"count": one.count, **{key: [share.value, share.low, share.high] for key, share in shares.items()}}


def _answers(predictor: Predictor, items: Sequence[LabeledPath], progress: Progress) -> list[Answer]:
    progress.start("evaluate", len(items), "pictures")
    answers = []
    for answer in predictor.stream(item.path for item in items):
        answers.append(answer)
        progress.advance()
    progress.close()
    return answers


def _row(prediction: Prediction, classes: int) -> NDArray[np.float64]:
    row = np.zeros(classes)
    for score in prediction.top:
        row[score.label] = score.probability
    return row


def _timing(seconds: Sequence[float]) -> Timing:
    p50, p95 = np.percentile(np.array(seconds) * 1e3, (50, 95))
    return Timing(float(p50), float(p95))
