"""HTML report of a check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice

from mlimages.checks import CheckReport, Code, Finding, Thresholds
from mlimages.core import ImageProperty, InputError, LabeledPath, as_path, pluralize, write_output
from mlimages.dataset import compute_mean
from mlimages.images import to_uint8
from mlimages.labels import LabelFile
from mlimages.reports import plots
from mlimages.reports.pages import MAX_TILES, GalleryTile, embed_thumbnail, render, to_data_url

MAX_GROUPS, MAX_PER_GROUP, MAX_PAIRS = 60, 8, 500
"""How many the page shows at most: groups of duplicates, images of each group, and pairs of near-duplicates that were
found only by comparing features of a network, not by hashes."""

MAX_IMAGES_PER_MEAN, MAX_MEANS = 100, 60
"""Maximum number of images in the mean image of a class, and maximum number of classes with a mean image."""

MEAN_IMAGE_PROPERTY = ImageProperty(96)


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """All findings of a check that have the same code, such as `near-duplicate`.

    Attributes:
        code: code of the error or warning (`mlimages.checks.Code`).
        num_findings: number of findings.
        is_about_images: whether the findings concern images; otherwise, they concern classes.
        tiles: tiles of the first `MAX_TILES` findings.
    """

    code: str
    num_findings: int
    is_about_images: bool
    tiles: tuple[GalleryTile, ...]


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
        files=[file.path.name for file in report.files],
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


def _count_images_by_class(report: CheckReport) -> dict[str, list[int]]:
    """Return, by class name, the number of images of the class in each label file, in the order of the files."""
    files = range(len(report.files))
    return {name: [report.class_counts.get((file, name), 0) for file in files] for name in report.class_names}


def _group_findings_by_code(report: CheckReport, counts_by_code: Mapping[str, int]) -> list[FindingGroup]:
    return [
        FindingGroup(
            code,
            count,
            not Code(code).is_class_level,
            tuple(map(_make_finding_tile, islice(report.findings.select({Code(code)}), MAX_TILES))),
        )
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
