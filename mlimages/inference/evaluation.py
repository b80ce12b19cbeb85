"""Evaluate a model on a label file: accuracy, scores of each class, confusion matrix, calibration and speed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mlimages.core import (
    BrokenImage,
    ClassScores,
    ConfusionMatrix,
    InputError,
    LabeledPath,
    NoProgress,
    Prediction,
    Progress,
    Proportion,
    check_at_least,
    format_command,
    scores,
)
from mlimages.images import raise_for_unavailable_images, raise_if_most_images_missing
from mlimages.inference.bundle import OnnxBundle
from mlimages.inference.class_alignment import align_class_indices
from mlimages.inference.explanation import BackgroundTest, run_background_test
from mlimages.inference.multi_label import MultiLabelScores, score_multi_label_predictions
from mlimages.inference.predictor import Predictor, TimedResult
from mlimages.inference.run_splits import describe_training_use, find_images_in_splits
from mlimages.inference.tasks import MultiLabel
from mlimages.labels import LabelFile, find_source, open_labels


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency in milliseconds per image: median and 95th percentile."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation:
    """The results of `evaluate`.

    Attributes:
        class_names: names of the model's classes, by class index, including those without an image in the label file.
        confusion_matrix: number of images by true class (row) and predicted class (column).
        mistakes: wrong predictions with their true class index, the most confident first.
        broken_images: images that could not be read; `num_images` does not include them.
        loss: mean cross-entropy in nats, binary for a multi-label model, computed from the logits and the temperature.
        calibration_error: expected calibration error, 0 (calibrated) to 1.
        num_unknown: number of images predicted as unknown.
        images_per_s: throughput of all workers together.
        decode_ms: time in which one worker reads and preprocesses an image.
        network_ms: time in which one worker runs the network on a batch, divided by the number of its images.
        background_use: test of whether the predictions depend on the background; None if it was not run.
        num_in_training_set: number of evaluated images that are in the model's training set. They are recognized by
            their paths, so copies are not counted. None if unknown: the model is not in a run folder, or images of the
            run do not exist where its label files list them.
        num_in_validation_set: number of evaluated images that are in the model's validation set, on which the best
            epoch was chosen; None as for `num_in_training_set`.
        multi_label_scores: the scores of a multi-label model, for which `confusion_matrix` and `mistakes` are empty and
            `accuracy` is the share of images whose labels are all predicted correctly; None for a single-label model.
        num_missing_run_images: number of images of the run that do not exist where its label files list them.
    """

    class_names: tuple[str, ...]
    confusion_matrix: ConfusionMatrix
    mistakes: tuple[tuple[Prediction, int], ...]
    broken_images: tuple[BrokenImage, ...]
    loss: float
    calibration_error: float
    num_unknown: int
    images_per_s: float
    decode_ms: Latency
    network_ms: Latency
    background_use: BackgroundTest | None = None
    num_in_training_set: int | None = None
    num_in_validation_set: int | None = None
    multi_label_scores: MultiLabelScores | None = None
    num_missing_run_images: int = 0

    def __repr__(self) -> str:
        score = self.score
        return (
            f"Evaluation({self.score_name}={score.value:.4f} ({score.low:.4f} to {score.high:.4f}), "
            f"num_images={self.num_images}, num_in_training_set={self.num_in_training_set}, "
            f"num_in_validation_set={self.num_in_validation_set}, broken_images={len(self.broken_images)}, "
            f"classes={len(self.class_names)})"
        )

    @property
    def num_images(self) -> int:
        """Number of images with a prediction."""
        return self.multi_label_scores.num_images if self.multi_label_scores else sum(map(sum, self.confusion_matrix))

    @property
    def accuracy(self) -> Proportion:
        """Share of correct predictions, with its 95 % interval."""
        label_scores = self.multi_label_scores
        return label_scores.exact_match_ratio if label_scores else scores.accuracy(self.confusion_matrix)

    @property
    def score_name(self) -> str:
        """Name of `score`: "mAP", "accuracy", or "recall of CLASS" if all images are of one class."""
        if self.multi_label_scores:
            return "mAP"
        present = [name for name, row in zip(self.class_names, self.confusion_matrix, strict=True) if any(row)]
        return f"recall of {present[0]}" if len(present) == 1 else "accuracy"

    @property
    def score(self) -> Proportion:
        """Mean average precision of a multi-label model, else the accuracy."""
        return self.multi_label_scores.average_precision.mean if self.multi_label_scores else self.accuracy

    @property
    def per_class(self) -> tuple[ClassScores, ...]:
        """Precision, recall and F1 of each class."""
        label_scores = self.multi_label_scores
        return label_scores.per_class if label_scores else scores.class_scores(self.confusion_matrix, self.class_names)

    @property
    def training_note(self) -> str:
        """Text on how many of the evaluated images the training used, or that this is unknown; "" if it used none."""
        num_train, num_val = self.num_in_training_set, self.num_in_validation_set
        return describe_training_use(
            None if num_train is None or num_val is None else (num_train, num_val),
            score_name=self.score_name,
            num_missing_images=self.num_missing_run_images,
        )

    def to_json(self) -> str:
        """Return the results as JSON; the accuracy and the scores of each class are in 0..1, with 95 % intervals."""
        accuracy = self.accuracy
        values: dict[str, object] = {
            "accuracy": accuracy.value,
            "interval": [accuracy.low, accuracy.high],
            "count": self.num_images,
            "trained_on": self.num_in_training_set,
            "chosen_on": self.num_in_validation_set,
            "per_class": {each.name: _class_scores_to_dict(each) for each in self.per_class},
            "confusion": self.confusion_matrix,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "unknown": self.num_unknown,
            "broken": [asdict(each) for each in self.broken_images],
            "images_per_s": self.images_per_s,
            "decode_ms": asdict(self.decode_ms),
            "network_ms": asdict(self.network_ms),
        }
        if self.multi_label_scores:
            values |= self.multi_label_scores.to_dict()
            del values["confusion"], values["unknown"]
        if self.background_use:
            values["background"] = {
                "count": self.background_use.num_images,
                "correct": self.background_use.accuracy,
                "chance": self.background_use.chance_accuracy,
                "p_value": self.background_use.p_value,
            }
        return json.dumps(values)


def evaluate(
    model: Predictor | OnnxBundle | str | os.PathLike[str],
    labels: LabelFile | str | os.PathLike[str],
    *,
    background_test_images: int = 0,
    skip_unavailable: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model on a label file; classes are matched by name, not by order.

    Args:
        model: a predictor, an .onnx file, or a run folder.
        labels: a label file, or the path of one or of a folder of class folders.
        background_test_images: number of images, evenly spaced, on which to test whether the predictions depend on the
            background.
        skip_unavailable: skip remote images that cannot be downloaded, instead of raising an error.
        progress: shows the number of images processed.

    Raises:
        BundleError: the model cannot be used.
        InputError: the label file has a class that the model does not have, or is multi-label and the model is not;
            no image can be read, or more than half of the images are missing; a remote image cannot be downloaded;
            `background_test_images` is negative, or is greater than 0 for a multi-label model.

    Example:
        >>> evaluate("runs/first/model.onnx", "labels.txt").num_images
        12
    """
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    labels = open_labels(labels)
    check_at_least(0, explain=background_test_images)
    names, task = predictor.bundle.class_names, predictor.bundle.task
    if background_test_images and predictor.bundle.multi_label:
        raise InputError("--explain does not support multi-label models: omit --explain")
    items = align_class_indices(labels, predictor.bundle)
    begin = time.perf_counter()
    answers = _predict_all(predictor, items, progress or NoProgress())
    elapsed_s = time.perf_counter() - begin
    broken = tuple(answer.result for answer in answers if isinstance(answer.result, BrokenImage))
    raise_for_unavailable_images(broken, skip=skip_unavailable)
    raise_if_most_images_missing(broken, len(items))
    good = [
        (answer.result, item, answer)
        for answer, item in zip(answers, items, strict=True)
        if isinstance(answer.result, Prediction)
    ]
    if not good:
        source = find_source(labels)
        raise InputError(f"{source} has no usable image: see {format_command('check', source)}")
    predictions, true_items = [result for result, _, _ in good], [item for _, item, _ in good]
    truth = task.make_targets(true_items, len(names))
    probabilities = np.array([_make_probability_row(result, len(names)) for result, _, _ in good])  # (N, classes)
    label_scores, wrong = None, []
    confusion: ConfusionMatrix = ()
    if isinstance(task, MultiLabel):
        label_scores = score_multi_label_predictions(
            predictions,
            [item.class_indices for item in true_items],
            probabilities,
            thresholds=task.thresholds,
            class_names=names,
        )
    else:
        wrong = [(result, item.label) for result, item, _ in good if result.top[0].label != item.label]
        confusion = scores.confusion_matrix(truth.tolist(), probabilities.argmax(axis=1).tolist(), len(names))
    in_splits = find_images_in_splits(true_items, predictor.bundle)
    num_train, num_val = (in_splits and in_splits.counts) or (None, None)
    return Evaluation(
        class_names=names,
        confusion_matrix=confusion,
        mistakes=tuple(sorted(wrong, key=lambda pair: (-pair[0].probability, pair[0].path))),
        broken_images=broken,
        loss=task.compute_loss(np.array([answer.logits for _, _, answer in good]), truth, predictor.bundle.temperature),
        calibration_error=task.compute_calibration_error(probabilities, truth),
        num_unknown=sum(result.known is False for result, _, _ in good),
        images_per_s=len(answers) / elapsed_s,
        decode_ms=_compute_latency([answer.decode_s for _, _, answer in good]),
        network_ms=_compute_latency([answer.inference_s for _, _, answer in good]),
        background_use=_run_background_test(predictor, items, background_test_images)
        if background_test_images
        else None,
        num_in_training_set=num_train,
        num_in_validation_set=num_val,
        multi_label_scores=label_scores,
        num_missing_run_images=in_splits.num_missing if in_splits else 0,
    )


def _run_background_test(predictor: Predictor, items: Sequence[LabeledPath], num_images: int) -> BackgroundTest | None:
    """Run the background test on `num_images` evenly spaced images; return None if none can be decoded."""
    drawn = [items[n * len(items) // min(num_images, len(items))] for n in range(min(num_images, len(items)))]
    decoded = [(predictor.decode(item.path)[0], item.label) for item in drawn]
    good = [(pixels, label) for pixels, label in decoded if not isinstance(pixels, BrokenImage)]
    if not good:
        return None
    images, labels = zip(*good, strict=True)
    return run_background_test(predictor, images, np.array(labels))


def _class_scores_to_dict(class_scores: ClassScores) -> dict[str, object]:
    """Return the number of images and, for each score, its value and the bounds of its interval as JSON types."""
    shares = {"precision": class_scores.precision, "recall": class_scores.recall, "f1": class_scores.f1}
    count = class_scores.count  # without images, the scores are undefined
    return {"count": count, **{key: [one.value, one.low, one.high] if count else None for key, one in shares.items()}}


def _predict_all(predictor: Predictor, items: Sequence[LabeledPath], progress: Progress) -> list[TimedResult]:
    progress.start("evaluate", len(items), "images")
    answers = []
    for answer in predictor.stream(item.path for item in items):
        answers.append(answer)
        progress.advance()
    progress.close()
    return answers


def _make_probability_row(prediction: Prediction, num_classes: int) -> NDArray[np.float64]:
    """Return the probabilities of a prediction by class index, `(classes,)`."""
    row = np.zeros(num_classes)
    for score in prediction.top:
        row[score.label] = score.probability
    return row


def _compute_latency(seconds: Sequence[float]) -> Latency:
    p50, p95 = np.percentile(np.array(seconds) * 1e3, (50, 95))
    return Latency(float(p50), float(p95))
