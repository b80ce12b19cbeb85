"""Read a run folder without torch: settings, epochs, predictions for the validation set."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.core import (
    AveragePrecision,
    ConfusionMatrix,
    Preprocessing,
    Proportion,
    RunError,
    accuracy,
    average_precisions,
    confusion_matrix,
    estimate_proportion,
    find_f1_thresholds,
    format_percent,
    path_from_name,
    pluralize,
    require_local_path,
    summarize_error,
)
from mlimages.dataset import multi_hot
from mlimages.reports.run_files import RunFiles, read_settings


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predictions of a network for the validation set.

    Attributes:
        paths: paths of the images.
        labels: true class indices, int64 `(N,)`; in a multi-label run, whether each image has each class, bool
            `(N, classes)`.
        probabilities: predicted probabilities, float64 `(N, classes)`.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64] | NDArray[np.bool_]
    probabilities: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"<Predictions: {int(self.is_correct.sum())} of {pluralize(len(self.paths), 'image')} correct>"

    @property
    def is_multi_label(self) -> bool:
        """Whether the run is multi-label."""
        return self.labels.ndim == 2

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Threshold of each class with the highest F1 on the validation set; only for a multi-label run."""
        return find_f1_thresholds(self.probabilities, self.labels.astype(bool))

    @property
    def predicted_labels(self) -> NDArray[np.int64] | NDArray[np.bool_]:
        """The most probable class of each image, int64 `(N,)`; in a multi-label run, whether each class is predicted
        for each image, bool `(N, classes)`."""
        if self.is_multi_label:
            return np.asarray(self.probabilities >= np.array(self.thresholds))
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, bool `(N,)`; in a multi-label run, whether all labels are correct."""
        right = self.predicted_labels == self.labels
        return np.asarray(right.all(axis=1) if self.is_multi_label else right)


@dataclass(frozen=True, slots=True, eq=False)
class RunFolder:
    """A run folder of `finetune`.

    Attributes:
        path: the folder.
        settings: settings of the run, by name.
        defaults: default settings at the time of the run; empty in runs of earlier versions.
        preprocessing: preprocessing of the images.
        class_names: class names, in the order of the probabilities.
        epochs: for each line of metrics.csv, the values by column name.
        predictions: predictions for the validation set; None until the run is finished. If a finished run is resumed
            with more epochs, they are None again until it is finished.
        final_metrics: contents of result.json; empty before the run is finished.
        skipped_images: rows of left_out.tsv: path, code and detail of each image that could not be read.
    """

    path: Path
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    epochs: tuple[Mapping[str, float], ...]
    predictions: Predictions | None
    final_metrics: Mapping[str, Any] = field(default_factory=dict)
    skipped_images: tuple[Mapping[str, str], ...] = ()

    def __repr__(self) -> str:
        accuracy = f"{self.score_name} {format_percent(self.score.value)}" if self.predictions else "not finished"
        classes, epochs = pluralize(len(self.class_names), "class"), pluralize(len(self.epochs), "epoch")
        return f"<RunFolder {self.path}: {self.settings.get('model')}, {classes}, {epochs}, {accuracy}>"

    @property
    def changed_settings(self) -> dict[str, Any]:
        """Settings that differ from their defaults, by name.

        If the default of a setting is unknown, it is included unless its value is empty, false or 0.
        """
        return {
            name: value
            for name, value in self.settings.items()
            if (value != self.defaults[name] if name in self.defaults else value not in (None, "", [], False, 0.0))
        }

    @property
    def num_val_images(self) -> int:
        """Number of validation images with a prediction; 0 before the run is finished."""
        return len(self.predictions.labels) if self.predictions else 0

    @property
    def confusion_matrix(self) -> ConfusionMatrix:
        """Number of validation images of a single-label run by true class (rows) and predicted class (columns); all 0
        before the run is finished."""
        if self.predictions is None:
            return confusion_matrix([], [], len(self.class_names))
        labels, predicted = self.predictions.labels.tolist(), self.predictions.predicted_labels.tolist()
        return confusion_matrix(labels, predicted, len(self.class_names))

    @property
    def accuracy(self) -> Proportion:
        """Accuracy on the validation set; in a multi-label run, all labels of an image must be correct.

        Before the run is finished, it is 0 with the interval 0..1.
        """
        if self.predictions and self.predictions.is_multi_label:
            return estimate_proportion(int(self.predictions.is_correct.sum()), self.num_val_images)
        return accuracy(self.confusion_matrix)

    @property
    def average_precision(self) -> AveragePrecision | None:
        """Average precision of each class and their mean (mAP), on the validation set of a finished multi-label run;
        None for other runs."""
        if self.predictions is None or not self.predictions.is_multi_label:
            return None
        return average_precisions(self.predictions.probabilities, self.predictions.labels.astype(bool))

    @property
    def score_name(self) -> str:
        """Name of `score`: accuracy or mAP."""
        return "mAP" if self.predictions and self.predictions.is_multi_label else "accuracy"

    @property
    def score(self) -> Proportion:
        """Score by which runs are compared: mean average precision of a multi-label run, else `accuracy`."""
        found = self.average_precision
        return found.mean if found else self.accuracy


def read_run(path: str | os.PathLike[str]) -> RunFolder:
    """Read a run folder; the run need not be finished.

    Args:
        path: a run folder of `finetune`.

    Raises:
        RunError: `path` is not a run folder, or one of its files is missing or damaged.

    Example:
        >>> read_run("runs/first").class_names
        ('cats', 'dogs')
    """
    files = RunFiles(require_local_path(path))
    settings = read_settings(files)
    try:
        names, final_metrics = files.read_class_names(), _read_final_metrics(files.result)
        predictions, multi_label = None, settings.get("multi_label", False)
        if final_metrics:
            with _add_name_to_errors(files.predictions):
                predictions = _read_predictions(files.predictions, names, multi_label=multi_label)
        return RunFolder(
            path=files.folder,
            settings=settings["config"],
            defaults=settings.get("defaults", {}),
            preprocessing=Preprocessing.from_dict(settings["preprocessing"]),
            class_names=names,
            epochs=_read_epochs(files.metrics),
            predictions=predictions,
            final_metrics=final_metrics,
            skipped_images=_read_rows(files.left_out, delimiter="\t"),
        )
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise RunError(
            f"{files.folder} cannot be read as a run folder: {summarize_error(error)}; restore it, or train again"
        ) from error


@contextmanager
def _add_name_to_errors(path: Path) -> Iterator[None]:
    """Context manager that puts the file's name before the message of an error raised while the file is parsed."""
    try:
        yield
    except (ValueError, LookupError, TypeError, csv.Error) as error:
        raise ValueError(f"{path.name}: {summarize_error(error)}") from error


def _read_final_metrics(path: Path) -> dict[str, Any]:
    """Return the contents of result.json; an empty dict if it does not exist."""
    with _add_name_to_errors(path):
        values = json.loads(_read_text(path) or "{}")
        if not isinstance(values, dict):
            raise ValueError("expected a JSON object")
    return values


def _read_text(path: Path) -> str:
    """Return the contents of a file; empty if it does not exist."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _read_rows(path: Path, *, delimiter: str = ",") -> tuple[dict[str, str], ...]:
    with _add_name_to_errors(path):
        return tuple(csv.DictReader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter))


def _read_epochs(path: Path) -> tuple[dict[str, float], ...]:
    """Return for each line of metrics.csv its values by column name; empty values are omitted."""
    rows = _read_rows(path)
    with _add_name_to_errors(path):
        return tuple({name: float(value) for name, value in row.items() if value} for row in rows)


def _read_predictions(path: Path, class_names: Sequence[str], *, multi_label: bool) -> Predictions | None:
    """Read `path,label` and one probability per class; return None if the file does not exist or has no row.

    Paths are relative to the run folder. The label is a class name, or in a multi-label run a JSON list of class names.
    Runs of earlier versions have a class index, or in a multi-label run class indices separated by `;`.
    """
    rows = list(csv.reader(io.StringIO(_read_text(path), newline="")))[1:]
    if not rows:
        return None
    probabilities = np.array([row[2:] for row in rows], dtype=np.float64)  # (N, classes)
    index_of = {name: index for index, name in enumerate(class_names)}
    if not any(map(str.isdecimal, class_names)):
        index_of |= {str(index): index for index in range(len(class_names))}
    names = [_parse_labels(row[1]) if multi_label else [row[1]] for row in rows]
    if probabilities.shape[1] != len(class_names):
        raise ValueError(
            f"{probabilities.shape[1]} probabilities per image, but classes.txt has "
            f"{pluralize(len(class_names), 'class')}"
        )
    if unknown := {name for own in names for name in own} - index_of.keys():
        raise ValueError(f"the class {min(unknown)!r} is not in classes.txt")
    indices = [tuple(index_of[name] for name in own) for own in names]
    labels = multi_hot(indices, len(class_names)) > 0 if multi_label else np.array(indices, dtype=np.int64)[:, 0]
    return Predictions(tuple(path_from_name(row[0], path.parent) for row in rows), labels, probabilities)


def _parse_labels(text: str) -> list[str]:
    """Parse the labels of an image in a multi-label run: a JSON list of class names, such as `["cats","dogs"]`.

    Runs of earlier versions have class indices instead: `0;3` yields `["0", "3"]`.
    """
    return json.loads(text) if text.startswith("[") else list(filter(None, text.split(";")))
