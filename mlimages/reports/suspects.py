"""Images whose label is probably wrong, by the predictions of a classifier that was fitted without them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.core import named_path, relative_name, writing

MAX_SHARE = 0.1
"""The list holds at most this share of the images: a person is to look at each."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """One image whose label the other images contradict.

    Attributes:
        path: of the image.
        label, likely: names of the class it is labelled as and of the most probable one.
        confidence: 1 - the probability of its own label, 0..1.
    """

    path: Path
    label: str
    likely: str
    confidence: float


def find_suspects(
    paths: Sequence[Path], labels: NDArray[np.int64], probabilities: NDArray[np.floating], class_names: Sequence[str]
) -> tuple[Suspect, ...]:
    """The labels that are most probably wrong, the most probable first; at most a tenth of the images.

    Confident learning's ranking by self-confidence, among the images that are more probably of another class
    (C. Northcutt, L. Jiang and I. Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021).

    How many of the wrong labels the list holds depends on the features. With 5 % of the labels flipped (mean of ten
    seeds, MobileNetV2) it held 96 % of them on ants and bees, where the classifier has an accuracy of 98 %, and 63 %
    on five kinds of flowers, where it has 65 %. Ranked by a fit on the true labels: 97 and 67 %.

    Args:
        paths: of the images, N of them.
        labels: class numbers, int64 `(N,)`.
        probabilities: `(N, classes)`, out of sample: for each image by a classifier that was fitted without it.
        class_names: by class number.

    Example:
        >>> probabilities = np.full((10, 2), [0.9, 0.1])
        >>> paths = [Path(f"{number}.jpg") for number in range(10)]
        >>> find_suspects(paths, np.array([0] * 9 + [1]), probabilities, ["cats", "dogs"])
        (Suspect(path=...Path('9.jpg'), label='dogs', likely='cats', confidence=0.9),)
    """
    own = probabilities[np.arange(len(labels)), labels]  # (N,)
    likely = probabilities.argmax(axis=1)  # (N,)
    order = [index for index in np.argsort(own, kind="stable").tolist() if likely[index] != labels[index]]
    return tuple(
        Suspect(paths[index], class_names[labels[index]], class_names[likely[index]], round(1 - float(own[index]), 4))
        for index in order[: round(MAX_SHARE * len(labels))]
    )


def estimated_errors(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> int:
    """Estimated number of wrong labels: the sum off the diagonal of the confident joint.

    An image counts for the most probable of the classes whose probability reaches the mean over the images that are
    labelled so (Northcutt et al. 2021, equation 1).

    Args:
        labels: class numbers, int64 `(N,)`.
        probabilities: `(N, classes)`, out of sample.
    """
    classes = probabilities.shape[1]
    thresholds = [
        probabilities[labels == label, label].mean() if (labels == label).any() else 2.0 for label in range(classes)
    ]
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)  # (N, classes)
    counts = confident.max(axis=1) >= 0
    return int((counts & (confident.argmax(axis=1) != labels)).sum())


def write_suspects(suspects: Iterable[Suspect], out: Path, *, overwrite: bool = False) -> None:
    """Write `path, label, likely_label, confidence`, tab-separated; paths relative to the file's folder.

    Raises:
        InputError: `out` exists and mlimages did not write it, or it was changed since; unless `overwrite`.
    """
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(("path", "label", "likely_label", "confidence"))
    for each in suspects:
        table.writerow((relative_name(each.path, out.parent), each.label, each.likely, f"{each.confidence:.4f}"))
    with writing(out, overwrite=overwrite) as part:
        part.write_text(text.getvalue(), encoding="utf-8")


def read_suspects(path: Path) -> tuple[Suspect, ...] | None:
    """Read what `write_suspects` has written; None where there is no file."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[1:]
    return tuple(Suspect(named_path(row[0], path.parent), row[1], row[2], float(row[3])) for row in rows)
