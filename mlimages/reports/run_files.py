"""Paths of the files in a run folder, its lock, and its settings."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mlimages.core import RunError, file_lock, format_command, summarize_error
from mlimages.inference import external_data_path
from mlimages.labels import class_definition_path

RUN_VERSION = 1


class RunFiles:
    """Paths of the files in a run folder.

    Attributes:
        folder: the run folder.
        config: settings (with the values of `freeze` and `weights` that the run uses), default settings, preprocessing.
        metrics: metrics, one line per epoch.
        classes: class names, one per line, in the order of the logits.
        train, val: label files of the training set and the validation set.
        mean_image: mean image, float32 `(C, H, W)` in 0..255; missing if none is subtracted.
        best: full weights at the best epoch, with the parameter names of the network's library, such as torchvision.
        last: full weights after the last epoch.
        state: state to resume from: trained tensors after the last and the best epoch, optimizer, history.
        predictions: predictions for the validation set: `path,label` (class name, or JSON list of them) and one
            probability per class.
        result: final metrics, as printed by `finetune --json`.
        known: parameters of the exported file's output `known` (the in-distribution score: similarity to the training
            images); also the thresholds of prediction sets.
        left_out: table of the images that could not be decoded.
        suspects: table of the images that are probably mislabelled.
        curves, confusion: plots of the metrics by epoch, and of the confusion matrix.
        report: HTML page with the curves, mistakes and settings.
        onnx: the exported network.
        log: log of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.metrics = folder / "metrics.csv"
        self.classes = folder / "classes.txt"
        self.train, self.val = folder / "train.txt", folder / "val.txt"
        self.mean_image = folder / "mean.npy"
        self.best = folder / "best.safetensors"
        self.last = folder / "last.safetensors"
        self.state = folder / "state.safetensors"
        self.predictions = folder / "val_predictions.csv"
        self.result = folder / "result.json"
        self.known = folder / "known.safetensors"
        self.left_out, self.suspects = folder / "left_out.tsv", folder / "suspects.tsv"
        self.curves, self.confusion = folder / "curves.png", folder / "confusion.png"
        self.report = folder / "report.html"
        self.onnx = folder / "model.onnx"
        self.log = folder / "log.txt"

    def lock(self) -> AbstractContextManager[None]:
        """Context manager: lock the run folder, so that no other process trains in this folder.

        Raises:
            RunError: on entering, if another process is training in this folder.
        """
        error_if_locked = RunError(
            f"another process is training in {self.folder}: wait for it, or choose another folder with -o. "
            "For distributed training, start the processes with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and "
            "MASTER_PORT"
        )
        return file_lock(self.folder / ".lock", error_if_locked)

    def read_class_names(self) -> tuple[str, ...]:
        """Read the class names, in the order of the logits.

        Raises:
            RunError: the file is missing, cannot be read, is not UTF-8, or lists a name more than once.
        """
        require_readable(self.classes)
        try:
            with self.classes.open(encoding="utf-8") as lines:  # str.splitlines() would also split at U+2028 in a name
                names = tuple(line.removesuffix("\n") for line in lines)
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.classes} is missing or damaged: write a class name per line, in the order of the logits, or "
                "train again"
            ) from error
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise RunError(f"{self.classes} lists the class {twice[0]!r} more than once: give each class its own name")
        return names

    @property
    def output_files(self) -> tuple[Path, ...]:
        """Files that a run writes; a new run does not start in a folder that contains one of them."""
        weights = (self.state, self.best, self.last, self.known)
        return (*self.initial_files, *weights, *self.result_files, *self.export_files)

    @property
    def initial_files(self) -> tuple[Path, ...]:
        """Files that a run writes before its first epoch, and keeps when it is resumed."""
        definitions = map(class_definition_path, (self.train, self.val))
        return (self.classes, self.train, self.val, *definitions, self.mean_image, self.left_out, self.suspects)

    @property
    def result_files(self) -> tuple[Path, ...]:
        """Metrics and predictions: a run replaces them, even when it is resumed."""
        return (self.metrics, self.predictions, self.result)

    @property
    def export_files(self) -> tuple[Path, ...]:
        """Exported network, plots and report: a run replaces them if it exports its network."""
        return (self.onnx, external_data_path(self.onnx), *self.report_files)

    @property
    def report_files(self) -> tuple[Path, ...]:
        """Plots and report."""
        return (self.curves, self.confusion, self.report)


def require_readable(*paths: Path) -> None:
    """Check that those of the paths that exist can be opened for reading; safetensors takes any other file for missing.

    Raises:
        RunError: a file cannot be opened.
    """
    for path in paths:
        try:
            path.open("rb").close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            advice = "; ask its owner for permission to read it" if isinstance(error, PermissionError) else ""
            raise RunError(f"{path} cannot be read: {summarize_error(error)}{advice}") from error


def read_settings(files: RunFiles) -> dict[str, Any]:
    """Return the contents of a run folder's `config.json`.

    Raises:
        RunError: the file is missing, cannot be read, is damaged, or is from an incompatible version.
    """
    folder = files.folder
    require_readable(files.config)
    if not files.config.is_file():
        create = format_command("finetune", "...", "-o", folder)
        raise RunError(f"{folder} is not a run folder: it has no config.json ({create} creates one)")
    try:
        settings: dict[str, Any] = json.loads(files.config.read_text(encoding="utf-8"))
        version = settings.get("version")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(
            f"{folder} cannot be read as a run folder: config.json is damaged ({summarize_error(error)}); restore it, "
            "or train again"
        ) from error
    if version != RUN_VERSION:
        raise RunError(f"{files.config} has format version {version}; this version of mlimages supports {RUN_VERSION}")
    return settings
