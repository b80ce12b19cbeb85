"""A network layer by layer: the values, the arithmetic of sizes, and the table that people read."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

State = Literal["frozen", "trained", "partly", ""]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as a picture passes through it.

    Attributes:
        name: its path in the network, or the well-known one ("conv1").
        kind: "conv", "pool", "linear", "norm" ... .
        output: the shape of what it gives, without the batch: `(C, H, W)`, `(features,)` or `(tokens, features)`.
        state: whether training changes its parameters; "" where it has none or nothing is known.
        multiply_adds: for one picture.
        arithmetic: how its width (or its count of inputs) comes about.
        even: whether the windows fill the width exactly; where not, it is rounded.
        lost_px: columns at the edge that no window sees, since the width was rounded down.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    state: State
    multiply_adds: int
    arithmetic: str = ""
    even: bool = True
    lost_px: int = 0


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """A network at one input size.

    Attributes:
        title: what was summed up ("alex", a run, a file).
        input: `(C, H, W)`.
        layers: in the order in which a picture passes them.
        parameters, trained_parameters: of the whole network; shared ones count once. None: not known what trains.
        multiply_adds: of the whole network for one picture, those between the layers (attention) included.
        notes: what else is known of it, a line each.
    """

    title: str
    input: tuple[int, int, int]
    layers: tuple[Layer, ...]
    parameters: int
    trained_parameters: int | None
    multiply_adds: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Window:
    """What slides over a picture's width: a convolution's kernel or a pool.

    Attributes:
        size: in pixels, the gaps of a dilated one included.
        padding: added on each side.
        ceil: a last window that is not full counts too.
    """

    size: int
    stride: int = 1
    padding: int = 0
    ceil: bool = False

    def width(self, n: int) -> Fraction:
        """`(N + 2P - F)/S + 1`, before it is rounded.

        Source: V. Dumoulin and F. Visin, A guide to convolution arithmetic for deep learning (2016), relationship 6.
        """
        return Fraction(n + 2 * self.padding - self.size, self.stride) + 1

    def rounded_width(self, n: int) -> int:
        """The width of what comes out."""
        return math.ceil(self.width(n)) if self.ceil else math.floor(self.width(n))

    def lost_px(self, n: int) -> int:
        """How many of the `n` columns no window sees, at the far edge."""
        seen = (self.rounded_width(n) - 1) * self.stride + self.size
        return max(0, n + self.padding - seen)

    def arithmetic(self, n: int) -> str:
        """The formula in figures."""
        width = self.width(n)
        value = str(width) if width.denominator == 1 else f"{float(width):.2f}"
        return f"({n} + 2*{self.padding} - {self.size})/{self.stride} + 1 = {value}"


def table(rows: Sequence[Sequence[str]], *, left: frozenset[int] = frozenset({0})) -> Iterator[str]:
    """Align the columns of `rows`; those in `left` to the left, the last one free."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) if number in left else cell.rjust(width)
                 for number, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        yield " ".join(cells).rstrip()


def layer_lines(summary: NetworkSummary) -> Iterator[str]:
    """The table and its totals, to be printed."""
    channels, height, width = summary.input
    yield f"{summary.title}: input {channels} x {height} x {width}"
    yield ""
    head = ("layer", "kind", "output", "params", "mult-adds", "state", "width = (N + 2P - F)/S + 1")
    rows = [head, *(_row(layer) for layer in shown(summary.layers))]
    yield from table(rows, left=frozenset({0, 1, 5, 6}))
    yield ""
    yield from _totals(summary)


def shown(layers: Iterable[Layer]) -> Iterator[Layer]:
    """The layers that change the shape or hold parameters."""
    return (layer for layer in layers if layer.parameters or layer.arithmetic)


def human(count: float) -> str:
    """A large number in five characters or so: 34.9K, 105.4M."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f}{unit}"
    return f"{count:.0f}"


def _row(layer: Layer) -> tuple[str, ...]:
    return (
        layer.name,
        layer.kind,
        "x".join(map(str, layer.output)),
        human(layer.parameters) if layer.parameters else "",
        human(layer.multiply_adds) if layer.multiply_adds else "",
        layer.state,
        layer.arithmetic + ("" if layer.even else " !"),
    )


def _totals(summary: NetworkSummary) -> Iterator[str]:
    trained = summary.trained_parameters
    parts = "" if trained is None else f" = {trained:,} trained + {summary.parameters - trained:,} frozen"
    yield f"parameters: {summary.parameters:,}{parts}"
    yield f"memory: {human(4 * summary.parameters)}B as float32; {human(summary.multiply_adds)} multiply-adds a picture"
    between = summary.multiply_adds - sum(layer.multiply_adds for layer in summary.layers)
    if between > 0:
        yield f"of these, {human(between)} lie between the layers (attention and the like)"
    outside = summary.parameters - sum(layer.parameters for layer in summary.layers)
    if outside > 0:
        yield f"{outside:,} parameters belong to no layer (embeddings, constants and the like)"
    hidden = len(summary.layers) - sum(1 for _ in shown(summary.layers))
    if hidden:
        yield f"{hidden} more layers keep the shape and hold no parameters (ReLU ...): see --json"
    yield from _uneven(summary.layers)
    yield from summary.notes


def _uneven(layers: Sequence[Layer]) -> Iterator[str]:
    if not all(layer.even for layer in layers):
        lost = [f"{layer.name} {layer.lost_px}" for layer in layers if layer.lost_px]
        text = "! does not divide evenly and is rounded; columns lost at the edge: " + (", ".join(lost) or "none")
        yield from textwrap.wrap(text, 80, subsequent_indent="  ")
