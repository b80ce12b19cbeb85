"""Read the labels of an image from text: a class name or number, or any number of them in a multi-label file."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mlimages.core import LabelFileError
from mlimages.labels.class_names import MAX_CLASSES, ClassNames, is_number
from mlimages.labels.formats import Label, Row, is_list


class LabelReader:
    """Reads the labels of one label file; each distinct text is parsed once.

    Attributes:
        labels: the labels by their text.
    """

    def __init__(self, path: Path, names: ClassNames, *, has_definition: bool) -> None:
        self.labels: dict[str, Label] = {}
        self._path, self._names = path, names
        self._numbers = {name: n for n, name in enumerate(names) if not (has_definition and is_number(name))}

    def read(self, row: Row) -> Label:
        """Return the class number of a row, or its sorted class numbers if they are in brackets.

        Raises:
            LabelFileError: a class is unknown, or only some lines have brackets.
        """
        parts = None if row.label in self._numbers else parse_list(row.label)
        several = tuple(sorted({self._number(row, text) for text in parts or ()}))
        label = self._number(row, row.label) if parts is None else several
        if isinstance(label, tuple) != isinstance(next(iter(self.labels.values()), label), tuple):
            expected = "expected one class on every line, or any number in brackets ([0,3], [2], []) on every line"
            raise LabelFileError(f"{self._path}:{row.number}: {expected}, found {row.label[:80]!r}")
        self.labels[row.label] = label
        return label

    def _number(self, row: Row, text: str) -> int:
        number = self._numbers.get(text, int(text) if is_number(text) else -1)
        if not 0 <= number < (len(self._names) or MAX_CLASSES):
            hint = " (--multi-label reads each part as a class)" if ";" in text else ""
            hint = " (write classes in brackets without spaces: [0,3])" if text.endswith("]") else hint
            raise LabelFileError(f"{self._path}:{row.number}: {self._expectation()}, found {text[:80]!r}{hint}")
        return number

    def _expectation(self) -> str:
        names = self._names
        if not names:
            return "expected `path label`, where the label is a class number"
        return f"expected a class number from 0 to {len(names) - 1} or a class name ({', '.join(names[:3])} ...)"


def parse_list(text: str) -> tuple[str, ...] | None:
    """Return the labels of `[0,3]`, `["cats", "dogs"]` or `['cats', 'dogs']`; None if the text is not such a list."""
    for parse in (json.loads, ast.literal_eval) if text.startswith("[") and text.endswith("]") else ():
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            values = parse(text)
            return tuple(map(str, values)) if is_list(values) else None
    return None


def label_text(label: Label, class_names: Sequence[str]) -> str:
    """Return the class name of a label, or its class names separated by `;`.

    >>> label_text(1, ["cats", "dogs"]), label_text((0, 1), ["cats", "dogs"])
    ('dogs', 'cats;dogs')
    """
    return ";".join(class_names[n] for n in (label if isinstance(label, tuple) else (label,)))


def list_text(labels: Iterable[str]) -> str:
    """Return the text of a list of labels."""
    return json.dumps(list(labels), ensure_ascii=False)


def split_cell(cell: str, separator: str) -> Iterable[str]:
    """Return the labels in a cell: those of a list, or the parts between separators."""
    if (labels := parse_list(cell)) is not None:
        return labels
    return filter(None, map(str.strip, cell.split(separator) if separator else [cell]))


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
