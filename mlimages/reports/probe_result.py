"""Result of a probe: accuracy by number of frozen layers, and whether more images would help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlimages.core import Proportion, format_table, pluralize

BAR_WIDTH = 24
"""Length of the bar of 100 %, in characters."""

MIN_GAIN = 0.005
"""A smaller gain in accuracy per doubling is not worth gathering images."""

MAX_NEGLIGIBLE_GAIN = 0.02
"""More images hardly help if the interval of the gain ends below this."""


@dataclass(frozen=True, slots=True)
class CutScore:
    """Probe accuracy with this layer as the last frozen layer.

    Attributes:
        name: value for `--freeze`.
        width: number of pooled features per image.
        accuracy: leave-one-out accuracy of a ridge classifier on these features, with its 95 % interval.
        within_noise: whether it is not significantly worse than the best layer (exact sign test, 5 %).
    """

    name: str
    width: int
    accuracy: Proportion
    within_noise: bool


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Accuracy on held-out images, with its 95 % interval, of a classifier fitted on `per_class` images per class."""

    per_class: int
    accuracy: Proportion


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Result of `probe_cuts`.

    Attributes:
        model: name of the network.
        images, classes: number of images and classes used.
        broken: number of images that could not be read.
        cuts: score of each layer, from the input to the output.
        freeze: the recommended layer: the last layer that is not significantly worse than the best, which leaves the
            fewest layers to train.
        curve: accuracy by images per class, for the recommended layer.
        gain: change in accuracy (-1..1) from the last doubling of images, with its 95 % interval; None if `curve` has
            one point.
    """

    model: str
    images: int
    classes: int
    broken: int
    cuts: tuple[CutScore, ...]
    freeze: str
    curve: tuple[CurvePoint, ...]
    gain: Proportion | None

    @property
    def more_images_would_help(self) -> bool | None:
        """Whether the accuracy still increases with the number of images; None if the interval of `gain` allows both
        answers."""
        if self.gain is None:
            return None
        if self.gain.low > 0 and self.gain.value >= MIN_GAIN:
            return True
        return False if self.gain.high < MAX_NEGLIGIBLE_GAIN else None

    @property
    def more_images_note(self) -> str:
        """A phrase on whether more images would help, for a report."""
        if self.more_images_would_help is None:
            return "it is unclear whether more images would help"
        return f"more images would {'help' if self.more_images_would_help else 'hardly help'}"

    def to_dict(self) -> Mapping[str, Any]:
        """Return the result as JSON types."""
        return {**asdict(self), "more_images_would_help": self.more_images_would_help}


def format_probe(result: ProbeResult) -> Iterator[str]:
    """Yield the lines of the result for a terminal: tables with bars, and the recommendation."""
    dataset = f"{pluralize(result.images, 'image')} of {pluralize(result.classes, 'class')}"
    yield f"{result.model}: {dataset}, accuracy by cross-validation"
    yield ""
    rows = [("--freeze", "features", "accuracy", "95 %", "")]
    rows += [
        (cut.name, str(cut.width), *_format_accuracy_cells(cut.accuracy, is_marked=cut.name == result.freeze))
        for cut in result.cuts
    ]
    yield from format_table(rows, left_columns=frozenset({0, 4}))
    yield ""
    if result.curve:
        points = [("per class", "accuracy", "95 %", "")]
        points += [(str(point.per_class), *_format_accuracy_cells(point.accuracy)) for point in result.curve]
        yield from format_table(points, left_columns=frozenset({3}))
        yield ""
    yield f"recommended: --freeze {result.freeze} (<): the last layer within noise of the best"
    if result.gain is not None:
        gain, low, high = (f"{100 * part:+.1f}" for part in (result.gain.value, result.gain.low, result.gain.high))
        yield f"{result.more_images_note}:"
        yield f"  {gain} points from the last doubling of images (95 % interval {low} to {high})"


def _format_accuracy_cells(share: Proportion, *, is_marked: bool = False) -> tuple[str, str, str]:
    bar = "#" * round(BAR_WIDTH * share.value)
    span = f"{100 * share.low:.1f}-{100 * share.high:.1f}"
    return f"{100 * share.value:.1f}", span, bar + (" <" if is_marked else "")
