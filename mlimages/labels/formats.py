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

from mlimages.core import LabelFileError, escape_unprintable, format_command
from mlimages.labels.annotations import NumberedDicts, read_annotations
from mlimages.labels.scanning import IMAGE_SUFFIXES
from mlimages.labels.shards import is_labeled_shard

DELIMITER_BY_SUFFIX = {".csv": ",", ".tsv": "\t"}
WRITABLE_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
READABLE_SUFFIXES = (*WRITABLE_SUFFIXES, ".json", ".xml")

LAST_WHITESPACE, ANY_WHITESPACE = " ", "  "
"""Delimiters of a .txt that is not a table: a line is split at its last white space, or at any white space."""

FORMAT_SAMPLE_SIZE = 50
"""Number of items read first: lines, to decide whether a .txt is a table, or JSON objects, whose keys are columns."""

_SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?\s*', re.IGNORECASE)

_INDEX_LIST = re.compile(r"\[[0-9,]*\]")
"""A list of class indices: `[0,3]`."""

_LINE_WITH_SPACED_LIST = re.compile(r"[^\t]*[^\t,; ] +\[[0-9, ]*\]")
"""A line such as `a.jpg [0, 3]`, which is an error rather than a row of a table."""

Label = int | tuple[int, ...]
"""The class index of an image, or the sorted class indices in a multi-label file."""

_CONVERSION_ADVICE = {
    ".zip": "an archive. Extract it with `unzip {path} -d {stem}`, then use `mlimages label {stem}`",
    ".tar": "an archive. Extract it with `mkdir {stem} && tar -xf {path} -C {stem}`, then use `mlimages label "
    "{stem}` (for WebDataset shards, first `cd {stem} && for f in *.cls; do echo \"${{f%.cls}},$(cat $f)\"; done > "
    "labels.csv`, then `mlimages label labels.csv -o labels.txt`)",
    ".parquet": "a Parquet file. If it lists URLs, download the images with `mlimages gather urls {path} -o "
    "{stem}`; if it lists paths, convert it to CSV with "
    "`python -c \"import pandas; pandas.read_parquet({path_text}).to_csv({csv_text}, index=False)\"`",
    ".xlsx": "a spreadsheet. Save it as CSV",
    ".mat": "a MATLAB file. Save paths and labels as CSV (`scipy.io.loadmat({path_text})` reads it)",
}  # fmt: skip
_CONVERSION_ADVICE |= dict.fromkeys((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"), _CONVERSION_ADVICE[".tar"])
_CONVERSION_ADVICE |= {
    suffix: f"a compressed file. Decompress it with `{command} {{path}}`, then use `mlimages label {{inner}}`"
    for suffix, command in ((".gz", "gunzip -k"), (".bz2", "bunzip2 -k"), (".xz", "unxz -k"))
}
_CONVERSION_ADVICE |= dict.fromkeys((".7z", ".rar"), "an archive. Extract it, then use `mlimages label FOLDER`")
_CONVERSION_ADVICE |= {".xls": _CONVERSION_ADVICE[".xlsx"], ".arrow": _CONVERSION_ADVICE[".parquet"]}


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table: its line number (from 1) and its cells as text."""

    line_number: int
    cells: list[str]

    def get_cell(self, index: int) -> str:
        """Return a cell; "" if the row is too short."""
        return self.cells[index] if index < len(self.cells) else ""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One image of a label file: its line number (from 1), its path, and its label as text."""

    line_number: int
    path: str
    label: str


def is_table(path: Path) -> bool:
    """Whether a label file is a table; a .txt is a table if its lines contain a delimiter and are not `path label`.

    Raises:
        LabelFileError: the file does not exist, its format is unknown, it is a class definition, or it is not UTF-8 or
            UTF-16.
    """
    if get_supported_suffix(path) != ".txt":
        return True
    if path.name.endswith("_class_def.txt"):
        raise LabelFileError(f"{path} is a class definition, not a label file: omit it")
    with open_text(path) as lines:
        sample = [line.strip() for line in islice(filter(str.strip, lines), FORMAT_SAMPLE_SIZE)]
    return bool(sample) and not all(map(_is_path_index_line, sample)) and all(map(_find_delimiters, sample))


def is_multi_label(path: Path) -> bool:
    """Whether the first line of a .txt label file is of the form `path [0,3]`."""
    with open_text(path) as lines:
        first = next(filter(str.strip, lines), "").split()[-1:]
    return path.suffix.lower() == ".txt" and bool(first) and bool(_INDEX_LIST.fullmatch(first[0]))


def _is_path_index_line(line: str) -> bool:
    """Whether a line is a path and a class index (`a.jpg 3`, `a.jpg [0,3]`), not a row of a table (`a.jpg, 3`)."""
    if line.endswith("]") and _LINE_WITH_SPACED_LIST.fullmatch(line):
        return True
    path, *label = line.rsplit(None, 1)
    is_quoted = _unquote(path) != path
    is_path = is_quoted or not ("\t" in path or path.endswith((",", ";")))
    return bool(label) and is_numeric_label(label[0]) and is_path


def is_numeric_label(label: str) -> bool:
    """Whether a label is a class index, or class indices in brackets."""
    return label.isdecimal() or bool(_INDEX_LIST.fullmatch(label))


def _find_delimiters(line: str) -> list[str]:
    """Return those of the delimiters tab, `;` and `,` that the line contains."""
    return [delimiter for delimiter in "\t;," if delimiter in line]


def detect_delimiters(path: Path, *, split_at_whitespace: bool = False) -> list[str]:
    """Return the delimiters that occur in the first line of a table, starting with `,` for .csv and tab for .tsv.

    JSON and XML have no delimiter: the result is `[""]`.

    Args:
        path: path of the table.
        split_at_whitespace: whether the lines of a .txt file without a delimiter are split at white space.
    """
    suffix = get_supported_suffix(path)
    if suffix in (".jsonl", ".json", ".xml"):
        return [""]
    if not is_table(path):
        return [ANY_WHITESPACE if split_at_whitespace else LAST_WHITESPACE]
    with open_text(path) as lines:
        first = next(filter(str.strip, lines), "")
    if declared := parse_separator_line(first):
        return [declared]
    usual = DELIMITER_BY_SUFFIX.get(suffix, ",")
    return sorted(_find_delimiters(first), key=lambda delimiter: delimiter != usual) or [usual]


def read_records(path: Path, delimiter: str) -> Iterator[Record]:
    """Yield the rows of a table; for JSON and XML, the first row contains the column names.

    Raises:
        LabelFileError: the file does not exist, is not UTF-8 or UTF-16, or a line cannot be read.
    """
    suffix = get_supported_suffix(path)
    with open_text(path, newline="") as lines:
        if suffix == ".jsonl":
            yield from _make_dict_records(_read_json_lines(lines, path))
        elif suffix in (".json", ".xml"):
            yield from _make_dict_records(read_annotations(lines, path))
        elif delimiter == LAST_WHITESPACE:
            rows = ((number, _split_path_and_label(line.strip())) for number, line in enumerate(lines, start=1))
            yield from (Record(number, cells) for number, cells in rows if cells)
        elif delimiter == ANY_WHITESPACE:
            yield from (Record(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip())
        else:
            yield from _read_csv_records(lines, path, delimiter)


def read_text_rows(path: Path) -> Iterator[LabelRow]:
    """Yield the rows of a text file with one line `path label` per image.

    Raises:
        LabelFileError: the file does not exist, is not UTF-8 or UTF-16, or a line has no path or no label.
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            parts = line.rsplit(None, 1)
            if not parts:
                continue
            if len(parts) == 1:
                raise _make_unexpected_line_error(path, number, "`path label`", line)
            yield LabelRow(number, _unquote(parts[0].strip()), _unquote(parts[1]))


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
        raise LabelFileError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error


def get_supported_suffix(path: Path, suffixes: tuple[str, ...] = READABLE_SUFFIXES) -> str:
    """Return the suffix of a label file in lower case, after checking that it is one of `suffixes`.

    Raises:
        LabelFileError: the format is unknown; the message says what to do.
    """
    suffix = path.suffix.lower()
    if suffix in suffixes:
        return suffix
    if path.is_dir():
        raise LabelFileError(f"{path} is a folder: create its label file with {format_command('label', path)}")
    if is_labeled_shard(path):
        label = format_command("label", path.parent)
        raise LabelFileError(f"{path} is a single shard: label all shards of its folder with {label}")
    if suffix in _CONVERSION_ADVICE and suffixes == READABLE_SUFFIXES:
        stem = path.name.split(".")[0]
        names = {"path": shlex.quote(str(path)), "stem": shlex.quote(stem)}
        names |= {"path_text": repr(str(path)), "csv_text": repr(f"{stem}.csv")}
        names |= {"inner": shlex.quote(str(path.with_suffix("")))}
        advice = _CONVERSION_ADVICE.get("".join(path.suffixes[-2:]).lower(), _CONVERSION_ADVICE[suffix])
        raise LabelFileError(f"{path} is not a label file, but {advice.format(**names)}")
    raise LabelFileError(f"{path} has an unknown suffix: expected {', '.join(suffixes[:-1])} or {suffixes[-1]}")


def _split_path_and_label(line: str) -> list[str]:
    """Split `path label` into two cells; a line that is only a path, which may contain white space, is one cell.

    The last word is a label if it is a class index (`my cat.jpg 3`), or if the text before it is the path of an image
    and the word itself is not (`my cat.jpg cats`).
    """
    path, *label = line.rsplit(None, 1) or [""]
    is_split = label and (is_numeric_label(label[0]) or (_is_image_path(path) and not _is_image_path(label[0])))
    return [_unquote(path), _unquote(label[0])] if is_split else [_unquote(line)] * bool(line)


def _is_image_path(text: str) -> bool:
    return _unquote(text).lower().endswith(tuple(IMAGE_SUFFIXES))


def is_label_list(value: object) -> bool:
    """Whether a JSON value is a list of class names or class indices."""
    return isinstance(value, list) and all(type(each) in (str, int) for each in value)


def write_rows(file: TextIO, path: Path, rows: Iterable[tuple[str, Label]]) -> int:
    """Write `(path, label)` rows in the format of the suffix of `path`; return the number of rows."""
    suffix, count = get_supported_suffix(path, WRITABLE_SUFFIXES), 0
    path_column = "file_name" if path.stem == "metadata" else "path"
    writer = csv.writer(file, delimiter=DELIMITER_BY_SUFFIX.get(suffix, ","), lineterminator="\n")
    if suffix in DELIMITER_BY_SUFFIX:
        writer.writerow([path_column, "label"])
    for count, (name, label) in enumerate(rows, start=1):  # noqa: B007  # the count is returned
        text = "[" + ",".join(map(str, label)) + "]" if isinstance(label, tuple) else label
        if suffix in DELIMITER_BY_SUFFIX:
            writer.writerow([name, text])
        elif suffix == ".jsonl":
            file.write(json.dumps({path_column: name, "label": label}, ensure_ascii=False) + "\n")
        elif "\n" in name or "\r" in name:
            raise LabelFileError(
                f"{path} cannot contain a path with a line break ({escape_unprintable(name)}): rename the file"
            )
        else:
            file.write(f"{_quote(name)} {text}\n")
    return count


def _read_csv_records(lines: TextIO, path: Path, delimiter: str) -> Iterator[Record]:
    """Yield the rows of a CSV file, except blank rows and a first line such as `sep=;`."""
    first = next(lines, "")
    skipped = int(parse_separator_line(first) is not None)
    reader = csv.reader(lines if skipped else chain([first], lines), delimiter=delimiter)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield Record(skipped + reader.line_num, cells)
    except csv.Error as error:
        raise LabelFileError(f"{path}:{skipped + reader.line_num}: {error}") from error


def parse_separator_line(line: str) -> str | None:
    """Return the delimiter that the first line of a CSV file declares to Excel, as in `sep=;`; None for another line.

    >>> parse_separator_line("sep=;"), parse_separator_line("path;label")
    (';', None)
    """
    declared = _SEPARATOR_LINE.fullmatch(line)
    return declared[1] if declared else None


def _read_json_lines(lines: TextIO, path: Path) -> NumberedDicts:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise _make_unexpected_line_error(path, number, '{"path": "...", "label": 0}', line)
        yield number, values


def _make_dict_records(numbered_dicts: NumberedDicts) -> Iterator[Record]:
    """Yield a header with the keys of the JSON objects, ignoring case, then a row with the values of each object."""
    sample = list(islice(numbered_dicts, FORMAT_SAMPLE_SIZE))
    if not sample:
        return
    keys = {key.lower(): key for _, values in sample for key in values}
    yield Record(sample[0][0], list(keys.values()))
    for number, values in chain(sample, numbered_dicts):
        lowered = {key.lower(): value for key, value in values.items()}
        yield Record(number, [_to_text(lowered.get(key)) for key in keys])


def _to_text(value: object) -> str:
    """Return a JSON value as the text of a cell; "" for null and for values that are neither a label nor a path."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, dict):  # choices of Label Studio
        value = value.get("choices")
    if is_label_list(value):
        return json.dumps(value, ensure_ascii=False)
    return str(value) if isinstance(value, str | int | float) else ""


def _make_unexpected_line_error(path: Path, line_number: int, expected_text: str, line: str) -> LabelFileError:
    return LabelFileError(f"{path}:{line_number}: expected {expected_text}, found {line.strip()[:80]!r}")


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


def _quote(path: str) -> str:
    """Quote a path if `LabelFile` would otherwise strip its white space, or read the line as part of a table."""
    is_plain = path == path.strip() == _unquote(path) and not ("\t" in path or path.endswith((",", ";")))
    return path if is_plain else f'"{path}"'
