"""Find the rows of a table that do not fit its first row: a repeated header, or more cells than columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mlimages.core import LabelFileError, pluralize
from mlimages.labels.formats import Record

_MAX_ROW_NUMBERS = 10
"""Maximum number of row numbers in a message."""


def is_repeated_header(cells: Sequence[str], column_names: Sequence[str]) -> bool:
    """Whether a row repeats the header, as in concatenated files; `column_names` are the header's stripped cells."""
    may_be_header = len(cells) == len(column_names) > 0 and cells[0].strip() == column_names[0]  # false for most rows
    return may_be_header and [cell.strip() for cell in cells] == list(column_names)


def is_irregular(record: Record, column_names: Sequence[str]) -> bool:
    """Whether a row is a repeated header, or has text in more cells than there are columns."""
    is_too_long = len(record.cells) > len(column_names) and any(map(str.strip, record.cells[len(column_names) :]))
    return is_too_long or is_repeated_header(record.cells, column_names)


def describe_irregular_rows(path: Path, records: Iterable[Record], column_names: Sequence[str]) -> tuple[str, ...]:
    """Return a line about the repeated headers among the rows below the first one, and one about long rows.

    Raises:
        LabelFileError: most rows have more cells than there are columns.
    """
    count = 0
    repeated: list[int] = []
    too_long: list[int] = []
    for count, record in enumerate(records, start=1):  # noqa: B007  # the count is used
        if is_irregular(record, column_names):
            (repeated if is_repeated_header(record.cells, column_names) else too_long).append(record.line_number)
    if 2 * len(too_long) > count:
        raise LabelFileError(
            f"{path}:{too_long[0]}: {len(too_long)} of {pluralize(count, 'row')} have more cells than the first row "
            f"({len(column_names)}): the first row must name all columns or, without a header, have as many "
            "cells as the other rows"
        )
    notes = [f"{pluralize(len(repeated), 'repeated header')} (row {format_row_numbers(repeated)})"] * bool(repeated)
    if too_long:
        notes.append(
            f"{pluralize(len(too_long), 'row')} with more than {pluralize(len(column_names), 'cell')} (row "
            f"{format_row_numbers(too_long)}): quote cells that contain the delimiter"
        )
    return tuple(f"{path}: left out: {note}" for note in notes)


def format_row_numbers(numbers: Sequence[int]) -> str:
    """Return the first numbers as text."""
    return ", ".join(map(str, numbers[:_MAX_ROW_NUMBERS])) + " ..." * (len(numbers) > _MAX_ROW_NUMBERS)
