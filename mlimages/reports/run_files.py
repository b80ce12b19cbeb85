"""The files of a run folder and its settings, for those who write it and those who read it."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlimages.core import RunError, locked

RUN_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths of the files in a run folder.

    Attributes:
        folder: the run folder.
    """

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
        """Remove the hidden files that a killed process left incomplete."""
        for part in self.folder.glob(".*.part"):
            part.unlink()
        for folder in self.folder.glob(".export.*"):
            shutil.rmtree(folder)

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that a run writes, and would overwrite."""
        data = (self.classes, self.train, self.val, self.mean_image)
        training = (self.metrics, self.state, self.best, self.last)
        ends = (self.predictions, self.result, self.known, self.onnx)
        notes = ("left_out.tsv", "suspects.tsv", "curves.png", "confusion.png", "report.html")
        return (*data, *training, *ends, *(self.folder / name for name in notes))

    @property
    def config(self) -> Path:
        """Settings, preprocessing and what they were resolved to."""
        return self.folder / "config.json"

    @property
    def metrics(self) -> Path:
        """One line per epoch."""
        return self.folder / "metrics.csv"

    @property
    def classes(self) -> Path:
        """A class name a line, in the order of the logits."""
        return self.folder / "classes.txt"

    @property
    def train(self) -> Path:
        """Label file of the training images."""
        return self.folder / "train.txt"

    @property
    def val(self) -> Path:
        """Label file of the validation images."""
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
        """`path,label` and one probability per class for each validation image."""
        return self.folder / "val_predictions.csv"

    @property
    def result(self) -> Path:
        """The figures at the end, as `finetune --json` prints them."""
        return self.folder / "result.json"

    @property
    def known(self) -> Path:
        """How far images are from the training images, and the thresholds of prediction sets."""
        return self.folder / "known.safetensors"

    @property
    def onnx(self) -> Path:
        """The exported network."""
        return self.folder / "model.onnx"

    @property
    def log(self) -> Path:
        """The log."""
        return self.folder / "log.txt"


def read_settings(files: RunFiles) -> dict[str, Any]:
    """The contents of `config.json`.

    Raises:
        RunError: there is none, it is damaged, or another version wrote it.
    """
    folder = files.folder
    if not files.config.is_file():
        raise RunError(
            f"{folder} is not a run folder: it has no config.json (`mlimages finetune ... -o {folder}` makes one)"
        )
    try:
        settings: dict[str, Any] = json.loads(files.config.read_text(encoding="utf-8"))
        version = settings.get("version")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{folder} cannot be read as a run folder: config.json is damaged ({error})") from error
    if version != RUN_VERSION:
        raise RunError(f"{files.config} has format version {version}; this version of mlimages supports {RUN_VERSION}")
    return settings
