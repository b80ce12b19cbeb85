"""Compare runs: different settings, and significance of the differences in accuracy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlimages.core import (
    Z_95,
    InputError,
    Proportion,
    RunError,
    format_command,
    format_interval,
    format_percent,
    format_table,
    mcnemar_test,
    mean_ap_difference,
    pluralize,
    require_local_path,
)
from mlimages.inference import count_missing_images, measure_model_size, resolve_image_path
from mlimages.reports.run_folder import RunFolder, read_run

SIGNIFICANCE_LEVEL = 0.05
"""The difference between two runs is not significant if its p-value is at least this."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Test of a run against the best run, on the validation images that both runs share.

    Attributes:
        num_shared_images: number of validation images that both runs share: with the same path and the same label.
        num_gained: number of shared images that this run predicts correctly, and the best run does not.
        num_lost: number of shared images that the best run predicts correctly, and this run does not.
        difference: accuracy of this run minus that of the best run, with its 95 % interval; for multi-label runs,
            difference in mean average precision. Unlike other values of type Proportion, it is in -1..1.
        p_value: two-sided p-value of McNemar's exact test, or for multi-label runs of the paired bootstrap.
    """

    num_shared_images: int
    num_gained: int
    num_lost: int
    difference: Proportion
    p_value: float

    @property
    def is_within_noise(self) -> bool:
        """Whether the difference is not significant: `p_value` is at least `SIGNIFICANCE_LEVEL`."""
        return self.p_value >= SIGNIFICANCE_LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            "shared": self.num_shared_images,
            "gained": self.num_gained,
            "lost": self.num_lost,
            "difference": asdict(self.difference),
            "p_value": self.p_value,
            "within_noise": self.is_within_noise,
        }


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        path: the given run folder.
        accuracy: accuracy on all validation images of the run; in a multi-label run, all labels of an image must be
            correct.
        num_images: number of validation images.
        num_missing_images: number of validation images that do not exist at the paths in val_predictions.csv.
        test_against_best: the test against the best run, which has the highest score; None for the best run itself, or
            if the two runs share no validation image.
        training_s: training time in seconds; None if unknown.
        size_bytes: size of the exported file, or of the weights if there is none; 0 if there are no weights, either.
        differing_settings: the settings that differ between the runs, by name, with their values in this run as text.
            The run folder, which always differs, is left out. Of paths, only the last components are given, as many as
            are needed to distinguish them: `a/train.txt` and `b/train.txt`.
        mean_ap: mean average precision, by which multi-label runs are compared; None for other runs.
    """

    path: Path
    accuracy: Proportion
    num_images: int
    test_against_best: PairedTest | None
    training_s: float | None
    size_bytes: int
    differing_settings: dict[str, str]
    mean_ap: Proportion | None = None
    num_missing_images: int = 0

    @property
    def score_name(self) -> str:
        """Name of `score`: accuracy or mAP."""
        return "mAP" if self.mean_ap else "accuracy"

    @property
    def score(self) -> Proportion:
        """Score by which the runs are compared: `mean_ap`, else `accuracy`."""
        return self.mean_ap or self.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        values = {
            "run": str(self.path),
            "accuracy": asdict(self.accuracy),
            "count": self.num_images,
            "missing": self.num_missing_images,
            "against_best": self.test_against_best and self.test_against_best.to_dict(),
            "seconds": self.training_s,
            "size_bytes": self.size_bytes,
            "settings": self.differing_settings,
        }
        return {**values, "mean_ap": asdict(self.mean_ap)} if self.mean_ap else values


def compare_runs(runs: Iterable[str | os.PathLike[str]]) -> tuple[ComparedRun, ...]:
    """Compare finished runs, and return them with the highest score first.

    Runs with equal scores keep the order of `runs`. The first run is the best run, against which the others are tested.

    Args:
        runs: at least two run folders; a folder that is given twice counts once.

    Raises:
        InputError: there are fewer than two different runs, or some of them are multi-label and others are not.
        RunError: a path is not a run folder, or its run is not finished.

    Example:
        >>> best, other = compare_runs(["runs/first", "runs/second"])
        >>> other.test_against_best.is_within_noise
        True
    """
    given = map(require_local_path, [runs] if isinstance(runs, str | os.PathLike) else runs)
    paths = {path.resolve(): path for path in given}.values()
    if len(paths) < 2:
        raise InputError("compare requires at least two run folders, as in `mlimages compare runs/a runs/b`")
    folders = sorted(map(_read_finished_run, paths), key=lambda run: -run.score.value)
    if len({run.score_name for run in folders}) > 1:
        raise InputError("multi-label runs cannot be compared with single-label runs: compare each kind separately")
    differing = _find_differing_settings([run.settings for run in folders])
    return tuple(
        ComparedRun(
            path=run.path,
            accuracy=run.accuracy,
            num_images=run.num_val_images,
            test_against_best=compute_paired_test(run, folders[0]) if run is not folders[0] else None,
            training_s=run.final_metrics.get("seconds"),
            size_bytes=_find_model_size(run.path),
            differing_settings={name: values[index] for name, values in differing.items()},
            mean_ap=run.score if run.score_name == "mAP" else None,
            num_missing_images=count_missing_images(run.predictions.paths if run.predictions else ()),
        )
        for index, run in enumerate(folders)
    )


def compute_paired_test(run: RunFolder, best_run: RunFolder) -> PairedTest | None:
    """Apply McNemar's exact test to the validation images that both runs share; return None if they share none.

    An image is shared if its path, without symbolic links, and its label are the same in both runs. The interval is the
    Wald interval for paired proportions. For multi-label runs, the difference in mean average precision is
    bootstrapped; see `mean_ap_difference`.
    """
    mine, theirs = run.predictions, best_run.predictions
    row_of, other_of = ({key: row for row, key in enumerate(_iter_image_keys(each))} for each in (run, best_run))
    shared = [key for key in row_of if key in other_of]
    if not (mine and theirs and shared):
        return None
    rows, others = ([each[key] for key in shared] for each in (row_of, other_of))
    is_mine_correct, is_theirs_correct = mine.is_correct[rows], theirs.is_correct[others]
    gained, lost = int((is_mine_correct & ~is_theirs_correct).sum()), int((is_theirs_correct & ~is_mine_correct).sum())
    n = len(shared)
    if mine.is_multi_label:
        mean, p_value = mean_ap_difference(
            mine.probabilities[rows], theirs.probabilities[others], mine.labels[rows].astype(bool)
        )
        return PairedTest(n, gained, lost, mean, p_value)
    value = (gained - lost) / n
    half = Z_95 * math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / n)) / n
    difference = Proportion(value, max(-1.0, value - half), min(1.0, value + half))
    return PairedTest(n, gained, lost, difference, mcnemar_test(gained, lost))


def format_comparison(runs: Sequence[ComparedRun]) -> Iterator[str]:
    """Yield the lines of two tables for a terminal: the score of each run, and the settings that differ.

    If no setting differs, a line says so in place of the second table.
    """
    rows = [("run", runs[0].score_name, "95 % CI", "images", "time", "size", "difference from best")]
    rows += [
        (str(each.path), format_percent(each.score.value), format_interval(each.score), str(each.num_images), *cells)
        for each, cells in zip(runs, format_run_cells(runs), strict=True)
    ]
    yield from format_table(rows, left_columns=frozenset({0, 6}))
    yield ""
    names = list(runs[0].differing_settings)
    if not names:
        yield "no setting differs, other than the run folder"
        return
    cells = [("setting", *make_run_names(runs))]
    cells += [(name, *(each.differing_settings[name] for each in runs)) for name in names]
    yield from format_table(cells, left_columns=frozenset(range(len(runs) + 1)))


def format_run_cells(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, str, str]]:
    """Yield table cells for each run: training time, size, and difference from the best run in percentage points.

    Instead of a difference, the first run has `best`, or `-` if it shares no validation image with one of the others,
    so that these two runs cannot be compared.
    """
    for each in runs:
        against = each.test_against_best
        if each is runs[0]:
            verdict = "best" if all(other.test_against_best for other in runs[1:]) else "-"
        elif against is None:
            verdict = _describe_lack_of_shared_images(each, runs[0])
        else:
            change = "worse" if against.difference.value < 0 else "better"  # on the shared images
            significance = "not significant" if against.is_within_noise else change
            verdict = f"{100 * against.difference.value:+.1f}, {significance} (p {against.p_value:.2g})"
        yield "" if each.training_s is None else f"{each.training_s:.0f} s", f"{each.size_bytes / 1e6:.1f} MB", verdict


def _describe_lack_of_shared_images(run: ComparedRun, best_run: ComparedRun) -> str:
    """Return a note that the two runs share no image, and how many images of each run are missing on disk, if any."""
    missing = ((run, "this run"), (best_run, "the first run"))
    counts = [
        f"{pluralize(each.num_missing_images, 'image')} of {name} no longer at their paths"
        for each, name in missing
        if each.num_missing_images
    ]
    return f"no image in common{': ' if counts else ''}{' and '.join(counts)}"


def _read_finished_run(path: Path) -> RunFolder:
    run = read_run(path)
    if run.predictions is None:
        raise RunError(f"{path} is not finished: resume it with {format_command('finetune', '--resume', path)}")
    return run


def _iter_image_keys(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Yield a key for each validation image: its path without symbolic links, and the name of its class.

    In a multi-label run, the second part lists the names of all classes of the run, then for each class whether the
    image has it. Runs with different classes therefore have no key in common.
    """
    found = run.predictions
    if found is None:
        return
    for path, label in zip(found.paths, found.labels.tolist(), strict=True):
        classes = [*run.class_names, *map(str, label)] if found.is_multi_label else [run.class_names[label]]
        yield resolve_image_path(path), "\n".join(classes)


def make_run_names(runs: Sequence[ComparedRun]) -> list[str]:
    """Return a name for each run: the last components of its path, as few as tell the runs apart."""
    return _shorten_paths([os.path.normpath(each.path.absolute()) for each in runs])


def _find_differing_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the settings that differ between runs, by name, with the value of each run as text."""
    names = dict.fromkeys(name for each in settings for name in each if name != "out")
    texts = {name: [_format_setting(name, each.get(name)) for each in settings] for name in names}
    return {name: _shorten_paths(values) for name, values in texts.items() if len(set(values)) > 1}


def _format_setting(name: str, value: Any) -> str:
    if value in (None, "", []):
        return "-"
    return "auto" if name == "lr" and not value else str(value)


def _shorten_paths(texts: Sequence[str]) -> list[str]:
    """Return the last components of each path, as few as tell the paths apart; text that is no path is unchanged."""
    parts = [Path(text).parts for text in texts]
    for count in range(1, max(map(len, parts))):
        shortened = [str(Path(*each[-count:])) for each in parts]
        if len(set(shortened)) == len(set(texts)):
            return shortened
    return list(texts)


def _find_model_size(run: Path) -> int:
    """Return the size of `model.onnx` in bytes; if it does not exist, that of the weights; 0 if neither exists."""
    exported, weights = run / "model.onnx", run / "best.safetensors"
    if exported.exists():
        return measure_model_size(exported)
    return weights.stat().st_size if weights.exists() else 0
