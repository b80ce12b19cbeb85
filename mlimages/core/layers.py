"""A network layer by layer: its rows and the arithmetic of their sizes."""

from __future__ import annotations

import math
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
