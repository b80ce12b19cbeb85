"""Find the column of a table that names the split of each row: train, val or test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlimages.core import LabelFileError, format_examples, pluralize
from mlimages.labels.formats import Record
from mlimages.labels.irregular_rows import format_row_numbers
from mlimages.labels.scanning import SPLIT_NAMES_BY_ALIAS

SPLIT_COLUMN_NAMES = ("split", "set", "subset", "partition", "is_valid", "is_train", "fold")
"""Names of columns that may contain the split of each row, in order of preference."""


@dataclass(frozen=True, slots=True)
class SplitColumn:
    """A column that may contain the split of each row.

    Attributes:
        index: index of the column.
        name: its name; `column 3` if it has none.
        splits: the split (train, val or test) by lower-case cell text: `{"training": "train"}`.
        other_values: the lower-case cell texts that name no split, such as "unassigned"; "" for blank cells.
    """

    index: int
    name: str
    splits: Mapping[str, str]
    other_values: tuple[str, ...]

    def get_split(self, record: Record) -> str:
        """Return the split of a row; "" if its cell names none."""
        return self.splits.get(record.get_cell(self.index).strip().lower(), "")

    def describe_rows_without_split(self, records: Iterable[Record]) -> str:
        """Return a text about rows without a split: how many, their values and row numbers; "" if there are none."""
        if not self.other_values:
            return ""
        numbers = [record.line_number for record in records if not self.get_split(record)]
        rows = f"{pluralize(len(numbers), 'row')} without train, val or test in column {self.name}"
        return f"{rows} ({_format_values(self.other_values)}; {format_row_numbers(numbers)})"


def find_split_column(
    path: Path, names: Mapping[int, str], iter_rows: Callable[[], Iterable[Record]]
) -> tuple[SplitColumn | None, tuple[str, ...]]:
    """Find the first column that contains at least two splits.

    Args:
        path: path of the table, for messages.
        names: names of the columns that may contain the splits, by index.
        iter_rows: returns an iterator over all rows; is called a second time for the error message.

    Returns:
        The column, and an empty tuple. If there is no such column: None, and one line per column in `names` that says
        why the column is not used; columns of blank cells are left out.

    Raises:
        LabelFileError: there is no such column, but some cells of a column name one split, and others none: these rows
            may be meant for another split.
    """
    values: dict[int, dict[str, None]] = {index: {} for index in names}
    for record in iter_rows() if names else ():
        for index, found in values.items():
            found[record.get_cell(index).strip().lower()] = None
    columns = []
    for index, found in values.items():
        splits = _map_values_to_splits(found, names[index])
        columns.append(SplitColumn(index, names[index], splits, tuple(value for value in found if value not in splits)))
    if used := next((column for column in columns if len(set(column.splits.values())) > 1), None):
        return used, ()
    for column in columns:
        if column.splits and column.other_values:
            raise LabelFileError(
                f"{path}: column {column.name} contains only the split {next(iter(column.splits.values()))}, and "
                f"{column.describe_rows_without_split(iter_rows())}: write train, val or test in these rows, or remove "
                "the column"
            )
    unused = [(column.name, [*column.splits, *filter(None, column.other_values)]) for column in columns]
    return None, tuple(
        f"{path}: column {name} is not used as the split: expected at least two of train, val and test, found "
        f"{_format_values(texts)}"
        for name, texts in unused
        if texts
    )


def _map_values_to_splits(values: Iterable[str], column_name: str) -> dict[str, str]:
    """Return the split that each cell text stands for; texts that name no split are left out.

    - If some texts are names such as train or validation, only these stand for splits.
    - Otherwise, if all texts are 0, 1, false, true or blank: 0 and false mean train, 1 and true mean val. In a column
      whose name ends with `train`, such as `is_train`, 1 and true mean train, 0 and false mean val. In a column named
      `fold`, 0 and 1 are fold numbers, which name no split.
    """
    if names := {value: SPLIT_NAMES_BY_ALIAS[value] for value in values if value in SPLIT_NAMES_BY_ALIAS}:
        return names
    off, on = ("val", "train") if column_name.lower().endswith("train") else ("train", "val")
    flags = {"0": off, "1": on, "false": off, "true": on}
    are_flags = column_name.lower() != "fold" and flags.keys() | {""} >= set(values)
    return {value: flags[value] for value in values if value} if are_flags else {}


def _format_values(values: Sequence[str]) -> str:
    return format_examples([value or "blank" for value in values], 5)
