"""Class definitions: `0 cats` lines in `NAME_class_def.txt` beside the label file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlimages.core import LabelFileError, write_text

ClassNames = tuple[str, ...]
"""Class names by number: `names[label]`."""


def class_definition_path(label_file: Path) -> Path:
    """Where a label file's class names lie: `NAME_class_def.txt` beside it."""
    return label_file.parent / f"{label_file.stem}_class_def.txt"


def read_class_names(path: Path) -> ClassNames:
    """Read `0 cats` lines.

    Raises:
        LabelFileError: no such file, a line is not `number name`, or the numbers do not run from 0.
    """
    names: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        label, *name = line.strip().split(maxsplit=1)[:2] or [""]
        if not line.strip():
            continue
        if label != str(len(names)) or not name:
            raise LabelFileError(f"{path}:{number}: expected `{len(names)} NAME`, found {line.strip()[:80]!r}")
        names.append(name[0])
    return tuple(names)


def write_class_names(path: Path, class_names: Sequence[str]) -> None:
    """Write `0 cats` lines."""
    write_text(path, class_lines(class_names))


def class_lines(class_names: Sequence[str]) -> str:
    """A class definition's text."""
    return "".join(f"{number} {name}\n" for number, name in enumerate(class_names))


def with_class(names: ClassNames, number: int, name: str) -> ClassNames:
    """`names` with class `number` named; numbers before it that have no name are named by themselves."""
    padded = [*names, *(str(n) for n in range(len(names), number + 1))]
    if padded[number] == str(number):
        padded[number] = name
    return tuple(padded)


def read_lines(path: Path) -> list[str]:
    """The lines of a small UTF-8 file.

    Raises:
        LabelFileError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise LabelFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelFileError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from error
