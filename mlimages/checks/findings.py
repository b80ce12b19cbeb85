"""Findings of a check as arrays; the details are formatted during iteration."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.codes import CODES, ERROR_CODES, Code, Finding, Thresholds
from mlimages.checks.image_table import ImageTable
from mlimages.checks.leaks import describe_image_relation
from mlimages.checks.rules import RULES
from mlimages.core import as_path
from mlimages.labels import Label


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
