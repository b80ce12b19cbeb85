"""The run folder: what a run was asked, what it saw, what it learnt, and where it stands."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mlimages.core import NetworkSummary, Preprocessing, Progress, RunError, write_text
from mlimages.export import ExportOptions, TrainedNetwork, export_trained
from mlimages.inference import OnnxBundle, Provenance
from mlimages.labels import LabelFile
from mlimages.networks import build_model, summarize_model
from mlimages.reports import read_run
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

    def tidy(self) -> None:
        """Remove the hidden files that a killed process left half written."""
        for part in self.folder.glob(".*.part"):
            part.unlink()
        for made in self.folder.glob(".export.*"):
            shutil.rmtree(made)

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
        """What resuming needs beside: trained tensors, optimiser, history."""
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


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run read back.

    Attributes:
        network: with its checkpoint's weights, in eval mode; normalised pixels to logits.
        preprocessing: the only one to use with it.
        mean_image: float32 `(C, H, W)` in 0..255, where the preprocessing names one.
        class_names: in the order of the logits.
        config: the settings.
        val: label file of the validation pictures.
        figures: the closing figures, as `finetune --json` prints them; empty until the run has ended.
    """

    network: nn.Module
    preprocessing: Preprocessing
    mean_image: NDArray[np.float32] | None
    class_names: tuple[str, ...]
    config: FineTuneConfig
    val: Path
    figures: Mapping[str, Any] = field(default_factory=dict)


def load_run(run: Path, checkpoint: str = "best") -> TrainedRun:
    """Read a run folder, with the network as it was at a checkpoint (`best` or `last`).

    Raises:
        RunError: it is not a run folder, or its files do not belong together.
    """
    files = RunFiles(Path(run))
    settings = read_settings(files)
    config, preprocessing = (
        FineTuneConfig.from_dict(settings["config"]),
        Preprocessing.from_dict(settings["preprocessing"]),
    )
    names = tuple(files.classes.read_text(encoding="utf-8").splitlines())
    path = files.folder / f"{checkpoint}.safetensors"
    if not path.exists():
        raise RunError(f"{run} has no {path.name} yet: go on with `mlimages finetune --resume {run}`")
    image = preprocessing.image
    model = build_model(config.model, classes=len(names), weights=path, size=image.width, gray=image.gray_scale)
    mean = np.load(files.mean_image, allow_pickle=False) if preprocessing.normalization.mean_image else None
    figures = json.loads(files.result.read_text(encoding="utf-8")) if files.result.exists() else {}
    return TrainedRun(model.network, preprocessing, mean, names, config, files.val, figures)


def summarize_run(run: Path) -> NetworkSummary:
    """The network of a run folder, at its size, frozen as it was.

    Raises:
        RunError: it is not a run folder.
    """
    folder = read_run(run)
    image, settings = folder.preprocessing.image, folder.settings
    return summarize_model(
        settings["model"],
        size=image.width,
        gray=image.gray_scale,
        classes=len(folder.class_names),
        upto=settings["freeze"],
    )


def export_run(
    run: Path, out: Path, *, options: ExportOptions | None = None, progress: Progress | None = None
) -> OnnxBundle:
    """Write a run's best network to `out`, with where it comes from.

    Raises:
        RunError: `run` is not a run folder.
        ExportError: the file does not answer as the network does; the worst picture is named and nothing is written.
    """
    files, loaded = RunFiles(run), load_run(run)
    trained = TrainedNetwork(
        loaded.network, loaded.preprocessing, loaded.class_names, loaded.config.model, loaded.mean_image
    )
    splits = {name: path for name, path in (("train", files.train), ("val", files.val)) if path.exists()}
    provenance = Provenance(
        weights_sha256=_sha256(files.best),
        data_sha256={name: _sha256(path) for name, path in splits.items()},
        split_sizes={name: sum(1 for _ in LabelFile(path)) for name, path in splits.items()},
    )
    return export_trained(
        trained, out, validation=LabelFile(files.val), options=options, provenance=provenance, progress=progress
    )


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
