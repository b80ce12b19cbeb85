"""Write label files and their class definitions."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO, runtime_checkable

from mlimages.core import (
    LabeledPath,
    append_output,
    atomic_write,
    relative_name,
    require_writable,
    write_output,
    write_text,
)
from mlimages.labels.class_names import (
    check_class_names,
    class_definition_path,
    format_class_definition,
    write_class_names,
)
from mlimages.labels.formats import Label, open_text, write_rows


@runtime_checkable
class SupportsTextItems(Protocol):
    """Labelled images, such as a `LabelFile`, that also yield paths as `str`: faster than creating `Path` objects."""

    def text_items(self) -> Iterator[tuple[str, Label]]:
        """Yield the path of each image as text, and its label."""


def write_label_file(path: Path, items: Iterable[LabeledPath], class_names: Sequence[str] = ()) -> int:
    """Write or replace a label file and, with `class_names`, `NAME_class_def.txt`; return the number of images.

    Raises:
        InputError: a class definition cannot contain one of the class names.
    """
    check_class_names(class_definition_path(path), class_names)
    with atomic_write(path) as part, part.open("w", encoding="utf-8") as out:
        count = write_items(out, path, items)
    if class_names:
        write_text(class_definition_path(path), format_class_definition(class_names))
    return count


def write_label_output(
    path: Path, items: Iterable[LabeledPath], class_names: Sequence[str] = (), *, overwrite: bool = False
) -> int:
    """Write a label file as `write_label_file` does, but do not replace files that mlimages did not write.

    Raises:
        InputError: `overwrite` is false, and a file to replace was edited, or not written by mlimages; or a class
            definition cannot contain one of the class names.
    """
    definition = class_definition_path(path)
    check_class_names(definition, class_names)
    require_writable([path, *([definition] if class_names else [])], overwrite=overwrite)
    with write_output(path, overwrite=overwrite) as part, part.open("w", encoding="utf-8") as out:
        count = write_items(out, path, items)
    if class_names:
        write_class_names(definition, class_names, overwrite=overwrite)
    return count


@contextmanager
def append_text(path: Path) -> Iterator[TextIO]:
    """Context manager: append to a text file in its encoding and with its line end; see `append_output`."""
    first = last = ""
    with open_text(path, newline="") as lines:
        encoding = "utf-16" if lines.encoding == "utf-16" else "utf-8"
        for last in lines:
            first = first or last
    if encoding == "utf-16":  # without a second byte order mark
        encoding = "utf-16-le" if path.read_bytes()[:2] == codecs.BOM_UTF16_LE else "utf-16-be"
    line_end = first[len(first.rstrip("\r\n")) :] or "\n"
    with append_output(path) as part, part.open("a", encoding=encoding, newline=line_end) as out:
        if last and not last.endswith(("\r", "\n")):
            out.write("\n")
        yield out


def write_items(file: TextIO, path: Path, items: Iterable[LabeledPath]) -> int:
    """Write images to the open `file`, which will replace the label file `path`; return the number of images.

    The suffix of `path` determines the format, and image paths are relative to its folder.
    """
    text_items = items.text_items() if isinstance(items, SupportsTextItems) else to_text_items(items)
    return write_rows(file, path, ((relative_name(name, path.parent), label) for name, label in text_items))


def to_text_items(items: Iterable[LabeledPath]) -> Iterator[tuple[str, Label]]:
    """Yield the path of each image as text, and its label."""
    return ((str(item.path), item.label if item.labels is None else item.labels) for item in items)
