"""The forms of a label file, by its suffix: .txt, .csv, .tsv, .jsonl."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mlimages.core import LabelFileError

PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")
LABEL_COLUMNS = ("label", "class", "category", "class_name")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")


@dataclass(frozen=True, slots=True)
class Row:
    """One line as it stands: its number (from 1), the picture's path and the label's text."""

    number: int
    path: str
    label: str


def read_rows(path: Path) -> Iterator[Row]:
    """Stream the rows of a label file.

    Raises:
        LabelFileError: no such file, not UTF-8, an unknown suffix, or a line (path:line) without path and label.
    """
    suffix = known_suffix(path)
    reader = {".txt": _text_rows, ".jsonl": _json_rows}.get(suffix, _column_rows)
    try:
        with path.open(encoding="utf-8-sig", newline="" if suffix in DELIMITERS else None) as lines:
            yield from reader(lines, path)
    except FileNotFoundError as error:
        raise LabelFileError(f"no label file at {path}: make one with `mlimages label FOLDER`") from error
    except OSError as error:
        raise LabelFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelFileError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from error


def write_rows(out: TextIO, path: Path, rows: Iterable[tuple[str, int]]) -> int:
    """Write `(path, label)` rows in the form that `path`'s suffix names; return the count."""
    suffix, count = known_suffix(path), 0
    path_column = "file_name" if path.stem == "metadata" else "path"
    writer = csv.writer(out, delimiter=DELIMITERS.get(suffix, ","), lineterminator="\n")
    if suffix in DELIMITERS:
        writer.writerow([path_column, "label"])
    for count, (name, label) in enumerate(rows, start=1):  # noqa: B007  # the count is what is returned
        if suffix in DELIMITERS:
            writer.writerow([name, label])
        elif suffix == ".jsonl":
            out.write(json.dumps({path_column: name, "label": label}, ensure_ascii=False) + "\n")
        else:
            out.write(f"{_quoted(name)} {label}\n")
    return count


def known_suffix(path: Path) -> str:
    """A label file's suffix in small letters.

    Raises:
        LabelFileError: it is not one of the forms.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        if path.is_dir():
            raise LabelFileError(f"{path} is a folder: make a label file of it with `mlimages label {path}`")
        raise LabelFileError(f"{path}: a label file ends in one of {', '.join(SUFFIXES)}")
    return suffix


def _text_rows(lines: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        parts = line.rsplit(None, 1)
        if not parts:
            continue
        if len(parts) == 1:
            raise _unexpected(path, number, "`path label`", line)
        yield Row(number, _unquoted(parts[0].strip()), _unquoted(parts[1]))


def _column_rows(lines: TextIO, path: Path) -> Iterator[Row]:
    reader = csv.reader(lines, delimiter=DELIMITERS[path.suffix.lower()])
    path_at, label_at, header = 0, 1, True
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header:
                header = False
                names = [cell.strip().lower() for cell in cells]
                if set(names) & set(PATH_COLUMNS):
                    path_at, label_at = _columns(names, path, reader.line_num)
                    continue
            if len(cells) <= max(path_at, label_at) or not cells[path_at] or not cells[label_at].strip():
                raise _unexpected(path, reader.line_num, "a path and a label", ",".join(cells))
            yield Row(reader.line_num, cells[path_at], cells[label_at].strip())
    except csv.Error as error:
        raise LabelFileError(f"{path}:{reader.line_num}: {error}") from error


def _columns(names: list[str], path: Path, number: int) -> tuple[int, int]:
    labels = [name for name in LABEL_COLUMNS if name in names]
    if not labels:
        raise _unexpected(path, number, f"a column named {' or '.join(LABEL_COLUMNS)}", ",".join(names))
    return names.index(next(name for name in PATH_COLUMNS if name in names)), names.index(labels[0])


def _json_rows(lines: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        found = values if isinstance(values, dict) else {}
        name = next((found[key] for key in PATH_COLUMNS if key in found), None)
        label = next((found[key] for key in LABEL_COLUMNS if key in found), None)
        if not isinstance(name, str) or not name or not isinstance(label, str | int) or not str(label).strip():
            raise _unexpected(path, number, '{"path": "...", "label": 0}', line)
        yield Row(number, name, str(label).strip())


def _unexpected(path: Path, number: int, expected: str, found: str) -> LabelFileError:
    return LabelFileError(f"{path}:{number}: expected {expected}, found {found.strip()[:80]!r}")


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


def _quoted(name: str) -> str:
    """Quoted where the reader would otherwise take something off its ends."""
    return f'"{name}"' if name != name.strip() or _unquoted(name) != name else name
