"""Write the metrics of each epoch for TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlimages.core import MissingExtraError
from mlimages.training.run import EpochMetrics


class ScalarWriter:
    """Callback of `fine_tune` that writes the metrics of each epoch to `RUN/tensorboard`; use it as a context manager.

    `train_loss` is written as `loss/train`, so that training and validation losses are shown together; the step is the
    epoch.

    Args:
        run: run folder.

    Raises:
        MissingExtraError: tensorboard is not installed.

    >>> with ScalarWriter("runs/new") as writer:  # doctest: +SKIP
    ...     fine_tune(config, callbacks=[writer])
    """

    def __init__(self, run: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise MissingExtraError("--tensorboard", "tensorboard") from error
        self._writer_class: Any = SummaryWriter
        self._folder = Path(run) / "tensorboard"
        self._writer: Any = None

    def __enter__(self) -> ScalarWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer:
            self._writer.close()

    def on_epoch_end(self, metrics: EpochMetrics) -> None:
        """Write the metrics of one epoch and flush them."""
        # creates the folder, so only after the run has started
        self._writer = self._writer or self._writer_class(str(self._folder))
        for name, value in metrics.to_dict().items():
            if name != "epoch":
                part, _, what = name.rpartition("_")
                tag = f"{what}/{part}" if part else name
                self._writer.add_scalar(tag, value, metrics.epoch)
        self._writer.flush()
