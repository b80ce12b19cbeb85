"""Read and write the formats of label files as streams: `path label` lines, and tables as rows of cells."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from mlimages.core import LabelFileError, command
from mlimages.labels.annotations import Objects, annotation_objects
from mlimages.labels.scanning import IMAGE_SUFFIXES
from mlimages.labels.shards import is_shard_of_classes

DELIMITERS = {".csv": ",", ".tsv": "\t"}
WRITABLE = (".txt", ".csv", ".tsv", ".jsonl")
READABLE = (*WRITABLE, ".json", ".xml")

PATH_LABEL, WORDS = " ", "  "
"""Delimiters of a .txt that is not a table: the last white space of a line, or each white space."""

SAMPLE = 50
"""Number of lines that decide whether a .txt is a table, and of objects whose keys become columns."""

_BRACKETS = re.compile(r"\[[0-9,]*\]")
"""The labels of a `path [0,3]` line."""

_SPACED_BRACKETS = re.compile(r"[^\t]*[^\t,; ] +\[[0-9, ]*\]")
"""A line whose brackets contain spaces, which is refused with its number rather than read as a table."""

Label = int | tuple[int, ...]
"""The class number of an image, or the sorted class numbers in a multi-label file."""

_ADVICE = {
    ".zip": "it is an archive: `unzip {path} -d {stem}`, then `mlimages label {stem}`",
    ".tar": "it is an archive: `mkdir {stem} && tar -xf {path} -C {stem}`, then `mlimages label {stem}` (for "
    "WebDataset shards, first `cd {stem} && for f in *.cls; do echo \"${{f%.cls}},$(cat $f)\"; done > labels.csv`, "
    "then `mlimages label labels.csv -o labels.txt`)",
    ".parquet": "it is a Parquet file: for links, `mlimages gather urls {path} -o {stem}` downloads the images; for "
    "paths, `python -c \"import pandas; pandas.read_parquet({path_text}).to_csv({csv_text}, index=False)\"` writes CSV",
    ".xlsx": "it is a spreadsheet: save it as CSV",
    ".mat": "it is a MATLAB file: save paths and labels as CSV (`scipy.io.loadmat({path_text})` reads it)",
}  # fmt: skip
_ADVICE |= dict.fromkeys((".tgz", ".gz", ".bz2", ".xz"), _ADVICE[".tar"]) | {".xls": _ADVICE[".xlsx"]}
_ADVICE |= dict.fromkeys((".7z", ".rar"), "it is an archive: unpack it, then `mlimages label FOLDER`")
_ADVICE[".arrow"] = _ADVICE[".parquet"]


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a table: its number (from 1) and its cells."""

    number: int
    cells: list[str]


@dataclass(frozen=True, slots=True)
class Row:
    """One line: its number (from 1), the path of the image and the text of the label."""

    number: int
    path: str
    label: str


def is_table(path: Path) -> bool:
    """Whether a label file is a table; a .txt is one if its lines are not `path label` but contain a delimiter.

    Raises:
        LabelFileError: as for `records`.
    """
    if check_suffix(path) != ".txt":
        return True
    with open_text(path) as lines:
        sample = [line.strip() for line in islice(filter(str.strip, lines), SAMPLE)]
    return bool(sample) and not all(map(_is_path_label, sample)) and all(map(_delimiters_in, sample))


def is_multi_label(path: Path) -> bool:
    """Whether the lines of a .txt label file are `path [0,3]`; decided by the first."""
    with open_text(path) as lines:
        first = next(filter(str.strip, lines), "").split()[-1:]
    return path.suffix.lower() == ".txt" and bool(first) and bool(_BRACKETS.fullmatch(first[0]))


def _is_path_label(line: str) -> bool:
    """Return whether the line is `path number`; a line with a tab within an unquoted path is one of a table."""
    if line.endswith("]") and _SPACED_BRACKETS.fullmatch(line):
        return True
    path, *label = line.rsplit(None, 1)
    is_quoted = _unquote(path) != path
    return bool(label) and _is_number(label[0]) and (is_quoted or not ("\t" in path or path.endswith((",", ";"))))


def _is_number(label: str) -> bool:
    """Whether the text is a class number, or several in brackets."""
    return label.isdecimal() or bool(_BRACKETS.fullmatch(label))


def _delimiters_in(line: str) -> list[str]:
    return [delimiter for delimiter in "\t;," if delimiter in line]


def detect_text_delimiters(path: Path, *, has_columns: bool = False) -> list[str]:
    """Return the possible delimiters of a table, from its first line; "" if its format has only one.

    Args:
        has_columns: split a .txt without a delimiter into columns at white space.
    """
    suffix = check_suffix(path)
    if suffix in (".jsonl", ".json", ".xml"):
        return [""]
    if not is_table(path):
        return [WORDS if has_columns else PATH_LABEL]
    with open_text(path) as lines:
        first = next(filter(str.strip, lines), "")
    usual = DELIMITERS.get(suffix, ",")
    return sorted(_delimiters_in(first), key=lambda delimiter: delimiter != usual) or [usual]


def read_records(path: Path, delimiter: str) -> Iterator[Record]:
    """Yield the rows of a table; for JSON and XML, the first row has the column names.

    Raises:
        LabelFileError: the file does not exist, is not UTF-8 or UTF-16, or a line (path:line) cannot be read.
    """
    suffix = check_suffix(path)
    with open_text(path, newline="") as lines:
        if suffix == ".jsonl":
            yield from _object_records(_read_json_lines(lines, path))
        elif suffix in (".json", ".xml"):
            yield from _object_records(annotation_objects(lines, path))
        elif delimiter == PATH_LABEL:
            rows = ((number, _split_path_and_label(line.strip())) for number, line in enumerate(lines, start=1))
            yield from (Record(number, cells) for number, cells in rows if cells)
        elif delimiter == WORDS:
            yield from (Record(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip())
        else:
            yield from _csv_records(lines, path, delimiter)


def read_text_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a text file with a line `path label` per image.

    Raises:
        LabelFileError: the file does not exist, is not UTF-8 or UTF-16, or a line (path:line) has no path and label.
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            parts = line.rsplit(None, 1)
            if not parts:
                continue
            if len(parts) == 1:
                raise _unexpected_line_error(path, number, "`path label`", line)
            yield Row(number, _unquote(parts[0].strip()), _unquote(parts[1]))


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a label file as text: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        LabelFileError: the file does not exist, or is not UTF-8 or UTF-16.
    """
    try:
        with path.open("rb") as file:
            is_utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
        with path.open(encoding="utf-16" if is_utf16 else "utf-8-sig", newline=newline) as lines:
            yield lines
    except FileNotFoundError as error:
        raise LabelFileError(f"no label file at {path}: create one with `mlimages label FOLDER`") from error
    except OSError as error:
        raise LabelFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelFileError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from error


def check_suffix(path: Path, suffixes: tuple[str, ...] = READABLE) -> str:
    """Return the suffix of a label file in lower case.

    Raises:
        LabelFileError: the format is unknown; the message suggests a command.
    """
    suffix = path.suffix.lower()
    if suffix in suffixes:
        return suffix
    if path.is_dir():
        raise LabelFileError(f"{path} is a folder: create a label file from it with {command('label', path)}")
    if is_shard_of_classes(path):
        label = command("label", path.parent)
        raise LabelFileError(f"{path} is one shard: read all shards of its folder with {label}")
    if suffix in _ADVICE and suffixes == READABLE:
        stem = path.name.split(".")[0]
        names = {"path": shlex.quote(str(path)), "stem": shlex.quote(stem)}
        names |= {"path_text": repr(str(path)), "csv_text": repr(f"{stem}.csv")}
        raise LabelFileError(f"{path} is not a label file: {_ADVICE[suffix].format(**names)}")
    raise LabelFileError(f"{path}: unknown suffix: expected one of {', '.join(suffixes)}")


def _split_path_and_label(line: str) -> list[str]:
    """Split `path label`; return a line that is only a path, which may contain white space, as one cell.

    The label is a number, or follows the name of an image.
    """
    path, *label = line.rsplit(None, 1) or [""]
    is_split = label and (_is_number(label[0]) or (_names_image(path) and not _names_image(label[0])))
    return [_unquote(path), _unquote(label[0])] if is_split else [_unquote(line)] * bool(line)


def _names_image(text: str) -> bool:
    return _unquote(text).lower().endswith(tuple(IMAGE_SUFFIXES))


def is_list(value: object) -> bool:
    """Whether a JSON value is a list of labels."""
    return isinstance(value, list) and all(type(each) in (str, int) for each in value)


def write_rows(file: TextIO, path: Path, rows: Iterable[tuple[str, Label]]) -> int:
    """Write `(path, label)` rows in the format of `path`'s suffix; return the count."""
    suffix, count = check_suffix(path, WRITABLE), 0
    path_column = "file_name" if path.stem == "metadata" else "path"
    writer = csv.writer(file, delimiter=DELIMITERS.get(suffix, ","), lineterminator="\n")
    if suffix in DELIMITERS:
        writer.writerow([path_column, "label"])
    for count, (name, label) in enumerate(rows, start=1):  # noqa: B007  # the count is returned
        text = "[" + ",".join(map(str, label)) + "]" if isinstance(label, tuple) else label
        if suffix in DELIMITERS:
            writer.writerow([name, text])
        elif suffix == ".jsonl":
            file.write(json.dumps({path_column: name, "label": label}, ensure_ascii=False) + "\n")
        else:
            file.write(f"{_quote(name)} {text}\n")
    return count


def _csv_records(lines: TextIO, path: Path, delimiter: str) -> Iterator[Record]:
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield Record(reader.line_num, cells)
    except csv.Error as error:
        raise LabelFileError(f"{path}:{reader.line_num}: {error}") from error


def _read_json_lines(lines: TextIO, path: Path) -> Objects:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise _unexpected_line_error(path, number, '{"path": "...", "label": 0}', line)
        yield number, values


def _object_records(json_objects: Objects) -> Iterator[Record]:
    """Yield objects as rows, after a row with their keys; keys are compared without regard to case."""
    sample = list(islice(json_objects, SAMPLE))
    if not sample:
        return
    keys = {key.lower(): key for _, values in sample for key in values}
    yield Record(sample[0][0], list(keys.values()))
    for number, values in chain(sample, json_objects):
        lowered = {key.lower(): value for key, value in values.items()}
        yield Record(number, [_to_text(lowered.get(key)) for key in keys])


def _to_text(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, dict):  # choices of Label Studio
        value = value.get("choices")
    if is_list(value):
        return json.dumps(value, ensure_ascii=False)
    return str(value) if isinstance(value, str | int | float) else ""


def _unexpected_line_error(path: Path, line_number: int, expected_text: str, line: str) -> LabelFileError:
    return LabelFileError(f"{path}:{line_number}: expected {expected_text}, found {line.strip()[:80]!r}")


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


def _quote(name: str) -> str:
    """Quote a path if a reader would otherwise strip white space from it or read the line as part of a table."""
    is_plain = name == name.strip() == _unquote(name) and not ("\t" in name or name.endswith((",", ";")))
    return name if is_plain else f'"{name}"'
