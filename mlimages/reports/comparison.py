"""Runs side by side: what differs in them, and whether the difference is more than noise."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlimages.core import Z_95, InputError, RunError, Share, sign_test
from mlimages.reports.layers import human, table
from mlimages.reports.run_folder import RunFolder, read_run

NOISE = 0.05
"""From this p-value on, two runs are within noise."""


@dataclass(frozen=True, slots=True)
class Paired:
    """A run against the best one, on the validation pictures that both have seen.

    Attributes:
        shared: how many pictures both were asked.
        gained, lost: pictures that this run alone, or the best alone, names rightly.
        difference: of the accuracies, this one's minus the best's, and its 95 % interval (-1..1).
        p_value: how often chance alone would part two equal runs as far; exact.
    """

    shared: int
    gained: int
    lost: int
    difference: Share
    p_value: float

    @property
    def within_noise(self) -> bool:
        """Whether chance explains the difference."""
        return self.p_value >= NOISE


@dataclass(frozen=True, slots=True)
class Compared:
    """One run among others.

    Attributes:
        run: its folder as it was given.
        accuracy: on all its validation pictures.
        count: how many these are.
        against_best: None for the best run itself, and where the two share no validation picture.
        seconds: of the training; None where unknown.
        size_bytes: of the exported file, else of the weights.
        settings: those that differ among the runs.
    """

    run: Path
    accuracy: Share
    count: int
    against_best: Paired | None
    seconds: float | None
    size_bytes: int
    settings: dict[str, str]


def compare_runs(paths: Sequence[Path]) -> tuple[Compared, ...]:
    """Compare finished runs; the most accurate first.

    Raises:
        InputError: fewer than two runs.
        RunError: one is not a run folder, or has not ended.
    """
    if len(set(paths)) < 2:
        raise InputError("compare needs at least two run folders: mlimages compare runs/a runs/b")
    runs = sorted((_finished(path) for path in dict.fromkeys(paths)), key=lambda run: -run.accuracy.value)
    differing = _differing([run.settings for run in runs])
    return tuple(
        Compared(
            run=run.path,
            accuracy=run.accuracy,
            count=sum(map(sum, run.confusion)),
            against_best=paired(run, runs[0]) if run is not runs[0] else None,
            seconds=run.figures.get("seconds"),
            size_bytes=_size(run.path),
            settings={name: _said(name, run.settings.get(name)) for name in differing},
        )
        for run in runs
    )


def paired(run: RunFolder, best: RunFolder) -> Paired | None:
    """McNemar's test, exact, on the pictures that both runs validated on; None where there are none.

    The interval is Wald's for paired shares.
    """
    mine, theirs = _right(run), _right(best)
    shared = mine.keys() & theirs.keys()
    if not shared:
        return None
    gained = sum(mine[key] and not theirs[key] for key in shared)
    lost = sum(theirs[key] and not mine[key] for key in shared)
    n = len(shared)
    value = (gained - lost) / n
    half = Z_95 * math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / n)) / n
    difference = Share(value, max(-1.0, value - half), min(1.0, value + half))
    return Paired(n, gained, lost, difference, sign_test(gained, lost))


def comparison_lines(compared: Sequence[Compared]) -> Iterator[str]:
    """Both tables, to be printed."""
    rows = [("run", "accuracy", "95 %", "of", "time", "size", "against the best")]
    rows += [
        (
            str(each.run),
            f"{100 * each.accuracy.value:.1f}",
            f"{100 * each.accuracy.low:.1f}-{100 * each.accuracy.high:.1f}",
            str(each.count),
            "" if each.seconds is None else f"{each.seconds:.0f}s",
            f"{human(each.size_bytes)}B",
            _verdict(each) if place else "best",
        )
        for place, each in enumerate(compared)
    ]
    yield from table(rows, left=frozenset({0, 6}))
    yield ""
    names = list(compared[0].settings)
    if not names:
        yield "the settings are the same"
        return
    cells = [("setting", *(each.run.name for each in compared))]
    cells += [(name, *(each.settings[name] for each in compared)) for name in names]
    yield from table(cells, left=frozenset(range(len(compared) + 1)))


def as_dict(compared: Compared) -> dict[str, Any]:
    """For JSON."""
    values = asdict(compared)
    against = compared.against_best
    noise = None if against is None else {**asdict(against), "within_noise": against.within_noise}
    return {**values, "run": str(compared.run), "against_best": noise}


def _finished(path: Path) -> RunFolder:
    run = read_run(path)
    if run.said is None:
        raise RunError(f"{path} has not ended yet: go on with `mlimages finetune --resume {path}`")
    return run


def _right(run: RunFolder) -> dict[tuple[str, str], bool]:
    """Whether each validation picture, known by its place and its class, is named rightly."""
    if run.said is None:
        return {}
    keys = ((os.path.normpath(str(path.absolute())), run.class_names[label])
            for path, label in zip(run.said.paths, run.said.labels, strict=True))  # fmt: skip
    return dict(zip(keys, run.said.right.tolist(), strict=True))


def _differing(settings: Sequence[Any]) -> list[str]:
    names = dict.fromkeys(name for each in settings for name in each if name != "out")
    return [name for name in names if len({_said(name, each.get(name)) for each in settings}) > 1]


def _said(name: str, value: Any) -> str:
    if value in (None, "", []):
        return "-"
    if name == "lr" and not value:
        return "auto"
    return Path(value).name if isinstance(value, str) and os.sep in value else str(value)


def _size(run: Path) -> int:
    files = (run / name for name in ("model.onnx", "best.safetensors"))
    return next((file.stat().st_size for file in files if file.exists()), 0)


def _verdict(each: Compared) -> str:
    against = each.against_best
    if against is None:
        return "no picture in common"
    noise = "within noise" if against.within_noise else "worse"
    return f"{100 * against.difference.value:+.1f}, {noise} (p {against.p_value:.2g})"
