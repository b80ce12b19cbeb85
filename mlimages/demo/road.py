"""The story of `mlimages demo`: each step's command line, then the function that it calls."""

from __future__ import annotations

import csv
import random
import shutil
import statistics
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlimages.checks import CheckReport, check, split_labels, write_outcome
from mlimages.core import GatherSummary, ImageProperty, InputError, LabeledPath, Prediction, counted
from mlimages.dataset import TrainingData
from mlimages.demo.site import Page, digit_pages, serving
from mlimages.gathering import UrlList, gather
from mlimages.inference import OnnxBundle, Predictor
from mlimages.labels import LabelFile, label_dir_auto
from mlimages.training import FineTuneConfig, FineTuneResult, fine_tune

SEEDS = range(5)
PER_CLASS = 10
OLD_EPOCHS, NEW_EPOCHS = 12, 40
SHOWN_EPOCHS = (10, NEW_EPOCHS)
T_95 = 2.776
"""Two-sided 95 % quantile of Student's t with len(SEEDS) - 1 = 4 degrees of freedom."""
WIDTH = 79
MARK = "Made by `mlimages demo`; the next demo makes this folder anew.\n"
INTRODUCTION = """\
The whole road on real handwritten digits (the 1797 of scikit-learn), served on
this machine by a web site with broken links. First a network learns the digits
0 to 4; then it learns 5 to 9 from ten pictures each, its convolutions frozen.
"""
NEXT = """
Your own pictures, in a folder per class:
$ mlimages label FOLDER -o labels.txt
$ mlimages check labels.txt
$ mlimages finetune labels.txt --model mobilenet_v2 -o runs/first
Only a list of links? mlimages gather urls --help"""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to learn the new digits, after some epochs: right answers by seed, of `counts` pictures each."""

    name: str
    right: Sequence[int]
    counts: Sequence[int]

    def __str__(self) -> str:
        shares = [100 * right / count for right, count in zip(self.right, self.counts, strict=True)]
        mean = statistics.mean(shares)
        half = T_95 * statistics.stdev(shares) / len(shares) ** 0.5
        return (
            f"{mean:.1f} % ({mean - half:.1f} to {min(100.0, mean + half):.1f};"
            f" {sum(self.right)} of {sum(self.counts)})"
        )


def walk(out: Path, *, say: Callable[[str], None]) -> None:
    """Walk the whole road in the folder `out`, which is made anew, telling each step by `say`.

    Raises:
        InputError: `out` holds something that no demo made.
    """
    _clear(out)
    say(INTRODUCTION)
    say(f"$ cd {out}")
    Road(out, say).walk()
    say(NEXT)


def _clear(out: Path) -> None:
    mark = out / "README.txt"
    if out.exists() and any(out.iterdir()):
        if not mark.exists() or mark.read_text() != MARK:
            raise InputError(f"{out} holds something that no demo made: name another folder with -o")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(MARK)


class Road:
    """The steps in one folder: each tells its command line, as typed in that folder, then does it.

    Args:
        out: the folder.
        say: shows some lines.
    """

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self._out = out
        self._say = say

    def walk(self) -> None:
        """All steps, and the table at the end."""
        started = time.monotonic()
        pages = digit_pages(seed=0)
        with serving(pages) as site:
            gathered = [
                self._gather("old", site, [page for page in pages if page.label < "5"]),
                self._gather("new", site, [page for page in pages if page.label >= "5"]),
            ]
        train, val, new = self._label()
        checked = [self._check(train, val), self._check(new)]
        self._mean(train)
        self._learn_old(train, val)
        arms = self._learn_new(new)
        run = self._out / "runs" / f"transfer-{SEEDS[0]}"
        right, asked = self._predict(run, LabelFile(self._out / f"rest_{SEEDS[0]}.txt"))
        reasons: Counter[str] = sum((Counter(summary.reasons) for summary in gathered), Counter())
        self._table(
            ("gathered", f"{sum(summary.ok for summary in gathered)} pictures of 10 digits"),
            ("duplicates", f"{sum(summary.duplicate for summary in gathered)} left out"),
            ("broken links", _listed(reasons)),
            ("rejected", f"{counted(sum(report.checked - report.ok for report in checked), 'picture')} by check"),
            *((arm.name, str(arm)) for arm in arms),
            ("ONNX file", _agreement(run)),
            ("predicted", f"{right} of {asked} right"),
            ("took", f"{time.monotonic() - started:.0f} s"),
        )

    def _command(self, line: str) -> None:
        """Show a command line, folded with backslashes where it is long."""
        folded = textwrap.wrap(f"$ mlimages {line}", WIDTH - 2, subsequent_indent="    ", break_on_hyphens=False)
        self._say(" \\\n".join(folded))

    def _tell(self, outcome: str) -> None:
        """Show what came of a command."""
        self._say(textwrap.fill(outcome, WIDTH, initial_indent="  ", subsequent_indent="    ") + "\n")

    def _gather(self, name: str, site: str, pages: Sequence[Page]) -> GatherSummary:
        links = self._out / f"{name}_links.tsv"
        links.write_text("".join(f"{page.label}\t{site}{page.path}\n" for page in pages))
        self._command(f"gather urls {links.name} -o {name} --allow-private")
        summary = gather(UrlList(links), self._out / name, allow_private=True)
        kept = f"{counted(summary.ok, 'picture')}, {counted(summary.duplicate, 'duplicate')}"
        self._tell(f"{kept}; failed: {_listed(summary.reasons)}")
        return summary

    def _label(self) -> list[LabelFile]:
        """The old digits as train and val files, the new ones as one file."""
        self._command("label old -o old.txt --split 0.8,0.2 --seed 0")
        old = label_dir_auto(self._out / "old").labels
        parts = split_labels(old, (0.8, 0.2), seed=0)
        files = [part.write(self._out / f"old_{side}.txt") for part, side in zip(parts, ("train", "val"), strict=True)]
        self._say("".join(f"  {_contents(file)}\n" for file in files))
        self._command("label new -o new.txt")
        files.append(label_dir_auto(self._out / "new").labels.write(self._out / "new.txt"))
        self._tell(_contents(files[-1]))
        return files

    def _check(self, *files: LabelFile) -> CheckReport:
        self._command(f"check {' '.join(file.path.name for file in files)}")
        report = check(files)
        write_outcome(report)
        self._tell(f"{report.checked} decoded; errors: {_listed(report.errors)}; warnings: {_listed(report.warnings)}")
        return report

    def _mean(self, train: LabelFile) -> None:
        self._command(f"mean {train.path.name} --size 28 --gray -o mean.png")
        TrainingData(train, ImageProperty(28, gray_scale=True)).make_mean_image(self._out / "mean.png")
        self._tell("mean.png to look at, mean.npy to compute with")

    def _learn_old(self, train: LabelFile, val: LabelFile) -> None:
        """A LeNet of the digits 0 to 4, from chance: the network whose convolutions the new digits borrow."""
        result = self._finetune(train, val, "old", weights="none", freeze="none", epochs=OLD_EPOCHS)
        low, high = (100 * end for end in result.val_interval)
        self._tell(f"{100 * result.val_accuracy:.1f} % of {result.val_images} ({low:.1f} to {high:.1f})")

    def _learn_new(self, new: LabelFile) -> list[Arm]:
        """Ten pictures of each new digit: with the old convolutions frozen, and from scratch, over all seeds."""
        self._say(f"# Ten pictures of each digit 5 to 9 to learn from, drawn with the seeds {SEEDS[0]} to {SEEDS[-1]};")
        self._say("# all others to test on. Shown for the first seed:")
        right: dict[str, list[int]] = {}
        counts = []
        for seed in SEEDS:
            few, rest = self._draw(new, seed=seed)
            counts.append(sum(1 for _ in rest))
            for name, weights, freeze in [
                ("transfer", "runs/old/best.safetensors", "conv2"),
                ("scratch", "none", "none"),
            ]:
                run = f"{name}-{seed}"
                self._finetune(few, rest, run, weights=weights, freeze=freeze, epochs=NEW_EPOCHS, seed=seed)
                for epoch in SHOWN_EPOCHS:
                    share = _accuracy(self._out / "runs" / run, epoch)
                    right.setdefault(f"{name}, {epoch} ep.", []).append(round(share * counts[-1]))
        self._say("")
        return [Arm(name, right[name], counts) for name in sorted(right)]

    def _finetune(
        self, train: LabelFile, val: LabelFile, run: str, *, weights: str, freeze: str, epochs: int, seed: int = 0
    ) -> FineTuneResult:
        """Train a LeNet; the command line is shown, and the ONNX file made, for the first seed alone."""
        if seed == SEEDS[0]:
            self._command(
                f"finetune {train.path.name} --val {val.path.name} --model lenet5 --weights {weights}"
                f" --freeze {freeze} --epochs {epochs} --lr 0.001 --augment none --seed {seed} -o runs/{run}"
            )
        config = FineTuneConfig(
            train.path,
            self._out / "runs" / run,
            val=val.path,
            model="lenet5",
            weights=weights if weights == "none" else str(self._out / weights),
            freeze=freeze,
            epochs=epochs,
            lr=0.001,
            augment="none",
            seed=seed,
        )
        return fine_tune(config, export=run == f"transfer-{SEEDS[0]}")

    def _draw(self, new: LabelFile, *, seed: int) -> tuple[LabelFile, LabelFile]:
        """`PER_CLASS` pictures of each class, and the rest."""
        by_class: dict[int, list[LabeledPath]] = {}
        for item in new:
            by_class.setdefault(item.label, []).append(item)
        rng = random.Random(seed)
        chosen = {item.path for label in sorted(by_class) for item in rng.sample(by_class[label], PER_CLASS)}
        few = new.filter(lambda item: item.path in chosen).write(self._out / f"few_{seed}.txt")
        return few, new.filter(lambda item: item.path not in chosen).write(self._out / f"rest_{seed}.txt")

    def _predict(self, run: Path, rest: LabelFile) -> tuple[int, int]:
        """Name a test picture of each digit; return how many were right, of how many."""
        shown = list({item.label: item for item in rest}.values())
        names = [item.path.relative_to(self._out).as_posix() for item in shown]
        self._command(f"predict runs/{run.name}/model.onnx {' '.join(names)} --top 1")
        answers = Predictor(run / "model.onnx")([item.path for item in shown], top=1)
        right = 0
        for name, item, answer in zip(names, shown, answers, strict=True):
            if isinstance(answer, Prediction):
                right += answer.class_name == rest.class_names[item.label]
                self._say(f"  {name}: {answer.class_name} ({100 * answer.probability:.0f} %)")
        self._say("")
        return right, len(shown)

    def _table(self, *rows: tuple[str, str]) -> None:
        self._say(f"{'what':<18} outcome (accuracy with its 95 % interval over {len(SEEDS)} seeds)")
        self._say("-" * WIDTH)
        for what, outcome in rows:
            self._say(textwrap.fill(f"{what:<18} {outcome}", WIDTH, subsequent_indent=" " * 19))


def _contents(file: LabelFile) -> str:
    return f"{file.path.name}: {sum(1 for _ in file)} pictures of {', '.join(file.class_names)}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in counts.items()) or "none"


def _accuracy(run: Path, epoch: int) -> float:
    """After a fixed number of epochs: the best epoch would have been chosen on the very pictures it is tested on."""
    with (run / "metrics.csv").open(newline="") as table:
        return float(list(csv.DictReader(table))[epoch - 1]["val_accuracy"])


def _agreement(run: Path) -> str:
    parity = OnnxBundle.read(run / "model.onnx").provenance.parity
    if parity is None:
        return "not compared"
    return f"answers as the network on all {parity.count} test pictures; logits {parity.worst:.0e} apart"
