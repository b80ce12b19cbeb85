"""Compare the accuracies of transfer learning and training from scratch, as bars in a terminal and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

MAX_BAR_LENGTH = 36


@dataclass(frozen=True, slots=True)
class MethodAccuracies:
    """Test accuracies (0..1) of a training method, one per random seed, after training with the same settings."""

    method: str
    images_per_class: int
    epochs: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return statistics.mean(self.values)

    def __str__(self) -> str:
        lowest, highest = min(self.values), max(self.values)
        return f"{100 * self.mean:5.1f} % ({100 * lowest:.1f} to {100 * highest:.1f} %)"


def format_accuracy_bars(accuracies: Sequence[MethodAccuracies]) -> Iterator[str]:
    """Yield one line per result: a bar, the mean, and the minimum and maximum over the seeds."""
    for result in accuracies:
        bar = "#" * round(MAX_BAR_LENGTH * result.mean)
        yield f"  {result.images_per_class:>3} {result.method:<8} {bar:<{MAX_BAR_LENGTH}} {result}"


def describe_difference(transfer_accuracies: MethodAccuracies, scratch_accuracies: MethodAccuracies) -> str:
    """Return one line: the mean difference in percentage points, and for how many seeds transfer is better."""
    better = sum(
        mine > other for mine, other in zip(transfer_accuracies.values, scratch_accuracies.values, strict=True)
    )
    points = 100 * (transfer_accuracies.mean - scratch_accuracies.mean)
    num_seeds = len(transfer_accuracies.values)
    return f"transfer minus scratch: {points:+.1f} percentage points; higher for {better} of {num_seeds} seeds"


def draw_accuracies(accuracies: Sequence[MethodAccuracies], path: Path) -> None:
    """Write a PNG of accuracy by images per class: one panel per number of epochs, one line per training method."""
    epochs = sorted({result.epochs for result in accuracies})
    figure = Figure(figsize=(4 * len(epochs), 3.4), layout="constrained")
    panels = figure.subplots(1, len(epochs), sharey=True, squeeze=False)[0]
    for panel, count in zip(panels, epochs, strict=True):
        for method in dict.fromkeys(result.method for result in accuracies):
            shown = [result for result in accuracies if (result.method, result.epochs) == (method, count)]
            means = [100 * result.mean for result in shown]
            below = [100 * (result.mean - min(result.values)) for result in shown]
            above = [100 * (max(result.values) - result.mean) for result in shown]
            panel.errorbar(
                [r.images_per_class for r in shown], means, yerr=[below, above], marker="o", capsize=3, label=method
            )
        sizes = sorted({result.images_per_class for result in accuracies})
        panel.set(xscale="log", xlabel="images per digit", title=f"after {count} epochs")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy (%): mean, minimum and maximum over seeds")
    panels[-1].legend(loc="lower right")
    figure.savefig(path, dpi=110)
