"""The page of a run: what was asked, what it saw, how well it does, and where it goes wrong."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlimages.checks import duplicate_groups
from mlimages.core import Confusion, ImageError, ImageProperty, class_scores, write_text
from mlimages.images import load_pixels
from mlimages.labels import LabelFile
from mlimages.reports import plots
from mlimages.reports.pages import fill, picture_address
from mlimages.reports.run_folder import RunFolder, read_run
from mlimages.reports.suspects import Suspect, read_suspects

SHOWN = 24
"""How many pictures a gallery holds."""

MOST_CELLS = 30
"""With more classes the matrix is no table any more; confusion.png has it."""


MOST_COMPARED = 20_000
"""With more pictures, doubles are left to `mlimages check`."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a gallery.

    Attributes:
        name: its folder and file.
        address: a `data:` address, as the network sees it; empty where it cannot be read any more.
        label: its class.
        said: another class.
        share: how sure that is, 0..1.
    """

    name: str
    address: str
    label: str
    said: str = ""
    share: float = 0.0


def draw_run(path: Path) -> Path:
    """Write `curves.png`, `confusion.png` and `report.html` into a run folder; return the page.

    Args:
        path: a run folder; one that has not ended gives what there is.

    Raises:
        RunError: it is not a run folder.
    """
    run = read_run(path)
    count = len(run.said.labels) if run.said else 0
    if run.epochs:
        plots.save_png(plots.curves(run.epochs, val_count=count), path / "curves.png")
    if run.said:
        plots.save_png(plots.confusion(run.confusion, run.class_names), path / "confusion.png")
    page = path / "report.html"
    write_text(page, fill("run.html", **_values(run)))
    return page


def _values(run: RunFolder) -> dict[str, Any]:
    suspects = read_suspects(run.path / "suspects.tsv")
    return {
        "title": f"Run {run.path.resolve().name}",
        "subtitle": f"{run.settings['model']} on {len(run.class_names)} classes, frozen: {run.settings['freeze']}",
        "accuracy": run.accuracy if run.said else None,
        "right": int(run.said.right.sum()) if run.said else 0,
        "count": len(run.said.labels) if run.said else 0,
        "settings": list(_settings(run)),
        "counts": list(_counts(run)),
        "left_out": _rows(run.path / "left_out.tsv"),
        "plots": list(_plots(run)),
        "classes": class_scores(run.confusion, run.class_names),
        "cells": _cells(run.confusion) if len(run.class_names) <= MOST_CELLS else [],
        "confused": _most_confused(run.confusion, run.class_names),
        "mistakes": list(_mistakes(run)),
        "suspects": None
        if suspects is None
        else [_suspect(each, run.preprocessing.image) for each in suspects[:SHOWN]],
        "suspect_count": len(suspects or ()),
        "drop": run.path / "suspects.tsv",
        "listed": [run.settings[name] for name in ("labels", "val") if run.settings.get(name)],
        "twins": _twins(run),
    }


def _settings(run: RunFolder) -> Iterator[tuple[str, str]]:
    image = run.preprocessing.image
    yield "pictures", f"{image.width} x {image.height} px, {image.resize}{', grey' if image.gray_scale else ''}"
    for name, value in run.settings.items():
        if value not in (None, "", [], False, 0.0) or name == "seed":
            yield name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if "seconds" in run.figures:
        yield "time", f"{run.figures['seconds']:.0f} s"


def _counts(run: RunFolder) -> Iterator[tuple[str, int, int]]:
    train, val = (Counter(item.label for item in LabelFile(run.path / name)) for name in ("train.txt", "val.txt"))
    for label, name in enumerate(run.class_names):
        yield name, train[label], val[label]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _plots(run: RunFolder) -> Iterator[str]:
    if run.epochs:
        last = run.epochs[-1]
        for name in ("loss", "accuracy"):
            said = (
                f"{name} by epoch; at the last, train {last[f'train_{name}']:.3f}, validation {last[f'val_{name}']:.3f}"
            )
            count = len(run.said.labels) if run.said else 0
            yield plots.svg(plots.curves(run.epochs, figures=[name], val_count=count), label=said)


def _cells(confusion: Confusion) -> list[list[tuple[int, float]]]:
    return [[(count, count / max(1, sum(row))) for count in row] for row in confusion]


def _most_confused(confusion: Confusion, names: Sequence[str]) -> list[tuple[str, str, int, int]]:
    pairs = [
        (names[label], names[guess], count, sum(row))
        for label, row in enumerate(confusion)
        for guess, count in enumerate(row)
        if count and guess != label
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair))[:10]


def _mistakes(run: RunFolder) -> Iterator[Picture]:
    if run.said is None:
        return
    said = run.said
    sure = said.probabilities.max(axis=1)  # (N,)
    wrong = [place for place in (-sure).argsort(kind="stable").tolist() if not said.right[place]]
    for place in wrong[:SHOWN]:
        names = run.class_names[said.labels[place]], run.class_names[said.predicted[place]]
        yield _picture(said.paths[place], run.preprocessing.image, *names, share=float(sure[place]))


def _twins(run: RunFolder) -> list[list[Picture]] | None:
    """Groups of pictures that look the same and are of different classes; None where there are too many to look."""
    items = [item for name in ("train.txt", "val.txt") for item in LabelFile(run.path / name)]
    if len(items) > MOST_COMPARED:
        return None
    label_of = {item.path: item.label for item in items}
    groups: dict[int, list[Path]] = {}
    for path, number in duplicate_groups(label_of).items():
        groups.setdefault(number, []).append(path)
    image, names = run.preprocessing.image, run.class_names
    return [
        [_picture(path, image, names[label_of[path]]) for path in _one_each(sorted(paths), label_of)]
        for _, paths in sorted(groups.items())
        if len({label_of[path] for path in paths}) > 1
    ][:SHOWN]


def _one_each(paths: Sequence[Path], label_of: Mapping[Path, int]) -> list[Path]:
    """The first picture of each class."""
    return list({label_of[path]: path for path in reversed(paths)}.values())[::-1]


def _suspect(suspect: Suspect, image: ImageProperty) -> Picture:
    return _picture(suspect.path, image, suspect.label, suspect.likely, share=suspect.confidence)


def _picture(path: Path, image: ImageProperty, label: str, said: str = "", *, share: float = 0.0) -> Picture:
    try:
        address = picture_address(load_pixels(path, image))
    except ImageError:
        address = ""
    return Picture(f"{path.parent.name}/{path.name}", address, label, said, share)
