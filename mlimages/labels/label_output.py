"""Write label files, with their class definitions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from mlimages.core import LabeledPath, relative_name, replacing, require_writable, write_text, writing
from mlimages.labels.class_names import class_definition_path, class_lines, write_class_names
from mlimages.labels.formats import Label, write_rows


@runtime_checkable
class NamedItems(Protocol):
    """A label file, whose paths need not become Path objects."""

    def text_items(self) -> Iterator[tuple[str, Label]]:
        """Yield each image's path as text and its label."""


def write_label_file(path: Path, items: Iterable[LabeledPath], class_names: Sequence[str] = ()) -> int:
    """Write a label file and, with `class_names`, its class definition, replacing existing files; return the count."""
    with replacing(path) as part:
        count = _write_rows(part, path, items)
    if class_names:
        write_text(class_definition_path(path), class_lines(class_names))
    return count


def write_own_label_file(
    path: Path, items: Iterable[LabeledPath], class_names: Sequence[str] = (), *, overwrite: bool = False
) -> int:
    """Write a label file and its class definition; replace existing files only if mlimages wrote them.

    Raises:
        InputError: a file exists that mlimages did not write or that was changed since, and `overwrite` is false.
    """
    definition = class_definition_path(path)
    require_writable([path, *([definition] if class_names else [])], overwrite=overwrite)
    with writing(path, overwrite=overwrite) as part:
        count = _write_rows(part, path, items)
    if class_names:
        write_class_names(definition, class_names, overwrite=overwrite)
    return count


def _write_rows(part: Path, path: Path, items: Iterable[LabeledPath]) -> int:
    named = items.text_items() if isinstance(items, NamedItems) else named_items(items)
    with part.open("w", encoding="utf-8") as out:
        return write_rows(out, path, ((relative_name(name, path.parent), label) for name, label in named))


def named_items(items: Iterable[LabeledPath]) -> Iterator[tuple[str, Label]]:
    """Yield each image's path as text and its label."""
    return ((str(item.path), item.label if item.labels is None else item.labels) for item in items)
