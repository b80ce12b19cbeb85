"""The report of a check as one HTML file that opens offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages.checks import CheckReport, Code, Finding
from mlimages.core import ImageError, ImageProperty, InputError, LabeledPath, MissingExtraError, counted, write_text
from mlimages.dataset import compute_mean
from mlimages.images import load_pixels, to_pixels
from mlimages.labels import LabelFile
from mlimages.reports.check_plots import overview

try:
    import jinja2
except ImportError as error:
    raise MissingExtraError("check --report", "report") from error

PER_CODE = 24
GROUPS, PER_GROUP = 60, 8
MEAN_OF, MEAN_CLASSES = 100, 60
"""Upper bounds of what is shown, so that the page stays small."""

THUMB = ImageProperty(112, resize="letterbox")
MEAN = ImageProperty(96)


@dataclass(frozen=True, slots=True)
class Tile:
    """An image in the page: its `data:` address (empty if it cannot be shown) and the text below."""

    address: str
    caption: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Images under one heading, at most the first few of `count`."""

    title: str
    count: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class and its number of images in each label file."""

    name: str
    counts: tuple[int, ...]


def write_report(report: CheckReport, path: Path) -> None:
    """Write the page: counts, plots, every code with its images, duplicate groups, mean image per class."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("check.html").render(
        title="check of " + ", ".join(file.path.name for file in report.files),
        report=report,
        files=[file.path.name for file in report.files],
        classes=_class_rows(report),
        drawing=overview(report.facts),
        errors=[_code_section(report, code) for code in Code if code in report.errors],
        warnings=[_code_section(report, code) for code in Code if code in report.warnings],
        groups=[_group(group) for group in report.duplicate_groups[:GROUPS]],
        means=list(_means(report)),
        mean_of=MEAN_OF,
        thresholds=asdict(report.thresholds),
    )
    write_text(path, page)


def _class_rows(report: CheckReport) -> list[ClassRow]:
    files = range(len(report.files))
    return [ClassRow(name, tuple(report.counts.get((file, name), 0) for file in files)) for name in report.class_names]


def _code_section(report: CheckReport, code: Code) -> Section:
    shown = islice(report.findings.select({code}), PER_CODE)
    return Section(code.value, report.findings.counts()[code], tuple(map(_tile, shown)))


def _tile(one: Finding) -> Tile:
    of_class = one.code == Code.CLASS_IMBALANCE
    return Tile("" if of_class else _thumbnail(one.path), one.path.name, one.detail)


def _group(paths: Sequence[Path]) -> Section:
    return Section(paths[0].name, len(paths), tuple(Tile(_thumbnail(path), str(path)) for path in paths[:PER_GROUP]))


def _means(report: CheckReport) -> Iterator[Tile]:
    for name in report.class_names[:MEAN_CLASSES]:
        try:
            made = compute_mean(islice(_of_class(report.files, name), MEAN_OF), MEAN)
        except InputError:  # no image of this class can be decoded
            continue
        yield Tile(_address(to_pixels(made.mean.transpose(1, 2, 0))), name, counted(made.count, "image"))


def _of_class(files: Iterable[LabelFile], name: str) -> Iterator[LabeledPath]:
    for file in files:
        names = file.class_names
        yield from (item for item in file if names[item.label] == name)


def _thumbnail(path: Path) -> str:
    try:
        return _address(load_pixels(path, THUMB))
    except ImageError:
        return ""


def _address(pixels: NDArray[np.uint8]) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
