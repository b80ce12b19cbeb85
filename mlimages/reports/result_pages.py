"""HTML reports of an evaluation, a probe and a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from mlimages.core import as_path, format_percent, pluralize
from mlimages.inference import Evaluation
from mlimages.reports import plots
from mlimages.reports.comparison import SIGNIFICANCE_LEVEL, ComparedRun, format_run_cells, make_run_names
from mlimages.reports.pages import MAX_TILES, GalleryTile, format_mistake, make_image_tile, make_matrix_cells, render
from mlimages.reports.probe_result import ProbeResult


def render_evaluation(evaluation: Evaluation, title: str) -> str:
    """Return the HTML report of an evaluation: mistakes, scores of each class, calibration, speed, and for a
    single-label model of at most `MAX_MATRIX_CLASSES` classes the confusion matrix."""
    label_scores = evaluation.multi_label_scores
    return render(
        "evaluation.html",
        title=title,
        evaluation=evaluation,
        mistakes=_make_mistake_tiles(evaluation),
        mistake_count=len((label_scores or evaluation).mistakes),
        rows=label_scores.class_scores if label_scores else (),
        cells=make_matrix_cells(evaluation.confusion_matrix),
        figures=_make_metric_rows(evaluation),
    )


def render_probe(result: ProbeResult) -> str:
    """Return the HTML report of a probe: the recommended value of `--freeze`, and the accuracy by last frozen layer and
    by number of images per class."""
    gain = result.gain_from_last_doubling
    interval = gain and f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
    return render(
        "probe.html",
        title=f"Probe of {result.model}",
        subtitle=f"{pluralize(result.num_images, 'image')} of {pluralize(result.num_classes, 'class')}"
        + (f", {pluralize(result.num_broken_images, 'image')} skipped" if result.num_broken_images else ""),
        result=result,
        gain=f"{100 * gain.value:+.1f} ({interval})" if gain else "",
        drawings=plots.draw_probe_svgs(result),
    )


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """Return the HTML report of a comparison: scores with their intervals, significance, settings that differ."""
    return render(
        "compare.html",
        title=f"Comparison of {pluralize(len(runs), 'run')}",
        subtitle=", ".join(str(each.path) for each in runs),
        noise=SIGNIFICANCE_LEVEL,
        score_name=runs[0].score_name,
        rows=[
            {"name": name, "score": each.score, "count": each.num_images, "cells": cells}
            for each, name, cells in zip(runs, make_run_names(runs), format_run_cells(runs), strict=True)
        ],
        drawings=[plots.draw_comparison_svg(runs)],
        settings=[(name, [each.differing_settings[name] for each in runs]) for name in runs[0].differing_settings],
    )


def _make_mistake_tiles(evaluation: Evaluation) -> list[GalleryTile]:
    names = evaluation.class_names
    if label_scores := evaluation.multi_label_scores:
        mistakes = [(wrong, labels, wrong.labels or ()) for wrong, labels in label_scores.mistakes[:MAX_TILES]]
    else:
        mistakes = [(wrong, (label,), wrong.top[:1]) for wrong, label in evaluation.mistakes[:MAX_TILES]]
    return [
        make_image_tile(as_path(wrong.path), format_mistake((names[label] for label in labels), predicted))
        for wrong, labels, predicted in mistakes
    ]


def _make_metric_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    decode, network = evaluation.decode_ms, evaluation.network_ms
    return [
        (f"{'binary ' if evaluation.multi_label_scores else ''}cross-entropy loss", f"{evaluation.loss:.3f}"),
        ("calibration error", f"{evaluation.calibration_error:.3f}"),
        ("all labels correct", format_percent(evaluation.accuracy.value))
        if evaluation.multi_label_scores
        else ("predicted “none of these”", pluralize(evaluation.num_unknown, "image")),
        ("throughput", f"{evaluation.images_per_s:.0f} images/s"),
        ("latency of decoding (p50/p95)", f"{decode.p50:.1f} / {decode.p95:.1f} ms"),
        ("latency of the network (p50/p95)", f"{network.p50:.1f} / {network.p95:.1f} ms"),
    ]
