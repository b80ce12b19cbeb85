"""Find the rows of a table that are no labels: repeated headers, rows with too many cells, negative labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mlimages.core import LabelFileError, format_examples, pluralize
from mlimages.labels.formats import Record


def is_repeated_header(cells: Sequence[str], column_names: Sequence[str]) -> bool:
    """Whether a row repeats the header, as in concatenated files; `column_names` are the header's stripped cells."""
    may_be_header = len(cells) == len(column_names) > 0 and cells[0].strip() == column_names[0]  # false for most rows
    return may_be_header and [cell.strip() for cell in cells] == list(column_names)


def is_negative_label(record: Record, column_names: Sequence[str]) -> bool:
    """Whether a row is a negative label of Open Images: confidence 0, as the image does not show the class.

    Source: https://storage.googleapis.com/openimages/web/download_v7.html (image labels).
    """
    if "LabelName" not in column_names or "Confidence" not in column_names:
        return False
    return record.get_cell(column_names.index("Confidence")).strip() in ("0", "0.0")


def has_too_many_cells(cells: Sequence[str], column_names: Sequence[str]) -> bool:
    """Whether a row has text in more cells than there are columns, as after a delimiter in a cell without quotes."""
    return len(cells) > len(column_names) and any(map(str.strip, cells[len(column_names) :]))


def is_irregular(record: Record, column_names: Sequence[str]) -> bool:
    """Whether a row repeats the header, has more cells than there are columns, or has confidence 0 (Open Images)."""
    is_too_long = has_too_many_cells(record.cells, column_names)
    return is_too_long or is_repeated_header(record.cells, column_names) or is_negative_label(record, column_names)


def describe_irregular_rows(path: Path, records: Iterable[Record], column_names: Sequence[str]) -> tuple[str, ...]:
    """Return a line about each kind of irregular row (see `is_irregular`), with the numbers of such rows.

    Args:
        path: the table.
        records: the rows of the table, without the header.
        column_names: the stripped cells of the header; "" for each column without one.

    Raises:
        LabelFileError: most rows have more cells than there are columns.
    """
    count = 0
    repeated, negative, too_long = list[int](), list[int](), list[int]()
    for count, record in enumerate(records, start=1):  # noqa: B007  # the count is used
        if is_repeated_header(record.cells, column_names):
            repeated.append(record.line_number)
        elif is_negative_label(record, column_names):
            negative.append(record.line_number)
        elif has_too_many_cells(record.cells, column_names):
            too_long.append(record.line_number)
    if 2 * len(too_long) > count:
        raise LabelFileError(
            f"{path}:{too_long[0]}: {len(too_long)} of {pluralize(count, 'row')} have more cells than the first row "
            f"({len(column_names)}): the first row must name all columns or, without a header, have as many "
            "cells as the other rows"
        )
    too_long_advice = ": quote cells that contain the delimiter; write several classes in one cell (a;b)"
    num_cells = pluralize(len(column_names), "cell")
    details = (
        ("repeated header", repeated, "", ""),
        ("row", negative, " with Confidence 0", ": the image does not show the class"),
        ("row", too_long, f" with more than {num_cells}", too_long_advice),
    )
    return tuple(
        f"{path}: left out: {pluralize(len(numbers), noun)}{kind} ({format_row_numbers(numbers)}){hint}"
        for noun, numbers, kind, hint in details
        if numbers
    )


def format_row_numbers(numbers: Sequence[int]) -> str:
    """Return the first numbers as text, such as `rows 2, 5` or `row 2`."""
    return f"row{'s' * (len(numbers) > 1)} {format_examples(list(map(str, numbers)))}"
