"""A run folder read without torch: settings, epochs, what was said of each validation picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.core import Confusion, Preprocessing, RunError, Share, accuracy, confusion_matrix, named_path


@dataclass(frozen=True, slots=True)
class Said:
    """What the network says of the validation pictures.

    Attributes:
        paths: where they lie.
        labels: int64 `(N,)`.
        probabilities: float64 `(N, classes)`.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each picture, `(N,)`."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether that is the picture's label, `(N,)`."""
        return np.asarray(self.predicted == self.labels)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run as its folder tells it.

    Attributes:
        path: the folder.
        settings: what was asked, by name.
        preprocessing: how its pictures are prepared.
        class_names: in the order of the probabilities.
        epochs: the lines of metrics.csv.
        said: of the validation pictures; None before the run has ended.
        figures: the closing figures; empty before that.
    """

    path: Path
    settings: Mapping[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    epochs: tuple[Mapping[str, float], ...]
    said: Said | None
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def confusion(self) -> Confusion:
        """Counts of true label and predicted label; without predictions all zero."""
        if self.said is None:
            return confusion_matrix([], [], len(self.class_names))
        return confusion_matrix(self.said.labels.tolist(), self.said.predicted.tolist(), len(self.class_names))

    @property
    def accuracy(self) -> Share:
        """On the validation pictures."""
        return accuracy(self.confusion)


def read_run(path: Path) -> RunFolder:
    """Read what a run has written so far.

    Raises:
        RunError: it is not a run folder, or a file in it is damaged.
    """
    if not (path / "config.json").is_file():
        raise RunError(
            f"{path} is not a run folder: it has no config.json (`mlimages finetune ... -o {path}` makes one)"
        )
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        names = tuple((path / "classes.txt").read_text(encoding="utf-8").splitlines())
        return RunFolder(
            path=path,
            settings=config["config"],
            preprocessing=Preprocessing.from_dict(config["preprocessing"]),
            class_names=names,
            epochs=_read_epochs(path / "metrics.csv"),
            said=_read_said(path / "val_predictions.csv", len(names)),
            figures=json.loads(text) if (text := _text(path / "result.json")) else {},
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path} cannot be read as a run folder: {type(error).__name__}: {error}") from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _read_epochs(path: Path) -> tuple[dict[str, float], ...]:
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    return tuple({name: float(value) for name, value in row.items() if value} for row in rows)


def _read_said(path: Path, classes: int) -> Said | None:
    """`path,label` and a probability for each class; paths are relative to the run folder."""
    rows = list(csv.reader(io.StringIO(_text(path), newline="")))[1:]
    if not rows:
        return None
    probabilities = np.array([row[2:] for row in rows], dtype=np.float64)  # (N, classes)
    labels = np.array([row[1] for row in rows], dtype=np.int64)  # (N,)
    if probabilities.shape[1] != classes or not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{path.name} does not fit the {classes} classes of classes.txt")
    return Said(tuple(named_path(row[0], path.parent) for row in rows), labels, probabilities)
