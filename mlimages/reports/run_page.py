"""Plots and HTML report of a run."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.checks import check
from mlimages.core import (
    BundleError,
    ClassScore,
    ConfusionMatrix,
    LabeledPath,
    class_scores,
    combine_class_scores,
    format_percent,
    multi_label_scores,
    pluralize,
    require_writable,
    write_output,
)
from mlimages.inference import Explanation, Predictor, explain, find_model_file, measure_model_size
from mlimages.labels import LabelFile
from mlimages.reports import pages, plots
from mlimages.reports.run_files import RunFiles
from mlimages.reports.run_folder import Predictions, RunFolder, read_run
from mlimages.reports.suspects import SuspectLabel, read_suspects

MAX_EXPLAINED_MISTAKES = 4
"""Maximum number of mistakes that are explained by occlusion (see `explain`)."""

MAX_EXPLAINED_MODEL_BYTES = 300_000_000
"""Mistakes of models larger than this (VGG-16, ViT-B) are not explained: one explanation takes 10 s of CPU time or
more."""

MAX_IMAGES_TO_COMPARE = 20_000
"""Near-duplicates with different labels are not searched for if a run has more images (training and validation)."""


def draw_run(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write `curves.png`, `confusion.png` and `report.html` into a run folder; return the path of the report.

    `curves.png` requires a finished epoch; `confusion.png` requires a finished run that is not multi-label.

    Args:
        path: a run folder; the run need not be finished.
        overwrite: replace a file that mlimages did not write, or that was changed since.

    Raises:
        InputError: one of the files exists, was not written by mlimages or was changed since, and `overwrite` is false;
            or `suspects.tsv` is damaged.
        RunError: `path` is not a run folder, or one of its files is missing or damaged.

    Example:
        >>> draw_run("runs/first")
        PosixPath('runs/first/report.html')
    """
    run = read_run(path)
    files = RunFiles(run.path)
    require_writable(files.report_files, overwrite=overwrite)
    if run.epochs:
        plots.save_png(
            plots.plot_curves(run.epochs, num_val_images=run.num_val_images), files.curves, overwrite=overwrite
        )
    if run.predictions and not run.predictions.is_multi_label:
        matrix = plots.plot_confusion_matrix(run.confusion_matrix, run.class_names)
        plots.save_png(matrix, files.confusion, overwrite=overwrite)
    with write_output(files.report, overwrite=overwrite) as part:
        part.write_text(pages.render("run.html", **_make_template_values(run)), encoding="utf-8")
    return files.report


def _make_template_values(run: RunFolder) -> dict[str, Any]:
    suspects_file, classes = RunFiles(run.path).suspects, pluralize(len(run.class_names), "class")
    suspects = read_suspects(suspects_file)
    return {
        "title": f"Run {run.path.resolve().name}",
        "subtitle": f"{run.settings['model']} on {classes}, freeze: {run.settings['freeze']}",
        "run": run,
        "score": run.score if run.predictions else None,
        "mistakes": list(_make_mistake_tiles(run)),
        "suspects": suspects and [_make_suspect_tile(each, run) for each in suspects[: pages.MAX_TILES]],
        "suspect_count": len(suspects or ()),
        "run_path": shlex.quote(str(run.path)),
        "suspects_path": shlex.quote(str(suspects_file)),
        "label_files": [shlex.quote(run.settings[name]) for name in ("labels", "val") if run.settings.get(name)],
        "label_conflicts": _make_label_conflict_tiles(run),
        **_make_class_tables(run),
        "drawings": list(_draw_curve_svgs(run)),
        "counts": list(_iter_class_counts(run)),
        "settings": list(_make_setting_rows(run)),
    }


def _make_class_tables(run: RunFolder) -> dict[str, Any]:
    """Return the template's variables for the scores of each class and the confusion matrix.

    A multi-label run has no confusion matrix.
    """
    found, precision = run.predictions, run.average_precision
    if found and precision:
        scores = multi_label_scores(found.labels.astype(bool), found.predicted_labels.astype(bool), run.class_names)
        return {"rows": list(combine_class_scores(scores, precision, found.thresholds)), "cells": [], "confused": []}
    return {
        "rows": [],
        "classes": class_scores(run.confusion_matrix, run.class_names),
        "cells": pages.make_matrix_cells(run.confusion_matrix),
        "confused": _find_most_confused_classes(run.confusion_matrix, run.class_names),
    }


def _make_setting_rows(run: RunFolder) -> Iterator[tuple[str, str]]:
    image = run.preprocessing.image
    yield "images", f"{image.width} x {image.height} px, {image.resize}{', gray' if image.gray_scale else ''}"
    for name, value in run.changed_settings.items():
        if (name, value) == ("freeze", "head"):  # what the default `auto` became
            continue
        yield name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if "seconds" in run.final_metrics:
        yield "training time", f"{run.final_metrics['seconds']:.0f} s"


def _iter_class_counts(run: RunFolder) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each class, and the number of its training and of its validation images."""
    files = (LabelFile(run.path / name) for name in ("train.txt", "val.txt"))
    train, val = (Counter(label for item in file for label in item.class_indices) for file in files)
    for label, name in enumerate(run.class_names):
        yield name, train[label], val[label]


def _draw_curve_svgs(run: RunFolder) -> Iterator[str]:
    if run.epochs:
        last = run.epochs[-1]
        for name in plots.choose_metrics(run.epochs):
            train, val = last[f"train_{name}"], last[f"val_{name}"]
            label = f"{name} by epoch; last epoch: training {train:.3f}, validation {val:.3f}"
            yield plots.to_svg(
                plots.plot_curves(run.epochs, metrics=[name], num_val_images=run.num_val_images), label=label
            )


def _find_most_confused_classes(confusion: ConfusionMatrix, names: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """Return the ten most frequent confusions: true class, predicted class, their count, images of the true class."""
    pairs = [
        (names[label], names[predicted], count, sum(row))
        for label, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and predicted != label
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair))[:10]


def _make_mistake_tiles(run: RunFolder) -> Iterator[pages.GalleryTile]:
    """Yield the most confident wrong predictions; the first `MAX_EXPLAINED_MISTAKES` may include an occlusion map."""
    if run.predictions is None:
        return
    found, explainer = run.predictions, _load_predictor(run)
    predicted = found.predicted_labels
    for number, index in enumerate(_rank_mistakes(found)[: pages.MAX_TILES]):
        path, probabilities = found.paths[index], found.probabilities[index]  # (classes,)
        labels, guesses = (_to_class_indices(each[index]) for each in (found.labels, predicted))
        scores = [ClassScore(run.class_names[n], n, float(probabilities[n])) for n in guesses]
        scores.sort(key=lambda score: -score.probability)
        text = pages.format_mistake((run.class_names[n] for n in labels), scores)
        tile = pages.make_image_tile(path, text, image_property=run.preprocessing.image)
        why = explain(explainer, path) if explainer and number < MAX_EXPLAINED_MISTAKES else None
        if isinstance(why, Explanation):
            overlay = pages.to_data_url(np.asarray(why.draw_overlay()))
            tile = pages.GalleryTile((*tile.image_urls, overlay), (*tile.caption_lines, str(why)))
        yield tile


def _rank_mistakes(predictions: Predictions) -> list[int]:
    """Return the indices of the wrong predictions, the most confident first.

    In a multi-label run, the confidence in a wrongly predicted class is the distance between its probability and its
    threshold. The most confident mistake of an image counts.
    """
    confidence = predictions.probabilities  # (N, classes)
    if predictions.is_multi_label:
        distances = np.abs(confidence - np.array(predictions.thresholds))
        confidence = np.where(predictions.predicted_labels != predictions.labels, distances, 0)
    correct = predictions.is_correct  # a property that predicts all images
    order = (-confidence.max(axis=1)).argsort(kind="stable").tolist()
    return [index for index in order if not correct[index]]


def _to_class_indices(labels: np.int64 | NDArray[np.bool_]) -> list[int]:
    """Return the class indices of one image, given its class index or a mask of its classes, `(classes,)`."""
    return np.flatnonzero(labels).tolist() if np.ndim(labels) else [int(labels)]


def _load_predictor(run: RunFolder) -> Predictor | None:
    """Load the run's exported file to explain predictions.

    Return None if there is no exported file, if it cannot be run, or if it is larger than `MAX_EXPLAINED_MODEL_BYTES`.
    """
    with suppress(BundleError):
        file = find_model_file(run.path)
        if measure_model_size(file) <= MAX_EXPLAINED_MODEL_BYTES:
            return Predictor(file)
    return None


def _make_suspect_tile(suspect: SuspectLabel, run: RunFolder) -> pages.GalleryTile:
    own = format_percent(1 - suspect.confidence, 0)
    text = f"labelled {suspect.label} (probability {own}), predicted {suspect.likely_label}"
    return pages.make_image_tile(suspect.path, text, image_property=run.preprocessing.image)


def _make_label_conflict_tiles(run: RunFolder) -> list[pages.GalleryTile]:
    """Return a tile for each group of near-duplicates with different labels, with one image of each class.

    The list is empty for a multi-label run, and for more images than `MAX_IMAGES_TO_COMPARE`.
    """
    items = [item for name in ("train.txt", "val.txt") for item in LabelFile(run.path / name)]
    if len(items) > MAX_IMAGES_TO_COMPARE or any(item.labels is not None for item in items[:1]):
        return []
    label_of = {item.path: item.label for item in items}
    images = [LabeledPath(path, 0) for path in label_of]
    groups = check(LabelFile("paths.txt", items=lambda: images, class_names=("all",))).duplicate_groups
    by_class = ({label_of[path]: path for path in sorted(group, reverse=True)} for group in groups)  # the first path
    conflicts = (list(paths.values())[::-1] for paths in by_class if len(paths) > 1)
    return [
        pages.GalleryTile(
            tuple(pages.embed_thumbnail(path, run.preprocessing.image) for path in paths),
            tuple(f"{run.class_names[label_of[path]]} {path.parent.name}/{path.name}" for path in paths),
        )
        for paths in islice(conflicts, pages.MAX_TILES)
    ]
