"""Plots of a dataset inside a page, in the page's text color."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.checks import FactsTable
from mlimages.core import MissingExtraError

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("check --report", "report") from error

INK = "#010203"
"""Text and axes; in the page it is replaced by the text color."""

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


def overview(facts: FactsTable) -> str:
    """Sizes, brightness and colors of the decoded images side by side, as an SVG element."""
    decoded = facts["width"] > 0
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(12, 3.2), layout="constrained")
        sizes, brightness, colors = figure.subplots(1, 3)
        _draw_sizes(sizes, facts["width"][decoded], facts["height"][decoded])
        brightness.hist(facts["typical"][decoded], bins=32, range=(0, 256), color="#7d8794")
        brightness.set(title="brightness", xlabel="median level of an image", ylabel="images")
        for channel, color in CHANNELS.items():
            levels = facts[channel][decoded]
            colors.hist(levels, bins=32, range=(0, 256), histtype="step", label=channel, color=color, linewidth=1.5)
        colors.set(title="color", xlabel="mean level of an image, by channel", ylabel="images")
        colors.legend(labelcolor=INK)
        return _svg(figure)


def _draw_sizes(axes: Axes, width: NDArray[np.uint32], height: NDArray[np.uint32]) -> None:
    """Width against height; of many images, a sample at even steps."""
    step = max(1, len(width) // MAX_POINTS)
    axes.scatter(width[::step], height[::step], s=9, alpha=0.4, color="#7d8794", linewidths=0)
    axes.set(title="sizes", xlabel="width (px)", ylabel="height (px)")
    top = 1.05 * max(width.max(initial=0), height.max(initial=0), 1)
    axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    drawing = out.getvalue()
    drawing = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img" aria-label="sizes, brightness, color"', drawing)
    return drawing[drawing.index("<svg") :].replace(INK, "currentColor")
