"""The figures of each epoch for TensorBoard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlimages.core import MissingExtraError
from mlimages.training.run import EpochFigures


class ScalarWriter:
    """A `Callback` that writes what metrics.csv holds to `RUN/tensorboard`: a context manager.

    `train_loss` becomes `loss/train`, so that train and validation share a chart; the step is the epoch.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("--tensorboard", "tensorboard") from error
        self._make: Any = SummaryWriter
        self._folder = run / "tensorboard"
        self._writer: Any = None

    def __enter__(self) -> ScalarWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer:
            self._writer.close()

    def epoch_ended(self, figures: EpochFigures) -> None:
        """Write one epoch, visible at once."""
        self._writer = self._writer or self._make(str(self._folder))  # makes the folder: not before there is a run
        for name, value in asdict(figures).items():
            if name != "epoch":
                part, _, what = name.rpartition("_")
                tag = f"{what}/{part}" if part else name
                self._writer.add_scalar(tag, value, figures.epoch)
        self._writer.flush()
