"""The result of a check, and the files that it writes beside each label file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.codes import ERRORS, Code, Finding, Thresholds
from mlimages.checks.findings import Findings
from mlimages.checks.image_facts import FactsTable
from mlimages.core import (
    InputError,
    LabeledPath,
    is_remote,
    list_written,
    make_html_images,
    make_html_table,
    relative_name,
    write_output,
)
from mlimages.labels import LabelFile, label_text, write_own_label_file


@dataclass(frozen=True, slots=True)
class Move:
    """A file to move, and the code that is the reason."""

    source: Path
    target: Path
    code: Code


@dataclass(frozen=True, slots=True)
class SimilarPair:
    """Two images that are near-duplicates by their features, and the correlation of their aligned thumbnails."""

    one: Path
    other: Path
    correlation: float


@dataclass(frozen=True, slots=True, eq=False)
class CheckReport:
    """The result of `check`.

    Attributes:
        files: the label files, in the order given.
        class_names: the classes of all files.
        counts: number of images by (index of the file, class name).
        checked: number of images.
        ok: number of images without an error.
        findings: all findings by file and line.
        duplicate_groups: images that are duplicates or near-duplicates of each other, in the order of the files.
        feature_pairs: pairs that only features found; None if features were not compared.
        thresholds: the thresholds that were applied, after `Thresholds.for_count` and `for_sharpness`.
        seconds: duration of the check.
        facts: measurements of each image `(N,)`, a column per attribute of `Facts`, in the order of the files; zeros if
            not decoded.
        digests: first 16 bytes of each image's SHA-256 `(N, 2)` uint64, in the order of the files; zeros if not
            decoded.
    """

    files: tuple[LabelFile, ...]
    class_names: tuple[str, ...]
    counts: Mapping[tuple[int, str], int]
    checked: int
    ok: int
    findings: Findings
    duplicate_groups: tuple[tuple[Path, ...], ...]
    feature_pairs: tuple[SimilarPair, ...] | None
    thresholds: Thresholds
    seconds: float
    facts: FactsTable = field(repr=False)
    digests: NDArray[np.uint64] = field(repr=False)

    def __repr__(self) -> str:
        files = ", ".join(str(file.path) for file in self.files)
        found = ", ".join(f"{count} {code}" for code, count in (self.errors | self.warnings).items())
        return f"<CheckReport of {files}: {self.checked} images, {self.ok} ok{'; ' if found else ''}{found}>"

    def _repr_html_(self) -> str:
        rows = [
            (code, count, make_html_images(finding.path for finding in self.findings.select([Code(code)])))
            for code, count in (self.errors | self.warnings).items()
        ]
        title = f"{self.checked} images checked, {self.ok} without an error"
        return make_html_table(title, rows, header=("code", "images", "the first images"))

    @property
    def errors(self) -> dict[str, int]:
        """Number of errors by code; images with an error are excluded from `kept`."""
        return self._count(errors=True)

    @property
    def warnings(self) -> dict[str, int]:
        """Number of warnings by code; images with only warnings are included in `kept`."""
        return self._count(errors=False)

    def kept(self, file: int = 0) -> LabelFile:
        """Return the label file with this index, without the images that have an error."""
        images = slice(*self.findings.images.starts[file : file + 2])
        return self.files[file].where(~self.findings.error_mask()[images])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            "checked": self.checked,
            "ok": self.ok,
            "errors": self.errors,
            "warnings": self.warnings,
            "duplicate_groups": [[str(path) for path in group] for group in self.duplicate_groups],
            "feature_pairs": self.feature_pairs
            and [[str(pair.one), str(pair.other), round(pair.correlation, 3)] for pair in self.feature_pairs],
            "seconds": round(self.seconds, 3),
            "files": [str(file.path) for file in self.files],
            "thresholds": asdict(self.thresholds),
        }

    def _count(self, *, errors: bool) -> dict[str, int]:
        counts = self.findings.counts()
        return {code.value: counts[code] for code in Code if counts[code] and code.is_error == errors}


def outcome_paths(files: Iterable[LabelFile]) -> list[tuple[Path, Path, Path]]:
    """Return `NAME_checked.txt`, `NAME_rejected.tsv` and `NAME_warnings.tsv` beside each label file.

    Raises:
        InputError: those of two label files are the same, since one is given twice or only their suffixes differ.
    """
    found: dict[str, tuple[Path, tuple[Path, Path, Path]]] = {}
    for path in (file.path for file in files):
        checked, rejected, warnings = (
            path.with_name(f"{path.stem}_{end}") for end in ("checked.txt", "rejected.tsv", "warnings.tsv")
        )
        key = str(checked) if is_remote(checked) else os.path.realpath(checked)
        if key in found:
            raise InputError(f"{found[key][0]} and {path} would both be written to {checked}: omit or rename one")
        found[key] = path, (checked, rejected, warnings)
    return [paths for _, paths in found.values()]


def write_outcome(report: CheckReport, moved: Iterable[Move] = (), *, overwrite: bool = False) -> list[Path]:
    """Write the three files at `outcome_paths` beside each label file; images that were `moved` have their new path.

    A label file that mlimages wrote, and that was not edited since, gets the new paths as well.

    Raises:
        InputError: a file exists that mlimages did not write or that was changed since, and `overwrite` is false, or
            two label files have the same `outcome_paths`.
    """
    current_paths = {os.path.realpath(move.source): move.target for move in moved}
    written = []
    for number, (checked, rejected, warnings) in enumerate(outcome_paths(report.files)):
        file = report.files[number]
        kept: Iterable[LabeledPath] = report.kept(number)
        if current_paths:
            kept = (replace(item, path=_find_current_path(item.path, current_paths)) for item in kept)
        write_own_label_file(checked, kept, file.class_names, overwrite=overwrite)
        for table, codes in ((rejected, ERRORS), (warnings, set(Code) - ERRORS)):
            with write_output(table, overwrite=overwrite) as part:
                _write_table(part, file, current_paths, report.findings.select(codes, file=number))
        written += [checked, rejected, warnings]
    return written + [file.path for file in report.files if _update_label_file(file, current_paths)]


def find_unchanged(report: CheckReport, moved: Iterable[Move]) -> list[Path]:
    """Return the label files that still list `moved` images by their old paths, after `write_outcome`."""
    sources = {os.path.realpath(move.source) for move in moved}
    found = []
    for file in filter(None, map(_find_stored, report.files)) if sources else ():
        with suppress(InputError):  # one that was edited may be no label file any more
            if any(os.path.realpath(name) in sources for name, _ in file.text_items()):
                found.append(file.path)
    return found


def _update_label_file(file: LabelFile, current_paths: Mapping[str, Path]) -> bool:
    """Write the new paths of moved images into a label file; False if it lists none or is the user's own."""
    stored = _find_stored(file) if current_paths else None
    if stored is None:
        return False
    try:
        items = [replace(item, path=_find_current_path(item.path, current_paths)) for item in stored]
        if {item.path for item in items}.isdisjoint(current_paths.values()):
            return False
        write_own_label_file(stored.path, items)
    except InputError:
        return False
    return True


def _find_stored(file: LabelFile) -> LabelFile | None:
    """Return the label file itself; for a folder, the one that mlimages wrote for it, if there is one."""
    if file.is_stored:
        return file
    return LabelFile(file.path) if file.path.name in list_written(file.path.parent) and file.path.exists() else None


def _find_current_path(path: Path, current_paths: Mapping[str, Path]) -> Path:
    return current_paths.get(os.path.realpath(path), path) if current_paths else path


def _write_table(
    part_path: Path, labels: LabelFile, current_paths: Mapping[str, Path], findings: Iterable[Finding]
) -> None:
    class_names = labels.class_names  # read from the label file
    with part_path.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, delimiter="\t", lineterminator="\n")
        table.writerow(["path", "label", "code", "detail"])
        for one in findings:
            name = relative_name(_find_current_path(one.path, current_paths), labels.path.parent)
            label = label_text(one.label, class_names)
            table.writerow([name, label, one.code, " ".join(one.detail.split())])
