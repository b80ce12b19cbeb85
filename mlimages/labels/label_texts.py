"""Parse labels: a class name or class index, or a list of these in a multi-label file."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mlimages.core import LabelFileError, format_examples
from mlimages.labels.class_names import (
    MAX_CLASSES,
    ClassNames,
    escape_invisible_characters,
    is_class_index,
    is_valid_class_name,
)
from mlimages.labels.formats import Label, LabelRow, is_label_list

ONES, ZEROS = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
"""Cells of a one-hot column that mean 1, and those that mean 0, in lower case."""

MISSING_VALUES = ("", "-1", "-1.0", "nan", "na", "n/a", "none", "null")
"""Cells of a one-hot column that mean an uncertain or missing label, in lower case."""

_NUMPY_ARRAY = re.compile(r"""\[\s*(?:(?:'[^']*'|"[^"]*"|\d+)\s+)+(?:'[^']*'|"[^"]*"|\d+)\s*\]""")
"""A NumPy array as text: `['cats' 'dogs']`, `[1 0 0]`."""

_POSTGRESQL_ARRAY = re.compile(r"""\{\s*(?:(?:"[^"]*"|[^\s"',:{}\[\]]+)\s*(?:,\s*(?="|[^\s}])|(?=\})))*\}""")
"""A PostgreSQL array as text: `{cats,"hot dogs"}`."""

_ARRAY_ELEMENT = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s"',{}\[\]]+)""")


class LabelReader:
    """Reads the labels of one label file.

    Attributes:
        labels_by_text: the labels read so far, by their text in the file.
    """

    def __init__(self, path: Path, names: ClassNames, *, numbers_are_names: bool, definition: Path | None) -> None:
        self.labels_by_text: dict[str, Label] = {}
        self._path, self._names, self._definition = path, names, definition
        self._indices = {name: n for n, name in enumerate(names) if numbers_are_names or not is_class_index(name)}
        for name, index in list(self._indices.items()):  # labels of tables are in this form
            self._indices.setdefault(unicodedata.normalize("NFC", name), index)

    def read(self, row: LabelRow) -> Label:
        """Return the class index of a row or, if its label is a list such as `[3,0]`, the sorted indices: `(0, 3)`.

        Raises:
            LabelFileError: a class is unknown, or only some lines have brackets.
        """
        texts = None if row.label in self._indices else parse_label_list(row.label)
        _reject_binary_vector(f"{self._path}:{row.line_number}", row.label, texts or ())
        several = tuple(sorted({self._find_class_index(row, text) for text in texts or ()}))
        label = self._find_class_index(row, row.label) if texts is None else several
        if isinstance(label, tuple) != isinstance(next(iter(self.labels_by_text.values()), label), tuple):
            expected = "expected one class on every line, or a list in brackets ([0,3], [2], []) on every line"
            raise LabelFileError(f"{self._path}:{row.line_number}: {expected}, found {row.label[:80]!r}")
        self.labels_by_text[row.label] = label
        return label

    def _find_class_index(self, row: LabelRow, text: str) -> int:
        """Return the class index of a class name or class index in a row; raise an error if it is unknown."""
        index, names = self._indices.get(text, int(text) if is_class_index(text) else -1), self._names
        if 0 <= index < (len(names) or MAX_CLASSES):
            return index
        expected = f"`path label`, where the label is a class index below {MAX_CLASSES}"
        if names:
            shown = format_examples(list(self._indices), 3)
            expected = f"a class index from 0 to {len(names) - 1}" + f" or a class name ({shown})" * bool(shown)
        hint = ""
        if self._definition:
            name = self._definition.name
            hint = f" (class names are read from {name}: remove {name} if it belongs to another label file)"
        hint = " (with --multi-label, ';' separates classes)" if ";" in text else hint
        hint = " (write classes in brackets without spaces: [0,3])" if text.endswith("]") else hint
        raise LabelFileError(f"{self._path}:{row.line_number}: expected {expected}, found {text[:80]!r}{hint}")


def reject_invalid_class_names(path: Path, rows: Iterable[LabelRow], *, are_lists: bool) -> None:
    """Raise a LabelFileError if a class name is blank, or contains a line break or another control character."""
    for row in rows:
        for name in (parse_label_list(row.label) or ()) if are_lists else [row.label]:
            if row.path and row.label and not is_valid_class_name(name):
                raise LabelFileError(
                    f"{path}:{row.line_number}: the class name '{escape_invisible_characters(name)}' is blank, or "
                    "contains a line break or another control character: correct it"
                )


def are_class_names(path: Path, labels: Iterable[str], names: ClassNames, *, may_be_indices: bool) -> bool:
    """Whether numbers among the labels of a file, such as `7`, are class names rather than class indices.

    The first of these rules that applies decides:

    - False (indices) if a number is not one of the class names `names`.
    - True (names) if labels in this file cannot be indices (`may_be_indices` is false), or if a number is too large.
    - False if each number is the name of the class with this index, so that both meanings agree.

    Raises:
        LabelFileError: no rule applies, since a number is the name of one class and the index of another.
    """
    numbers = sorted(set(filter(is_class_index, labels)))
    if not set(numbers) <= set(names):
        return False
    if not may_be_indices or any(int(number) >= len(names) for number in numbers):
        return True
    for number in numbers:
        if names[int(number)] != number:
            raise LabelFileError(
                f"{path}: label {number} may mean the class named {number!r}, or the class with this index, which is "
                f"named {names[int(number)]!r}: use words as class names, in the label file and in the class definition"
            )
    return False


def parse_label_list(text: str) -> tuple[str, ...] | None:
    """Parse a list of labels written by JSON, Python, NumPy, PostgreSQL or Label Studio; None for other text.

    >>> [parse_label_list(text) for text in ("['cats', 'dogs']", "['cats' 'dogs']", '{"choices": ["cats"]}', "cats")]
    [('cats', 'dogs'), ('cats', 'dogs'), ('cats',), None]
    """
    if not _has_brackets(text):
        return None
    if _NUMPY_ARRAY.fullmatch(text) or _POSTGRESQL_ARRAY.fullmatch(text):
        return tuple("".join(groups) for groups in _ARRAY_ELEMENT.findall(text))
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            values = parse(text)
            values = values.get("choices") if isinstance(values, dict) else values
            values = sorted(values) if isinstance(values, set) else values
            values = list(values) if isinstance(values, tuple) else values
            return tuple(str(value).strip() for value in values or ()) if is_label_list(values) else None
    return None


def _has_brackets(text: str) -> bool:
    return text[:1] + text[-1:] in ("[]", "()", "{}")


def _reject_binary_vector(path_and_line: str, text: str, labels: Sequence[str]) -> None:
    """Raise an error if a list is a multi-hot vector such as `[0, 1, 1]`, rather than a list of class indices."""
    if len(labels) > len(set(labels)) and set(labels) <= {"0", "1"}:
        raise LabelFileError(
            f"{path_and_line}: {text[:80]} is a list of 0 and 1 without class names: use one column per class, with "
            "the class name in the first row"
        )


def is_positive_cell(cell: str) -> bool:
    """Whether a cell of a one-hot column is 1, or means 1, such as `true`."""
    return cell.strip().lower() in ONES


def is_binary_cell(cell: str) -> bool:
    """Whether a cell of a one-hot column is 0 or 1, or means 0 or 1, such as `true`."""
    return cell.strip().lower() in ONES + ZEROS


def are_binary_cells(cells: Sequence[str], *, multi_label: bool) -> bool:
    """Whether all cells are 0 or 1, or mean 0 or 1; with `multi_label`, missing values such as -1 are ignored."""
    known = [cell for cell in cells if not (multi_label and cell.strip().lower() in MISSING_VALUES)]
    return bool(known) and all(map(is_binary_cell, known))


def format_label(label: Label, class_names: Sequence[str]) -> str:
    """Return the class name of a label; several class names are separated by `;`.

    >>> format_label(1, ["cats", "dogs"]), format_label((0, 1), ["cats", "dogs"])
    ('dogs', 'cats;dogs')
    """
    return ";".join(class_names[n] for n in (label if isinstance(label, tuple) else (label,)))


def format_label_list(labels: Iterable[str]) -> str:
    """Format labels as a JSON list."""
    return json.dumps(list(labels), ensure_ascii=False)


def parse_label_cell(cell: str, separator: str, path_and_line: str) -> Sequence[str]:
    """Return the labels in a cell, such as `cats`, `cats;dogs` (with the separator `;`) or `['cats', 'dogs']`.

    Args:
        separator: `;`, `|` or `,`; "" if the cell contains one label.
        path_and_line: `path:line` for the error message.

    Raises:
        LabelFileError: the cell is a list that cannot be parsed, or a multi-hot vector such as `[0, 1, 1]`.
    """
    labels: Sequence[str] | None = parse_label_list(cell)
    if labels is None:
        if _has_brackets(cell) and (cell[0] != "(" or (separator and separator in cell)):
            raise LabelFileError(
                f"{path_and_line}: {cell[:80]} cannot be parsed as a list of classes, such as ['cats', 'dogs']"
            )
        labels = [label for label in map(str.strip, cell.split(separator) if separator else [cell]) if label]
    _reject_binary_vector(path_and_line, cell, labels)
    return labels


def count_joined_labels(labels: Collection[str]) -> dict[str, int]:
    """Count the labels that seem to contain several classes, by separator in quotes, or "brackets".

    A class name may itself contain `|` or `,`. Labels with such a separator are counted only if two labels share
    a part, as `cats|dogs` and `dogs` do.

    >>> count_joined_labels(["cats", "cats;dogs", "['cats', 'dogs']"])
    {'brackets': 1, "';'": 1}
    """
    counts = {"brackets": sum(len(parse_label_list(label) or ()) > 1 for label in labels)}
    for separator in ";|,":
        several = [label for label in labels if separator in label and parse_label_list(label) is None]
        names = [name.strip() for label in labels for name in label.split(separator)] if several else []
        counts[f"'{separator}'"] = len(several) * (separator == ";" or len(names) > len(set(names)))
    return {separator: count for separator, count in counts.items() if count}


def find_label_separator(path: Path, line_numbers_by_cell: Mapping[str, int]) -> str:
    """Return the separator of the labels in cells: `;` if a cell contains it, else `|` or `,`; "" for none.

    Args:
        path: path of the table, for the error message.
        line_numbers_by_cell: line number of each cell, by its text.

    Raises:
        LabelFileError: some cells contain only `|` and others only `,`.
    """
    texts = [cell for cell in line_numbers_by_cell if parse_label_list(cell.strip()) is None]
    if any(";" in text for text in texts):
        return ";"
    several = [text for text in texts if "|" in text or "," in text]
    for separator in "|,":
        if several and all(separator in text for text in several):
            return separator
    if not several:
        return ""
    one, other = (next(text for text in several if separator in text) for separator in "|,")
    raise LabelFileError(
        f"{path}:{line_numbers_by_cell[other]}: labels are separated by '|' in some rows ({one[:40]}) and by ',' in "
        f"others ({other[:40]}): use the same separator in all rows"
    )
