"""The run folder: its files, settings, metrics and log."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlimages.core import InputError, Preprocessing, RunError, locked, write_text
from mlimages.training.config import FineTuneConfig

VERSION = 1


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """One line of metrics.csv; accuracies in 0..1, losses in nats, seconds of the epoch."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Where everything of a run lies."""

    folder: Path

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder against a second run.

        Raises:
            RunError: on entering, if another process trains into it.
        """
        in_use = RunError(
            f"another process is training in {self.folder}: wait for it, or use another -o. Processes that train "
            "together are started by torchrun, or with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set"
        )
        return locked(self.folder / ".lock", in_use)

    def tidy(self) -> None:
        """Remove the hidden files that a killed process left half written."""
        for part in self.folder.glob(".*.part"):
            part.unlink()
        for made in self.folder.glob(".export.*"):
            shutil.rmtree(made)

    @property
    def written(self) -> tuple[Path, ...]:
        """What a run would write over."""
        data = (self.classes, self.train, self.val, self.mean_image)
        training = (self.metrics, self.state, self.best, self.last)
        ends = (self.predictions, self.result, self.onnx)
        notes = ("left_out.tsv", "suspects.tsv", "curves.png", "confusion.png", "report.html")
        return (*data, *training, *ends, *(self.folder / name for name in notes))

    @property
    def config(self) -> Path:
        """Settings, preprocessing and what they were resolved to."""
        return self.folder / "config.json"

    @property
    def metrics(self) -> Path:
        """A line per epoch."""
        return self.folder / "metrics.csv"

    @property
    def classes(self) -> Path:
        """A class name a line, in the order of the logits."""
        return self.folder / "classes.txt"

    @property
    def train(self) -> Path:
        """Label file of the pictures trained on."""
        return self.folder / "train.txt"

    @property
    def val(self) -> Path:
        """Label file of the pictures validated on."""
        return self.folder / "val.txt"

    @property
    def mean_image(self) -> Path:
        """The mean image subtracted, float32 `(C, H, W)` in 0..255, where one is."""
        return self.folder / "mean.npy"

    @property
    def best(self) -> Path:
        """The whole network at its best epoch, under the library's own names."""
        return self.folder / "best.safetensors"

    @property
    def last(self) -> Path:
        """The whole network after the last epoch."""
        return self.folder / "last.safetensors"

    @property
    def state(self) -> Path:
        """What resuming needs: trained tensors after the last and the best epoch, optimizer, history."""
        return self.folder / "state.safetensors"

    @property
    def predictions(self) -> Path:
        """`path,label` and one probability per class for each validation picture."""
        return self.folder / "val_predictions.csv"

    @property
    def result(self) -> Path:
        """The figures at the end, as `finetune --json` prints them."""
        return self.folder / "result.json"

    @property
    def onnx(self) -> Path:
        """The exported network."""
        return self.folder / "model.onnx"

    @property
    def log(self) -> Path:
        """What happened, always."""
        return self.folder / "log.txt"


def read_config(run: Path) -> FineTuneConfig:
    """The settings that a run was begun with, to go on with it in the folder where it lies now.

    Raises:
        RunError: it is not a run folder.
    """
    return replace(FineTuneConfig.from_dict(read_settings(RunFiles(run))["config"]), out=run)


def read_settings(files: RunFiles) -> dict[str, Any]:
    """`config.json` as it lies there.

    Raises:
        RunError: there is none, or another version wrote it.
    """
    try:
        settings: dict[str, Any] = json.loads(files.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{files.folder} is not a run folder: it has no readable config.json ({error})") from error
    if settings.get("version") != VERSION:
        raise RunError(f"{files.config} is of version {settings.get('version')}; this mlimages reads {VERSION}")
    return settings


def check_folder(config: FineTuneConfig, files: RunFiles) -> bool:
    """Whether the run of this folder has ended, as `config` asks for it; nothing is written.

    Until its first epoch has ended, a run may be started again with other settings; later it may be given more epochs.

    Raises:
        InputError: the folder is a file, or holds files that no run wrote.
        RunError: it holds a run with other settings.
    """
    if files.folder.exists() and not files.folder.is_dir():
        raise InputError(f"{files.folder} is a file: give a folder with -o")
    if not files.config.exists():
        foreign = [path.name for path in files.written if path.exists()]
        if foreign:
            raise InputError(f"{files.folder} is not a run folder and holds {', '.join(foreign)}: give another -o")
        return False
    before, now = read_settings(files)["config"], json.loads(config.to_json())
    if not files.state.exists() and not files.result.exists():
        return False
    other = sorted(name for name in now if name != "out" and before.get(name) != now[name])
    if other == ["epochs"] and now["epochs"] > before["epochs"] and files.state.exists():
        return False
    if other:
        differences = ", ".join(f"{name} {before.get(name)!r} there, {now[name]!r} now" for name in other[:3])
        raise RunError(
            f"{files.folder} holds a run with other settings ({differences}): go on with it by "
            f"`mlimages finetune --resume {files.folder}`, or give another -o"
        )
    return files.result.exists()


def write_settings(files: RunFiles, config: FineTuneConfig, preprocessing: Preprocessing) -> None:
    """Write `config.json`."""
    values = {"version": VERSION, "config": json.loads(config.to_json()), "preprocessing": asdict(preprocessing)}
    write_text(files.config, json.dumps(values, indent=1) + "\n")


def write_metrics(files: RunFiles, history: Sequence[EpochFigures]) -> None:
    """Write `metrics.csv`, whole."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(EpochFigures.__dataclass_fields__)
    for figures in history:
        table.writerow(round(value, 6) if isinstance(value, float) else value for value in asdict(figures).values())
    write_text(files.metrics, text.getvalue())


@contextmanager
def write_log(path: Path) -> Iterator[None]:
    """Write what mlimages logs to the file `path` too, whatever the application shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root_logger = logging.getLogger("mlimages")
    level, forward = root_logger.level, _Forward(root_logger.getEffectiveLevel())
    root_logger.setLevel(min(logging.INFO, root_logger.getEffectiveLevel()))
    root_logger.propagate = False
    root_logger.addHandler(handler)
    root_logger.addHandler(forward)
    try:
        yield
    finally:
        root_logger.removeHandler(forward)
        root_logger.removeHandler(handler)
        root_logger.propagate = True
        root_logger.setLevel(level)
        handler.close()


class _Forward(logging.Handler):
    """Passes on to the application what it would see without the run's log, which has more."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)
