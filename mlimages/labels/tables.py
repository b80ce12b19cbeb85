"""Tables of images and labels: detected columns, and rows."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from mlimages.core import LabelFileError, counted, is_file, is_remote
from mlimages.labels.class_names import is_number
from mlimages.labels.formats import PATH_LABEL, Record, Row, detect_text_delimiters, read_records
from mlimages.labels.label_texts import (
    count_multiple_classes,
    find_separator,
    is_cell_one,
    is_cell_zero_or_one,
    list_text,
    parse_list,
    split_cell,
)
from mlimages.labels.scanning import PARTS, natural_key
from mlimages.labels.splitting import compile_pattern, match_group
from mlimages.labels.table_paths import case_hint, find_relative_path, join_path

PATH_COLUMN_NAMES = (
    "path", "file_name", "filename", "file", "image", "image_path", "img_path", "filepath", "file_path", "filepaths",
    "image_name", "img", "img_name", "image_id", "id_code", "image_file", "im_path", "relative_im_path", "fname", "id",
)  # fmt: skip
SHOWN = 10


@dataclass(frozen=True)
class Table:
    """A table with its detected columns.

    Attributes:
        path: path of the file.
        folder: folder that the paths are relative to.
        delimiter: delimiter of the cells.
        columns: column names of the header; "" for each column without a header.
        path_index: index of the path column.
        label_indices: indices of the label columns: several if one-hot, none with `class_from`.
        suffix: appended to each path.
        class_from: regular expression that matches the label in the path.
        has_header: whether the first row has the column names.
        strip_components: number of parent folders to strip from each path.
        part_index: index of the column of parts (train, val, test), if there is one.
        has_lists: whether the label of a row is a JSON list of any number of classes.
        has_names: whether several label columns hold names rather than 0 and 1.
        is_joined: whether rows of the same image are joined.
    """

    path: Path
    folder: Path
    delimiter: str
    columns: tuple[str, ...]
    path_index: int
    label_indices: tuple[int, ...]
    suffix: str
    class_from: str
    has_header: bool
    strip_components: int
    part_index: int | None
    has_lists: bool
    has_names: bool
    is_joined: bool

    def rows(self) -> Iterator[Row]:
        """Return an iterator over the rows; those without a path, or without exactly one class, are left out."""
        if self.is_joined:
            return (row for row, _ in self._joined_rows)
        return (row for row in self._all_rows() if row.path and row.label)

    @property
    def _joined_rows(self) -> list[tuple[Row, str]]:
        """One row for each image with the classes of all its rows, and its part; an image of two parts has two rows."""
        found: dict[tuple[str, str], tuple[int, dict[str, None]]] = {}
        for row, part in self._rows_and_parts():
            _, labels = found.setdefault((os.path.normpath(row.path), part), (row.number, {}))
            labels.update(dict.fromkeys(parse_list(row.label) or ()))
        return [(Row(number, path, list_text(labels)), part) for (path, part), (number, labels) in found.items()]

    def _rows_and_parts(self) -> Iterator[tuple[Row, str]]:
        for record, row in zip(self._records(), self._all_rows(), strict=True):
            if row.path and row.label:
                yield row, "" if self.part_index is None else parse_part(record.cells, self.part_index)

    def _all_rows(self) -> Iterator[Row]:
        expression = compile_pattern(self.class_from) if self.class_from else None
        for record in self._records():
            name = record.cells[self.path_index] if self.path_index < len(record.cells) else ""
            label = match_group(expression, name) if expression else self._label_text(record)
            if expression and label and self.is_joined:
                label = list_text([label])
            if name:
                name = find_relative_path(name, self.strip_components, self.folder, self.suffix) + self.suffix
            yield Row(record.number, name, label or "")

    def _records(self) -> Iterator[Record]:
        return islice(read_records(self.path, self.delimiter), int(self.has_header), None)

    def _label_text(self, record: Record) -> str:
        cells = [record.cells[index].strip() if index < len(record.cells) else "" for index in self.label_indices]
        cells = [unicodedata.normalize("NFC", cell) for cell in cells]  # as names of class folders
        if self.is_joined:
            return self._label_list(cells, record.number)
        if len(cells) == 1:
            return "" if self._excludes_lists and parse_list(cells[0]) is not None else cells[0]
        chosen = [index for index, cell in zip(self.label_indices, cells, strict=True) if is_cell_one(cell)]
        return self._column_name(chosen[0]) if len(chosen) == 1 else ""

    def _label_list(self, cells: Sequence[str], line_number: int) -> str:
        """Return the classes of a row as a JSON list; "" if its cells are blank, or neither 0 nor 1."""
        if self._is_one_hot:
            if not any(cells) or not all(is_cell_zero_or_one(cell or "0") for cell in cells):
                return ""
            return list_text(
                self._column_name(i) for i, cell in zip(self.label_indices, cells, strict=True) if is_cell_one(cell)
            )
        found = [label for cell in cells for label in split_cell(cell, self._separator, f"{self.path}:{line_number}")]
        return list_text(found) if found or () in map(parse_list, cells) else ""

    @property
    def _is_one_hot(self) -> bool:
        return len(self.label_indices) > 1 and not self.has_names

    @cached_property
    def _has_blanks(self) -> bool:
        """Whether a label cell is blank."""
        return any(
            not "".join(record.cells[i : i + 1]).strip() for record in self._records() for i in self.label_indices
        )

    @cached_property
    def _separator(self) -> str:
        rows = ((record.number, record.cells) for record in self._records())
        indices = self.label_indices
        return find_separator(self.path, {row[i]: number for number, row in rows for i in indices if i < len(row)})

    @cached_property
    def _excludes_lists(self) -> bool:
        """Whether rows with several classes are left out, as in an export of one class per image."""
        return not self.has_lists and self.path.suffix.lower() in (".jsonl", ".json", ".xml")

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The part of the dataset (train, val, test) of each row; empty without such a column."""
        if self.part_index is None:
            return ()
        return tuple(part for _, part in (self._joined_rows if self.is_joined else self._rows_and_parts()))

    def _column_name(self, column_index: int) -> str:
        name = self.columns[column_index] if column_index < len(self.columns) else ""
        return name or f"column {column_index + 1}"

    @property
    def has_numbers(self) -> bool:
        """Whether the labels are class numbers (`path number` lines) rather than names."""
        return self.delimiter == PATH_LABEL and not self.class_from and all(map(is_number, self.row_counts.labels))

    @cached_property
    def is_supported_format(self) -> bool:
        """Whether the columns are `path,label`, the format that mlimages writes."""
        return [column.lower() for column in self.columns] in (["path", "label"], ["file_name", "label"])

    @cached_property
    def row_counts(self) -> TableCounts:
        """Numbers of rows and of missing images, and the labels."""
        labels: dict[str, None] = {}
        count, missing, unlabelled = 0, [], []
        local, images = not is_remote(self.folder), set[str]()
        for row in self._all_rows():
            if not (row.path and row.label):
                unlabelled.append(row.number)
                continue
            if self.has_lists:
                labels.update(dict.fromkeys(parse_list(row.label) or ()))
                key = os.path.normpath(row.path) if self.is_joined else ""
                if key in images:
                    continue
                images.update([key] * bool(key))
            else:
                labels[row.label] = None
            count += 1
            if local and not is_file(join_path(self.folder, row.path)):
                missing.append(row.path)
        return TableCounts(count, tuple(missing), tuple(sorted(labels, key=natural_key)), tuple(unlabelled))

    @property
    def description(self) -> str:
        """The detected columns in one line."""
        counts = self.row_counts
        where = [f"suffix {self.suffix} added"] * bool(self.suffix)
        where += [f"in {self.folder}"] * (self.folder != self.path.parent)
        where += [f"without {counted(self.strip_components, 'parent folder')}"] * bool(self.strip_components)
        image = f"{self._column_text(self.path_index)} as image" + (f" ({', '.join(where)})" if where else "")
        labels = ", ".join(self._column_name(index) for index in self.label_indices)
        label = f"'{self.class_from}' in the path" if self.class_from else labels
        how = ["one-hot"] * self._is_one_hot + ["several per image"] * self.has_lists
        how += ["blank cells as 0"] * (self.has_lists and self._is_one_hot and self._has_blanks)
        label += f" ({', '.join(how)})" if how else ""
        part = f", {self._column_name(self.part_index)} as part" if self.part_index is not None else ""
        found = f"{counts.rows - len(counts.missing):,} of {counts.rows:,} images exist"
        names = ", ".join(counts.labels[:SHOWN]) + " ..." * (len(counts.labels) > SHOWN)
        classes = f"{len(counts.labels)} class{'es' * (len(counts.labels) != 1)}: {names}"
        return f"{self.path}: {image}, {label} as label{part}; {found}; {classes}"

    @property
    def left_out_note(self) -> tuple[str, ...]:
        """A note on the rows that are excluded; empty if there are none."""
        numbers = self.row_counts.unlabelled
        shown = ", ".join(map(str, numbers[:SHOWN])) + " ..." * (len(numbers) > SHOWN)
        reason, more = "without a path or a class", "; for an image of no class, write []" * (not self.class_from)
        if not self.has_lists:
            reason, more = "without a path or one class", ""
        elif self._is_one_hot:
            reason, more = "without a path, with only blank labels, or with a value such as -1 or NaN", ""
        what = f"{self.path}: left out: {counted(len(numbers), 'row')} {reason} (row {shown}){more}"
        return (what,) if numbers else ()

    @property
    def multiple_classes_note(self) -> tuple[str, ...]:
        """A note on labels or rows with several classes; empty if there are none."""
        return tuple(f"{self.path}: {text}" for text in self._multiple_class_texts)

    @property
    def _multiple_class_texts(self) -> tuple[str, ...]:
        labels = self.row_counts.labels
        if self.has_lists:
            names = set(labels)
            count = sum(len(label.split()) > 1 and names.issuperset(label.split()) for label in labels)
            remedy = "a space does not separate classes: use ';'"
            return (f"{counted(count, 'class name')} made of the names of other classes: {remedy}",) if count else ()
        for what, count in count_multiple_classes(labels).items():
            contain = f"{counted(count, 'label')} contain{'s' * (count == 1)} {what}"
            return (f"{contain}: --multi-label reads each part as a class",)
        lists = replace(self, has_lists=True, is_joined=True)
        rows = lists._all_rows() if self.row_counts.unlabelled and not self.class_from else ()
        if count := sum(len(parse_list(row.label) or ()) > 1 for row in rows):
            return (f"several classes in {counted(count, 'row')}: --multi-label keeps them",)
        return ()

    @property
    def missing_note(self) -> tuple[str, ...]:
        """A note on the images that do not exist; empty if all exist."""
        missing = self.row_counts.missing
        more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        return (f"{self.path}: missing: {', '.join(missing[:SHOWN])}{more}",) if missing else ()

    @property
    def case_note(self) -> tuple[str, ...]:
        """A note on the class names that differ only in case; empty if there are none."""
        same: dict[str, list[str]] = {}
        for name in self.row_counts.labels:
            same.setdefault(name.casefold(), []).append(name)
        found = [" and ".join(names) for names in same.values() if len(names) > 1]
        shown = ", ".join(found[:SHOWN]) + " ..." * (len(found) > SHOWN)
        return (f"{self.path}: classes that differ only in case: {shown}",) if found else ()

    def _column_text(self, column_index: int) -> str:
        name = self._column_name(column_index)
        return name if name.startswith("column ") else f"column {name}"

    def require_images(self) -> None:
        """Raise an error if under half of the images exist.

        Raises:
            LabelFileError: under half of the images exist, or most rows have no path and class.
        """
        counts = self.row_counts
        may_be_blank = self.has_lists and not self._is_one_hot
        if len(counts.unlabelled) >= max(1, counts.rows) and not (may_be_blank and counts.rows):
            share = f"{len(counts.unlabelled)} of {len(counts.unlabelled) + counts.rows} rows"
            expected = (
                f"a path and a label{' (one class)' * (not self.has_lists)}; {share} have no label: {self.advice}"
            )
            if self.has_lists and self._is_one_hot:
                expected = f"a path, and 0 or 1 in each label column; {share} have another value, such as -1 or NaN, "
                expected += "or only blank cells: replace these by 0 or 1"
            raise LabelFileError(
                f"{self.path}:{counts.unlabelled[0]}: expected {expected}"
                + "".join(f"; {note}" for note in self._multiple_class_texts)
            )
        if 2 * len(counts.missing) > counts.rows:
            first = join_path(self.folder, counts.missing[0])
            first += case_hint(first)
            raise LabelFileError(
                f"{self.path}: only {counts.rows - len(counts.missing):,} of {counts.rows:,} images exist "
                f"(paths from {self._column_text(self.path_index)}; no file at {first}): {self.advice}"
            )

    @property
    def advice(self) -> str:
        """The options that specify how the table is read."""
        return table_advice(self.columns)


@dataclass(frozen=True, slots=True)
class TableCounts:
    """Counts of a table's rows.

    Attributes:
        rows: number of rows with a path and a label.
        missing: paths of the images that do not exist.
        labels: the distinct labels in natural order.
        unlabelled: numbers of the lines without a path, or without exactly one class.
    """

    rows: int
    missing: tuple[str, ...]
    labels: tuple[str, ...]
    unlabelled: tuple[int, ...]


def read_path_cells(path: Path) -> Iterator[str]:
    """Yield the path column of a table, found by its name, else the first one; the images need not exist."""
    rows = read_records(path, detect_text_delimiters(path)[0])
    first = next(rows, None)
    if first is None:
        return
    names = [cell.strip().lower() for cell in first.cells]
    column = min(range(len(names)), key=lambda index: index_of_first(names[index : index + 1], PATH_COLUMN_NAMES))
    if names[column] not in PATH_COLUMN_NAMES:
        yield first.cells[column]
    yield from (row.cells[column] for row in rows if column < len(row.cells))


def table_advice(columns: Sequence[str]) -> str:
    """Return the options that specify how a table is read."""
    named = ", ".join(column or str(number) for number, column in enumerate(columns, start=1))
    return f"use --path-column or --label-column (columns: {named}), --images DIR, --suffix .png or --class-from REGEX"


def parse_part(cells: Sequence[str], column_index: int) -> str:
    """Return the part (train, val, test) that a cell names, or ""; 1 and true mean val, as in columns `is_valid`."""
    cell = cells[column_index].strip().lower() if column_index < len(cells) else ""
    return {**PARTS, "0": "train", "1": "val", "false": "train", "true": "val"}.get(cell, "")


def index_of_first(names: Sequence[str], known_names: Sequence[str]) -> int:
    """Return the index of `names[0]` in `known_names`; `len(known_names)` if it is not one of them."""
    return known_names.index(names[0]) if names and names[0] in known_names else len(known_names)
