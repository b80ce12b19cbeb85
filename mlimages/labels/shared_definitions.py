"""Class definitions that several label files share: `photos.txt` and `photos.csv` have one `photos_class_def.txt`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mlimages.core import InputError, LabelFileError, as_path, format_examples, list_written_files
from mlimages.labels.class_names import ClassNames, class_definition_path, is_class_index, read_class_names
from mlimages.labels.formats import READABLE_SUFFIXES, is_numeric_label, is_table, read_text_rows
from mlimages.labels.scanning import list_entry_names, make_path_resolver, normalize_class_name
from mlimages.labels.table_columns import detect_table
from mlimages.labels.table_options import TableOptions
from mlimages.labels.tables import Table


def is_definition_of_other_table(
    definition_path: Path, label_file: Path, num_classes: int, find_table: Callable[[], Table | None]
) -> bool:
    """Whether a class definition that mlimages wrote is for another table: some labels of `label_file` are not in it.

    Args:
        definition_path: the class definition; if it does not exist yet, it is one that mlimages will write.
        label_file: a label file beside it.
        num_classes: number of classes in the class definition.
        find_table: returns the table in `label_file`, if it contains one.
    """
    written = list_written_files(label_file.parent)
    if (definition_path.exists() and definition_path.name not in written) or label_file.name in written:
        return False
    table = find_table()
    labels = table.statistics.distinct_labels if table else ()
    return not all(is_class_index(label) and int(label) < num_classes for label in labels)


def require_unchanged_classes(
    path: str | os.PathLike[str], class_names: Sequence[str], *, source: Path | None = None
) -> None:
    """Check that no label file would be read with wrong class names if `path` were written with these classes.

    While another label file is read with the same class definition, classes may be added to it, but not changed.

    Args:
        path: the label file to write.
        class_names: class names by class index; empty if the classes have no names.
        source: the label file that the images come from, if any: its classes may get names, and other names if mlimages
            did not write it.

    Raises:
        InputError: another label file has other classes than `class_names` and the same class definition; or
            `class_names` is empty, and mlimages wrote the class definition for other images.
    """
    path = as_path(path)
    definition = class_definition_path(path)
    names: ClassNames = ()
    with suppress(LabelFileError):  # no class definition, or one that no label file can be read with
        names = read_class_names(definition)
    if not class_names:
        if names and definition.name in list_written_files(path.parent):
            raise InputError(
                f"{path} would be read with the class names in {definition} ({format_examples(names)}), but its "
                "classes have no names: give it another name, or name its classes (--classes FILE)"
            )
        return
    kept = class_names[: len(names)]
    if names and [*map(normalize_class_name, kept)] == [*map(normalize_class_name, names)]:
        return
    resolve = make_path_resolver()
    for other in _find_other_label_files(path):
        is_source = source is not None and resolve(str(other)) == resolve(str(source))
        gets_names = is_source and (not names or other.name not in list_written_files(other.parent))
        if not gets_names and _uses_definition(other, definition, len(names or class_names)):
            raise InputError(
                f"{path} and {other} would have the same class definition, {definition.name}, but not the same classes "
                f"({format_examples(class_names)}; {format_examples(names) or 'without names'}): give {path.name} "
                f"another name, move {other}, or give both the same classes (--classes FILE)"
            )


def _find_other_label_files(path: Path) -> Iterator[Path]:
    """Yield the paths of the files beside `path` that differ from it only in their suffix, and may be label files."""
    for name in sorted(list_entry_names(path.parent)) if path.parent.is_dir() else ():
        other = path.with_name(name)
        if other.stem == path.stem and other != path and other.suffix.lower() in READABLE_SUFFIXES:
            yield other


def _uses_definition(label_file: Path, definition_path: Path, num_classes: int) -> bool:
    """Whether a file is a label file of class indices whose names are read from this class definition, if it exists."""
    with suppress(InputError):  # another file
        if label_file.name not in list_written_files(label_file.parent) and not is_table(label_file):
            return all(is_numeric_label(row.label) for row in read_text_rows(label_file))
        return not is_definition_of_other_table(
            definition_path,
            label_file,
            num_classes,
            lambda: detect_table(label_file, label_file.parent, TableOptions()),
        )
    return False
