"""Read the labels of an image from text: a class name or number, or any number of them in a multi-label file."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mlimages.core import LabelFileError
from mlimages.labels.class_names import MAX_CLASSES, ClassNames, class_definition_path, is_number
from mlimages.labels.formats import Label, Row, is_list

ONES, ZEROS = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
"""Values of a one-hot column, in lower case."""

UNKNOWN = ("", "-1", "-1.0", "nan", "na", "n/a", "none", "null")
"""Values in a one-hot column that say neither yes nor no: uncertain, or missing."""

_SPACED_LIST = re.compile(r"""\[\s*(?:(?:'[^']*'|"[^"]*"|\d+)\s+)+(?:'[^']*'|"[^"]*"|\d+)\s*\]""")
"""A NumPy array as text: `['cats' 'dogs']`, `[1 0 0]`."""

_BRACES = re.compile(r"""\{\s*(?:(?:"[^"]*"|[^\s"',:{}\[\]]+)\s*(?:,\s*(?="|[^\s}])|(?=\})))*\}""")
"""A PostgreSQL array as text: `{cats,"hot dogs"}`."""

_ITEM = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s"',{}\[\]]+)""")


class LabelReader:
    """Reads the labels of one label file; each distinct text is parsed once.

    Attributes:
        labels: the parsed labels by their text.
    """

    def __init__(self, path: Path, names: ClassNames, *, has_definition: bool) -> None:
        self.labels: dict[str, Label] = {}
        self._path, self._names, self._has_definition = path, names, has_definition
        self._numbers = {name: n for n, name in enumerate(names) if not (has_definition and is_number(name))}
        for name, number in list(self._numbers.items()):  # labels of tables are in this form
            self._numbers.setdefault(unicodedata.normalize("NFC", name), number)

    def read(self, row: Row) -> Label:
        """Return the class number of a row, or its sorted class numbers if they are in brackets.

        Raises:
            LabelFileError: a class is unknown, or only some lines have brackets.
        """
        parts = None if row.label in self._numbers else parse_list(row.label)
        _reject_binary_vector(f"{self._path}:{row.number}", row.label, parts or ())
        several = tuple(sorted({self._class_number(row, text) for text in parts or ()}))
        label = self._class_number(row, row.label) if parts is None else several
        if isinstance(label, tuple) != isinstance(next(iter(self.labels.values()), label), tuple):
            expected = "expected one class on every line, or any number in brackets ([0,3], [2], []) on every line"
            raise LabelFileError(f"{self._path}:{row.number}: {expected}, found {row.label[:80]!r}")
        self.labels[row.label] = label
        return label

    def _class_number(self, row: Row, text: str) -> int:
        number = self._numbers.get(text, int(text) if is_number(text) else -1)
        if not 0 <= number < (len(self._names) or MAX_CLASSES):
            definition = class_definition_path(self._path).name
            hint = f" (its classes are read from {definition}: remove that file if it belongs to another label file)"
            hint *= self._has_definition
            hint = " (--multi-label reads each part as a class)" if ";" in text else hint
            hint = " (write classes in brackets without spaces: [0,3])" if text.endswith("]") else hint
            raise LabelFileError(
                f"{self._path}:{row.number}: {self._describe_expected_label()}, found {text[:80]!r}{hint}"
            )
        return number

    def _describe_expected_label(self) -> str:
        names = self._names
        if not names:
            return f"expected `path label`, where the label is a class number below {MAX_CLASSES}"
        return f"expected a class number from 0 to {len(names) - 1} or a class name ({', '.join(names[:3])} ...)"


def parse_list(text: str) -> tuple[str, ...] | None:
    """Return the labels of a list as text; None if the text is not one.

    Lists are those of JSON and Python, arrays of NumPy and PostgreSQL, and the choices of Label Studio.

    >>> [parse_list(text) for text in ("['cats', 'dogs']", "['cats' 'dogs']", '{"choices": ["cats"]}', "cats")]
    [('cats', 'dogs'), ('cats', 'dogs'), ('cats',), None]
    """
    if not _has_brackets(text):
        return None
    if _SPACED_LIST.fullmatch(text) or _BRACES.fullmatch(text):
        return tuple("".join(groups) for groups in _ITEM.findall(text))
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            values = parse(text)
            values = values.get("choices") if isinstance(values, dict) else values
            values = sorted(values) if isinstance(values, set) else values
            values = list(values) if isinstance(values, tuple) else values
            return tuple(map(str, values or ())) if is_list(values) else None
    return None


def _has_brackets(text: str) -> bool:
    return text[:1] + text[-1:] in ("[]", "()", "{}")


def _reject_binary_vector(location: str, text: str, labels: Sequence[str]) -> None:
    """Raise an error if a list holds 0 or 1 for each class, rather than the numbers of classes."""
    if len(labels) > len(set(labels)) and set(labels) <= {"0", "1"}:
        raise LabelFileError(
            f"{location}: {text[:80]} is a vector of 0 and 1 without class names: use one column per class, with the "
            "class name in the first row"
        )


def is_cell_one(cell: str) -> bool:
    """Whether a cell of a one-hot column is 1."""
    return cell.strip().lower() in ONES


def is_cell_zero_or_one(cell: str) -> bool:
    """Whether a cell may belong to a one-hot column."""
    return cell.strip().lower() in ONES + ZEROS


def is_one_hot(cells: Sequence[str], *, multi_label: bool) -> bool:
    """Whether cells may be those of one-hot columns, of which some values may be unknown in a multi-label table."""
    known = [cell for cell in cells if not (multi_label and cell.strip().lower() in UNKNOWN)]
    return bool(known) and all(map(is_cell_zero_or_one, known))


def label_text(label: Label, class_names: Sequence[str]) -> str:
    """Return the class name of a label, or its class names separated by `;`.

    >>> label_text(1, ["cats", "dogs"]), label_text((0, 1), ["cats", "dogs"])
    ('dogs', 'cats;dogs')
    """
    return ";".join(class_names[n] for n in (label if isinstance(label, tuple) else (label,)))


def list_text(labels: Iterable[str]) -> str:
    """Return the text of a list of labels."""
    return json.dumps(list(labels), ensure_ascii=False)


def split_cell(cell: str, separator: str, location: str) -> Sequence[str]:
    """Return the labels in a cell: those of a list, or the parts between separators.

    Raises:
        LabelFileError: the cell (at `location`, path:line) is a list that cannot be read, or has 0 or 1 for each class.
    """
    labels: Sequence[str] | None = parse_list(cell)
    if labels is None:
        if _has_brackets(cell) and (cell[0] != "(" or (separator and separator in cell)):
            raise LabelFileError(f"{location}: {cell[:80]} is not a list of classes such as ['cats', 'dogs']")
        labels = [part for part in map(str.strip, cell.split(separator) if separator else [cell]) if part]
    _reject_binary_vector(location, cell, labels)
    return labels


def count_multiple_classes(labels: Collection[str]) -> dict[str, int]:
    """Count the labels that look like several classes, by the separator or brackets that they contain.

    Class names may contain `|` and `,`: these are counted only if the same part occurs in two labels.
    """
    found = {"brackets": sum(len(parse_list(label) or ()) > 1 for label in labels)}
    for separator in ";|,":
        several = [label for label in labels if separator in label and parse_list(label) is None]
        parts = [part.strip() for label in labels for part in label.split(separator)] if several else []
        found[f"'{separator}'"] = len(several) * (separator == ";" or len(parts) > len(set(parts)))
    return {what: count for what, count in found.items() if count}


def find_separator(path: Path, cells: Mapping[str, int]) -> str:
    """Return the separator of the labels in cells: `;` if one contains it, else `|` or `,`; "" if none does.

    Args:
        cells: line numbers by the text of the cells.

    Raises:
        LabelFileError: some cells contain only `|` and others only `,`.
    """
    texts = [cell for cell in cells if parse_list(cell.strip()) is None]
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
        f"{path}:{cells[other]}: labels are separated by '|' ({one[:40]}) and by ',' ({other[:40]}): "
        "use one of them, or ';'"
    )
