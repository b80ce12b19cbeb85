"""Settings, metrics and log of a run folder."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlimages.core import (
    BrokenImage,
    InputError,
    Normalization,
    Preprocessing,
    RunError,
    format_command,
    require_local_path,
    require_writable,
    write_text,
    write_text_output,
)
from mlimages.reports import RUN_VERSION, RunFiles, read_settings
from mlimages.training.compute_backend import ComputeBackend
from mlimages.training.config import FineTuneConfig

PATH_SETTINGS = ("labels", "val", "images", "weights", "mean")
"""Settings that are, or can be, the path of a file or folder."""

_LOG_RECORD_START = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ mlimages")
"""Matches the start of a record that `log_to_file` wrote, to recognize a log of mlimages."""


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """Metrics of an epoch, one row of metrics.csv: accuracies in 0..1, losses in nats, duration in seconds.

    `lr` is the learning rate of the last step of the epoch. `seconds` is the duration of the epoch with its validation.
    In a multi-label run, the accuracy is the share of images whose labels are all correct at a threshold of 0.5.
    `train_map` and `val_map` are the mean average precision (0..1) of a multi-label run; None in a single-label run.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    train_map: float | None = None
    val_map: float | None = None

    @property
    def val_score(self) -> float:
        """Score by which the best epoch is chosen: `val_accuracy` or, in a multi-label run, `val_map`."""
        return self.val_accuracy if self.val_map is None else self.val_map

    def to_dict(self) -> dict[str, float]:
        """Return the metrics by name, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_config(run: str | os.PathLike[str]) -> FineTuneConfig:
    """Read the settings of a run.

    `out` is the folder `run`, even if it has been moved, so that `fine_tune` with these settings resumes the run.

    Raises:
        RunError: `run` is not a run folder.

    >>> read_config("runs/first").epochs
    1
    """
    folder = require_local_path(run)
    return replace(FineTuneConfig.from_dict(read_settings(RunFiles(folder))["config"]), out=folder)


def contains_finished_run(config: FineTuneConfig, files: RunFiles) -> bool:
    """Return whether the folder contains a finished run with these settings, so that nothing is left to train.

    The result is False if there is no run, the run is not finished, or `epochs` was raised. A run without a complete
    epoch is not finished, and its settings may differ.

    Raises:
        InputError: the folder is a file, or contains files with the names of a run's files but no `config.json`.
        RunError: the folder contains a run with other settings and at least one complete epoch.
    """
    if files.folder.exists() and not files.folder.is_dir():
        raise InputError(f"{files.folder} is a file: choose another output folder with -o")
    if not files.config.exists():
        foreign = [path.name for path in files.output_files if path.exists()]
        if not _is_missing_or_log(files.log):
            foreign.append(files.log.name)
        if foreign:
            raise InputError(
                f"{files.folder} is not a run folder and contains {', '.join(foreign)}: "
                "choose another output folder with -o"
            )
        return False
    before = json.loads(FineTuneConfig.from_dict(read_settings(files)["config"]).to_json())  # adds new settings
    now = json.loads(config.to_json())
    if not files.state.exists() and not files.result.exists():
        return False
    other = sorted(name for name in now if name != "out" and not _is_same_setting(name, before.get(name), now[name]))
    if other == ["epochs"] and now["epochs"] > before["epochs"] and files.state.exists():
        return False
    if other:
        differences = ", ".join(f"{name} was {before.get(name)!r} and is now {now[name]!r}" for name in other[:3])
        is_shorter = now["epochs"] < before["epochs"]
        raise RunError(
            f"{files.folder} contains a run with other settings ({differences}): "
            f"{'its number of epochs can be raised, not lowered; ' if is_shorter else ''}choose another output folder "
            f"with -o, or resume that run with {format_command('finetune', '--resume', files.folder)}"
        )
    return files.result.exists()


def require_unedited_files(files: RunFiles, *, export: bool, overwrite: bool) -> None:
    """Check that a run in this folder replaces no file that a person made or edited.

    The settings and the weights are not checked, since a run continues from them.

    Raises:
        InputError: a file was not written by mlimages or was edited since, and `overwrite` is false.
    """
    initial_files = () if files.state.exists() else files.initial_files
    export_files = files.export_files if export else ()
    require_writable((*initial_files, *files.result_files, *export_files), overwrite=overwrite)


def override_normalization(normalization: Normalization, config: FineTuneConfig) -> Normalization:
    """Return `normalization` with the `scale`, `std` and `bgr` set in `config`; the mean is converted to this scale."""
    scale = config.scale or normalization.scale
    return replace(
        normalization,
        scale=scale,
        mean=tuple(mean * normalization.scale / scale for mean in normalization.mean),
        std=config.std or normalization.std,
        bgr=normalization.bgr if config.bgr is None else config.bgr,
    )


def require_same_preprocessing(config: FineTuneConfig, files: RunFiles, preprocessing: Preprocessing) -> None:
    """Check that a run to resume was started with the same preprocessing.

    Args:
        config: settings of the run; they override values of the preprocessing.
        files: files of the run.
        preprocessing: preprocessing of the network, without the overrides of `config`.

    Raises:
        RunError: the preprocessing differs.
    """
    stored = Preprocessing.from_dict(read_settings(files)["preprocessing"])
    normalization = override_normalization(preprocessing.normalization, config)
    if config.mean:  # computed or copied when the run was started
        normalization = replace(
            normalization, mean=stored.normalization.mean, mean_image=stored.normalization.mean_image
        )
    before = asdict(stored.image) | asdict(stored.normalization)
    now = asdict(preprocessing.image) | asdict(normalization)
    other = [name for name in now if now[name] != before[name]]
    if differences := [f"{name} was {before[name]!r} and is now {now[name]!r}" for name in other]:
        raise RunError(
            f"{files.folder}: the preprocessing of {config.model} differs from that which this run started with "
            f"({', '.join(differences[:3])}): restore it, or choose another output folder with -o"
        )


def _is_missing_or_log(path: Path) -> bool:
    """Return whether the file is missing, empty, or a log of mlimages.

    A run that failed before it wrote `config.json` leaves such a log.
    """
    if not path.is_file():
        return not path.exists()
    with path.open("rb") as file:
        start = file.read(100)
    return not start or bool(_LOG_RECORD_START.match(start))


def _is_same_setting(name: str, old_value: object, new_value: object) -> bool:
    """Return whether two values of a setting are equal; different paths to the same file or folder are equal."""
    if old_value == new_value or name not in PATH_SETTINGS:
        return old_value == new_value
    try:
        return Path(str(old_value)).samefile(str(new_value))
    except OSError:
        return False


def write_settings(
    files: RunFiles,
    config: FineTuneConfig,
    preprocessing: Preprocessing,
    *,
    backend: ComputeBackend | None = None,
    multi_label: bool = False,
) -> None:
    """Write `config.json`: settings, default values of this version, preprocessing, and library and precision."""
    defaults = json.loads(FineTuneConfig(config.labels, config.out).to_json())
    values = {
        "version": RUN_VERSION,
        "config": json.loads(config.to_json()),
        "defaults": {name: value for name, value in defaults.items() if name not in ("labels", "out")},
        "preprocessing": asdict(preprocessing),
        "computation": backend.to_dict() if backend else None,
        **({"multi_label": True} if multi_label else {}),
    }
    write_text(files.config, json.dumps(values, indent=1) + "\n")


def write_metrics(files: RunFiles, history: Sequence[EpochMetrics]) -> None:
    """Write `metrics.csv`, one row per epoch."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    rows = [figures.to_dict() for figures in history]
    table.writerow(rows[0] if rows else EpochMetrics.__dataclass_fields__)
    for row in rows:
        table.writerow(round(value, 6) if isinstance(value, float) else value for value in row.values())
    write_text_output(files.metrics, text.getvalue(), overwrite=True)


def write_skipped_images(files: RunFiles, broken_images: Sequence[BrokenImage]) -> None:
    """Write `left_out.tsv`, the images that could not be decoded, with the columns path, code and detail."""
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(("path", "code", "detail"))
    table.writerows((each.path, each.fault, each.detail) for each in broken_images)
    write_text_output(files.left_out, text.getvalue(), overwrite=True)


def read_backend(files: RunFiles) -> ComputeBackend | None:
    """Read the library and precision of a run from `config.json`; return None if they are not chosen yet.

    Raises:
        RunError: the stored values are unknown.
    """
    values = read_settings(files).get("computation")
    try:
        return ComputeBackend.from_dict(values) if values else None
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{files.config}: the library or precision in `computation` is unknown ({json.dumps(values)}): "
            "restore the file, or choose another output folder with -o"
        ) from error


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Context manager: append the log records of mlimages to the file `path`.

    The lowest level written is INFO, or the level of the logger `mlimages` if it is below INFO, such as DEBUG.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package_logger = logging.getLogger("mlimages")
    level, propagates = package_logger.level, package_logger.propagate
    forward = _ForwardingHandler(package_logger.getEffectiveLevel())
    package_logger.setLevel(min(logging.INFO, package_logger.getEffectiveLevel()))
    package_logger.propagate = False
    package_logger.addHandler(handler)
    package_logger.addHandler(forward)
    try:
        yield
    finally:
        package_logger.removeHandler(forward)
        package_logger.removeHandler(handler)
        package_logger.propagate = propagates
        package_logger.setLevel(level)
        handler.close()


class _ForwardingHandler(logging.Handler):
    """Forwards records at or above its level to the handlers of the root logger."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)
