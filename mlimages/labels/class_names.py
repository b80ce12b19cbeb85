"""Read and write class definitions: `0 cats` lines in `NAME_class_def.txt` beside the label file."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlimages.core import LabelFileError, as_path, file_state, writing
from mlimages.labels.formats import open_text
from mlimages.labels.scanning import natural_key

MAX_CLASSES = 1_000_000

ClassNames = tuple[str, ...]
"""Class names by class number: `names[label]`."""


def class_definition_path(label_file: str | os.PathLike[str]) -> Path:
    """Return the path of a label file's class definition, `NAME_class_def.txt` beside it.

    >>> class_definition_path("photos/labels.csv").name
    'labels_class_def.txt'
    """
    path = as_path(label_file)
    return path.parent / f"{path.stem}_class_def.txt"


def read_class_names(path: str | os.PathLike[str]) -> ClassNames:
    """Read a class definition: lines such as `0 cats`, or one name per line if no line begins with a number.

    Raises:
        LabelFileError: the file does not exist, a line is not `number name`, or the numbers are not 0, 1, 2 ...
    """
    path = as_path(path)
    return _read_class_names(path, file_state(path))


@lru_cache(maxsize=64)
def _read_class_names(path: Path, state: bytes | None) -> ClassNames:
    names: list[str] = []
    lines = read_lines(path)
    if not any(re.match(r"\s*\d+\s+\S", line) for line in lines):
        return tuple(line.strip() for line in lines if line.strip())
    for number, line in enumerate(lines, start=1):
        label, *name = line.strip().split(maxsplit=1)[:2] or [""]
        if not line.strip():
            continue
        if label != str(len(names)) or not name:
            raise LabelFileError(f"{path}:{number}: expected `{len(names)} NAME`, found {line.strip()[:80]!r}")
        names.append(name[0])
    return tuple(names)


def write_class_names(path: str | os.PathLike[str], class_names: Sequence[str], *, overwrite: bool = False) -> None:
    """Write a class definition: lines such as `0 cats`.

    Raises:
        InputError: a file exists that mlimages did not write or that was changed since, and `overwrite` is false.
    """
    with writing(as_path(path), overwrite=overwrite) as part:
        part.write_text(class_lines(class_names), encoding="utf-8")


def class_lines(class_names: Sequence[str]) -> str:
    """Return the text of a class definition."""
    return "".join(f"{number} {name}\n" for number, name in enumerate(class_names))


def add_class_name(names: ClassNames, class_number: int, name: str) -> ClassNames:
    """Return `names` with class `class_number` named `name`; earlier classes without a name get their number."""
    padded = [*names, *(str(n) for n in range(len(names), class_number + 1))]
    if padded[class_number] == str(class_number):
        padded[class_number] = name
    return tuple(padded)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a small text file.

    Raises:
        LabelFileError: it cannot be read, or is not UTF-8 or UTF-16.
    """
    if not path.exists():
        raise LabelFileError(f"no class definition at {path}: expected lines such as `0 cats`")
    with open_text(path) as lines:
        return lines.read().split("\n")


@dataclass(frozen=True, slots=True)
class FileClasses:
    """The classes of one label file.

    Attributes:
        names: names by class number.
        used: class numbers that occur.
        is_numbered: whether the labels are numbers without names.
        is_table: whether it is a table without a class definition.
    """

    names: ClassNames
    used: frozenset[int]
    is_numbered: bool
    is_table: bool


def merge_class_names(files: Sequence[FileClasses]) -> tuple[ClassNames, tuple[ClassNames, ...]]:
    """Merge the classes of several files by name; return all names, and for each file the names of its class numbers.

    Labels that are numbers without names are class numbers if another file names them (in a table, only if they are 0
    to n - 1 over all such files). Otherwise each number is a name, and numbers that do not occur are not classes.
    """
    own = [_pad_names(file.names, file.used) for file in files]
    numbers = {
        int(name)
        for names, file in zip(own, files, strict=True)
        if file.is_numbered
        for name in _used_names(names, file)
    }
    numbers.update(n for file in files if not file.is_numbered and not file.is_table for n in range(len(file.names)))
    from_zero = numbers == set(range(len(numbers)))
    defined = max((file.names for file in files if not file.is_numbered), key=len, default=())
    for index, file in enumerate(files):
        if file.is_numbered and (from_zero or not file.is_table):
            own[index] = tuple(dict(enumerate(defined)).get(int(name), name) for name in own[index])
    names = dict.fromkeys(name for file in files if not file.is_numbered for name in file.names)
    used = {name for names, file in zip(own, files, strict=True) for name in _used_names(names, file)}
    return (*names, *sorted(used - names.keys(), key=natural_key)), tuple(own)


def _used_names(names: ClassNames, file: FileClasses) -> list[str]:
    return [names[label] for label in file.used]


def _pad_names(names: ClassNames, used_numbers: Collection[int]) -> ClassNames:
    """Return the names, extended by the numbers without a name up to the largest number that occurs."""
    return (*names, *map(str, range(len(names), max(used_numbers, default=-1) + 1)))


def is_number(label: str) -> bool:
    """Whether the text of a label is a class number."""
    return label.isascii() and label.isdigit() and len(label) <= 9 and int(label) < MAX_CLASSES
