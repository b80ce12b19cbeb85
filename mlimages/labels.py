"""Label files: which picture is of which class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mlimages.errors import LabelFileError
from mlimages.files import replacing, write_text
from mlimages.records import LabeledPath

ClassNames = tuple[str, ...]
"""Class names by number: `names[label]`."""


class LabelFile:
    """A label file on disk, read as a stream: `path label` lines, one picture a line.

    Args:
        path: the label file.
        img_root: the folder that its paths are relative to; its own by default.
    """

    def __init__(self, path: str | Path, img_root: str | Path | None = None) -> None:
        self.path = Path(path)
        self.img_root = Path(img_root) if img_root is not None else self.path.parent

    def __iter__(self) -> Iterator[LabeledPath]:
        """Each line in order.

        Raises:
            LabelFileError: the file is missing, or a line is not `path label`.
        """
        try:
            with self.path.open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield self._parse(line, number)
        except FileNotFoundError as error:
            raise LabelFileError(f"no label file at {self.path}: make one with `mlimages label FOLDER`") from error

    @property
    def class_names(self) -> ClassNames:
        """The names in the class definition beside the file; the numbers themselves without one."""
        definition = class_definition_path(self.path)
        if definition.exists():
            return read_class_names(definition)
        return tuple(str(label) for label in range(max((item.label for item in self), default=-1) + 1))

    def _parse(self, line: str, number: int) -> LabeledPath:
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdigit():
            raise LabelFileError(f"{self.path}:{number}: expected `path label`, found {line.strip()[:80]!r}")
        return LabeledPath(self.img_root / path.replace("\\", "/"), int(label))


def write_label_file(path: Path, items: Iterable[LabeledPath], class_names: Sequence[str] = ()) -> int:
    """Write `path label` lines and, with `class_names`, the class definition; return the count."""
    count = 0
    with replacing(path) as part, part.open("w", encoding="utf-8") as out:
        for item in items:
            relative = os.path.relpath(item.path.absolute(), path.parent.absolute())
            out.write(f"{Path(relative).as_posix()} {item.label}\n")
            count += 1
    if class_names:
        write_text(class_definition_path(path), "".join(f"{n} {name}\n" for n, name in enumerate(class_names)))
    return count


def class_definition_path(label_file: Path) -> Path:
    """Where a label file's class names lie: `NAME_class_def.txt` beside it."""
    return label_file.with_name(f"{label_file.stem}_class_def.txt")


def read_class_names(path: Path) -> ClassNames:
    """Read `0 cats` lines.

    Raises:
        LabelFileError: a line is not `number name`, or the numbers do not run from 0.
    """
    names: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        label, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if label != str(len(names)) or not name.strip():
            raise LabelFileError(f"{path}:{number}: expected `{len(names)} NAME`, found {line.strip()[:80]!r}")
        names.append(name.strip())
    return tuple(names)
