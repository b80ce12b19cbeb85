#!/usr/bin/env python
"""How many planted shortcuts does the sentence of `mlimages evaluate --explain` find, and how often is it wrong?

    .venv/bin/python scripts/bench/shortcuts.py DATA BACKGROUNDS -o RESULTS.jsonl [--seeds 1 81] [--linear]

DATA holds train/CLASS and val/CLASS with photographs of objects (two classes are drawn for each seed), BACKGROUNDS a
folder of other photographs. For each seed a mark in the corner, a border or a background is planted (see
tests/planting.py), and the default network, pretrained, gets a closed-form head (or, with --linear, a linear classifier
of the pixels is fitted); then the same without the shortcut. Whether the classifier uses the shortcut is measured on
the same objects with the shortcut of the other class: it does if the accuracy is lower (McNemar's test, p < 0.05).

Every second seed of the range is taken: sizes and statistic were chosen on even ones, the figures are of odd ones.
Seeds that are in RESULTS are not computed again. The table at the end is the ROC.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlimages.core import scores
from mlimages.inference import Evaluation, Predictor, evaluate
from mlimages.labels import LabelFile
from tests.planting import KINDS, Kind, Shortcut, linear_predictor, write_set

SIDE, NETWORK_SIDE, TRAIN, VAL = 32, 128, 80, 50
RATES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, slots=True)
class Case:
    """The results of a seed: accuracy and p-value with the shortcut, and the p-value without one."""

    seed: int
    kind: Kind
    size: float
    accuracy: float
    without: float
    swapped: float
    used: bool
    planted: float
    clean: float


class Study:
    def __init__(self, data: Path, backgrounds: Path, *, linear: bool) -> None:
        self.side = SIDE if linear else NETWORK_SIDE
        self.fit = self.fit_linear if linear else network_fit()
        self.names = sorted(path.name for path in (data / "train").iterdir())
        self.objects = {
            (part, name): [_square(path) for path in sorted((data / part / name).iterdir())]
            for part in ("train", "val")
            for name in self.names
        }
        self.backgrounds = [_small(path) for path in sorted(backgrounds.rglob("*.[jJ][pP]*"))]

    def fit_linear(self, labels: LabelFile) -> Predictor:
        return linear_predictor(labels, side=self.side)

    def run(self, seed: int) -> Case:
        shortcut = Shortcut.draw(KINDS[seed // 2 % 3], np.random.default_rng(seed))
        with tempfile.TemporaryDirectory() as folder:
            own, without, swapped = self.evaluate(Path(folder), seed, shortcut)
            (clean,) = self.evaluate(Path(folder, "clean"), seed, None)
        assert own.background_use
        assert clean.background_use
        lost, gained = (len(_wrong(one) - _wrong(other)) for one, other in ((swapped, own), (own, swapped)))
        used = lost > gained and scores.mcnemar_test(gained, lost) < 0.05
        shares = (one.accuracy.value for one in (own, without, swapped))
        return Case(
            seed, shortcut.kind, shortcut.size, *shares, used, own.background_use.p_value, clean.background_use.p_value
        )

    def evaluate(self, folder: Path, seed: int, shortcut: Shortcut | None) -> list[Evaluation]:
        """Fit a classifier and evaluate it; with a shortcut also without it and with that of the other class."""
        rng = np.random.default_rng([seed, 1])
        names = [self.names[n] for n in rng.permutation(len(self.names))[:2]]
        backgrounds = [self.backgrounds[n] for n in rng.permutation(len(self.backgrounds))]
        train, val = (
            [self.draw(part, name, count, rng) for name in names] for part, count in (("train", TRAIN), ("val", VAL))
        )
        predictor = self.fit(write_set(folder / "train", train, backgrounds, shortcut, side=self.side, rng=rng))

        def measure(name: str, shortcut: Shortcut | None, *, swap: bool = False) -> Evaluation:
            same = np.random.default_rng([seed, 2])
            labels = write_set(folder / name, val, backgrounds, shortcut, side=self.side, rng=same, swap=swap)
            return evaluate(predictor, labels, background_test_images=2 * VAL if name == "own" else 0)

        own = measure("own", shortcut)
        return [own, measure("without", None), measure("swapped", shortcut, swap=True)] if shortcut else [own]

    def draw(self, part: str, name: str, count: int, rng: np.random.Generator) -> list[Image.Image]:
        objects = self.objects[part, name]
        return [objects[n] for n in rng.permutation(len(objects))[:count]]


def network_fit() -> Any:
    """Return a function that fits the closed-form head of `finetune` to the default network in ONNX Runtime."""
    import io
    import warnings

    import onnxruntime
    import torch

    from mlimages.core import DEFAULT_MODEL
    from mlimages.images import load_pixels
    from mlimages.inference import OnnxBundle, ParityTestImage
    from mlimages.networks import (
        Normalize,
        add_lower_layers_head,
        build_model,
        find_lower_layers_head,
        freeze,
        split_network,
    )
    from mlimages.training.head import fit_ridge
    from tests.planting import FittedPredictor

    model = build_model(DEFAULT_MODEL, num_classes=2)
    frozen, deep, image = freeze(model, "head"), add_lower_layers_head(model), model.preprocessing.image
    assert deep
    parts = split_network(deep.network, frozen, torch.zeros(2, 3, image.height, image.width))
    assert parts
    lower = torch.nn.Sequential(Normalize(model.preprocessing.normalization), parts.lower_part).eval()
    pixels, file = torch.zeros(2, image.height, image.width, 3, dtype=torch.uint8), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter takes a minute
        torch.onnx.export(lower, (pixels,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "N"}})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options)
    lower_head = find_lower_layers_head(deep.network)
    assert lower_head
    widths = lower_head.layer_features

    def features(pixels: Any) -> Any:
        return np.concatenate(session.run(None, {"x": np.stack(pixels)}), axis=1)  # (N, D)

    def fit(labels: LabelFile) -> FittedPredictor:
        items, prop = list(labels), model.preprocessing.image
        x = np.concatenate([features([load_pixels(item.path, prop)]) for item in items])
        last, *depths = np.split(x, np.cumsum([x.shape[1] - sum(widths), *widths])[:-1], axis=1)
        head = fit_ridge(last, np.array([item.label for item in items]), 2, lower_features=depths).head
        bundle = OnnxBundle(
            labels.path, ("first", "second"), model.preprocessing, model.name, ParityTestImage(0, 0, b"", ())
        )
        return FittedPredictor(
            bundle, lambda pixels: head.compute_probabilities(features(pixels)[:, : head.weight.shape[1]])
        )

    return fit


def _wrong(evaluation: Evaluation) -> set[str]:
    return {Path(prediction.path).name for prediction, _ in evaluation.mistakes}


def _small(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB")
    image.thumbnail((128, 128))
    return image


def _square(path: Path) -> Image.Image:
    image = _small(path)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def roc_table(cases: list[Case]) -> str:
    """Return the shortcuts found and the clean sets alarmed for each threshold of the p-value, as Markdown."""
    used = [case for case in cases if case.used]
    lines = ["| p at most | shortcuts found | of those used | clean sets alarmed | expected by chance |"]
    lines.append("|---|---|---|---|---|")
    for rate in RATES:
        found, of_used = (sum(case.planted <= rate for case in some) for some in (cases, used))
        alarms = sum(case.clean <= rate for case in cases)
        lines.append(
            f"| {rate:g} | {found} of {len(cases)} | {of_used} of {len(used)} | {alarms} of {len(cases)} "
            f"| {rate * len(cases):.2g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("backgrounds", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--linear", action="store_true", help="fit a linear classifier of the pixels instead")
    parser.add_argument("--seeds", type=int, nargs=2, default=(1, 81))
    asked = parser.parse_args()
    rows = asked.out.read_text().splitlines() if asked.out.exists() else []
    known = {case.seed: case for case in (Case(**json.loads(row)) for row in rows)}
    study = Study(asked.data, asked.backgrounds, linear=asked.linear)
    cases = []
    for seed in range(*asked.seeds, 2):
        case = known.get(seed) or study.run(seed)
        cases.append(case)
        if seed not in known:
            with asked.out.open("a") as out:
                print(json.dumps({name: getattr(case, name) for name in Case.__slots__}), file=out)
        print(case, flush=True)
    print(roc_table(cases))


if __name__ == "__main__":
    main()
