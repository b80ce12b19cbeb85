"""Run folders as `finetune` leaves them, made by hand, and a callback that interrupts a run."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from mlimages.core import ImageProperty, LabeledPath, Normalization, Preprocessing
from mlimages.labels import write_label_file
from mlimages.training.run import EpochMetrics

NAMES = ("ants", "bees", "wasps")


def write_manifest(images: Path, *sources: Mapping[str, object]) -> None:
    """A manifest as `gather` leaves it, of the first images of the first class; `sources` is what it says of each."""
    name = min(path.name for path in images.iterdir() if path.is_dir())
    facts = {"v": 1, "label": name, "status": "ok", "bytes": 9, "sha256": "0" * 64, "dhash": "0" * 16}
    rows = (
        {**facts, "url": f"http://a/{n}", "path": f"{name}/{n}.png", "source": own} for n, own in enumerate(sources)
    )
    (images / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


class StopsAfter:
    """A callback that interrupts a run after an epoch."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch_end(self, metrics: EpochMetrics) -> None:
        if metrics.epoch == self._epoch:
            raise KeyboardInterrupt


def make_run(
    folder: Path, *, names: Sequence[str] = NAMES, per_class: int = 8, wrong: Sequence[int] = (), **settings: object
) -> Path:
    """A run over `per_class` images of each class; the validation images at `wrong` are named as the next class."""
    preprocessing = Preprocessing(ImageProperty(24), Normalization(mean=(0.5,), std=(0.5,)))
    images = folder.parent / "images"
    items = [
        LabeledPath(images / name / f"{n}.png", label) for label, name in enumerate(names) for n in range(per_class)
    ]
    chance = np.random.default_rng(0)
    for item in items:
        item.path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(item.path)
    folder.mkdir(parents=True)
    asked = {"labels": str(folder.parent / "labels.txt"), "model": "lenet5", "freeze": "head", "seed": 0, **settings}
    (folder / "config.json").write_text(
        json.dumps({"version": 1, "config": asked, "preprocessing": asdict(preprocessing)})
    )
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    for part in ("train.txt", "val.txt"):
        write_label_file(folder / part, items, names)
    (folder / "metrics.csv").write_text(
        "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,seconds\n"
        "1,0.01,1.5,0.4,1.4,0.5,2.0\n2,0.01,0.9,0.7,1.0,0.75,2.0\n"
    )
    (folder / "result.json").write_text(json.dumps({"seconds": 4.0, "epochs": 2}))
    with (folder / "val_predictions.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["path", "label", *names])
        for place, item in enumerate(items):
            said = (item.label + (place in wrong)) % len(names)
            row = [0.9 if guess == said else 0.1 / (len(names) - 1) for guess in range(len(names))]
            table.writerow([f"../images/{item.path.parent.name}/{item.path.name}", names[item.label], *row])
    return folder
