"""What a run tells beside its figures: the pictures left out, the labels in doubt, plots and a page."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlimages.core import BrokenImage, MissingExtraError, write_text
from mlimages.reports import estimated_errors, find_suspects, write_suspects
from mlimages.training.image_cache import PictureSet
from mlimages.training.ridge import fit_ridge, stratified_folds
from mlimages.training.schedule import Reached

logger = logging.getLogger(__name__)

FOLDS = 10
LARGEST_FOLD = 1000
"""More folds rather than larger ones: the cost of one grows with the cube of its pictures."""


def name_left_out(run: Path, broken: Sequence[BrokenImage]) -> None:
    """Write `left_out.tsv` (path, code, detail); a run that is gone on with has named them before."""
    out = run / "left_out.tsv"
    if out.exists():
        return
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(("path", "code", "detail"))
    table.writerows((each.path, each.fault, each.detail) for each in broken)
    write_text(out, text.getvalue())


def name_suspects(
    run: Path, seen: Sequence[tuple[PictureSet, Reached]], class_names: Sequence[str], *, seed: int
) -> None:
    """Write `suspects.tsv`: the pictures whose label those of the others contradict.

    Each is judged by a closed-form classifier fitted without it, on features that no label of this run has touched.

    Args:
        seen: each set of pictures and what reached the last layer of the network before training.
    """
    paths = [pictures.pictures[place].path for pictures, reached in seen for place in reached.places]
    features = np.concatenate([reached.features.numpy() for _, reached in seen])  # (N, D)
    labels = np.concatenate([reached.labels.numpy() for _, reached in seen])  # (N,)
    folds = max(FOLDS, math.ceil(len(labels) / LARGEST_FOLD))
    fold = stratified_folds(labels, folds=min(folds, len(labels)), seed=seed)
    probabilities = fit_ridge(features, labels, len(class_names)).out_of_fold(fold)  # (N, classes)
    suspects = find_suspects(paths, labels, probabilities, class_names)
    write_suspects(suspects, run / "suspects.tsv")
    if suspects:
        errors = estimated_errors(labels, probabilities)
        logger.info("labels in doubt: %d listed in suspects.tsv, about %d probably wrong", len(suspects), errors)


def draw(run: Path) -> Path | None:
    """Draw curves.png, confusion.png and report.html; None, and a line in the log, where the extra is missing."""
    try:
        from mlimages.reports import draw_run
    except MissingExtraError as error:
        logger.warning("no plots and no page were drawn: %s", error)
        return None
    return draw_run(run)
