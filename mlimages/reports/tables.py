"""Text tables for a terminal; the table of a network's layers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from mlimages.core import Layer, NetworkSummary


def table(rows: Sequence[Sequence[str]], *, left: frozenset[int] = frozenset({0})) -> Iterator[str]:
    """The rows with aligned columns: those in `left` to the left, the others to the right.

    Example:
        >>> list(table([("cats", "12"), ("ants", "7")]))
        ['cats 12', 'ants  7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) if number in left else cell.rjust(width)
                 for number, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        yield " ".join(cells).rstrip()


def layer_lines(summary: NetworkSummary) -> Iterator[str]:
    """The table of layers and its totals, as text for a terminal."""
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
    """A large number in about five characters.

    Example:
        >>> human(34_900), human(105.4e6)
        ('34.9K', '105.4M')
    """
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
    yield f"memory: {human(4 * summary.parameters)}B as float32; {human(summary.multiply_adds)} multiply-adds per image"
    between = summary.multiply_adds - sum(layer.multiply_adds for layer in summary.layers)
    if between > 0:
        yield f"of these, {human(between)} are between the layers (attention and the like)"
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
