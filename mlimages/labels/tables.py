"""Tables of images and labels: their columns, rows and statistics."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from mlimages.core import LabelFileError, format_examples, is_file_or_member, is_remote, pluralize
from mlimages.labels.class_names import describe_similar_names, is_class_index, is_valid_class_name
from mlimages.labels.column_names import suggest_table_options
from mlimages.labels.formats import LAST_WHITESPACE, LabelRow, Record, read_records
from mlimages.labels.irregular_rows import describe_irregular_rows, format_row_numbers, is_irregular
from mlimages.labels.label_texts import (
    count_joined_labels,
    find_label_separator,
    format_label_list,
    is_binary_cell,
    is_positive_cell,
    parse_label_cell,
    parse_label_list,
    reject_invalid_class_names,
)
from mlimages.labels.scanning import natural_sort_key, normalize_class_name
from mlimages.labels.split_column import SplitColumn
from mlimages.labels.splitting import compile_pattern, match_pattern
from mlimages.labels.table_paths import describe_case_mismatch, find_relative_path, join_relative_path

MAX_SHOWN_NAMES = 10
"""Maximum number of names in a message."""


@dataclass(frozen=True)
class Table:
    """A table with its detected columns.

    Attributes:
        path: path of the file.
        folder: folder that the paths are relative to.
        delimiter: delimiter of the cells.
        column_names: names from the header; "" for each column if there is no header.
        path_column_index: index of the path column.
        label_column_indices: indices of the label columns; empty if `class_from` is set.
        suffix: suffix to append to each path.
        class_from: regular expression whose match in the path is the label; "" to read label columns.
        has_header: whether the first row contains the column names.
        strip_components: number of folders to strip from the start of each path.
        split_column: the column with the split of each row (train, val, test), if there is one.
        has_label_lists: whether each label in `rows` is a list of any number of classes, such as `["cats", "dogs"]`.
        has_class_name_columns: whether several label columns contain class names rather than 0 and 1.
        merges_rows: whether rows of the same image are merged into one with all classes (--multi-label).
        unused_column_notes: a line about each column that is named like a split column, but with fewer than two splits.
    """

    path: Path
    folder: Path
    delimiter: str
    column_names: tuple[str, ...]
    path_column_index: int
    label_column_indices: tuple[int, ...]
    suffix: str
    class_from: str
    has_header: bool
    strip_components: int
    split_column: SplitColumn | None
    has_label_lists: bool
    has_class_name_columns: bool
    merges_rows: bool
    unused_column_notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[LabelRow]:
        """Return an iterator over the rows, except those without a path, a label or (with a split column) a split.

        If `merges_rows`, there is one row per image and split.
        """
        if self.merges_rows:
            return (row for row, _ in self._merged_rows)
        return (row for row in self._iter_all_rows() if row.path and row.label)

    @property
    def _merged_rows(self) -> list[tuple[LabelRow, str]]:
        """One row per image and split, with all classes of the image, and the name of the split ("" for none)."""
        merged: dict[tuple[str, str], tuple[int, dict[str, None]]] = {}
        for row, split in self._iter_rows_and_splits():
            _, labels = merged.setdefault((os.path.normpath(row.path), split), (row.line_number, {}))
            labels.update(dict.fromkeys(parse_label_list(row.label) or ()))
        return [(LabelRow(n, path, format_label_list(labels)), split) for (path, split), (n, labels) in merged.items()]

    def _iter_rows_and_splits(self) -> Iterator[tuple[LabelRow, str]]:
        for record, row in zip(self._iter_records(), self._iter_all_rows(), strict=True):
            if row.path and row.label:
                yield row, self.split_column.get_split(record) if self.split_column else ""

    def _iter_all_rows(self) -> Iterator[LabelRow]:
        """Yield each row, including rows without a path or without a label."""
        expression = compile_pattern(self.class_from) if self.class_from else None
        for record in self._iter_records():
            path = record.get_cell(self.path_column_index)
            label = (
                normalize_class_name(match_pattern(expression, path) or "") if expression else self._read_label(record)
            )
            if expression and label and self.merges_rows:
                label = format_label_list([label])
            if path:
                path = find_relative_path(path, self.strip_components, self.folder, self.suffix) + self.suffix
            yield LabelRow(record.line_number, path, label)

    def _iter_records(self) -> Iterator[Record]:
        """Yield the records, except irregular ones (`is_irregular`) and, with a split column, those without a split."""
        column = self.split_column
        return (record for record in self._iter_regular_records() if column is None or column.get_split(record))

    def _iter_regular_records(self) -> Iterator[Record]:
        """Return an iterator over the records below the header, except irregular ones (see `is_irregular`)."""
        return (record for record in self._iter_records_below_header() if not is_irregular(record, self.column_names))

    def _iter_records_below_header(self) -> Iterator[Record]:
        return islice(read_records(self.path, self.delimiter), int(self.has_header), None)

    def _read_label(self, record: Record) -> str:
        """Return the label of a row as text; "" if it has none."""
        texts = (record.get_cell(index).strip() for index in self.label_column_indices)
        cells = [unicodedata.normalize("NFC", text) for text in texts]  # as class folders
        if self.merges_rows:
            return self._read_label_list(cells, record.line_number)
        if len(cells) == 1:
            return "" if self._skips_label_lists and parse_label_list(cells[0]) is not None else cells[0]
        names = self._find_one_hot_names(cells)
        return names[0] if len(names) == 1 else ""

    def _read_label_list(self, cells: Sequence[str], line_number: int) -> str:
        """Return the classes in label cells as a JSON list; "" if all are blank, or if a one-hot cell is not 0 or 1."""
        if self._is_one_hot:
            is_valid = any(cells) and all(is_binary_cell(cell or "0") for cell in cells)
            return format_label_list(self._find_one_hot_names(cells)) if is_valid else ""
        separator, path_and_line = self._label_separator, f"{self.path}:{line_number}"
        names = [name for cell in cells for name in parse_label_cell(cell, separator, path_and_line)]
        return format_label_list(names) if names or () in map(parse_label_list, cells) else ""

    def _find_one_hot_names(self, cells: Sequence[str]) -> list[str]:
        """Return the names of the label columns that contain 1 in a row, given the row's cells in these columns."""
        columns = zip(self.label_column_indices, cells, strict=True)
        return [self._get_column_name(index) for index, cell in columns if is_positive_cell(cell)]

    @property
    def _is_one_hot(self) -> bool:
        return len(self.label_column_indices) > 1 and not self.has_class_name_columns

    @cached_property
    def _has_blank_labels(self) -> bool:
        """Whether any label cell is blank."""
        return any(not record.get_cell(i).strip() for record in self._iter_records() for i in self.label_column_indices)

    @cached_property
    def _label_separator(self) -> str:
        """The separator of several labels in a cell; "" for none."""
        cells = {
            record.get_cell(i): record.line_number for record in self._iter_records() for i in self.label_column_indices
        }
        return find_label_separator(self.path, cells)

    @cached_property
    def _skips_label_lists(self) -> bool:
        """Whether rows with a list of classes are left out: true for JSON and XML files without --multi-label."""
        return not self.has_label_lists and self.path.suffix.lower() in (".jsonl", ".json", ".xml")

    @cached_property
    def row_split_names(self) -> tuple[str, ...]:
        """The split (train, val or test) of each row in `rows`; an empty tuple if the table has no column of splits."""
        if self.split_column is None:
            return ()
        return tuple(split for _, split in (self._merged_rows if self.merges_rows else self._iter_rows_and_splits()))

    def _get_column_name(self, column_index: int) -> str:
        """Return the name of a column; `column 3` if it has none."""
        name = self.column_names[column_index] if column_index < len(self.column_names) else ""
        return name or f"column {column_index + 1}"

    @property
    def has_class_indices(self) -> bool:
        """Whether the rows are `path index` lines, such as `a.jpg 3`, so that all labels are class indices."""
        has_path_label_lines = self.delimiter == LAST_WHITESPACE and not self.class_from
        return has_path_label_lines and all(map(is_class_index, self.statistics.distinct_labels))

    @property
    def may_have_class_indices(self) -> bool:
        """Whether numbers may be class indices: in `path index` lines, or in a table of the columns path and label."""
        return self.has_class_indices or self.has_standard_columns

    @cached_property
    def has_standard_columns(self) -> bool:
        """Whether the columns are path (or file_name) and label, as in tables that mlimages writes."""
        return [column.lower() for column in self.column_names] in (["path", "label"], ["file_name", "label"])

    @cached_property
    def statistics(self) -> TableStatistics:
        """Statistics of the rows."""
        labels: dict[str, None] = {}
        count, missing, unlabeled = 0, [], []
        local, images = not is_remote(self.folder), set[str]()
        for row in self._iter_all_rows():
            if not (row.path and row.label):
                unlabeled.append(row.line_number)
                continue
            if self.has_label_lists:
                labels.update(dict.fromkeys(parse_label_list(row.label) or ()))
                key = os.path.normpath(row.path) if self.merges_rows else ""
                if key in images:
                    continue
                images.update([key] * bool(key))
            else:
                labels[row.label] = None
            count += 1
            if local and not is_file_or_member(join_relative_path(self.folder, row.path)):
                missing.append(row.path)
        return TableStatistics(count, tuple(missing), tuple(sorted(labels, key=natural_sort_key)), tuple(unlabeled))

    @property
    def description(self) -> str:
        """The columns, the number of existing images and the classes in one line."""
        statistics = self.statistics
        changes = [f"suffix {self.suffix} added"] * bool(self.suffix)
        changes += [f"in {self.folder}"] * (self.folder != self.path.parent)
        changes += [f"without {pluralize(self.strip_components, 'parent folder')}"] * bool(self.strip_components)
        image = f"{self._describe_column(self.path_column_index)} as image" + f" ({', '.join(changes)})" * bool(changes)
        labels = ", ".join(map(self._get_column_name, self.label_column_indices))
        label = f"match of '{self.class_from}' in the path" if self.class_from else labels
        details = ["one-hot"] * self._is_one_hot + ["several per image"] * self.has_label_lists
        details += ["blank cells as 0"] * (self.has_label_lists and self._is_one_hot and self._has_blank_labels)
        label += f" ({', '.join(details)})" if details else ""
        split = f", {self.split_column.name} as split" if self.split_column else ""
        num_rows, class_names = statistics.num_rows, statistics.distinct_labels
        images = f"{num_rows - len(statistics.missing_paths):,} of {num_rows:,} images exist"
        classes = f"{pluralize(len(class_names), 'class')}: {format_examples(class_names)}"
        return f"{self.path}: {image}, {label} as label{split}; {images}; {classes}"

    @property
    def skipped_row_notes(self) -> tuple[str, ...]:
        """A line per reason about the rows that are skipped; empty if there are none."""
        numbers = self.statistics.unlabeled_line_numbers
        reason, hint = "without a path or a class", "; for an image without classes, write []" * (not self.class_from)
        if not self.has_label_lists:
            reason, hint = "without a path, or without exactly one class", ""
        elif self._is_one_hot:
            reason, hint = "without a path, with only blank labels, or with a value such as -1 or NaN", ""
        rows = [f"{pluralize(len(numbers), 'row')} {reason} ({format_row_numbers(numbers)}){hint}"] * bool(numbers)
        if self.split_column and (text := self.split_column.describe_rows_without_split(self._iter_regular_records())):
            rows.append(text)
        return (*self._irregular_row_notes, *(f"{self.path}: left out: {text}" for text in rows))

    @cached_property
    def _irregular_row_notes(self) -> tuple[str, ...]:
        """A line per kind of irregular rows, such as repeated headers; raises an error if most have too many cells."""
        return describe_irregular_rows(self.path, self._iter_records_below_header(), self.column_names)

    @property
    def multiple_classes_notes(self) -> tuple[str, ...]:
        """A line about labels or rows with several classes; empty if there are none."""
        return tuple(f"{self.path}: {text}" for text in self._describe_multiple_classes())

    def _describe_multiple_classes(self) -> Iterator[str]:
        labels = self.statistics.distinct_labels
        if self.has_label_lists:
            names = set(labels)
            if count := sum(len(label.split()) > 1 and names.issuperset(label.split()) for label in labels):
                yield f"{pluralize(count, 'class name')} made of other class names: separate classes by ';', not spaces"
            return
        if counts := count_joined_labels(labels):
            separator, count = next(iter(counts.items()))
            contain = f"{pluralize(count, 'label')} contain{'s' * (count == 1)} {separator}"
            yield f"{contain}: use --multi-label if an image may have several classes"
            return
        lists = replace(self, has_label_lists=True, merges_rows=True)
        rows = lists._iter_all_rows() if self.statistics.unlabeled_line_numbers and not self.class_from else ()
        if count := sum(len(parse_label_list(row.label) or ()) > 1 for row in rows):
            yield f"{pluralize(count, 'row')} with several classes: use --multi-label to keep all classes"

    @property
    def missing_image_notes(self) -> tuple[str, ...]:
        """A line about the images that do not exist; empty if all exist."""
        missing = self.statistics.missing_paths
        more = f" and {len(missing) - MAX_SHOWN_NAMES:,} more" if len(missing) > MAX_SHOWN_NAMES else ""
        return (f"{self.path}: missing: {', '.join(missing[:MAX_SHOWN_NAMES])}{more}",) if missing else ()

    @property
    def similar_class_notes(self) -> tuple[str, ...]:
        """Lines about the class names that differ only in case or in invisible characters; empty if there are none."""
        texts = describe_similar_names(self.statistics.distinct_labels)
        return tuple(f"{self.path}: classes that differ only in {text}" for text in texts)

    def _describe_column(self, column_index: int) -> str:
        name = self._get_column_name(column_index)
        return name if name.startswith("column ") else f"column {name}"

    def require_valid_rows(self) -> None:
        """Check that at least half of the images exist, that most rows have a label, and that class names are valid.

        Raises:
            LabelFileError: fewer than half of the images exist, at least half of the rows have no path or label, or a
                class name contains a line break or another control character.
        """
        if not all(map(is_valid_class_name, self.statistics.distinct_labels)):
            reject_invalid_class_names(self.path, self._iter_all_rows(), are_lists=self.has_label_lists)
        statistics, _ = self.statistics, self._irregular_row_notes
        num_rows, missing, unlabeled = statistics.num_rows, statistics.missing_paths, statistics.unlabeled_line_numbers
        may_be_blank = self.has_label_lists and not self._is_one_hot
        if len(unlabeled) >= max(1, num_rows) and not (may_be_blank and num_rows):
            rows = f"{len(unlabeled)} of {len(unlabeled) + num_rows} rows"
            expected = f"a path and a label{' (one class)' * (not self.has_label_lists)}"
            expected += f"; no label in {rows}: {self.options_hint}"
            if self.has_label_lists and self._is_one_hot:
                expected = f"a path, and 0 or 1 in each label column; other values in {rows}, such as -1 or NaN, "
                expected += "or only blank cells: replace these values by 0 or 1"
            notes = "".join(f"; {note}" for note in self._describe_multiple_classes())
            raise LabelFileError(f"{self.path}:{unlabeled[0]}: expected {expected}{notes}")
        if 2 * len(missing) > num_rows:
            first = join_relative_path(self.folder, missing[0])
            first += describe_case_mismatch(first)
            raise LabelFileError(
                f"{self.path}: only {num_rows - len(missing):,} of {num_rows:,} images exist "
                f"(paths from {self._describe_column(self.path_column_index)}; no file at {first}): {self.options_hint}"
            )

    @property
    def options_hint(self) -> str:
        """A hint about the options that specify how to read the table."""
        return suggest_table_options(self.column_names)


@dataclass(frozen=True, slots=True)
class TableStatistics:
    """Statistics of the rows of a table.

    Attributes:
        num_rows: number of rows with a path and a label; rows that are merged (`Table.merges_rows`) count as one.
        missing_paths: paths of the images that do not exist.
        distinct_labels: the distinct labels (in label lists, the distinct classes) in natural order.
        unlabeled_line_numbers: line numbers of the rows without a path or without a label.
    """

    num_rows: int
    missing_paths: tuple[str, ...]
    distinct_labels: tuple[str, ...]
    unlabeled_line_numbers: tuple[int, ...]
