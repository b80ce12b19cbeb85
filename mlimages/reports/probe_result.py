"""Results of probing networks: accuracy by number of frozen layers, whether more images would help, time and size."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlimages.core import Proportion, format_interval, format_percent, format_table, pluralize

MAX_BAR_LENGTH = 24
"""Length in characters of the bar for an accuracy of 100 %."""

MIN_WORTHWHILE_GAIN = 0.005
"""Doubling the number of images is worthwhile if the accuracy (0..1) increases by at least this."""

MAX_NEGLIGIBLE_GAIN = 0.02
"""More images hardly help if the upper end of the 95 % interval of the gain in accuracy (-1..1) is below this."""


@dataclass(frozen=True, slots=True)
class LayerScore:
    """Accuracy of a linear probe on the features of one layer, as if it were the last frozen layer.

    Attributes:
        layer_name: value for `--freeze`.
        num_features: number of pooled features per image.
        accuracy: leave-one-out accuracy of a ridge classifier on these features, with its 95 % interval.
        is_within_noise: whether the accuracy is not significantly below that of the best layer (McNemar's exact test,
            5 %).
    """

    layer_name: str
    num_features: int
    accuracy: Proportion
    is_within_noise: bool


@dataclass(frozen=True, slots=True)
class LearningCurvePoint:
    """One point of a learning curve.

    Attributes:
        images_per_class: number of images per class that the classifier was fitted on.
        accuracy: mean accuracy on the held-out images of several random splits, with its 95 % interval.
    """

    images_per_class: int
    accuracy: Proportion


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Accuracy of a linear probe on each layer of a network, and the recommended last layer to freeze.

    Attributes:
        model: name of the network.
        num_images, num_classes: number of images and classes used, without exact duplicates.
        num_broken_images: number of images that could not be read.
        layer_scores: score of each layer, from the input to the output.
        recommended_freeze: recommended value for `--freeze`: of the layers that are not significantly worse than the
            best, the last one, so that the fewest layers have to be trained.
        learning_curve: accuracy by images per class, for the recommended layer; empty if a class has too few images.
        gain_from_last_doubling: change in accuracy from the last doubling of images, with its 95 % interval; unlike
            other values of type Proportion, it is in -1..1. None if `learning_curve` has fewer than two points.
    """

    model: str
    num_images: int
    num_classes: int
    num_broken_images: int
    layer_scores: tuple[LayerScore, ...]
    recommended_freeze: str
    learning_curve: tuple[LearningCurvePoint, ...]
    gain_from_last_doubling: Proportion | None

    @property
    def more_images_would_help(self) -> bool | None:
        """Whether the accuracy still increases with the number of images; None if this is unclear."""
        if (gain := self.gain_from_last_doubling) is None:
            return None
        if gain.low > 0 and gain.value >= MIN_WORTHWHILE_GAIN:
            return True
        return False if gain.high < MAX_NEGLIGIBLE_GAIN else None

    @property
    def more_images_note(self) -> str:
        """Whether more images would help, in words."""
        if self.more_images_would_help is None:
            return "it is unclear whether more images would help"
        return f"more images would {'help' if self.more_images_would_help else 'hardly help'}"

    @property
    def below_chance_note(self) -> str:
        """Explanation of accuracies below that of guessing; empty if there are none."""
        if all(score.accuracy.value >= 1 / self.num_classes for score in self.layer_scores):
            return ""
        return (
            f"an accuracy below {100 / self.num_classes:.1f} means that the layer does not separate the classes: "
            "when an image is left out, its class is rarer than the others, and the classifier predicts one of them"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes and `more_images_would_help` as JSON types."""
        return {**self.attributes_to_dict(), "more_images_would_help": self.more_images_would_help}

    def attributes_to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON types; unlike `to_dict`, without `more_images_would_help`."""
        return {
            "model": self.model,
            "images": self.num_images,
            "classes": self.num_classes,
            "broken": self.num_broken_images,
            "cuts": [
                {
                    "name": score.layer_name,
                    "width": score.num_features,
                    "accuracy": asdict(score.accuracy),
                    "within_noise": score.is_within_noise,
                }
                for score in self.layer_scores
            ],
            "freeze": self.recommended_freeze,
            "curve": [
                {"per_class": point.images_per_class, "accuracy": asdict(point.accuracy)}
                for point in self.learning_curve
            ],
            "gain": self.gain_from_last_doubling and asdict(self.gain_from_last_doubling),
        }


def format_probe(result: ProbeResult) -> Iterator[str]:
    """Yield the lines of a report for a terminal: accuracy by layer and by images per class, and the recommendation."""
    dataset = f"{pluralize(result.num_images, 'image')} of {pluralize(result.num_classes, 'class')}"
    yield f"{result.model}: {dataset}, leave-one-out accuracy"
    yield ""
    rows = [("--freeze", "features", "accuracy", "95 %", "")]
    for score in result.layer_scores:
        cells = _format_accuracy_cells(score.accuracy, is_recommended=score.layer_name == result.recommended_freeze)
        rows.append((score.layer_name, str(score.num_features), *cells))
    yield from format_table(rows, left_columns=frozenset({0, 4}))
    yield ""
    if note := result.below_chance_note:
        yield from (*textwrap.wrap(note, 80), "")
    if result.learning_curve:
        points = [("images/class", "accuracy", "95 %", "")]
        points += [
            (str(point.images_per_class), *_format_accuracy_cells(point.accuracy)) for point in result.learning_curve
        ]
        yield from format_table(points, left_columns=frozenset({3}))
        yield ""
    yield f"recommended: --freeze {result.recommended_freeze} (marked with <)"
    yield "  the last layer that is not significantly below the best"
    if (change := result.gain_from_last_doubling) is not None:
        gain, low, high = (f"{100 * part:+.1f}" for part in (change.value, change.low, change.high))
        yield f"{result.more_images_note}:"
        yield f"  {gain} points from the last doubling of images (95 % interval {low} to {high})"


def _format_accuracy_cells(share: Proportion, *, is_recommended: bool = False) -> tuple[str, str, str]:
    """Return the accuracy, its interval and a bar, which ends in `<` if the layer is recommended."""
    bar = "#" * round(MAX_BAR_LENGTH * share.value)
    span = f"{100 * share.low:.1f}-{100 * share.high:.1f}"
    return f"{100 * share.value:.1f}", span, bar + (" <" if is_recommended else "")


@dataclass(frozen=True, slots=True)
class ModelScore:
    """Accuracy, CPU time and size of one of the networks that `probe_models` compares.

    Attributes:
        probe_result: result of probing the network, with one accuracy for each layer up to which it can be frozen.
        cpu_ms: CPU time of a forward pass in PyTorch, summed over all threads, in milliseconds per image.
        onnx_mb: size of the ONNX file in megabytes, estimated from the number of weights.
    """

    probe_result: ProbeResult
    cpu_ms: float
    onnx_mb: float

    @property
    def model(self) -> str:
        """Name of the network."""
        return self.probe_result.model

    @property
    def accuracy(self) -> Proportion:
        """Leave-one-out accuracy of ridge regression on the inputs of the network's head, with its 95 % interval."""
        return self.probe_result.layer_scores[-1].accuracy

    def dominates(self, other: ModelScore) -> bool:
        """Return whether this network is at least as accurate, fast and small as `other`, and better in one or more."""
        own, others = ((each.accuracy.value, -each.cpu_ms, -each.onnx_mb) for each in (self, other))
        return own != others and all(one >= two for one, two in zip(own, others, strict=True))


@dataclass(frozen=True, slots=True)
class ModelScores:
    """Result of `probe_models`.

    Attributes:
        scores: scores of each network, the most accurate first; if equal, the fastest first.
        unavailable_reasons: for each network that was not probed, the reason.
    """

    scores: tuple[ModelScore, ...]
    unavailable_reasons: Mapping[str, str]

    def find_dominating_model(self, score: ModelScore) -> str:
        """Return the name of the most accurate network that dominates this one; empty if there is none."""
        return next((each.model for each in self.scores if each.dominates(score)), "")

    def to_dict(self) -> Mapping[str, Any]:
        """Return the result as JSON types."""
        rows = [
            {
                "probe": each.probe_result.attributes_to_dict(),
                "cpu_ms": each.cpu_ms,
                "onnx_mb": each.onnx_mb,
                "dominated_by": self.find_dominating_model(each),
            }
            for each in self.scores
        ]
        return {"models": rows, "unavailable": dict(self.unavailable_reasons)}


def format_model_table(result: ModelScores) -> Iterator[str]:
    """Yield the lines of a table of the scores, for a terminal, and the networks that were not probed."""
    rows = [("model", "accuracy", "95 % interval", "CPU ms", "ONNX MB", "dominated by")]
    rows += [
        (
            score.model,
            format_percent(score.accuracy.value),
            format_interval(score.accuracy),
            f"{score.cpu_ms:.1f}",
            f"{score.onnx_mb:.1f}",
            result.find_dominating_model(score),
        )
        for score in result.scores
    ]
    yield from format_table(rows, left_columns=frozenset({0, 5}))
    yield ""
    yield "accuracy: closed-form head on the frozen network; CPU ms: forward pass in PyTorch, per image"
    yield from (f"{name}: {reason}" for name, reason in result.unavailable_reasons.items())


def sort_best_first(scores: Sequence[ModelScore]) -> tuple[ModelScore, ...]:
    """Sort the scores by accuracy, the most accurate first; if equal, the fastest first."""
    return tuple(sorted(scores, key=lambda each: (-each.accuracy.value, each.cpu_ms)))
