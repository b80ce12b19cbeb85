"""Finish a run: load the best weights, and write predictions, results and model.onnx."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mlimages.core import (
    BrokenImage,
    MissingExtraError,
    Progress,
    Proportion,
    RunError,
    format_command,
    format_interval,
    format_percent,
    make_html_images,
    make_html_table,
    pluralize,
    relative_name,
    require_writable,
    wilson_interval,
    write_output,
    write_text_output,
)
from mlimages.export import KnownOutput, NetworkOutputs
from mlimages.inference import (
    MIN_CONFORMAL_IMAGES,
    InDistributionCalibration,
    OnnxBundle,
    PredictionSetThresholds,
    compute_conformal_thresholds,
)
from mlimages.reports import RunFiles, estimate_num_label_errors, find_suspects, write_model_card, write_suspects
from mlimages.training import distributed
from mlimages.training.checkpoints import TrainingState, load_trained_tensors, make_trained_run
from mlimages.training.head_inputs import compute_head_inputs
from mlimages.training.known_output import KNOWN_SHARE, fit_known_score, save_known_output
from mlimages.training.loop import ValidationResult, validate
from mlimages.training.run_export import export_run, export_trained_run, read_exported_bundle, warn_about_lost_options
from mlimages.training.training_job import TrainingJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """The result of a fine-tuning run; accuracies are in 0..1.

    Attributes:
        run: the run folder.
        model: name of the network.
        freeze: name of the last frozen layer; `head`: all layers before the head are frozen; `none`: no layer is.
        classes: names of the classes, in the order of the logits.
        train_images: number of training images.
        val_images: number of validation images.
        val_accuracy: validation accuracy of the best epoch; the epoch was chosen on the same images.
        val_interval: 95 % confidence interval of `val_accuracy`.
        probe_accuracy: validation accuracy of the linear probe that initializes the head before the first epoch (the
            closed-form head, fitted by ridge regression); None if there is none, as with random weights.
        best_epoch: number of the epoch with the highest validation score, from 1; 0 is the closed-form head.
        epochs: number of trained epochs.
        depths_share: weight of the lower layers' features relative to the last layer's in the closed-form head, 0..1
            (see `head` of FineTuneConfig); 0 if it uses only the features of the last layer.
        frozen_digest: SHA-256 of the frozen weights, equal before and after training; empty if nothing is frozen.
        broken: images that could not be decoded and were skipped.
        seconds: time from reading the images to the last epoch, excluding interruptions.
        onnx: path of the exported file; None if it was not exported.
        val_map: in a multi-label run, the mean average precision on the validation images with the bounds of its 95 %
            interval; accuracies are then the share of images whose labels are all correct at a threshold of 0.5. None
            in a single-label run.
        probe_map: mean average precision of the linear probe (see `probe_accuracy`) in a multi-label run, else None.
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
    depths_share: float
    frozen_digest: str
    broken: tuple[BrokenImage, ...]
    seconds: float
    onnx: Path | None
    val_map: tuple[float, float, float] | None = None
    probe_map: float | None = None

    @property
    def score_text(self) -> str:
        """Validation accuracy, or mean average precision, with its 95 % confidence interval, as text."""
        score = Proportion(*(self.val_map or (self.val_accuracy, *self.val_interval)))
        counted = f"{self.val_images} validation images (95 % interval {format_interval(score)})"
        value = format_percent(score.value)
        return f"mAP {value} on {counted}" if self.val_map else f"{value} of {counted}"

    def __repr__(self) -> str:
        best = f"best epoch {self.best_epoch} of {self.epochs}"
        return f"<FineTuneResult {str(self.run)!r}: {self.score_text}, {best}>"

    def _repr_html_(self) -> str:
        rows = [
            ("mAP" if self.val_map else "accuracy", self.score_text),
            ("network", f"{self.model}, frozen: {self.freeze}"),
            ("epochs", f"{self.epochs}; best epoch: {self.best_epoch}"),
            ("plots", make_html_images([self.run / "curves.png", self.run / "confusion.png"], height_px=240)),
        ]
        return make_html_table(f"run {self.run}", rows)

    def to_dict(self) -> dict[str, object]:
        """Return the result as values for JSON, without `val_map` and `probe_map` if they are None."""
        paths = {"run": str(self.run), "onnx": None if self.onnx is None else str(self.onnx)}
        values = {**asdict(self), **paths}
        return {key: value for key, value in values.items() if value is not None or not key.endswith("_map")}

    @property
    def missing_outputs_note(self) -> str:
        """The outputs that this run could not produce, and why, as text; "" if it has all of them.

        For example "`known` and prediction sets, which require at least 19 validation images".
        """
        if self.val_map:
            return "`known`, prediction sets and suspects.tsv, which require one class per image"
        if RunFiles(self.run).known.exists():
            return ""
        return f"`known` and prediction sets, which require at least {MIN_CONFORMAL_IMAGES} validation images"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], files: RunFiles) -> FineTuneResult:
        """Create a result from the values of `to_dict` and the paths of a run folder.

        Raises:
            KeyError: a value is missing.
        """
        figures = {field.name: values[field.name] for field in fields(cls) if field.default is MISSING}
        if "val_map" in values:
            figures |= {"val_map": tuple(values["val_map"]), "probe_map": values.get("probe_map")}
        figures |= {"run": files.folder, "onnx": files.onnx if files.onnx.exists() else None}
        figures |= {"classes": tuple(values["classes"]), "val_interval": tuple(values["val_interval"])}
        return cls(**{**figures, "broken": tuple(BrokenImage(**each) for each in values["broken"])})


def complete_finished_run(
    files: RunFiles, *, export: bool, network: nn.Module | None = None, overwrite: bool, progress: Progress
) -> FineTuneResult:
    """Write the missing exports of a finished run, and return its stored result.

    The exports are `model.onnx` and `report.html`; none is written if `export` is false.

    Raises:
        InputError: `overwrite` is false, and a file to replace was not written by mlimages, or was edited afterwards.
        ExportError: the network cannot be converted to ONNX, or the file's outputs differ.
        RunError: `result.json` is damaged.
    """
    logger.warning(
        "%s is already finished; to train it further, run %s, where N is the total number of epochs",
        files.folder,
        format_command("finetune", "--resume", files.folder, "--epochs", "N"),
    )
    if export and distributed.is_main_process() and not (files.onnx.exists() and files.report.exists()):
        require_writable((files.result, *files.report_files), overwrite=overwrite)
        with files.lock():
            if not files.onnx.exists():
                export_run(files.folder, files.onnx, network=network, overwrite=overwrite, progress=progress)
            elif bundle := read_exported_bundle(files):
                write_model_card(bundle)  # the run may have been killed before
            write_plots_and_report(files.folder, overwrite=overwrite, progress=progress)
            _write_result(_read_result(files), files, overwrite=overwrite)
    return _read_result(files)


def _read_result(files: RunFiles) -> FineTuneResult:
    try:
        return FineTuneResult.from_dict(json.loads(files.result.read_text(encoding="utf-8")), files)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{files.result} is damaged: delete it and run the command again") from error


def finish_run(
    job: TrainingJob,
    state: TrainingState,
    *,
    export: bool,
    custom_network: nn.Module | None = None,
    overwrite: bool,
    progress: Progress,
) -> FineTuneResult:
    """Check that the frozen weights are unchanged, load the best weights, and write the results.

    Args:
        export: write `model.onnx`, the plots and `report.html`.
        custom_network: the network passed to `fine_tune`, if any.
        overwrite: also replace files that mlimages did not write, or that were edited after mlimages wrote them.

    Returns:
        The result. In processes other than the main process, its `onnx` is None.
    """
    network, config, files = job.network, job.config, job.files
    if job.frozen_digest and job.frozen_layers.digest(network) != job.frozen_digest:
        raise RunError(f"{files.folder}: the frozen weights changed during training; this is a bug, please report it")
    load_trained_tensors(network, state.best_trained_tensors)
    distributed.broadcast_tensors(network.state_dict().values())
    validation = validate(network, job.source, job.val_set, job.objective)
    metrics, is_single = validation.metrics, job.val_set.labels.ndim == 1
    has_known_output = is_single and len(job.val_set) >= MIN_CONFORMAL_IMAGES
    known = _fit_known_output(job, state, validation) if has_known_output else None
    if known and distributed.is_main_process():
        save_known_output(known, files)
    score = job.objective.inference_task.score(validation.probabilities.numpy(), validation.targets.numpy())
    result = FineTuneResult(
        run=files.folder,
        model=config.model,
        freeze=config.freeze,
        classes=job.class_names,
        train_images=len(job.train_set),
        val_images=metrics.num_images,
        val_accuracy=metrics.accuracy,
        val_interval=wilson_interval(metrics.num_correct, metrics.num_images),
        probe_accuracy=state.probe_accuracy,
        best_epoch=state.best_epoch,
        epochs=len(state.history),
        depths_share=state.lower_layers_share,
        frozen_digest=job.frozen_digest,
        broken=job.broken_images,
        seconds=round(state.seconds, 1),
        onnx=None,
        val_map=None if is_single else (score.value, score.low, score.high),
        probe_map=state.probe_map,
    )
    if not distributed.is_main_process():
        return result
    _write_predictions(job, validation, overwrite=overwrite)
    _write_result(result, files, overwrite=overwrite)  # before the export, which may fail
    if export:
        before = read_exported_bundle(files)
        now = _export_best_network(
            job, state, validation, custom_network=custom_network, overwrite=overwrite, progress=progress
        )
        warn_about_lost_options(files, before, now)
        write_plots_and_report(files.folder, overwrite=overwrite, progress=progress)
    result = replace(result, onnx=files.onnx if files.onnx.exists() else None)
    _write_result(result, files, overwrite=overwrite)
    return result


def _export_best_network(
    job: TrainingJob, state: TrainingState, validation: ValidationResult, *,
    custom_network: nn.Module | None, overwrite: bool, progress: Progress,
) -> OnnxBundle:  # fmt: skip
    files = job.files
    if distributed.world_size() > 1 or job.device.type != "cpu":
        return export_run(files.folder, files.onnx, network=custom_network, overwrite=overwrite, progress=progress)
    images = tuple(job.val_set.images[n] for n in validation.image_indices)
    outputs = NetworkOutputs(images, validation.logits.numpy())
    trained = make_trained_run(files, job.network, weights=files.state if state.lower_layers_share else files.best)
    return export_trained_run(files, trained, files.onnx, outputs=outputs, overwrite=overwrite, progress=progress)


def _write_result(result: FineTuneResult, files: RunFiles, *, overwrite: bool) -> None:
    write_text_output(files.result, json.dumps(result.to_dict(), indent=1) + "\n", overwrite=overwrite)


def _fit_known_output(job: TrainingJob, state: TrainingState, validation: ValidationResult) -> KnownOutput:
    """Fit both parts of KnownOutput: the in-distribution score `known`, and thresholds of prediction sets."""
    train, val = (compute_head_inputs(job.model, job.source, images) for images in (job.train_set, job.val_set))
    score = fit_known_score(train.features, train.labels, len(job.class_names), validation_features=val.features)
    if state.best_epoch == 0 and state.prediction_set_thresholds:  # the closed-form head
        sets = PredictionSetThresholds("leave-one-out", len(train.labels), state.prediction_set_thresholds)
    else:
        labels = validation.targets.numpy()
        thresholds = compute_conformal_thresholds(validation.probabilities.numpy(), labels)
        sets = PredictionSetThresholds("validation", len(labels), thresholds)
    return KnownOutput(score, job.model.head, InDistributionCalibration(KNOWN_SHARE, len(val.labels)), sets)


def _write_predictions(job: TrainingJob, validation: ValidationResult, *, overwrite: bool) -> None:
    """Write `val_predictions.csv`: path, label and class probabilities of each validation image."""
    path = job.files.predictions
    with write_output(path, overwrite=overwrite) as part, part.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["path", "label", *job.class_names])
        for index, row in zip(validation.image_indices, validation.probabilities.tolist(), strict=True):
            image = job.val_set.images[index]
            labels = [job.class_names[n] for n in image.class_indices]
            label = labels[0] if image.labels is None else json.dumps(labels, ensure_ascii=False)
            table.writerow([relative_name(image.path, job.files.folder.absolute()), label, *row])


def write_suspect_labels(
    files: RunFiles,
    paths: Sequence[Path],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.floating],
    class_names: Sequence[str],
) -> None:
    """Write `suspects.tsv`, the images that are probably mislabelled.

    Args:
        probabilities: `(N, classes)`; each image is predicted by a ridge regression that was fitted without this image.
    """
    suspects = find_suspects(paths, labels, probabilities, class_names)
    write_suspects(suspects, files.suspects, overwrite=True)
    if suspects:
        logger.info(
            "estimated number of wrong labels: %d; suspects.tsv lists the %s most likely to be wrong (at most 10 %%)",
            estimate_num_label_errors(labels, probabilities),
            pluralize(len(suspects), "label"),
        )


def write_plots_and_report(run: Path, *, overwrite: bool, progress: Progress) -> None:
    """Write curves.png, report.html and, in a single-label run, confusion.png.

    If the extra `report` is not installed, log a warning and write nothing.
    """
    try:
        from mlimages.reports import draw_run
    except MissingExtraError as error:
        logger.warning("cannot write the plots and report.html: %s", error)
        return
    progress.start("plots", 1, "page")
    draw_run(run, overwrite=overwrite)
    progress.advance()
    progress.close()
