"""HTML reports of a check, an evaluation, a probe and a comparison."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from mlimages.checks import CheckReport, Code, Finding, Thresholds
from mlimages.core import ImageProperty, InputError, LabeledPath, as_path, format_percent, pluralize, write_output
from mlimages.dataset import compute_mean
from mlimages.images import to_uint8
from mlimages.inference import Evaluation
from mlimages.labels import LabelFile
from mlimages.reports import plots
from mlimages.reports.comparison import SIGNIFICANCE_LEVEL, ComparedRun, format_run_cells, make_run_names
from mlimages.reports.pages import (
    MAX_TILES,
    GalleryTile,
    embed_thumbnail,
    format_mistake,
    make_image_tile,
    make_matrix_cells,
    render,
    to_data_url,
)
from mlimages.reports.probe_result import ProbeResult

MAX_GROUPS, MAX_PER_GROUP, MAX_PAIRS = 60, 8, 500
"""How many the page shows at most: groups of duplicates, images of each group, and pairs of near-duplicates that were
found only by comparing features of a network, not by hashes."""

MAX_IMAGES_PER_MEAN, MAX_MEANS = 100, 60
"""Maximum number of images in the mean image of a class, and maximum number of classes with a mean image."""

MEAN_IMAGE_PROPERTY = ImageProperty(96)


def write_check_report(report: CheckReport, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an HTML report: findings by code with their images, groups of duplicates, number of images of each class,
    plots, the mean image of each class, and thresholds that were changed.

    Args:
        report: result of `check`.
        path: the .html file to write.
        overwrite: replace a file that mlimages did not write, or that was changed since.

    Raises:
        InputError: the file exists, was not written by mlimages or was changed since, and `overwrite` is false.
        LabelFileError: since the check, a label file was removed, or changed so that it cannot be read.
    """
    page = render(
        "check.html",
        title="Check of " + ", ".join(file.path.name for file in report.files),
        report=report,
        columns=["class", *(each for file in report.files for each in ((file.path.name, "number name"), ""))],
        classes=_count_images_by_class(report),
        drawings=plots.draw_dataset_svgs(report.measurements),
        errors=_group_findings_by_code(report, report.errors),
        warnings=_group_findings_by_code(report, report.warnings),
        groups=[
            (len(group), [GalleryTile((embed_thumbnail(path),), (str(path),)) for path in group[:MAX_PER_GROUP]])
            for group in report.duplicate_groups[:MAX_GROUPS]
        ],
        group_count=len(report.duplicate_groups),
        feature_pairs=[
            GalleryTile(
                (embed_thumbnail(pair.path), embed_thumbnail(pair.other_path)),
                (pair.path.name, f"{pair.other_path.name}: {pair.correlation:.2f}"),
            )
            for pair in (report.feature_pairs or ())[:MAX_PAIRS]
        ],
        means=list(_make_mean_image_tiles(report)),
        mean_of=MAX_IMAGES_PER_MEAN,
        thresholds=_find_changed_thresholds(report),
    )
    with write_output(as_path(os.fspath(path)), overwrite=overwrite) as part:
        part.write_text(page, encoding="utf-8")


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
        setting_columns=["setting", *((name, "name") for name in make_run_names(runs))],
        settings=[(name, [each.differing_settings[name] for each in runs]) for name in runs[0].differing_settings],
    )


def _count_images_by_class(report: CheckReport) -> dict[str, list[int]]:
    """Return, by class name, the number of images of the class in each label file, in the order of the files."""
    files = range(len(report.files))
    return {name: [report.class_counts.get((file, name), 0) for file in files] for name in report.class_names}


def _group_findings_by_code(report: CheckReport, counts_by_code: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return for each code the number of its findings, whether they concern classes, and tiles of the first ones."""
    return [
        {
            "code": code,
            "count": count,
            "is_class_level": Code(code).is_class_level,
            "tiles": list(map(_make_finding_tile, islice(report.findings.select({Code(code)}), MAX_TILES))),
        }
        for code, count in counts_by_code.items()
    ]


def _make_finding_tile(finding: Finding) -> GalleryTile:
    images = (
        ()
        if finding.code.is_class_level
        else tuple(embed_thumbnail(path) for path in (finding.path, finding.related_path) if path)
    )
    return GalleryTile(images, (finding.path.name, finding.detail))


def _make_mean_image_tiles(report: CheckReport) -> Iterator[GalleryTile]:
    for name in report.class_names[:MAX_MEANS]:
        try:
            items = islice(_find_images_of_class(report.files, name), MAX_IMAGES_PER_MEAN)
            found = compute_mean(items, MEAN_IMAGE_PROPERTY)
        except InputError:  # no image of this class can be decoded
            continue
        yield GalleryTile(
            (to_data_url(to_uint8(found.mean.transpose(1, 2, 0))),), (name, pluralize(found.num_images, "image"))
        )


def _find_images_of_class(files: Iterable[LabelFile], name: str) -> Iterator[LabeledPath]:
    for file in files:
        names = file.class_names
        yield from (item for item in file if name in map(names.__getitem__, item.class_indices))


def _find_changed_thresholds(report: CheckReport) -> list[tuple[str, str]]:
    """Return the name and value of each threshold that differs from the default for a dataset of this size."""
    defaults = asdict(Thresholds().adapt_to_size(report.num_images))
    return [(name, f"{value:.3g}") for name, value in asdict(report.thresholds).items() if value != defaults[name]]


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
