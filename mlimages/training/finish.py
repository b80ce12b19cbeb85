"""How a run ends: the best epoch taken, its predictions, its figures and its .onnx file written."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mlimages.core import (
    BrokenImage,
    MissingExtraError,
    RunError,
    relative_name,
    replacing,
    wilson_interval,
    write_text,
)
from mlimages.reports import RunFiles, estimated_errors, find_suspects, write_suspects
from mlimages.training import distributed
from mlimages.training.build import Job
from mlimages.training.checkpoints import TrainingState, restore
from mlimages.training.image_cache import PictureSet
from mlimages.training.loop import Validation
from mlimages.training.ridge import fit_ridge, stratified_folds
from mlimages.training.run_export import export_run
from mlimages.training.schedule import HeadInputs

logger = logging.getLogger(__name__)

FOLDS = 10
LARGEST_FOLD = 1000
"""More folds rather than larger ones: the cost of one grows with the cube of its images."""


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """How a run ended; accuracies in 0..1.

    Attributes:
        run: the run folder.
        val_accuracy: of the best epoch, on the validation pictures that also chose it.
        val_interval: its 95 % interval.
        probe_accuracy: of the closed-form head before the first epoch; None where the network starts at random.
        best_epoch: 0 is the closed-form head.
        epochs: trained.
        frozen_digest: of the frozen weights, the same at start and end; empty where nothing is frozen.
        broken: pictures left out.
        seconds: since the run began, pauses aside.
        onnx: the exported file; None where none was asked for.
    """

    run: Path
    model: str
    freeze: str
    classes: tuple[str, ...]
    train_images: int
    val_images: int
    val_accuracy: float
    val_interval: tuple[float, float]
    probe_accuracy: float | None
    best_epoch: int
    epochs: int
    frozen_digest: str
    broken: tuple[BrokenImage, ...]
    seconds: float
    onnx: Path | None

    def to_dict(self) -> dict[str, object]:
        """The figures as JSON takes them."""
        paths = {"run": str(self.run), "onnx": None if self.onnx is None else str(self.onnx)}
        return {**asdict(self), **paths}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], files: RunFiles) -> FineTuneResult:
        """The inverse of `to_dict`, for a run in the folder where it lies now.

        Raises:
            KeyError: a figure is missing.
        """
        figures = {field.name: values[field.name] for field in fields(cls)}
        figures |= {"run": files.folder, "onnx": files.onnx if files.onnx.exists() else None}
        figures |= {"classes": tuple(values["classes"]), "val_interval": tuple(values["val_interval"])}
        return cls(**{**figures, "broken": tuple(BrokenImage(**each) for each in values["broken"])})


def finished_result(files: RunFiles, *, export: bool) -> FineTuneResult:
    """The result of a run that has ended before; with `export`, `model.onnx` and plots are made where they are missing.

    Raises:
        RunError: `result.json` is damaged.
    """
    logger.warning("%s is already finished; more epochs: mlimages finetune --resume %s --epochs N", *[files.folder] * 2)
    if export and distributed.is_main_process() and not files.onnx.exists():
        export_run(files.folder, files.onnx)
        draw(files.folder)
    try:
        return FineTuneResult.from_dict(json.loads(files.result.read_text(encoding="utf-8")), files)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{files.result} cannot be read ({error!r}): remove it to finish this run again") from error


def finish(job: Job, state: TrainingState, *, export: bool) -> FineTuneResult:
    """Take the best epoch, see that the frozen part is untouched, and write what the run has to say."""
    network, config, files = job.network, job.config, job.files
    if job.digest and job.frozen.digest(network) != job.digest:
        raise RunError(f"{files.folder}: the frozen part changed while training; please report this")
    restore(network, state.best)
    distributed.broadcast_tensors(network.state_dict().values())
    checked = job.validate()
    export = export and distributed.is_main_process()
    if export:
        export_run(files.folder, files.onnx)
    result = FineTuneResult(
        run=files.folder,
        model=config.model,
        freeze=config.freeze,
        classes=job.setup.class_names,
        train_images=len(job.train),
        val_images=checked.metrics.count,
        val_accuracy=checked.metrics.accuracy,
        val_interval=wilson_interval(checked.metrics.correct, checked.metrics.count),
        probe_accuracy=state.probe_accuracy,
        best_epoch=state.best_epoch,
        epochs=len(state.history),
        frozen_digest=job.digest,
        broken=job.setup.data.broken,
        seconds=round(state.seconds, 1),
        onnx=files.onnx if files.onnx.exists() else None,
    )
    if distributed.is_main_process():
        _write_predictions(job, checked)
        write_text(files.result, json.dumps(result.to_dict(), indent=1) + "\n")
    if export:
        draw(files.folder)
    return result


def _write_predictions(job: Job, checked: Validation) -> None:
    with replacing(job.files.predictions) as part, part.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["path", "label", *job.setup.class_names])
        for place, row in zip(checked.indices, checked.probabilities.tolist(), strict=True):
            picture = job.val.pictures[place]
            table.writerow([relative_name(picture.path, job.files.folder.absolute()), picture.label, *row])


def write_left_out(run: Path, broken: Sequence[BrokenImage]) -> None:
    """Write `left_out.tsv` (path, code, detail)."""
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(("path", "code", "detail"))
    table.writerows((each.path, each.fault, each.detail) for each in broken)
    write_text(run / "left_out.tsv", text.getvalue())


def write_doubtful_labels(
    run: Path, seen: Sequence[tuple[PictureSet, HeadInputs]], class_names: Sequence[str], *, seed: int
) -> None:
    """Write `suspects.tsv`: the pictures whose label those of the others contradict.

    Each is judged by a closed-form classifier fitted without it, on features that no label of this run has touched.

    Args:
        seen: each set of pictures and what reached the last layer of the network before training.
    """
    paths = [pictures.pictures[place].path for pictures, reached in seen for place in reached.indices]
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
