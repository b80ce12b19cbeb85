"""HTML reports of an evaluation, a probe and a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from mlimages.core import Prediction, as_path, counted, format_count
from mlimages.inference import Evaluation
from mlimages.reports import plots
from mlimages.reports.comparison import NOISE, ComparedRun, have_best, verdict
from mlimages.reports.label_tables import label_rows, label_text
from mlimages.reports.pages import MAX_TILES, GalleryTile, embed, matrix_cells, percent, render
from mlimages.reports.probe_result import ProbeResult


def report_html(found: Evaluation, title: str) -> str:
    """Return the report of an evaluation: mistakes, scores of each class, confusion matrix, calibration and speed."""
    return render(
        "evaluation.html",
        title=title,
        found=found,
        mistakes=_mistakes(found),
        mistake_count=len(found.labels.mistakes if found.labels else found.mistakes),
        rows=label_rows(found.per_class, found.labels.average_precision, found.labels.thresholds)
        if found.labels
        else (),
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
        score_name=runs[0].score_name,
        rows=[
            {
                "name": each.run.name,
                "score": each.score,
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


def _mistakes(found: Evaluation) -> list[GalleryTile]:
    names = found.class_names
    if found.labels:
        return [
            _mistake(wrong, label_text((names[label] for label in labels), wrong.labels or ()))
            for wrong, labels in found.labels.mistakes[:MAX_TILES]
        ]
    return [
        _mistake(wrong, f"{names[label]}, predicted {wrong.class_name} ({percent(wrong.probability, 0)})")
        for wrong, label in found.mistakes[:MAX_TILES]
    ]


def _mistake(wrong: Prediction, text: str) -> GalleryTile:
    path = as_path(wrong.path)
    return GalleryTile((embed(path),), (text, f"{path.parent.name}/{path.name}"))


def _figures(found: Evaluation) -> list[tuple[str, str]]:
    decode, network = found.decode_ms, found.network_ms
    return [
        ("cross-entropy loss", f"{found.loss:.3f}"),
        ("calibration error", f"{found.calibration_error:.3f}"),
        ("all labels correct", percent(found.accuracy.value))
        if found.labels
        else ("predicted “unknown”", counted(found.unknown, "image")),
        ("throughput", f"{found.images_per_s:.0f} images/s"),
        ("latency p50/p95, decoding", f"{decode.p50:.1f} / {decode.p95:.1f} ms"),
        ("latency p50/p95, network", f"{network.p50:.1f} / {network.p95:.1f} ms"),
    ]
