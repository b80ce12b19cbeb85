"""The findings and the result of a check, and the files written from it beside each label file."""

from __future__ import annotations

import csv
import os
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.codes import CODES, ERROR_CODES, Code, Finding, Thresholds
from mlimages.checks.image_table import ImageTable
from mlimages.checks.leaks import describe_image_relation
from mlimages.checks.measurements import MeasurementTable
from mlimages.checks.rules import RULES
from mlimages.core import (
    InputError,
    LabeledPath,
    as_path,
    is_remote,
    list_written_files,
    make_html_images,
    make_html_table,
    relative_name,
    write_output,
)
from mlimages.labels import Label, LabelFile, format_label, require_unchanged_classes, write_label_output


@dataclass(frozen=True, slots=True)
class Move:
    """A file to move from `source` to `target`, and the code of the finding that is the reason."""

    source: Path
    target: Path
    code: Code


@dataclass(frozen=True, slots=True)
class SimilarPair:
    """The paths of two images with similar features, and the correlation of their aligned thumbnails."""

    path: Path
    other_path: Path
    correlation: float


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """All findings of a check: first those about images, sorted by file and line, then those about classes.

    Iterating reads the paths from the label files again, so these must not have changed since the check.

    Attributes:
        images: table of the images.
        rows: findings about images, a structured array `(N,)` of `FINDING_DTYPE`, sorted by index and code.
        related_paths: path of each related image, by its index in `images`.
        thresholds: thresholds of the check.
        class_findings: findings about whole classes.
    """

    images: ImageTable
    rows: NDArray[np.void]
    related_paths: Mapping[int, Path]
    thresholds: Thresholds
    class_findings: Sequence[Finding]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {code}" for code, count in sorted(self.counts().items()))
        return f"<{len(self)} Findings: {counts}>"

    def __len__(self) -> int:
        return len(self.rows) + len(self.class_findings)

    def __iter__(self) -> Iterator[Finding]:
        return self.select()

    def select(self, codes: Collection[Code] = CODES, *, file_index: int | None = None) -> Iterator[Finding]:
        """Yield the findings with these codes, of all label files or only of `images.files[file_index]`.

        Raises:
            LabelFileError: a label file has been removed, or has another number of images than at the check.
        """
        wanted = self.rows[np.isin(self.rows["code"], [CODES.index(code) for code in codes])]
        for number in range(len(self.images.files)) if file_index is None else (file_index,):
            begin, end = np.searchsorted(wanted["index"], self.images.file_starts[number : number + 2])
            yield from self._read_findings(number, wanted[begin:end])
        yield from (
            each for each in self.class_findings if each.code in codes and file_index in (None, each.file_index)
        )

    def counts(self) -> Counter[Code]:
        """Return the number of findings of each code, without zeros."""
        of_images = np.bincount(self.rows["code"], minlength=len(CODES)).tolist()
        of_classes = Counter(finding.code for finding in self.class_findings)
        return of_classes + Counter(dict(zip(CODES, of_images, strict=True)))

    def error_mask(self) -> NDArray[np.bool_]:
        """Return whether each image has an error, bool `(N,)`."""
        found = np.zeros(len(self.images), np.bool_)
        found[self.rows["index"][self.rows["code"] < len(ERROR_CODES)]] = True
        return found

    def _read_findings(self, file_index: int, rows: NDArray[np.void]) -> Iterator[Finding]:
        """Yield a Finding for each of `rows`, which are about one label file; read paths and labels from that file."""
        images = self.images.iter_labels(file_index)
        index, path = -1, ""
        label: Label = 0
        for row in rows:
            while index < row["index"]:
                index, path, label = next(images)
            related = self.related_paths.get(int(row["other"]))
            yield Finding(file_index, as_path(path), label, CODES[row["code"]], self._describe(row), related)
        if len(rows):  # the rest is read to compare the number of images
            deque(images, maxlen=0)

    def _describe(self, row: np.void) -> str:
        """Return the text of `Finding.detail`."""
        index, code, other = row["index"], row["code"], int(row["other"])
        if other >= 0:
            same = bool((self.images.digests[index] == self.images.digests[other]).all())
            return describe_image_relation(
                CODES[code], self.related_paths[other], self.images.format_label(other), is_identical=same
            )
        if self.images.fault_codes[index] == code:
            return str(self.images.fault_details[index])
        return RULES[CODES[code]].describe_value(self.images.measurements[index], self.thresholds)


def merge_finding_rows(*rows: NDArray[np.void]) -> NDArray[np.void]:
    """Merge arrays of `FINDING_DTYPE`, sort by index and code, and keep the first row of each image and code."""
    every = np.concatenate(rows)
    _, first = np.unique(every["index"].astype(np.int64) * len(CODES) + every["code"], return_index=True)
    return every[first]


@dataclass(frozen=True, slots=True, eq=False)
class CheckReport:
    """The result of `check`.

    Attributes:
        files: the label files, in the order given.
        class_names: names of the classes of all files.
        class_counts: number of images by (index of the file, class name), without zeros.
        num_images: number of images.
        num_ok: number of images without an error.
        findings: all findings, first those about images, sorted by file and line.
        duplicate_groups: groups of duplicates and near-duplicates, in the order of the files.
        feature_pairs: near-duplicates found only by features; None if features were not compared.
        thresholds: the thresholds that were applied, after `Thresholds.adapt_to_size` and `adapt_to_sharpness`.
        duration_s: duration of the check in seconds.
        measurements: structured array of the measurements of each image `(N,)`, in the order of the files: size, mode,
            sharpness and so on; zeros if not decoded.
        digests: first 16 bytes of each image's SHA-256 `(N, 2)` uint64, in the order of the files; zeros if not
            decoded.
    """

    files: tuple[LabelFile, ...]
    class_names: tuple[str, ...]
    class_counts: Mapping[tuple[int, str], int]
    num_images: int
    num_ok: int
    findings: Findings
    duplicate_groups: tuple[tuple[Path, ...], ...]
    feature_pairs: tuple[SimilarPair, ...] | None
    thresholds: Thresholds
    duration_s: float
    measurements: MeasurementTable = field(repr=False)
    digests: NDArray[np.uint64] = field(repr=False)

    def __repr__(self) -> str:
        files = ", ".join(str(file.path) for file in self.files)
        found = ", ".join(f"{count} {code}" for code, count in (self.errors | self.warnings).items())
        return f"<CheckReport of {files}: {self.num_images} images, {self.num_ok} ok{'; ' if found else ''}{found}>"

    def _repr_html_(self) -> str:
        rows = [
            (code, count, make_html_images(finding.path for finding in self.findings.select([Code(code)])))
            for code, count in (self.errors | self.warnings).items()
        ]
        title = f"{self.num_images} images checked, {self.num_ok} without an error"
        return make_html_table(title, rows, header=("code", "findings", "first images"))

    @property
    def errors(self) -> dict[str, int]:
        """Number of errors by code; `exclude_errors` excludes the images that have an error."""
        return self._count_by_code(is_error=True)

    @property
    def warnings(self) -> dict[str, int]:
        """Number of warnings by code; `exclude_errors` keeps images that have only warnings."""
        return self._count_by_code(is_error=False)

    def exclude_errors(self, file_index: int = 0) -> LabelFile:
        """Return the label file with this index in `files`, without the images that have an error."""
        images = slice(*self.findings.images.file_starts[file_index : file_index + 2])
        return self.files[file_index].where(~self.findings.error_mask()[images])

    def to_dict(self) -> dict[str, Any]:
        """Return the report, without the single findings, as a dict that `json.dumps` can write."""
        return {
            "checked": self.num_images,
            "ok": self.num_ok,
            "errors": self.errors,
            "warnings": self.warnings,
            "duplicate_groups": [[str(path) for path in group] for group in self.duplicate_groups],
            "feature_pairs": self.feature_pairs
            and [[str(pair.path), str(pair.other_path), round(pair.correlation, 3)] for pair in self.feature_pairs],
            "seconds": round(self.duration_s, 3),
            "files": [str(file.path) for file in self.files],
            "thresholds": asdict(self.thresholds),
        }

    def _count_by_code(self, *, is_error: bool) -> dict[str, int]:
        counts = self.findings.counts()
        return {code.value: counts[code] for code in Code if counts[code] and code.is_error == is_error}


def list_result_paths(files: Iterable[LabelFile]) -> list[tuple[Path, Path, Path]]:
    """Return the paths of the files that `write_results` writes beside each label file: `NAME_checked.txt`,
    `NAME_rejected.tsv` and `NAME_warnings.tsv`.

    Raises:
        InputError: two label files would have the same result files: a file is given twice, or two differ only in
            their suffix; or another label file has the class definition of `NAME_checked.txt` and other classes.
    """
    found: dict[str, tuple[Path, tuple[Path, Path, Path]]] = {}
    for file in files:
        path = file.path
        checked, rejected, warnings = (
            path.with_name(f"{path.stem}_{end}") for end in ("checked.txt", "rejected.tsv", "warnings.tsv")
        )
        key = str(checked) if is_remote(checked) else os.path.realpath(checked)
        if key in found:
            raise InputError(
                f"the results of {found[key][0]} and {path} would both be written to {checked}: omit or rename one"
            )
        require_unchanged_classes(checked, file.class_names)
        found[key] = path, (checked, rejected, warnings)
    return [paths for _, paths in found.values()]


def write_results(report: CheckReport, moves: Iterable[Move] = (), *, overwrite: bool = False) -> list[Path]:
    """Write the results of a check beside each label file, and return the paths of the files written.

    `NAME_checked.txt` lists the images without an error, `NAME_rejected.tsv` the errors, and `NAME_warnings.tsv` the
    warnings. A label file that mlimages wrote, and that was not edited since, is updated if images were moved.

    Args:
        report: result of `check`.
        moves: the moves that have been made; the files contain the new paths of the images.
        overwrite: replace files that mlimages did not write, or that were edited since.

    Raises:
        InputError: a file exists that mlimages did not write or that was edited since, and `overwrite` is false; or two
            label files would have the same result files.
    """
    current_paths = {os.path.realpath(move.source): move.target for move in moves}
    written = []
    for number, (checked, rejected, warnings) in enumerate(list_result_paths(report.files)):
        file = report.files[number]
        kept: Iterable[LabeledPath] = report.exclude_errors(number)
        if current_paths:
            kept = (replace(item, path=_find_current_path(item.path, current_paths)) for item in kept)
        write_label_output(checked, kept, file.class_names, overwrite=overwrite)
        for table, codes in ((rejected, ERROR_CODES), (warnings, set(Code) - ERROR_CODES)):
            with write_output(table, overwrite=overwrite) as temporary_path:
                _write_findings(temporary_path, file, current_paths, report.findings.select(codes, file_index=number))
        written += [checked, rejected, warnings]
    return written + [file.path for file in report.files if update_label_file(file, current_paths)]


def find_outdated_label_files(report: CheckReport, moves: Iterable[Move]) -> list[Path]:
    """Return the label files that, after `write_results`, still list moved images by their old paths."""
    sources = {os.path.realpath(move.source) for move in moves}
    found = []
    for file in filter(None, map(_find_stored_label_file, report.files)) if sources else ():
        with suppress(InputError):  # an edited file may no longer be a label file
            if any(os.path.realpath(name) in sources for name, _ in file.text_items()):
                found.append(file.path)
    return found


def update_label_file(file: LabelFile, current_paths: Mapping[str, Path]) -> bool:
    """Write the new paths of moved images to a label file that mlimages wrote; return whether it was changed."""
    stored = _find_stored_label_file(file) if current_paths else None
    if stored is None:
        return False
    try:
        items = [replace(item, path=_find_current_path(item.path, current_paths)) for item in stored]
        if {item.path for item in items}.isdisjoint(current_paths.values()):
            return False
        write_label_output(stored.path, items)
    except InputError:
        return False
    return True


def _find_stored_label_file(file: LabelFile) -> LabelFile | None:
    """Return `file` if it is a label file on disk. If its images come from a folder, return the label file that
    mlimages wrote for that folder; None if there is none.
    """
    if file.is_stored:
        return file
    return (
        LabelFile(file.path) if file.path.name in list_written_files(file.path.parent) and file.path.exists() else None
    )


def _find_current_path(path: Path, current_paths: Mapping[str, Path]) -> Path:
    """Return the new path of a moved image, or `path` if it was not moved.

    `current_paths` has the new path of each moved image; the key is `os.path.realpath` of the old path.
    """
    return current_paths.get(os.path.realpath(path), path) if current_paths else path


def _write_findings(
    temporary_path: Path, labels: LabelFile, current_paths: Mapping[str, Path], findings: Iterable[Finding]
) -> None:
    """Write findings of one label file as a table with the columns path, label, code and detail."""
    class_names = labels.class_names  # read from the label file
    with temporary_path.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, delimiter="\t", lineterminator="\n")
        table.writerow(["path", "label", "code", "detail"])
        for finding in findings:
            name = relative_name(_find_current_path(finding.path, current_paths), labels.path.parent)
            label = format_label(finding.label, class_names)
            table.writerow([name, label, finding.code, " ".join(finding.detail.split())])
