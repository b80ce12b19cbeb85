"""Plots as PNG files, and as SVG elements that adapt to the light or dark colours of the page."""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import numpy as np

from mlimages.checks import MeasurementTable
from mlimages.core import (
    ConfusionMatrix,
    MissingExtraError,
    Proportion,
    as_path,
    estimate_proportion,
    format_percent,
    pluralize,
    write_output,
)
from mlimages.images import CLASS_INDICES_NOTE, find_font_families, replace_undrawable_names
from mlimages.reports.comparison import ComparedRun, make_run_names
from mlimages.reports.probe_result import ModelScores, ProbeResult

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise MissingExtraError("a plot", "report") from error

TEXT_COLOR = "#010203"
"""Colour of text and axes; in a page it is replaced by the page's text colour."""

TRAIN_COLOR, VAL_COLOR, NEUTRAL_COLOR = "#d9730d", "#2f80d0", "#7d8794"
"""Colours that can be told apart on white, on black and with colour blindness."""

CHANNEL_COLORS = {"red": "#d7433b", "green": "#3a9a4b", "blue": "#3b74d7"}

MAX_SCATTER_POINTS = 1000
"""Maximum number of points of a scatter plot. If there are more images, only every n-th is drawn."""

MAX_NAMED_CLASSES = 80
"""With more classes than this, the axes show class indices, since the names would overlap."""

MAX_NAME_LENGTH = 24
"""Maximum number of characters of a class name on an axis."""

_MATPLOTLIB_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT_COLOR),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "font.family": "sans-serif",
    "legend.frameon": False,
    "legend.labelcolor": TEXT_COLOR,
    "savefig.bbox": "tight",
    "text.parse_math": False,  # a class may be called $x$
    "svg.fonttype": "none",
    "svg.hashsalt": "mlimages",
}

EpochMetrics = Mapping[str, float]
"""One line of metrics.csv by column name: epoch, train_loss, train_accuracy, val_loss, val_accuracy ..."""

DrawFunction = Callable[[Axes], None]
"""A function that draws one plot on the given axes."""

METRIC_LABELS = {"loss": "cross-entropy loss", "accuracy": "accuracy (%)", "map": "mean average precision (%)"}


def choose_metrics(epochs: Sequence[EpochMetrics]) -> tuple[str, ...]:
    """Return the metrics to plot: `loss`, and `accuracy` or, in a multi-label run, `map`."""
    return "loss", "map" if "val_map" in epochs[-1] else "accuracy"


def plot_curves(epochs: Sequence[EpochMetrics], *, metrics: Sequence[str] = (), num_val_images: int = 0) -> Figure:
    """Draw one plot per metric, side by side, each with a training and a validation curve by epoch.

    Args:
        epochs: for each line of metrics.csv, the values by column name.
        metrics: keys of METRIC_LABELS, one plot each; by default those of `choose_metrics`.
        num_val_images: number of validation images, for the 95 % intervals of the validation accuracy; 0 draws none.
    """
    names = metrics or choose_metrics(epochs)
    draw_curve = partial(_draw_curve, epochs=epochs, num_val_images=num_val_images)
    return _draw_side_by_side([partial(draw_curve, metric=name) for name in names])


@mpl.rc_context(_MATPLOTLIB_STYLE)
def plot_confusion_matrix(confusion: ConfusionMatrix, names: Sequence[str]) -> Figure:
    """Plot counts by true class (rows) and predicted class (columns), coloured by their share of the row.

    If there are at most 40 classes, the counts are also written into the cells.
    """
    size = min(2.5 + 0.55 * len(names), 24)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    note = ""
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MAX_NAMED_CLASSES:
        shown = replace_undrawable_names(names)
        note = "" if shown == list(names) else f"\n({CLASS_INDICES_NOTE})"
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(range(len(names)), list(map(_shorten_name, shown)), family=find_font_families(shown))
    if len(names) > 3 or max(map(len, names), default=0) > 10:
        axes.tick_params("x", rotation=45, rotation_mode="xtick")
    axes.set(xlabel=f"predicted class{note}", ylabel="true class")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of the class's images", shrink=0.8).outline.set_visible(False)
    if len(names) <= 40:
        _draw_cell_labels(axes, confusion, shares)
    return figure


def save_probe_plot(result: ProbeResult, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a PNG of linear-probe accuracy by layer and, if there is a learning curve, by images per class.

    For `overwrite` and errors, see `save_png`.
    """
    save_png(_draw_side_by_side([draw for _, draw in _make_probe_plots(result)]), path, overwrite=overwrite)


def save_models_plot(result: ModelScores, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a PNG of the accuracy of several networks by the CPU time of a forward pass (`ModelScore.cpu_ms`).

    For `overwrite` and errors, see `save_png`.
    """

    def draw_accuracy_by_cpu_time(axes: Axes) -> None:
        y, errors = _convert_to_error_bars([score.accuracy for score in result.scores])
        x = [score.cpu_ms for score in result.scores]
        axes.errorbar(x, y, yerr=errors, fmt="o", color=VAL_COLOR, capsize=2)
        for score, left, top in zip(result.scores, x, y, strict=True):
            axes.annotate(
                _shorten_name(score.model), (left, top), xytext=(5, 5), textcoords="offset points", fontsize=8
            )
        axes.set_xscale("log")
        axes.set(xlabel="CPU time of a forward pass (ms per image)", ylabel="accuracy (%)")

    save_png(_draw_side_by_side([draw_accuracy_by_cpu_time], height=4.2), path, overwrite=overwrite)


def draw_probe_svgs(result: ProbeResult) -> list[str]:
    """Return SVG plots of linear-probe accuracy by layer and, if there is a learning curve, by images per class."""
    return [to_svg(_draw_side_by_side([draw]), label=label) for label, draw in _make_probe_plots(result)]


def draw_dataset_svgs(measurements: MeasurementTable) -> list[str]:
    """Return plots of the images' sizes, brightness and colours, as SVG elements; none if no image could be decoded."""
    measurements = measurements[measurements["width"] > 0]
    if not len(measurements):
        return []
    plots: dict[str, DrawFunction] = {
        "width and height of the images": lambda axes: _draw_sizes(axes, measurements),
        "histogram of the images' brightness": lambda axes: _draw_brightness(axes, measurements),
        "histogram of the images' colours": lambda axes: _draw_colors(axes, measurements),
    }
    return [to_svg(_draw_side_by_side([draw]), label=label) for label, draw in plots.items()]


def draw_comparison_svg(runs: Sequence[ComparedRun]) -> str:
    """Return a plot of the score of each run with its 95 % interval, the first on top, as an SVG element."""
    best, names = runs[0], make_run_names(runs)

    def draw_score_by_run(axes: Axes) -> None:
        positions = range(len(runs))[::-1]
        x, errors = _convert_to_error_bars([each.score for each in runs])
        axes.errorbar(x, positions, xerr=errors, fmt="o", color=VAL_COLOR, capsize=3)
        axes.set_yticks(positions, list(map(_shorten_name, names)))
        axes.set(xlabel=f"validation {best.score_name} (%), with its 95 % interval", ylim=(-0.5, len(runs) - 0.5))

    score = format_percent(best.score.value)
    label = f"{best.score_name} of {pluralize(len(runs), 'run')}; the best is {names[0]}: {score}"
    return to_svg(_draw_side_by_side([draw_score_by_run], height=1.2 + 0.35 * len(runs)), label=label)


@mpl.rc_context(_MATPLOTLIB_STYLE)
def save_png(figure: Figure, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a figure as PNG with a white background.

    Raises:
        InputError: `path` exists, `overwrite` is false, and mlimages did not write it or it was changed since.
    """
    with write_output(as_path(path), overwrite=overwrite) as part:
        figure.savefig(part, format="png", dpi=130, facecolor="white")


@mpl.rc_context(_MATPLOTLIB_STYLE)
def to_svg(figure: Figure, *, label: str) -> str:
    """Return a figure as a transparent SVG element, whose text can be selected and has the page's text colour.

    Args:
        figure: a figure of one of the functions of this module.
        label: description of the plot for screen readers.
    """
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser uses its own fonts
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = out.getvalue().replace(TEXT_COLOR, "currentColor")
    drawing = drawing[drawing.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return re.sub(r' (width|height)="[0-9.]+pt"', "", drawing, count=2)  # scale to the width of the page


@mpl.rc_context(_MATPLOTLIB_STYLE)
def _draw_side_by_side(plots: Sequence[DrawFunction], *, height: float = 3.6) -> Figure:
    """Draw the plots side by side. If a plot has a legend, it is below the plot."""
    figure = Figure(figsize=(4.8 * len(plots), height), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(handles),
                        columnspacing=1.2, handlelength=1.5, fontsize=9)  # fmt: skip
    return figure


def _draw_curve(axes: Axes, epochs: Sequence[EpochMetrics], metric: str, num_val_images: int) -> None:
    factor = 1 if metric == "loss" else 100
    for part, label, color, style in (("train", "training", TRAIN_COLOR, "--"), ("val", "validation", VAL_COLOR, "-")):
        points = [(row["epoch"], factor * row[f"{part}_{metric}"]) for row in epochs if f"{part}_{metric}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=color, label=label, marker="o", markersize=3)
    if metric == "accuracy" and num_val_images:
        _draw_intervals(axes, [row for row in epochs if "val_accuracy" in row], num_val_images)
    kind = "binary " if metric == "loss" and "map" in choose_metrics(epochs) else ""
    axes.set(title="mAP" if metric == "map" else metric, xlabel="epoch", ylabel=f"{kind}{METRIC_LABELS[metric]}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _draw_intervals(axes: Axes, epochs: Sequence[EpochMetrics], num_val_images: int) -> None:
    shares = [estimate_proportion(round(row["val_accuracy"] * num_val_images), num_val_images) for row in epochs]
    y, errors = _convert_to_error_bars(shares)
    axes.errorbar([row["epoch"] for row in epochs], y, yerr=errors, fmt="none", ecolor=VAL_COLOR, elinewidth=3,
                  alpha=0.3, label="95 % interval")  # fmt: skip


def _make_probe_plots(result: ProbeResult) -> Iterator[tuple[str, DrawFunction]]:
    """Yield for each plot a description for screen readers and the function that draws it."""
    freeze = result.recommended_freeze

    def draw_accuracy_by_layer(axes: Axes) -> None:
        names = [score.layer_name for score in result.layer_scores]
        accuracies = [score.accuracy for score in result.layer_scores]
        _draw_points(axes, range(len(names)), accuracies, highlighted_index=names.index(freeze))
        axes.set_xticks(
            range(len(names)), list(map(_shorten_name, names)), rotation=60, rotation_mode="xtick", fontsize=8
        )
        axes.set(title=f"{result.model}: accuracy by layer", xlabel="last frozen layer", ylabel="accuracy (%)")

    def draw_learning_curve(axes: Axes) -> None:
        counts = [point.images_per_class for point in result.learning_curve]
        _draw_points(axes, counts, [point.accuracy for point in result.learning_curve])
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, list(map(str, counts)))
        axes.set(title=f"by images per class, frozen up to {freeze}", xlabel="images per class", ylabel="accuracy (%)")

    yield f"accuracy by layer; {freeze} is recommended", draw_accuracy_by_layer
    if result.learning_curve:
        yield f"accuracy by images per class, frozen up to {freeze}", draw_learning_curve


def _draw_sizes(axes: Axes, measurements: MeasurementTable) -> None:
    width, height = measurements["width"], measurements["height"]
    step = math.ceil(len(width) / MAX_SCATTER_POINTS)
    axes.scatter(width[::step], height[::step], s=9, alpha=0.4, color=NEUTRAL_COLOR, linewidths=0)
    top = 1.05 * max(width.max(), height.max())
    axes.set(title="size", xlabel="width (px)", ylabel="height (px)", xlim=(0, top), ylim=(0, top))


def _draw_brightness(axes: Axes, measurements: MeasurementTable) -> None:
    axes.hist(measurements["luma_median"], bins=32, range=(0, 256), color=NEUTRAL_COLOR)
    axes.set(title="brightness", xlabel="median luma of an image (0 to 255)", ylabel="images")


def _draw_colors(axes: Axes, measurements: MeasurementTable) -> None:
    for channel, color in CHANNEL_COLORS.items():
        counts, edges = np.histogram(measurements[f"{channel}_mean"], bins=32, range=(0, 256))
        axes.stairs(counts, edges, label=channel, color=color, linewidth=1.5)
    axes.set(title="colour", xlabel="mean of a channel of an image (0 to 255)", ylabel="images")


def _draw_points(
    axes: Axes, x_values: Sequence[float], accuracies: Sequence[Proportion], *, highlighted_index: int | None = None
) -> None:
    y, errors = _convert_to_error_bars(accuracies)
    face = "none" if highlighted_index is not None else VAL_COLOR
    axes.errorbar(x_values, y, yerr=errors, color=VAL_COLOR, marker="o", markerfacecolor=face, capsize=2)
    if highlighted_index is not None:
        axes.plot(x_values[highlighted_index], y[highlighted_index], "o", color=VAL_COLOR, markersize=9, zorder=3)


def _convert_to_error_bars(shares: Sequence[Proportion]) -> tuple[list[float], list[list[float]]]:
    """Return values in percent, and the lengths of their error bars below and above the values."""
    below = [100 * max(0.0, each.value - each.low) for each in shares]  # 100 % may exceed its interval
    above = [100 * max(0.0, each.high - each.value) for each in shares]
    return [100 * each.value for each in shares], [below, above]


def _shorten_name(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"


def _draw_cell_labels(axes: Axes, confusion: ConfusionMatrix, shares: Sequence[Sequence[float]]) -> None:
    for label, row in enumerate(confusion):
        for predicted, count in enumerate(row):
            if count:
                part = shares[label][predicted]
                text = f"{count}\n{100 * part:.0f} %" if len(confusion) <= 20 else str(count)
                axes.text(predicted, label, text, ha="center", va="center", fontsize=8 if len(confusion) > 8 else 10,
                          color="white" if part > 0.55 else "black")  # fmt: skip
