#!/usr/bin/env python
"""How many planted shortcuts does the sentence of `mlimages evaluate --explain` find, and how often is it wrong?

    .venv/bin/python scripts/bench/shortcuts.py DATA BACKGROUNDS [--seeds 1 81] [--model efficientnet_lite0]

DATA holds train/CLASS and val/CLASS with photographs of objects (two classes are drawn for each seed), BACKGROUNDS a
folder of other photographs. For each seed a mark in the corner, a border or a background is planted (see
tests/planting.py), a linear classifier of the pixels is fitted (or the network of --model is fine-tuned), and evaluated
with the centre hidden; then the same without the shortcut. Every second seed of the range is taken: sizes were tuned on
even ones, the figures are of odd ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlimages.cli.predictions import evaluation_text
from mlimages.inference import Predictor, evaluate
from mlimages.labels import LabelFile
from tests.planting import KINDS, Shortcut, linear_predictor, write_set

SIDE, NETWORK_SIDE, TRAIN, VAL = 32, 128, 100, 60
ALARM = "can be predicted from the background alone"


class Study:
    def __init__(self, data: Path, backgrounds: Path, model: str) -> None:
        self.model, self.side = model, NETWORK_SIDE if model else SIDE
        self.names = sorted(path.name for path in (data / "train").iterdir())
        self.objects = {
            (part, name): [_square(path) for path in sorted((data / part / name).iterdir())]
            for part in ("train", "val")
            for name in self.names
        }
        self.backgrounds = [_small(path) for path in sorted(backgrounds.rglob("*.[jJ][pP]*"))]

    def run(self, seed: int, shortcut: Shortcut | None) -> tuple[bool, str]:
        rng = np.random.default_rng([seed, 1])
        names = [self.names[n] for n in rng.permutation(len(self.names))[:2]]
        backgrounds = [self.backgrounds[n] for n in rng.permutation(len(self.backgrounds))]
        with tempfile.TemporaryDirectory() as folder:
            train, val = (
                write_set(Path(folder, part), [self.draw(part, name, count, rng) for name in names], backgrounds,
                          shortcut, side=self.side, rng=rng)
                for part, count in (("train", TRAIN), ("val", VAL))
            )  # fmt: skip
            predictor = (
                network_predictor(train, val, self.model) if self.model else linear_predictor(train, side=self.side)
            )
            text = evaluation_text(evaluate(predictor, val, explain=2 * VAL))
        lines = text.splitlines()
        return ALARM in text, f"{lines[0].split(' (')[0]}; {next(one for one in lines if 'masked' in one)}"

    def draw(self, part: str, name: str, count: int, rng: np.random.Generator) -> list[Image.Image]:
        objects = self.objects[part, name]
        return [objects[n] for n in rng.permutation(len(objects))[:count]]


def network_predictor(train: LabelFile, val: LabelFile, model: str) -> Predictor:
    """A network with a classifier of its own, fine-tuned for 10 epochs."""
    from mlimages.training import FineTuneConfig, export_run, fine_tune

    config = FineTuneConfig(train.path, train.path.parent / "run", val=val.path, model=model, epochs=10)
    return Predictor(export_run(fine_tune(config, export=False).run, config.out / "model.onnx"))


def _small(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB")
    image.thumbnail((128, 128))
    return image


def _square(path: Path) -> Image.Image:
    image = _small(path)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("backgrounds", type=Path)
    parser.add_argument("--model", default="", help="fine-tune this network instead")
    parser.add_argument("--seeds", type=int, nargs=2, default=(1, 81))
    asked = parser.parse_args()
    study = Study(asked.data, asked.backgrounds, asked.model)
    found: list[bool] = []
    alarms: list[bool] = []
    for seed in range(*asked.seeds, 2):
        shortcut = Shortcut.draw(KINDS[seed // 2 % 3], np.random.default_rng(seed))
        planted, clean = study.run(seed, shortcut), study.run(seed, None)
        found.append(planted[0])
        alarms.append(clean[0])
        print(f"{seed} {shortcut.kind} {shortcut.size:.2f}: {planted[1]} | clean: {clean[1]}", flush=True)
    print(f"planted shortcuts found: {sum(found)} of {len(found)}; clean sets alarmed: {sum(alarms)} of {len(alarms)}")


if __name__ == "__main__":
    main()
