"""How a run ends: the best epoch taken, its predictions, its figures and its .onnx file written."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from mlimages.core import BrokenImage, RunError, relative_name, replacing, wilson_interval, write_text
from mlimages.training import distributed, run_notes
from mlimages.training.build import Job
from mlimages.training.checkpoints import TrainingState, restore
from mlimages.training.loop import Validation
from mlimages.training.run_export import export_run

logger = logging.getLogger(__name__)


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


def finish(job: Job, state: TrainingState, *, export: bool) -> FineTuneResult:
    """Take the best epoch, see that the frozen part is untouched, and write what the run has to say."""
    network, config, files = job.network, job.config, job.files
    if job.digest and job.frozen.digest(network) != job.digest:
        raise RunError(f"{files.folder}: the frozen part changed while training; please report this")
    restore(network, state.best)
    distributed.take_from_first(network)
    checked = job.validate()
    export = export and distributed.is_first()
    if export:
        export_run(files.folder, files.onnx)
    result = FineTuneResult(
        run=files.folder,
        model=config.model,
        freeze=config.freeze,
        classes=job.setup.class_names,
        train_images=len(job.train),
        val_images=checked.seen.count,
        val_accuracy=checked.seen.accuracy,
        val_interval=wilson_interval(checked.seen.right, checked.seen.count),
        probe_accuracy=state.probe_accuracy,
        best_epoch=state.best_epoch,
        epochs=len(state.history),
        frozen_digest=job.digest,
        broken=job.setup.data.broken,
        seconds=round(state.seconds, 1),
        onnx=files.onnx if files.onnx.exists() else None,
    )
    if distributed.is_first():
        _write_predictions(job, checked)
        write_text(files.result, json.dumps(result.to_dict(), indent=1) + "\n")
    if export:
        run_notes.draw(files.folder)
    return result


def _write_predictions(job: Job, checked: Validation) -> None:
    with replacing(job.files.predictions) as part, part.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["path", "label", *job.setup.class_names])
        for place, row in zip(checked.places, checked.probabilities.tolist(), strict=True):
            picture = job.val.pictures[place]
            table.writerow([relative_name(picture.path, job.files.folder.absolute()), picture.label, *row])
