"""The outcome of a check as a value, and the files that it leaves beside each label file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.codes import ERRORS, Code, Finding, Thresholds
from mlimages.checks.findings import Findings
from mlimages.core import LabeledPath, relative_name, writing
from mlimages.labels import LabelFile, write_own_label_file


@dataclass(frozen=True, slots=True)
class Move:
    """One file to move, and why."""

    source: Path
    target: Path
    code: Code


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


def outcome_paths(label_file: Path) -> tuple[Path, Path, Path]:
    """`NAME_checked.txt`, `NAME_rejected.tsv` and `NAME_warnings.tsv` beside a label file."""
    checked, rejected, warnings = (
        label_file.with_name(f"{label_file.stem}_{end}") for end in ("checked.txt", "rejected.tsv", "warnings.tsv")
    )
    return checked, rejected, warnings


def write_outcome(report: Report, moved: Iterable[Move] = (), *, overwrite: bool = False) -> list[Path]:
    """Write the `outcome_paths` of each label file; images that were `moved` are listed where they are now.

    Raises:
        InputError: one of them is there and mlimages did not write it, or it was changed; unless `overwrite`.
    """
    now = {os.path.realpath(move.source): move.target for move in moved}
    written = []
    for number, file in enumerate(report.files):
        checked, rejected, warnings = outcome_paths(file.path)
        kept: Iterable[LabeledPath] = report.kept(number)
        if now:
            kept = (LabeledPath(_where(item.path, now), item.label) for item in kept)
        count = 1 + max((label for of, label in report.counts if of == number), default=-1)
        names = file.defined_class_names or tuple(map(str, range(count)))
        write_own_label_file(checked, kept, names, overwrite=overwrite)
        for table, codes in ((rejected, ERRORS), (warnings, set(Code) - ERRORS)):
            with writing(table, overwrite=overwrite) as part:
                _write_table(part, table.parent, now, report.findings.select(codes, file=number))
        written += [checked, rejected, warnings]
    return written


def _where(path: Path, now: Mapping[str, Path]) -> Path:
    return now.get(os.path.realpath(path), path) if now else path


def _write_table(part: Path, folder: Path, now: Mapping[str, Path], findings: Iterable[Finding]) -> None:
    with part.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, delimiter="\t", lineterminator="\n")
        table.writerow(["path", "label", "code", "detail"])
        for one in findings:
            name = relative_name(_where(one.path, now), folder)
            table.writerow([name, one.label, one.code, " ".join(one.detail.split())])
