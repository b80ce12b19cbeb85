"""Tables of images and labels as people have them: which columns are meant, and where the images are.

1. The rows are read with each delimiter that the first line holds.
2. The column of paths is the one whose values exist as files: as they are, with a suffix, or in a folder beside.
3. The first row is a header unless its value in that column is an image.
4. The label is the column with a known name, the only other one, or several columns of 0 and 1 (one-hot).
5. All rows are read: images that exist are counted, labels collected. Under half of the images: an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from mlimages.core import InputError, LabelFileError, is_remote
from mlimages.labels.formats import PATH_LABEL, WORDS, Record, records, text_delimiters
from mlimages.labels.scanning import IMAGE_SUFFIXES
from mlimages.labels.tables import (
    PATH_WORDS,
    SHOWN,
    Table,
    TableOptions,
    file_name,
    how_to_say,
    is_one,
    is_zero_or_one,
    joined,
    part_named,
    rank,
)

LABEL_WORDS = (
    "class_name", "label_name", "category_name", "label", "labels", "class", "category", "choice", "target", "breed",
    "species", "diagnosis", "variety", "tag", "tags", "y", "cls", "class_id", "label_id", "category_id",
)  # fmt: skip
NO_LABELS = frozenset(
    {"width", "height", "size", "bytes", "url", "md5", "sha256", "dhash", "split", "fold", "set", "is_valid"}
)
"""Columns that are no labels even where they are the only other ones."""

PART_WORDS = ("split", "set", "subset", "partition", "is_valid")
"""Columns that may say which part of a dataset a row is of."""

SAMPLE = 200
"""Rows that decide which columns are meant."""

MAX_FOLDERS = 20
"""Folders beside a table in which its images are looked for."""


def understand(path: Path, folder: Path, options: TableOptions) -> Table:
    """Find out which columns of a table are meant and where its images are.

    Raises:
        LabelFileError: it cannot be read, or nothing fits.
    """
    folder = options.images or folder
    readings = [
        _Reading(path, folder, options, delimiter, list(islice(records(path, delimiter), SAMPLE)))
        for delimiter in text_delimiters(path, has_columns=options.names_columns)
    ]
    best = max(readings, key=lambda reading: (reading.place.share, reading.width))
    return best.table()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the images are, as far as the sample shows."""

    share: float
    column: int
    folder: Path
    suffix: str
    parents_cut: int = 0


@dataclass(frozen=True)
class _Reading:
    """A sample of a table, read with one delimiter."""

    path: Path
    folder: Path
    options: TableOptions
    delimiter: str
    sample: list[Record]

    @property
    def first(self) -> list[str]:
        """The first row's cells."""
        return [cell.strip() for cell in self.sample[0].cells] if self.sample else []

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.first)

    @cached_property
    def words(self) -> list[str]:
        """The first row as it would be spelt in a list of known columns."""
        return [re.sub(r"[\s-]+", "_", cell.lower()) for cell in self.first]

    @cached_property
    def place(self) -> _Place:
        """The column of paths, the folder and the suffix with which most images exist."""
        columns = [self._column(self.options.path_column)] if self.options.path_column else list(range(self.width))
        rows = self.sample[1:] or self.sample
        found = [self._best(rows, columns, self.folder)]
        if found[0].share < 0.5 and self.options.images is None and not is_remote(self.folder):
            found += [self._best(rows, columns, inner) for inner in _folders_in(self.folder)]
        best = max(found, key=lambda place: place.share)
        return best if best.share else replace(best, column=self._path_by_word(columns))

    def _best(self, rows: Sequence[Record], columns: Sequence[int], folder: Path) -> _Place:
        places = [_Place(0.0, columns[0] if columns else 0, folder, self.options.suffix)]
        for column in [] if is_remote(folder) else columns:
            cells = [row.cells[column] for row in rows if column < len(row.cells)]
            for cut in range(self._most_parents(cells) + 1):
                values = [file_name(cell, cut) for cell in cells]
                suffixes = [self.options.suffix] if self.options.suffix else ["", *_suffixes_of(values, folder)]
                for suffix in suffixes:
                    count = sum(bool(v) and os.path.isfile(joined(folder, v + suffix)) for v in values)  # noqa: PTH113
                    places.append(_Place(count / max(1, len(rows)), column, folder, suffix, cut))
        return max(places, key=lambda place: (place.share, -rank(self.words[place.column :][:1], PATH_WORDS)))

    def _most_parents(self, cells: Sequence[str]) -> int:
        """How many folders may be cut off the paths: with --images those of another machine, which are not there."""
        return (
            max((file_name(cell, 0).strip("/").count("/") for cell in cells), default=0) if self.options.images else 0
        )

    def _path_by_word(self, columns: Sequence[int]) -> int:
        return min(columns, key=lambda column: (rank(self.words[column : column + 1], PATH_WORDS), column), default=0)

    @cached_property
    def has_header(self) -> bool:
        """Unless the first row names an image, or what looks like one."""
        if not self.sample or self.delimiter == PATH_LABEL:
            return False
        value = self.first[self.place.column] if self.place.column < self.width else ""
        return not (
            os.path.splitext(value)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  # a text
            or os.path.isfile(joined(self.place.folder, value + self.place.suffix))  # noqa: PTH113
        )

    def table(self) -> Table:
        """What was understood.

        Raises:
            LabelFileError: no column of labels, or links in place of paths.
        """
        place = self.place
        columns = tuple(self.first) if self.has_header else ("",) * self.width
        self._demand_no_links(place)
        labels = () if self.options.class_from or not self.sample else self._labels(place.column)
        return Table(
            self.path, place.folder, self.delimiter, columns, place.column, labels, place.suffix,
            self.options.class_from, self.has_header, place.parents_cut, self._part_column(),
        )  # fmt: skip

    def _part_column(self) -> int | None:
        """The column whose cells name at least two parts of a dataset, and nothing else."""
        for column, word in enumerate(self.words if self.has_header else []):
            parts = {part_named(row.cells, column) for row in self.sample[1:]}
            if word in PART_WORDS and len(parts) > 1 and "" not in parts:
                return column
        return None

    def _demand_no_links(self, place: _Place) -> None:
        cells = [cell for record in self.sample[-1:] for cell in record.cells]
        if not place.share and any(re.match(r"https?://", cell.strip(), re.IGNORECASE) for cell in cells):
            raise LabelFileError(
                f"{self.path}: it holds links, not files: `mlimages gather urls {self.path} -o {self.path.stem}` "
                f"downloads them, then `mlimages label {self.path.stem}`"
            )

    def _labels(self, path_column: int) -> tuple[int, ...]:
        if self.options.label_column:
            return tuple(self._column(name) for name in self._wanted_labels())
        others = [column for column in range(self.width) if column != path_column]
        if self.has_header:
            known = [column for column in others if self.words[column] in LABEL_WORDS]
            if known:
                return (min(known, key=lambda column: LABEL_WORDS.index(self.words[column])),)
            others = [column for column in others if self.words[column] not in NO_LABELS]
        if len(others) == 1:
            return (others[0],)
        if len(one_hot := self._one_hot(others)) > 1:
            return one_hot
        raise LabelFileError(
            f"{self.path}:{self.sample[0].number}: expected a column named label or class, "
            f"found {', '.join(self.first)[:80]!r}: {how_to_say(self.first if self.has_header else [''] * self.width)}"
        )

    def _wanted_labels(self) -> list[str]:
        wanted = self.options.label_column
        return (
            [wanted]
            if self._may_have_names and wanted.lower() in (cell.lower() for cell in self.first)
            else wanted.split(",")
        )

    def _one_hot(self, columns: Sequence[int]) -> tuple[int, ...]:
        """The columns that hold 0 and 1 alone, if each row has one 1 among them."""
        rows = [record.cells for record in self.sample[1:]] if self.has_header else []
        binary = [c for c in columns if all(c < len(row) and is_zero_or_one(row[c]) for row in rows)] if rows else []
        fits = all(sum(is_one(row[column]) for column in binary) == 1 for row in rows)
        return tuple(binary) if fits else ()

    @property
    def _may_have_names(self) -> bool:
        """Whether the first row may be a header: else a cell that is a number is no name of a column."""
        return self.delimiter != WORDS and not any(cell.lower().endswith(tuple(IMAGE_SUFFIXES)) for cell in self.first)

    def _column(self, wanted: str) -> int:
        """Index of a column by its name, whatever its case, or by its number from 1."""
        lowered = [cell.lower() for cell in self.first] if self._may_have_names else []
        if wanted.strip().lower() in lowered:
            return lowered.index(wanted.strip().lower())
        if wanted.strip().isdecimal() and 0 < int(wanted) <= self.width:
            return int(wanted) - 1
        raise InputError(f"{self.path} has no column {wanted!r}; its columns: {', '.join(self.first)}")


def _folders_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))[:MAX_FOLDERS]


def _suffixes_of(values: Sequence[str], folder: Path) -> list[str]:
    """The suffixes of image files that are named like the first values without one."""
    stems: dict[str, set[str]] = {}
    found: dict[str, None] = {}
    for value in values[:SHOWN]:
        parent, stem = os.path.split(joined(folder, value))
        if parent not in stems:
            stems[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()  # noqa: PTH112, PTH208
        found.update((suffix, None) for suffix in IMAGE_SUFFIXES if stem and stem + suffix in stems[parent])
        found.update((s.upper(), None) for s in IMAGE_SUFFIXES if stem and stem + s.upper() in stems[parent])
    return list(found)
