"""The story of `mlimages demo`: each step's command line, then the function that it calls."""

from __future__ import annotations

import csv
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlimages.bundle import OnnxBundle
from mlimages.demo.site import Page, digit_pages, serving
from mlimages.errors import InputError
from mlimages.gathering import UrlList, gather
from mlimages.labels import LabelFile, label_dir_auto
from mlimages.learning.config import FineTuneConfig
from mlimages.learning.finetune import FineTuneResult, fine_tune
from mlimages.predictor import Predictor
from mlimages.records import GatherSummary, ImageProperty, LabeledPath, Prediction
from mlimages.validation import Report, check, write_outcome

Say = Callable[[str], None]

SEEDS = range(5)
PER_CLASS = 10
OLD_EPOCHS, NEW_EPOCHS = 12, 40
T_95 = 2.776
"""Two-sided 95 % quantile of Student's t with len(SEEDS) - 1 = 4 degrees of freedom."""
MARK = "made by `mlimages demo`; the next demo makes this folder anew\n"


NEXT = """
Your own pictures, in a folder per class:
  $ mlimages label FOLDER -o labels.txt
  $ mlimages check labels.txt
  $ mlimages finetune labels.txt --model mobilenet_v2 -o runs/first
or a list of links to begin with: mlimages gather urls --help"""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to learn the new digits: right answers for each seed, of `count` pictures each."""

    name: str
    right: Sequence[int]
    counts: Sequence[int]

    def __str__(self) -> str:
        shares = [100 * right / count for right, count in zip(self.right, self.counts, strict=True)]
        mean = statistics.mean(shares)
        half = T_95 * statistics.stdev(shares) / len(shares) ** 0.5
        return (
            f"{mean:.1f} % (95 % interval {mean - half:.1f} to {min(100.0, mean + half):.1f};"
            f" {sum(self.right)} of {sum(self.counts)})"
        )



def walk(out: Path, *, say: Say) -> None:
    """Walk the whole road in the folder `out`, which is made anew, telling each step by `say`.

    Raises:
        InputError: `out` holds something that no demo made.
    """
    started = time.monotonic()
    _clear(out)
    say(f"Real handwritten digits (scikit-learn's 1797) on a web site on this machine; all goes to {out}/\n")
    pages = digit_pages(seed=0)
    with serving(pages) as site:
        gathered = [
            _gather(out, "old", site, [page for page in pages if page.label < "5"], say=say),
            _gather(out, "new", site, [page for page in pages if page.label >= "5"], say=say),
        ]
    old_train, old_val = _label(out, "old", split=(0.8, 0.2), say=say)
    (new,) = _label(out, "new", say=say)
    report = _check([old_train, old_val, new], say=say)
    _mean(out, old_train, say=say)
    base = _learn_old(out, old_train, old_val, say=say)
    arms, run = _learn_new(out, new, base, say=say)
    named, asked = _predict(run, LabelFile(out / f"rest_{SEEDS[0]}.txt"), say=say)
    reasons = sum((Counter(summary.reasons) for summary in gathered), Counter())
    say("what           outcome")
    for what, outcome in [
        ("gathered", f"{sum(s.ok for s in gathered)} pictures, {sum(s.duplicate for s in gathered)} duplicates left out"),
        ("broken links", _listed(reasons)),
        ("rejected", f"{report.checked - report.ok} of {report.checked} pictures"),
        *((f"{arm.name}", f"{arm}") for arm in arms),
        ("ONNX", _agreement(run)),
        ("predicted", f"{named} of {asked} right"),
        ("took", f"{time.monotonic() - started:.0f} s"),
    ]:
        say(f"{what:<14} {outcome}")
    say(NEXT)


def _clear(out: Path) -> None:
    mark = out / "README.txt"
    if out.exists() and any(out.iterdir()):
        if not mark.exists() or mark.read_text() != MARK:
            raise InputError(f"{out} holds something that no demo made: name another folder with -o")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(MARK)


def _gather(out: Path, name: str, site: str, pages: Sequence[Page], *, say: Say) -> GatherSummary:
    links = out / f"{name}_links.tsv"
    links.write_text("".join(f"{page.label}\t{site}{page.path}\n" for page in pages))
    say(f"$ mlimages gather urls {links} -o {out / name} --allow-private")
    summary = gather(UrlList(links), out / name, allow_private=True)
    say(f"  {summary.ok} pictures; {summary.duplicate} duplicates; failed: {_listed(summary.reasons)}\n")
    return summary


def _label(out: Path, name: str, *, split: Sequence[float] = (), say: Say) -> list[LabelFile]:
    path = out / f"{name}.txt"
    labels = label_dir_auto(out / name).labels
    if not split:
        say(f"$ mlimages label {out / name} -o {path}")
        files = [labels.write(path)]
    else:
        say(f"$ mlimages label {out / name} -o {path} --split {','.join(map(str, split))} --seed 0")
        parts = labels.split(split, seed=0)
        files = [
            part.write(path.with_stem(f"{name}_{side}")) for part, side in zip(parts, ("train", "val"), strict=True)
        ]
    for file in files:
        say(f"  {file.path}: {sum(1 for _ in file)} pictures of {', '.join(file.class_names)}")
    say("")
    return files


def _check(files: Sequence[LabelFile], *, say: Say) -> Report:
    say("$ mlimages check " + " ".join(str(file.path) for file in files))
    report = check(files)
    write_outcome(report)
    say(f"  {report.checked} decoded; errors: {_listed(report.errors)}; warnings: {_listed(report.warnings)}\n")
    return report


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in counts.items()) or "none"


def _mean(out: Path, train: LabelFile, *, say: Say) -> None:
    target = out / "mean.png"
    say(f"$ mlimages mean {train.path} --size 28 --gray -o {target}")
    train.to_training_data(ImageProperty(28, gray_scale=True)).make_mean_image(target)
    say(f"  {target} to look at, {target.with_suffix('.npy')} to compute with\n")


def _finetune(train: Path, val: Path, run: Path, options: str, *, epochs: int, seed: int, export: bool) -> FineTuneResult:
    """Train as the options of `mlimages finetune` say."""
    words = iter(options.split())
    chosen = {name.removeprefix("--"): value for name, value in zip(words, words, strict=True)}
    config = FineTuneConfig(train, run, val=val, epochs=epochs, seed=seed, **chosen)  # type: ignore[arg-type]  # all of them words
    return fine_tune(config, export=export)


def _learn_old(out: Path, train: LabelFile, val: LabelFile, *, say: Say) -> Path:
    """A LeNet of the digits 0 to 4, from chance: the network whose convolutions the new digits borrow."""
    run = out / "runs" / "old"
    options = "--model lenet5 --weights none --freeze none"
    say(_command(train.path, val.path, run, options, epochs=OLD_EPOCHS, seed=0))
    result = _finetune(train.path, val.path, run, options, epochs=OLD_EPOCHS, seed=0, export=False)
    say(f"  the digits 0 to 4: {_share(result.val_accuracy, result.val_interval, result.val_images)}\n")
    return run / "best.safetensors"


def _learn_new(out: Path, new: LabelFile, base: Path, *, say: Say) -> tuple[list[Arm], Path]:
    """Ten pictures of each new digit: with the old convolutions frozen, and from scratch, over all seeds."""
    options = {
        "transfer": f"--model lenet5 --weights {base} --freeze conv2",
        "scratch": "--model lenet5 --weights none --freeze none",
    }
    say(f"# {PER_CLASS} pictures of each digit 5 to 9, drawn by seed, to learn from; all others to test on")
    right: dict[str, list[int]] = {name: [] for name in options}
    counts = []
    for seed in SEEDS:
        few, rest = _draw(out, new, seed=seed)
        counts.append(sum(1 for _ in rest))
        for name, words in options.items():
            run = out / "runs" / f"{name}-{seed}"
            if seed == SEEDS[0]:
                say(_command(few.path, rest.path, run, words, epochs=NEW_EPOCHS, seed=seed))
            export = (name, seed) == ("transfer", SEEDS[0])
            _finetune(few.path, rest.path, run, words, epochs=NEW_EPOCHS, seed=seed, export=export)
            right[name].append(round(_last_accuracy(run) * counts[-1]))
    say(f"# the same with the seeds {SEEDS[1]} to {SEEDS[-1]}\n")
    return [Arm(name, right[name], counts) for name in options], out / "runs" / f"transfer-{SEEDS[0]}"


def _draw(out: Path, new: LabelFile, *, seed: int) -> tuple[LabelFile, LabelFile]:
    """`PER_CLASS` pictures of each class, and the rest."""
    rng = random.Random(seed)
    by_class: dict[int, list[LabeledPath]] = {}
    for item in new:
        by_class.setdefault(item.label, []).append(item)
    chosen = {item.path for label in sorted(by_class) for item in rng.sample(by_class[label], PER_CLASS)}
    few = new.filter(lambda item: item.path in chosen).write(out / f"few_{seed}.txt")
    return few, new.filter(lambda item: item.path not in chosen).write(out / f"rest_{seed}.txt")


def _last_accuracy(run: Path) -> float:
    """Of the last epoch, whatever it was: the best one would have been chosen on the very pictures it is tested on."""
    with (run / "metrics.csv").open(newline="") as table:
        return float(list(csv.DictReader(table))[-1]["val_accuracy"])


def _predict(run: Path, rest: LabelFile, *, say: Say) -> tuple[int, int]:
    """Name one held-out picture of each digit; return how many were right, of how many."""
    firsts = {item.label: item for item in reversed(list(rest))}
    shown = [firsts[label] for label in sorted(firsts)]
    say(f"$ mlimages predict {run / 'model.onnx'} " + " ".join(f"{item.path}" for item in shown[:1]) + " ...")
    answers = Predictor(run / "model.onnx")([item.path for item in shown], top=1)
    names = rest.class_names
    right = 0
    for item, answer in zip(shown, answers, strict=True):
        if isinstance(answer, Prediction):
            right += answer.class_name == names[item.label]
            say(f"  {item.path}: {answer.class_name} ({100 * answer.probability:.0f} %)")
    say("")
    return right, len(shown)


def _command(train: Path, val: Path, run: Path, options: str, *, epochs: int, seed: int) -> str:
    return f"$ mlimages finetune {train} --val {val} {options} --epochs {epochs} --seed {seed} -o {run}"


def _share(share: float, interval: tuple[float, float], count: int) -> str:
    low, high = interval
    return f"{100 * share:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}; {round(share * count)} of {count})"


def _agreement(run: Path) -> str:
    parity = OnnxBundle.read(run / "model.onnx").provenance.parity
    if parity is None:
        return "not compared"
    return f"same answers as the network on {parity.count} pictures; logits at most {parity.worst:.0e} apart"
