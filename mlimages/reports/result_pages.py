"""HTML reports of an evaluation, a probe and a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from mlimages.core import Prediction, as_path, counted, format_count
from mlimages.inference import Evaluation
from mlimages.reports import plots
from mlimages.reports.comparison import NOISE, ComparedRun, have_best, verdict
from mlimages.reports.pages import MAX_TILES, GalleryTile, embed, matrix_cells, percent, render
from mlimages.reports.probe_result import ProbeResult


def report_html(found: Evaluation, title: str) -> str:
    """Return the report of an evaluation: mistakes, scores of each class, confusion matrix, calibration and speed."""
    return render(
        "evaluation.html",
        title=title,
        found=found,
        mistakes=[_mistake(wrong, found.class_names[label]) for wrong, label in found.mistakes[:MAX_TILES]],
        cells=matrix_cells(found.confusion),
        figures=_figures(found),
    )


def probe_html(found: ProbeResult) -> str:
    """Return the report of a probe: the recommended layer, accuracy by layer and by images per class."""
    gain = found.gain and " to ".join(f"{100 * value:+.1f}" for value in (found.gain.low, found.gain.high))
    return render(
        "probe.html",
        title=f"Probe of {found.model}",
        subtitle=f"{counted(found.images, 'image')} of {counted(found.classes, 'class')}"
        + (f", {counted(found.broken, 'image')} skipped" if found.broken else ""),
        found=found,
        gain=f"{100 * found.gain.value:+.1f} ({gain})" if found.gain else "",
        drawings=plots.probe_drawings(found),
    )


def comparison_html(runs: Sequence[ComparedRun]) -> str:
    """Return the report of a comparison: accuracies with their intervals, significance, different settings."""
    return render(
        "compare.html",
        title=f"Comparison of {counted(len(runs), 'run')}",
        subtitle=", ".join(str(each.run) for each in runs),
        noise=NOISE,
        rows=[
            {
                "name": each.run.name,
                "accuracy": each.accuracy,
                "count": each.count,
                "time": "" if each.seconds is None else f"{each.seconds:.0f} s",
                "size": f"{format_count(each.size_bytes)}B",
                "verdict": verdict(each) if place else "best" if have_best(runs) else "-",
            }
            for place, each in enumerate(runs)
        ],
        drawings=[plots.comparison_drawing(runs)],
        settings=[(name, [each.settings[name] for each in runs]) for name in runs[0].settings],
    )


def _mistake(wrong: Prediction, class_name: str) -> GalleryTile:
    path = as_path(wrong.path)
    predicted = f"{class_name}, predicted {wrong.class_name} ({percent(wrong.probability, 0)})"
    return GalleryTile((embed(path),), (predicted, f"{path.parent.name}/{path.name}"))


def _figures(found: Evaluation) -> list[tuple[str, str]]:
    decode, network = found.decode_ms, found.network_ms
    return [
        ("cross-entropy loss", f"{found.loss:.3f}"),
        ("calibration error", f"{found.calibration_error:.3f}"),
        ("predicted “unknown”", counted(found.unknown, "image")),
        ("throughput", f"{found.images_per_s:.0f} images/s"),
        ("latency p50/p95, decoding", f"{decode.p50:.1f} / {decode.p95:.1f} ms"),
        ("latency p50/p95, network", f"{network.p50:.1f} / {network.p95:.1f} ms"),
    ]
