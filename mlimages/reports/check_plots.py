"""Drawings of a data set inside a page: they take the colour of the text around."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from mlimages.checks import Measures
from mlimages.core import MissingExtraError

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("check --report", "report") from error

INK = "#010203"
"""Text and axes; in the page it becomes the colour of the text around."""

MAX_POINTS = 1000
CHANNELS = {"red": "#d7433b", "green": "#3a9a4b", "blue": "#3b74d7"}

_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlimages",
}


def overview(measures: Measures) -> str:
    """Sizes, brightness and colours side by side, as an SVG element."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(12, 3.2), layout="constrained")
        sizes, brightness, colours = figure.subplots(1, 3)
        _sizes(sizes, measures)
        brightness.hist(measures.level, bins=32, range=(0, 256), color="#7d8794")
        brightness.set(title="brightness", xlabel="median level of a picture", ylabel="pictures")
        for channel, (name, colour) in enumerate(CHANNELS.items()):
            levels = measures.colour[:, channel]
            colours.hist(levels, bins=32, range=(0, 256), histtype="step", label=name, color=colour, linewidth=1.5)
        colours.set(title="colour", xlabel="mean level of a picture, by channel", ylabel="pictures")
        colours.legend(labelcolor=INK)
        return _svg(figure)


def _sizes(axes: Axes, measures: Measures) -> None:
    """Width against height; of many pictures, a sample at even steps."""
    size = measures.size[:: max(1, len(measures.size) // MAX_POINTS)]
    axes.scatter(size[:, 0], size[:, 1], s=9, alpha=0.4, color="#7d8794", linewidths=0)
    axes.set(title="sizes", xlabel="width (px)", ylabel="height (px)")
    top = float(np.max(size)) * 1.05 if len(size) else 1.0
    axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    drawing = out.getvalue()
    drawing = re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img" aria-label="sizes, brightness, colour"', drawing
    )
    return drawing[drawing.index("<svg") :].replace(INK, "currentColor")
