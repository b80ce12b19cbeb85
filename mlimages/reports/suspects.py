"""Find images whose label is probably wrong, from out-of-sample predictions."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.core import InputError, path_from_name, relative_name, write_output

MAX_SUSPECT_SHARE = 0.1
"""Maximum share (0..1) of all images in the list of suspects, so that a person can review them."""


@dataclass(frozen=True, slots=True)
class SuspectLabel:
    """An image whose label is probably wrong.

    Attributes:
        path: path of the image.
        label: name of the labelled class.
        likely_label: name of the most probable class.
        confidence: confidence that the label is wrong, 0..1: 1 minus the probability of the labelled class.
    """

    path: Path
    label: str
    likely_label: str
    confidence: float


def find_suspects(
    paths: Sequence[Path], labels: NDArray[np.int64], probabilities: NDArray[np.floating], class_names: Sequence[str]
) -> tuple[SuspectLabel, ...]:
    """Return the images whose labels are most likely to be wrong, the most likely first.

    Images whose label is not the most probable class are ranked by self-confidence, as in confident learning
    (C. Northcutt, L. Jiang and I. Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021). At
    most 10 % of all images are returned, rounded to a whole number but never to 0.

    The recall depends on the features. With 5 % of the labels flipped (mean of ten seeds, MobileNetV2) it was 96 % on
    ants and bees (accuracy of the classifier: 98 %) and 63 % on five kinds of flowers (accuracy: 65 %). With a
    classifier fitted on the true labels, the recall was 97 % and 67 %.

    Args:
        paths: paths of the N images.
        labels: class indices, int64 `(N,)`.
        probabilities: `(N, classes)`, out of sample: predicted for each image by a classifier fitted without it.
        class_names: class names by class index.

    Example:
        >>> probabilities = np.full((10, 2), [0.9, 0.1])
        >>> paths = [Path(f"{number}.jpg") for number in range(10)]
        >>> find_suspects(paths, np.array([0] * 9 + [1]), probabilities, ["cats", "dogs"])
        (SuspectLabel(path=...Path('9.jpg'), label='dogs', likely_label='cats', confidence=0.9),)
    """
    own = probabilities[np.arange(len(labels)), labels]  # (N,)
    likely = probabilities.argmax(axis=1)  # (N,)
    order = [index for index in np.argsort(own, kind="stable").tolist() if likely[index] != labels[index]]
    return tuple(
        SuspectLabel(
            paths[index], class_names[labels[index]], class_names[likely[index]], round(1 - float(own[index]), 4)
        )
        for index in order[: max(1, round(MAX_SUSPECT_SHARE * len(labels)))]
    )


def estimate_num_label_errors(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> int:
    """Estimate the number of wrong labels by confident learning: the off-diagonal sum of the confident joint.

    The threshold of a class is its mean probability over the images with that label. For each image, the classes are
    found whose probability is at least their threshold. If the most probable of them is not the image's label, the
    label counts as wrong; if there are none, it does not (Northcutt et al. 2021, equation 1).

    Args:
        labels: class indices, int64 `(N,)`.
        probabilities: `(N, classes)`, out of sample: predicted for each image by a classifier fitted without it.
    """
    num_classes = probabilities.shape[1]
    thresholds = [
        probabilities[labels == label, label].mean() if (labels == label).any() else 2.0 for label in range(num_classes)
    ]
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)  # (N, classes)
    counts = confident.max(axis=1) >= 0
    return int((counts & (confident.argmax(axis=1) != labels)).sum())


def write_suspects(suspects: Iterable[SuspectLabel], out: Path, *, overwrite: bool = False) -> None:
    """Write `path, label, likely_label, confidence` as tab-separated columns, with paths relative to the file's folder.

    Raises:
        InputError: `out` exists, `overwrite` is false, and mlimages did not write it or it was changed since.
    """
    with write_output(out, overwrite=overwrite) as part, part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("path", "label", "likely_label", "confidence"))
        for each in suspects:
            name = relative_name(each.path, out.parent)
            table.writerow((name, each.label, each.likely_label, f"{each.confidence:.4f}"))


def read_suspects(path: Path) -> tuple[SuspectLabel, ...] | None:
    """Read a file written by `write_suspects`; return None if it does not exist. Blank lines are skipped.

    Raises:
        InputError: a row does not have the four columns, or the file is not UTF-8.
    """
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter="\t") if row][1:]
        return tuple(SuspectLabel(path_from_name(row[0], path.parent), row[1], row[2], float(row[3])) for row in rows)
    except (ValueError, IndexError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged: restore its columns path, label, likely_label and confidence, or delete it"
        ) from error
