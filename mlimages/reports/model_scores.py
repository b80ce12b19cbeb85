"""Result of probing several networks: accuracy, time and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlimages.core import Proportion, format_interval, format_percent, format_table
from mlimages.reports.probe_result import ProbeResult


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
