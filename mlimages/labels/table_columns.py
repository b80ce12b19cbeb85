"""Detect the columns of a table of images and labels, and the folder of the images.

1. The rows are read with each delimiter that occurs in the first line.
2. The path column is the column whose values exist as files: unchanged, with a suffix, or in a neighbouring folder.
3. The first row is a header unless its value in the path column is an image.
4. The label column has a known name or is the only other column, or several columns of 0 and 1 are one-hot labels.
5. All rows are read to count existing images and collect labels. At least half of the images must exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

from mlimages.core import InputError, LabelFileError, as_path, format_command, is_file_or_member, is_remote
from mlimages.labels.column_names import (
    LABEL_COLUMN_NAMES,
    NON_LABEL_COLUMN_NAMES,
    normalize_column_name,
    rank_path_column,
    suggest_table_options,
)
from mlimages.labels.formats import ANY_WHITESPACE, LAST_WHITESPACE, Record, detect_delimiters, read_records
from mlimages.labels.irregular_rows import is_irregular, is_repeated_header
from mlimages.labels.label_texts import are_binary_cells, is_positive_cell, parse_label_list
from mlimages.labels.scanning import IMAGE_SUFFIXES, SPLIT_NAMES_BY_ALIAS, is_skipped_folder
from mlimages.labels.split_column import SPLIT_COLUMN_NAMES, SplitColumn, find_split_column
from mlimages.labels.table_options import TableOptions
from mlimages.labels.table_paths import find_relative_path, get_relative_path, join_relative_path
from mlimages.labels.tables import MAX_SHOWN_NAMES, Table

SAMPLE_ROWS = 200
"""Number of rows used to detect the columns."""

MAX_IMAGE_FOLDERS = 20
"""Maximum number of subfolders of a table's folder in which its images are searched for."""


def detect_table(path: Path, folder: Path, options: TableOptions) -> Table:
    """Detect the columns of a table and the folder of its images.

    Args:
        path: path of the table.
        folder: folder that the paths are relative to, unless `options.images` is set. If fewer than half of the images
            exist there, its subfolders are tried.
        options: the options of the user, which take precedence over detection.

    Raises:
        LabelFileError: the table cannot be read, or no columns match.
    """
    folder = as_path(options.images) if options.images else folder
    samples = [
        _TableSample(path, folder, options, delimiter, _read_sample(path, delimiter))
        for delimiter in _find_possible_delimiters(path, options)
    ]
    return max(samples, key=lambda sample: (sample.image_location.existing_fraction, sample.num_columns)).make_table()


def _read_sample(path: Path, delimiter: str) -> list[Record]:
    """Return the first rows of a table, without repeated headers."""
    first, *others = [*islice(read_records(path, delimiter), SAMPLE_ROWS)] or [Record(0, [])]
    columns = [cell.strip() for cell in first.cells]
    return [first, *(row for row in others if not is_repeated_header(row.cells, columns))] if columns else []


def _find_possible_delimiters(path: Path, options: TableOptions) -> list[str]:
    """Return the possible delimiters; with --multi-label, also white space for a .txt file: `a.jpg cats;dogs`."""
    delimiters = detect_delimiters(path, split_at_whitespace=options.specifies_columns)
    is_text = (
        options.multi_label and path.suffix.lower() == ".txt" and delimiters[0] not in (LAST_WHITESPACE, ANY_WHITESPACE)
    )
    return [*delimiters, LAST_WHITESPACE] if is_text else delimiters


@dataclass(frozen=True, slots=True)
class _ImageLocation:
    """A possible location of a table's images: their folder, and how cells become paths in it.

    Attributes:
        existing_fraction: fraction of the table's first rows whose images are found in this way.
        path_column: index of the path column.
        folder: folder that the paths are relative to.
        suffix: suffix to append to each path; "" for none.
        strip_components: number of folders to strip from the start of each path.
    """

    existing_fraction: float
    path_column: int
    folder: Path
    suffix: str
    strip_components: int = 0


@dataclass(frozen=True)
class _TableSample:
    """The first rows of a table, including a header, split at one of the possible delimiters.

    Images are first searched for in `folder`: `options.images` if it is set, else as in `detect_table`.
    """

    path: Path
    folder: Path
    options: TableOptions
    delimiter: str
    records: list[Record]

    @property
    def first_row(self) -> list[str]:
        return [cell.strip() for cell in self.records[0].cells] if self.records else []

    @property
    def num_columns(self) -> int:
        return len(self.first_row)

    @cached_property
    def normalized_column_names(self) -> list[str]:
        return list(map(normalize_column_name, self.first_row))

    @cached_property
    def image_location(self) -> _ImageLocation:
        """The path column, folder and suffix with which most images exist."""
        name = self.options.path_column
        columns = [self._find_column_index(name)] if name else list(range(self.num_columns))
        rows = self.records[1:] or self.records
        locations = [self._find_location(rows, columns, self.folder)]
        if locations[0].existing_fraction < 0.5 and self.options.images is None and not is_remote(self.folder):
            locations += [self._find_location(rows, columns, path) for path in _list_candidate_folders(self.folder)]
        best = max(locations, key=lambda location: location.existing_fraction)
        if best.existing_fraction:
            return best
        return replace(best, path_column=min(columns, key=self._rank_path_column, default=0))

    def _find_location(self, rows: Sequence[Record], columns: Sequence[int], folder: Path) -> _ImageLocation:
        """Return the path column, suffix and number of folders to strip with which most paths exist in `folder`."""
        locations = [_ImageLocation(0.0, 0, folder, self.options.suffix)]
        for column in [] if is_remote(folder) else columns:
            cells = [row.cells[column] for row in rows if column < len(row.cells)]
            depths = (get_relative_path(cell, 0).strip("/").count("/") for cell in cells)
            for strip in range(max(depths, default=0) + 1 if self.options.images else 1):
                values = [find_relative_path(cell, strip, folder, self.options.suffix) for cell in cells]
                suffixes = [self.options.suffix] if self.options.suffix else ["", *_find_suffixes(values, folder)]
                for suffix in suffixes:
                    count = sum(bool(v) and is_file_or_member(join_relative_path(folder, v + suffix)) for v in values)
                    locations.append(_ImageLocation(count / max(1, len(rows)), column, folder, suffix, strip))
        return max(
            locations, key=lambda location: (location.existing_fraction, -self._rank_path_column(location.path_column))
        )

    def _rank_path_column(self, column: int) -> int:
        """Return the rank of a column among the possible path columns, by its name: 0 is the best."""
        return rank_path_column(self.normalized_column_names[column]) if self.normalized_column_names else 0

    @cached_property
    def has_header(self) -> bool:
        """Whether the first row is a header: its cell in the path column is not the path of an image."""
        if not self.records or self.delimiter == LAST_WHITESPACE:
            return False
        location = self.image_location
        value = self.first_row[location.path_column] if location.path_column < self.num_columns else ""
        return not (
            os.path.splitext(value)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  # a str
            or is_file_or_member(join_relative_path(location.folder, value + location.suffix))
        )

    @property
    def _column_names(self) -> tuple[str, ...]:
        return tuple(self.first_row) if self.has_header else ("",) * self.num_columns

    def make_table(self) -> Table:
        """Return the table with the detected columns.

        Raises:
            LabelFileError: there is no label column, or the table contains URLs instead of paths.
        """
        location = self.image_location
        self._reject_urls(location)
        split_column, unused_column_notes = self._split_column_and_notes
        labels = () if self.options.class_from or not self.records else self._find_label_columns(location.path_column)
        return Table(
            self.path, location.folder, self.delimiter, self._column_names, location.path_column, labels,
            location.suffix, self.options.class_from, self.has_header, location.strip_components, split_column,
            self.options.multi_label or self._has_label_lists(labels),
            len(labels) > 1 and not self._are_one_hot_columns(labels),
            self.options.multi_label,
            unused_column_notes,
        )  # fmt: skip

    def _list_sample_cells(self, columns: Sequence[int]) -> list[str]:
        rows = self.records[self.has_header :]
        return [row.cells[column].strip() for row in rows for column in columns if column < len(row.cells)]

    def _has_label_lists(self, label_columns: Sequence[int]) -> bool:
        """Whether each label of the sample is a list of labels."""
        is_named = self.delimiter == LAST_WHITESPACE or self.options.label_column
        if len(label_columns) != 1 or not (
            is_named or self.normalized_column_names[label_columns[0]] in LABEL_COLUMN_NAMES
        ):
            return False
        cells = [cell for cell in self._list_sample_cells(label_columns) if cell]
        return bool(cells) and all(parse_label_list(cell) is not None for cell in cells)

    def _are_one_hot_columns(self, columns: Sequence[int]) -> bool:
        """Whether several label columns are one-hot, rather than columns of class names with --multi-label."""
        return not self.options.multi_label or are_binary_cells(self._list_sample_cells(columns), multi_label=True)

    @cached_property
    def _split_column_and_notes(self) -> tuple[SplitColumn | None, tuple[str, ...]]:
        """The column with the split of each row (None if there is none), and lines about columns not used as such."""
        labels, columns = self._find_named_label_columns(), self._find_split_column_indices()
        names = {n: self.first_row[n] if self.has_header else f"column {n + 1}" for n in columns if n not in labels}
        return find_split_column(self.path, names, self._iter_regular_records)

    def _iter_regular_records(self) -> Iterator[Record]:
        """Return an iterator over all rows of the file below the header, except irregular rows (see `is_irregular`)."""
        rows, names = islice(read_records(self.path, self.delimiter), int(self.has_header), None), self._column_names
        return (row for row in rows if not is_irregular(row, names))

    def _find_split_column_indices(self) -> list[int]:
        """Return the indices of the columns whose name is in `SPLIT_COLUMN_NAMES`, such as `split`.

        Without a header, return the columns whose first cell is a name such as train, if there are at least three
        columns. First cells of 0 or 1 do not count, since they may be classes.
        """
        names = self.normalized_column_names
        if self.has_header:
            return [names.index(name) for name in SPLIT_COLUMN_NAMES if name in names]
        path_column = self.image_location.path_column
        found = [n for n, name in enumerate(names) if name in SPLIT_NAMES_BY_ALIAS and n != path_column]
        return found if self.num_columns > 2 else []

    def _reject_urls(self, location: _ImageLocation) -> None:
        cells = [cell for record in self.records[-1:] for cell in record.cells]
        has_urls = any(re.match(r"https?://", cell.strip(), re.IGNORECASE) for cell in cells)
        if has_urls and not location.existing_fraction:
            gather = format_command("gather", "urls", self.path, "-o", self.path.stem)
            label = format_command("label", self.path.stem)
            raise LabelFileError(
                f"{self.path} contains URLs instead of paths: download the images with {gather}, then use {label}"
            )

    def _find_label_columns(self, path_column: int) -> tuple[int, ...]:
        """Return the indices of the label columns: one, or several that are one-hot or that --label-column names."""
        if self.options.label_column:
            return self._find_named_label_columns()
        split_column, _ = self._split_column_and_notes
        taken = (path_column, split_column.index if split_column else None)
        others = [column for column in range(self.num_columns) if column not in taken]
        if self.has_header:
            known = [column for column in others if self.normalized_column_names[column] in LABEL_COLUMN_NAMES]
            if known:
                return (min(known, key=lambda column: LABEL_COLUMN_NAMES.index(self.normalized_column_names[column])),)
            others = [column for column in others if self.normalized_column_names[column] not in NON_LABEL_COLUMN_NAMES]
        if len(others) == 1:
            return tuple(others)
        if len(one_hot := self._find_one_hot_columns(others)) > 1:
            return one_hot
        advice = suggest_table_options(self.first_row if self.has_header else [""] * self.num_columns)
        if len(self._find_binary_columns(others, multi_label=True)) > 1 and not self.options.multi_label:
            advice += ", or --multi-label if a row may contain 1 in several columns"
        raise LabelFileError(
            f"{self.path}:{self.records[0].line_number}: expected a column named label or class, "
            f"found {', '.join(self.first_row)[:80]!r}: {advice}"
        )

    def _find_named_label_columns(self) -> tuple[int, ...]:
        """Return the indices of the columns that --label-column names; none without the option."""
        if not self.options.label_column:
            return ()
        lowered = [cell.lower() for cell in self.first_row]
        is_one_name = self._may_have_header and self.options.label_column.lower() in lowered
        names = [self.options.label_column] if is_one_name else self.options.label_column.split(",")
        return tuple(map(self._find_column_index, names))

    def _find_one_hot_columns(self, columns: Sequence[int]) -> tuple[int, ...]:
        """Return the columns of 0 and 1; without --multi-label, none if a row does not contain exactly one 1."""
        rows, multi_label = self.records[1:], self.options.multi_label
        binary = self._find_binary_columns(columns, multi_label=multi_label)
        is_valid = multi_label or all(sum(is_positive_cell(row.cells[n]) for n in binary) == 1 for row in rows)
        return binary if is_valid else ()

    def _find_binary_columns(self, columns: Sequence[int], *, multi_label: bool) -> tuple[int, ...]:
        """Return the indices of those of `columns` that contain only 0 and 1; none if there is no header.

        With `multi_label`, missing values such as -1 are ignored.
        """
        rows = self.records[1:] if self.has_header else []
        return tuple(c for c in columns if are_binary_cells([row.get_cell(c) for row in rows], multi_label=multi_label))

    @property
    def _may_have_header(self) -> bool:
        """Whether the first row may contain column names; if not, options can specify columns only by number."""
        return self.delimiter != ANY_WHITESPACE and not any(
            cell.lower().endswith(tuple(IMAGE_SUFFIXES)) for cell in self.first_row
        )

    def _find_column_index(self, column: str) -> int:
        """Return the index of a column by its name, ignoring case, or by its number from 1."""
        lowered = [cell.lower() for cell in self.first_row] if self._may_have_header else []
        if column.strip().lower() in lowered:
            return lowered.index(column.strip().lower())
        if column.strip().isdecimal() and 0 < int(column) <= self.num_columns:
            return int(column) - 1
        columns = ", ".join(self.first_row)
        if self._may_have_header:
            raise InputError(f"{self.path} has no column {column!r}; its columns: {columns}")
        raise InputError(f"{self.path} has no header: give the column's number, not {column!r} (first row: {columns})")


def _list_candidate_folders(folder: Path) -> list[Path]:
    """Return the subfolders of a table's folder in which to search for images: the first MAX_IMAGE_FOLDERS by name."""
    if not folder.is_dir():
        return []
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not is_skipped_folder(path.name))
    return folders[:MAX_IMAGE_FOLDERS]


def _find_suffixes(values: Sequence[str], folder: Path) -> list[str]:
    """Return the image suffixes that complete one of the first `values` to the path of a file in `folder`."""
    names: dict[str, set[str]] = {}
    found: dict[str, None] = {}
    for value in values[:MAX_SHOWN_NAMES]:
        parent, stem = os.path.split(join_relative_path(folder, value))
        if parent not in names:
            names[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()  # noqa: PTH112, PTH208
        suffixes = chain(IMAGE_SUFFIXES, map(str.upper, IMAGE_SUFFIXES))
        found.update((suffix, None) for suffix in suffixes if stem + suffix in names[parent])
    return list(found)
