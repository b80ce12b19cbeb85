"""The outcome of a check as a value, and the files that it leaves beside each label file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.codes import ERRORS, Code, Finding, Thresholds
from mlimages.checks.findings import Findings
from mlimages.core import LabeledPath, relative_name, replacing
from mlimages.labels import LabelFile, write_label_file


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures of the decoded pictures, in the order of the files, for plots.

    Attributes:
        label: class numbers `(N,)`.
        size: width and height in pixels, upright `(N, 2)`.
        level: median luma, 0..255 `(N,)`.
        colour: mean red, green, blue, 0..255 `(N, 3)`.
    """

    label: NDArray[np.int32]
    size: NDArray[np.int32]
    level: NDArray[np.uint8]
    colour: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Report:
    """What one pass over label files found.

    Attributes:
        files: the label files, in the order given.
        counts: pictures by (file, class number).
        checked: pictures looked at.
        ok: those without an error.
        findings: all of them, by file and line.
        duplicate_groups: pictures that are the same or nearly so; the first of a group comes first.
        thresholds: where the lines were drawn.
        seconds: how long it took.
        digests: first 16 bytes of each image's SHA-256 `(N, 2)`, in the order of the files; zeros where it could not
            be decoded.
        measures: for plots.
    """

    files: tuple[LabelFile, ...]
    counts: dict[tuple[int, int], int]
    checked: int
    ok: int
    findings: Findings
    duplicate_groups: tuple[tuple[Path, ...], ...]
    thresholds: Thresholds
    seconds: float
    measures: Measures = field(repr=False)
    digests: NDArray[np.uint64] = field(repr=False)

    @property
    def errors(self) -> dict[str, int]:
        """Count by code, of what is left out."""
        return self._count(errors=True)

    @property
    def warnings(self) -> dict[str, int]:
        """Count by code, of what is kept and listed."""
        return self._count(errors=False)

    def kept(self, file: int = 0) -> LabelFile:
        """One label file without what is left out."""
        return self.files[file].where(~self.findings.left_out(file))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "checked": self.checked,
            "ok": self.ok,
            "errors": self.errors,
            "warnings": self.warnings,
            "duplicate_groups": [[str(path) for path in group] for group in self.duplicate_groups],
            "seconds": round(self.seconds, 3),
            "files": [str(file.path) for file in self.files],
            "thresholds": asdict(self.thresholds),
        }

    def _count(self, *, errors: bool) -> dict[str, int]:
        counts = self.findings.counts()
        return {code.value: counts[code] for code in Code if counts[code] and code.is_error == errors}


def write_outcome(report: Report, renamed: Mapping[Path, Path] | None = None) -> list[Path]:
    """Write `NAME_checked.txt`, `NAME_rejected.tsv` and `NAME_warnings.tsv` beside each label file.

    Pictures that were `renamed` since are listed under their new names.
    """
    now = renamed or {}
    written = []
    for number, file in enumerate(report.files):
        checked, rejected, warnings = (
            file.path.with_name(f"{file.path.stem}_{end}") for end in ("checked.txt", "rejected.tsv", "warnings.tsv")
        )
        kept: Iterable[LabeledPath] = report.kept(number)
        if now:
            kept = (LabeledPath(now.get(item.path, item.path), item.label) for item in kept)
        count = 1 + max((label for of, label in report.counts if of == number), default=-1)
        write_label_file(checked, kept, file.defined_class_names or tuple(map(str, range(count))))
        _write_table(rejected, now, report.findings.select(ERRORS, file=number))
        _write_table(warnings, now, report.findings.select(set(Code) - ERRORS, file=number))
        written += [checked, rejected, warnings]
    return written


def _write_table(path: Path, now: Mapping[Path, Path], findings: Iterable[Finding]) -> None:
    folder = path.parent
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, delimiter="\t", lineterminator="\n")
        table.writerow(["path", "label", "code", "detail"])
        for one in findings:
            name = relative_name(now.get(one.path, one.path), folder)
            table.writerow([name, one.label, one.code, " ".join(one.detail.split())])
