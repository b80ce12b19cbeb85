"""A network layer by layer: the rows of its summary, and the arithmetic of their sizes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

State = Literal["frozen", "trained", "partly", ""]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, in the order of the forward pass.

    Attributes:
        name: qualified name in the network, or the well-known one ("conv1").
        kind: "conv", "pool", "linear", "norm" ... .
        output: shape of its output without the batch: `(C, H, W)`, `(features,)` or `(tokens, features)`.
        state: whether training changes its parameters; "" if it has none or this is not known.
        multiply_adds: for one image.
        arithmetic: the formula of its output width, or of the number of its inputs.
        even: whether the windows fill the width exactly; otherwise it is rounded.
        lost_px: columns at the edge that no window covers, because the width was rounded down.
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
        title: the model's name, run folder or file.
        input: `(C, H, W)`.
        layers: in the order of the forward pass.
        parameters, trained_parameters: of the network; shared ones count once. None if unknown.
        multiply_adds: of the whole network for one image, those between layers (attention) included.
        notes: further facts, one line each.
    """

    title: str
    input: tuple[int, int, int]
    layers: tuple[Layer, ...]
    parameters: int
    trained_parameters: int | None
    multiply_adds: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The values that `--json` prints."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Window:
    """The window of a convolution or a pooling layer along one axis.

    Attributes:
        size: in pixels, the gaps of a dilated kernel included.
        padding: pixels added on each side.
        ceil: whether a last, incomplete window counts (`ceil_mode`).
    """

    size: int
    stride: int = 1
    padding: int = 0
    ceil: bool = False

    def width(self, n: int) -> Fraction:
        """Output width before rounding: `(N + 2P - F)/S + 1`.

        Source: V. Dumoulin and F. Visin, A guide to convolution arithmetic for deep learning (2016), relationship 6.
        """
        return Fraction(n + 2 * self.padding - self.size, self.stride) + 1

    def rounded_width(self, n: int) -> int:
        """Output width for `n` input columns."""
        return math.ceil(self.width(n)) if self.ceil else math.floor(self.width(n))

    def lost_px(self, n: int) -> int:
        """How many of the `n` columns, at the far edge, no window covers."""
        covered = (self.rounded_width(n) - 1) * self.stride + self.size
        return max(0, n + self.padding - covered)

    def arithmetic(self, n: int) -> str:
        """The formula of the output width with its numbers."""
        width = self.width(n)
        value = str(width) if width.denominator == 1 else f"{float(width):.2f}"
        return f"({n} + 2*{self.padding} - {self.size})/{self.stride} + 1 = {value}"
