"""What a probe found: how well each cut tells the classes apart, and whether more pictures would help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlimages.core import Share
from mlimages.reports.layers import table

BAR = 24
"""How many characters 100 % is long."""

WORTH = 0.005
"""A gain per doubling below this share is nothing to gather pictures for."""


@dataclass(frozen=True, slots=True)
class CutScore:
    """One cut, everything up to it frozen.

    Attributes:
        name: as `--freeze` takes it.
        width: how many numbers describe a picture there, pooled.
        accuracy: of a ridge classifier on them, by cross-validation; with its 95 % interval.
        within_noise: not worse than the best cut by more than chance explains (exact sign test, 5 %).
    """

    name: str
    width: int
    accuracy: Share
    within_noise: bool


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The accuracy with `per_class` pictures of each class, on pictures aside; with its 95 % interval."""

    per_class: int
    accuracy: Share


@dataclass(frozen=True, slots=True)
class Probed:
    """All that a probe found.

    Attributes:
        model: the network's name.
        images, classes: how many pictures of how many classes were used.
        broken: pictures that could not be used.
        cuts: from the input upwards.
        freeze: the recommended cut: the highest that is within noise of the best, so that least is left to train.
        curve: at that cut.
        gain: what the last doubling of the pictures brought, with its 95 % interval (-1..1); None for one point.
    """

    model: str
    images: int
    classes: int
    broken: int
    cuts: tuple[CutScore, ...]
    freeze: str
    curve: tuple[CurvePoint, ...]
    gain: Share | None

    @property
    def more_would_help(self) -> bool:
        """Whether the accuracy still rises with the pictures, by more than chance explains."""
        return self.gain is not None and self.gain.low > 0 and self.gain.value >= WORTH

    def as_dict(self) -> Mapping[str, Any]:
        """For JSON."""
        return {**asdict(self), "more_would_help": self.more_would_help}


def probe_lines(probed: Probed) -> Iterator[str]:
    """Tables with bars, to be printed."""
    yield f"{probed.model}: {probed.images} pictures of {probed.classes} classes, each judged by the others"
    yield ""
    rows = [("--freeze", "numbers", "accuracy", "95 %", "")]
    rows += [(cut.name, str(cut.width), *_told(cut.accuracy, mark=cut.name == probed.freeze)) for cut in probed.cuts]
    yield from table(rows, left=frozenset({0, 4}))
    yield ""
    if probed.curve:
        points = [("per class", "accuracy", "95 %", "")]
        points += [(str(point.per_class), *_told(point.accuracy)) for point in probed.curve]
        yield from table(points, left=frozenset({3}))
        yield ""
    yield f"recommended: --freeze {probed.freeze} (<): the highest layer within noise of the best"
    if probed.gain is not None:
        gain, low, high = (f"{100 * part:+.1f}" for part in (probed.gain.value, probed.gain.low, probed.gain.high))
        helps = "help" if probed.more_would_help else "hardly help"
        yield f"more pictures {helps}: a doubling brought {gain} points ({low} to {high})"


def _told(share: Share, *, mark: bool = False) -> tuple[str, str, str]:
    bar = "#" * round(BAR * share.value)
    span = f"{100 * share.low:.1f}-{100 * share.high:.1f}"
    return f"{100 * share.value:.1f}", span, bar + (" <" if mark else "")
