"""TensorBoard gets the figures of metrics.csv."""

from pathlib import Path

import pytest

pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf and tensorboard itself


def test_every_figure_of_every_epoch_is_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from mlimages.training import ScalarWriter
    from mlimages.training.run import EpochMetrics

    epochs = [EpochMetrics(n, 0.01, 1 / n, 0.5, 2 / n, 0.4, 3.0) for n in (1, 2)]
    with ScalarWriter(tmp_path) as writer:
        for figures in epochs:
            writer.on_epoch_end(figures)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    tags = ["accuracy/train", "accuracy/val", "loss/train", "loss/val", "lr", "seconds"]
    assert sorted(read.Tags()["scalars"]) == tags
    assert [(event.step, event.value) for event in read.Scalars("loss/val")] == [(1, 2.0), (2, 1.0)]
