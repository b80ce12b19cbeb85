"""Layer-by-layer summary of a network, and the arithmetic of output sizes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from mlimages.core.terminal import format_count, format_table

LayerState = Literal["frozen", "trained", "partly", ""]
"""Whether training changes none, all or some of a layer's parameters; "" if it has no parameters, or if unknown."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, in the order of the forward pass.

    Attributes:
        name: qualified name in the network, or the well-known name ("conv1").
        kind: "conv", "pool", "linear", "norm" ... .
        output: output shape without the batch dimension: `(C, H, W)`, `(features,)` or `(tokens, features)`.
        parameters: number of parameters.
        state: "trained" if training changes all parameters, "frozen" if none, "partly" if some; "" if the layer has no
            parameters, or if unknown.
        multiply_adds: number of multiply-adds for one image.
        arithmetic: text of the formula of the output width, `(224 + 2*3 - 7)/2 + 1 = 112.50`; for a linear layer, the
            number of inputs and outputs; "" for other layers.
        even: False if the output width is rounded, since the division in `arithmetic` leaves a remainder.
        lost_px: number of columns at the right edge that no window covers because the width is rounded down.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    state: LayerState
    multiply_adds: int
    arithmetic: str = ""
    even: bool = True
    lost_px: int = 0


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """Summary of a network at one input size.

    Attributes:
        title: name of the network, run folder or file.
        input: shape of the input for one image, `(C, H, W)`; an unknown dimension is 0.
        layers: the layers, in the order of the forward pass.
        parameters: number of parameters; shared parameters count once.
        trained_parameters: number of parameters that are not frozen, so that training changes them; None if unknown.
        multiply_adds: number of multiply-adds for one image, including those outside of layers, as in attention.
        notes: additional information, one line each.
    """

    title: str
    input: tuple[int, int, int]
    layers: tuple[Layer, ...]
    parameters: int
    trained_parameters: int | None
    multiply_adds: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON types, as printed by `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the table of layers with totals, for a terminal."""
        return "\n".join(_format_summary_lines(self))


@dataclass(frozen=True, slots=True)
class Window:
    """The window of a convolution or a pooling layer along one axis.

    Attributes:
        size: size in pixels, including the gaps of a dilated kernel.
        stride: step in pixels between two windows.
        padding: pixels added on each side.
        ceil_mode: whether an incomplete window at the end counts, unless it covers only padding, as in torch.
    """

    size: int
    stride: int = 1
    padding: int = 0
    ceil_mode: bool = False

    def exact_output_width(self, input_width: int) -> Fraction:
        """Return the output width before rounding, `(N + 2P - F)/S + 1`: input width N, padding P, size F, stride S.

        Source: V. Dumoulin and F. Visin, A guide to convolution arithmetic for deep learning (2016), relationship 6.
        """
        return Fraction(input_width + 2 * self.padding - self.size, self.stride) + 1

    def output_width(self, input_width: int) -> int:
        """Return the output width; an exact width that is not whole is rounded down, or up if `ceil_mode` is true."""
        width = self.exact_output_width(input_width)
        if not self.ceil_mode:
            return math.floor(width)
        covers_only_padding = (math.ceil(width) - 1) * self.stride >= input_width + self.padding  # the last window
        return math.ceil(width) - covers_only_padding

    def lost_px(self, input_width: int) -> int:
        """Return the number of input columns at the right edge that no window covers."""
        covered = (self.output_width(input_width) - 1) * self.stride + self.size
        return max(0, input_width + self.padding - covered)

    def width_formula(self, input_width: int) -> str:
        """Return the formula of the exact output width, whole or not, such as `(224 + 2*3 - 7)/2 + 1 = 112.50`."""
        width = self.exact_output_width(input_width)
        value = str(width) if width.denominator == 1 else f"{float(width):.2f}"
        return f"({input_width} + 2*{self.padding} - {self.size})/{self.stride} + 1 = {value}"


def _format_summary_lines(summary: NetworkSummary) -> Iterator[str]:
    shape = " x ".join(str(length or "?") for length in summary.input)
    yield f"{summary.title}: input {shape}" if any(summary.input) else summary.title
    yield ""
    head = ("layer", "kind", "output", "params", "mult-adds", "state", "width = (N + 2P - F)/S + 1")
    rows = [head, *(_format_layer_row(layer) for layer in _select_visible_layers(summary.layers))]
    yield from format_table(rows, left_columns=frozenset({0, 1, 5, 6}))
    yield ""
    yield from _format_totals(summary)


def _select_visible_layers(layers: Iterable[Layer]) -> Iterator[Layer]:
    """Yield the layers to list in the table: those with parameters or `arithmetic`. A ReLU, for example, is hidden."""
    return (layer for layer in layers if layer.parameters or layer.arithmetic)


def _format_layer_row(layer: Layer) -> tuple[str, ...]:
    return (
        layer.name,
        layer.kind,
        "x".join(map(str, layer.output)),
        format_count(layer.parameters) if layer.parameters else "",
        format_count(layer.multiply_adds) if layer.multiply_adds else "",
        layer.state,
        layer.arithmetic + ("" if layer.even else " !"),
    )


def _format_totals(summary: NetworkSummary) -> Iterator[str]:
    trained = summary.trained_parameters
    parts = "" if trained is None else f" = {trained:,} trained + {summary.parameters - trained:,} frozen"
    yield f"parameters: {summary.parameters:,}{parts}"
    memory, work = format_count(4 * summary.parameters), format_count(summary.multiply_adds)
    yield f"parameters in float32: {memory}B; {work} multiply-adds per image"
    between = summary.multiply_adds - sum(layer.multiply_adds for layer in summary.layers)
    if between > 0:
        yield f"multiply-adds between the layers (such as attention): {format_count(between)}"
    outside = summary.parameters - sum(layer.parameters for layer in summary.layers)
    if outside > 0:
        yield f"{outside:,} parameters belong to no layer (such as embeddings and constants)"
    hidden = len(summary.layers) - sum(1 for _ in _select_visible_layers(summary.layers))
    if hidden:
        yield f"{hidden} more layers have no parameters (such as ReLU): see --json"
    if not all(layer.even for layer in summary.layers):
        lost = [f"{layer.name} {layer.lost_px}" for layer in summary.layers if layer.lost_px]
        text = "! the output width is rounded; columns that no window covers, by layer: " + (", ".join(lost) or "none")
        yield from textwrap.wrap(text, 80, subsequent_indent="  ")
    yield from summary.notes
