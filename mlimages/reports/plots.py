"""Plots as files to look at and as drawings inside a page that follow its light or dark ground."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mlimages.core import Confusion, MissingExtraError, Share, replacing, wilson_interval
from mlimages.reports.probe_result import Probed

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise MissingExtraError("a plot", "report") from error

INK = "#010203"
"""Text and axes; in a page it becomes the colour of the text around."""

TRAIN, VAL = "#d9730d", "#2f80d0"
"""Two colours that tell apart on white, on black and without colour vision."""

MOST_NAMED = 80
"""With more classes their names would lie over each other: the axes show their numbers."""

_STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "font.family": "sans-serif",
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "text.parse_math": False,  # a class may be called $x$
    "svg.fonttype": "none",
    "svg.hashsalt": "mlimages",
}

Epoch = Mapping[str, float]
"""One line of metrics.csv: epoch, train_loss, train_accuracy, val_loss, val_accuracy ..."""


def curves(epochs: Sequence[Epoch], *, figures: Sequence[str] = ("loss", "accuracy"), val_count: int = 0) -> Figure:
    """Loss and accuracy by epoch, train and validation; with `val_count`, its 95 % interval as a band."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.5 * len(figures), 3.4), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
            _lines(axes, epochs, name)
            if name == "accuracy" and val_count:
                _band(axes, epochs, val_count)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(labelcolor=INK)
        return figure


def confusion(counts: Confusion, names: Sequence[str]) -> Figure:
    """Rows are the true classes, columns the predicted; counts in the cells, colour by the row's share."""
    size = min(2.5 + 0.55 * len(names), 24)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        axes = figure.subplots()
        shares = [[count / max(1, sum(row)) for count in row] for row in counts]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(names) <= MOST_NAMED:
            axes.set_xticks(range(len(names)), names)
            axes.set_yticks(range(len(names)), names)
        if len(names) > 3:
            axes.tick_params("x", rotation=45, rotation_mode="xtick")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true class")
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8).outline.set_visible(False)
        if len(names) <= 40:
            _write_cells(axes, counts, shares)
        return figure


def probe(probed: Probed) -> Figure:
    """Accuracy by cut, the recommended one filled, and by pictures per class; bars are 95 % intervals."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.5 + 0.28 * len(probed.cuts), 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[max(4, len(probed.cuts)), 6])
        names = [cut.name for cut in probed.cuts]
        _points(left, range(len(names)), [cut.accuracy for cut in probed.cuts], filled=names.index(probed.freeze))
        left.set_xticks(range(len(names)), names, rotation=60, rotation_mode="xtick", fontsize=8)
        left.set_title(f"{probed.model}: accuracy (%) by cut")
        _points(right, [point.per_class for point in probed.curve], [point.accuracy for point in probed.curve])
        right.set_xscale("log", base=2)
        right.set_xticks([point.per_class for point in probed.curve], [str(point.per_class) for point in probed.curve])
        right.set_xlabel("pictures of each class")
        right.set_title("would more pictures help?")
        return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG on white."""
    with replacing(path) as part:
        _save(figure, part, format="png", dpi=130, facecolor="white")


def svg(figure: Figure, *, label: str) -> str:
    """A figure as an SVG element for a page: no ground, text as text, its ink that of the page.

    Args:
        figure: drawn by one of the functions here.
        label: what a screen reader says in its place.
    """
    out = io.StringIO()
    _save(figure, out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = out.getvalue().replace(INK, "currentColor")
    drawing = drawing[drawing.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return re.sub(r' (width|height)="[0-9.]+pt"', "", drawing, count=2)  # the page's width decides


def _save(figure: Figure, out: Path | io.StringIO, **options: Any) -> None:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # class names in scripts that the font lacks
        figure.savefig(out, **options)


def _lines(axes: Axes, epochs: Sequence[Epoch], name: str) -> None:
    factor = 100 if name == "accuracy" else 1
    for part, word, colour, way in (("train", "train", TRAIN, "--"), ("val", "validation", VAL, "-")):
        points = [(row["epoch"], factor * row[f"{part}_{name}"]) for row in epochs if f"{part}_{name}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), way, color=colour, label=word, marker="o", markersize=3)
    axes.set_title(f"{name} (%)" if name == "accuracy" else name)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _points(axes: Axes, x: Sequence[float], shares: Sequence[Share], *, filled: int | None = None) -> None:
    y = [100 * each.value for each in shares]
    below = [100 * max(0.0, each.value - each.low) for each in shares]  # 100 % lies a rounding above its interval
    above = [100 * max(0.0, each.high - each.value) for each in shares]
    axes.errorbar(
        x,
        y,
        yerr=[below, above],
        color=VAL,
        marker="o",
        markerfacecolor="white" if filled is not None else VAL,
        capsize=2,
    )
    if filled is not None:
        axes.plot(x[filled], y[filled], "o", color=VAL, markersize=9, zorder=3)


def _band(axes: Axes, epochs: Sequence[Epoch], val_count: int) -> None:
    seen = [row for row in epochs if "val_accuracy" in row]
    bands = [wilson_interval(round(row["val_accuracy"] * val_count), val_count) for row in seen]
    low, high = ([100 * band[end] for band in bands] for end in (0, 1))
    axes.fill_between(
        [row["epoch"] for row in seen], low, high, color=VAL, alpha=0.15, linewidth=0, label="95 % interval"
    )


def _write_cells(axes: Axes, counts: Confusion, shares: Sequence[Sequence[float]]) -> None:
    for label, row in enumerate(counts):
        for guess, count in enumerate(row):
            if count:
                share = shares[label][guess]
                text = f"{count}\n{share:.0%}" if len(counts) <= 20 else str(count)
                axes.text(guess, label, text, ha="center", va="center", fontsize=8 if len(counts) > 8 else 10,
                          color="white" if share > 0.55 else "black")  # fmt: skip
