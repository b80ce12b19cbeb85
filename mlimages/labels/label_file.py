"""Label files as streams of images and their class numbers."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import Any

from mlimages.core import InputError, LabeledPath, LabelFileError, as_path, file_state, full_name, written_names
from mlimages.labels.class_names import (
    ClassNames,
    FileClasses,
    class_definition_path,
    is_number,
    merge_class_names,
    read_class_names,
)
from mlimages.labels.descriptions import as_html, summary_line
from mlimages.labels.formats import Label, is_multi_label, is_table, read_text_rows
from mlimages.labels.label_output import named_items, write_own_label_file
from mlimages.labels.label_texts import LabelReader
from mlimages.labels.scanning import PARTS, RealPaths
from mlimages.labels.splitting import sample_per_class, split
from mlimages.labels.table_columns import detect_table
from mlimages.labels.table_options import TableOptions
from mlimages.labels.tables import Table


class LabelFile:
    """A label file, read as a stream: each iteration reads the file, and nothing is kept in memory.

    `filter`, `shuffle`, `split` and `merge` return a LabelFile that is not yet written; `write` writes it. Pickling
    one that is not written stores the list of its images.

    Args:
        path: the label file (.txt, .csv, .tsv, .jsonl).
        img_root: the folder that the paths are relative to; by default the folder of the label file.
        items: returns the images instead of reading the file; called at each iteration.
        class_names: class names, instead of the class definition beside the file.
        options: how to read a table; columns that are not given are detected.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        img_root: str | os.PathLike[str] | None = None,
        *,
        items: Callable[[], Iterable[LabeledPath]] | None = None,
        class_names: ClassNames | None = None,
        options: TableOptions | None = None,
    ) -> None:
        self.path = as_path(path)
        self.img_root = as_path(img_root) if img_root else self.path.parent
        self._notes: tuple[str, ...] = ()
        self._options = options or TableOptions()
        self._known_table: tuple[object, Table | None] | None = None
        self._items, self._class_names = items, class_names
        self._text_items: Callable[[], Iterator[tuple[str, Label]]]
        self._text_items = (lambda: named_items(items())) if items else self._read_items

    def __iter__(self) -> Iterator[LabeledPath]:
        """Yield each image in order.

        Raises:
            LabelFileError: the file does not exist, or a line (path:line) is not `path label`.
        """
        if self._items:
            return iter(self._items())
        if self.is_multi_label:
            return (LabeledPath(as_path(name), -1, labels) for name, labels in self.text_items())  # type: ignore[arg-type]
        return (LabeledPath(as_path(name), label) for name, label in self.text_items())  # type: ignore[arg-type]

    def text_items(self) -> Iterator[tuple[str, Label]]:
        """Yield each image's path as text, three times as fast as Path objects, and its class number or sorted numbers.

        Raises:
            LabelFileError: as for iteration.
        """
        return iter(self._text_items())

    @property
    def is_multi_label(self) -> bool:
        """Whether images may have any number of classes (those of the first are in brackets); False without images."""
        if table := self.table:
            return table.has_lists
        return isinstance(next(self.text_items(), ("", 0))[1], tuple)

    def count_images(self) -> tuple[int, Counter[int]]:
        """Return the number of images, and that of each class number; an image counts for each of its classes."""
        counts = Counter(label for _, label in self.text_items())
        by_class: Counter[int] = Counter()
        for label, count in counts.items():
            by_class.update(dict.fromkeys(label if isinstance(label, tuple) else (label,), count))
        return counts.total(), by_class

    @property
    def class_names(self) -> ClassNames:
        """The `defined_class_names`, or the class numbers if there are none."""
        if names := self.defined_class_names:
            return names
        return tuple(str(label) for label in range(max(self.count_images()[1], default=-1) + 1))

    @property
    def defined_class_names(self) -> ClassNames:
        """Class names that were given or are in the class definition or in the rows (in natural order); may be empty.

        The labels of a table are names unless they are 0 to n - 1.
        """
        fixed = self._fixed_class_names()
        if fixed is not None:
            return fixed
        table = self._table()
        names = table.row_counts.labels if table and not table.has_numbers else ()
        return () if names == tuple(map(str, range(len(names)))) else names

    @property
    def is_stored(self) -> bool:
        """Whether the images are read from the file at `path`, not from a folder or from other label files."""
        return self._text_items == self._read_items

    @property
    def table(self) -> Table | None:
        """The detected table; None for `path label` lines.

        Raises:
            LabelFileError: it cannot be read, no columns match, or under half of its images exist.
        """
        return None if self._items else self._table()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on what was detected in a table or a folder, one per line; empty for `path label` lines.

        Raises:
            LabelFileError: as for `table`.
        """
        table = self.table
        if table is None:
            return self._notes
        if table.is_supported_format and self._fixed_class_names() is not None:
            left_out = table.left_out_note
            return (*self._notes, *left_out, *(table.multiple_classes_note if left_out else ()))
        notes = (*table.left_out_note, *table.multiple_classes_note, *table.case_note, *table.missing_note)
        return (*self._notes, table.description, *notes)

    @property
    def parts(self) -> dict[str, LabelFile]:
        """The parts `NAME_train`, `NAME_val` and `NAME_test`, if a column of a table holds the part of each row."""
        part_of, parts = self.table.parts if self.table else (), {}
        for name in sorted(set(part_of), key=list(PARTS).index):
            parts[name] = self.where([part == name for part in part_of])
            parts[name].path = self.path.with_stem(f"{self.path.stem}_{name}")
        return parts

    def with_notes(self, notes: Iterable[str]) -> LabelFile:
        """Return the same label file with these `notes`."""
        noted = LabelFile.__new__(type(self))
        vars(noted).update(vars(self), _notes=tuple(notes))
        if self.is_stored:
            noted._text_items = noted._read_items
        return noted

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle or copy; functions, which may not be picklable, are replaced by their images."""
        state = dict(vars(self))
        images = None if self.is_stored else partial(iter, list(self.text_items()))
        return state | {"_items": None, "_text_items": images}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _text_items=state["_text_items"] or self._read_items)

    def __repr__(self) -> str:
        """Return the path, the number of images and the classes, as far as they can be read."""
        try:
            return f"<LabelFile {summary_line(self.path, self.text_items(), self.class_names)}>"
        except InputError as error:
            return f"<LabelFile {self.path}: {error}>"

    def _repr_html_(self) -> str:
        return as_html(self.path, self, self.class_names)

    @property
    def classes(self) -> FileClasses:
        """The class names, and the class numbers that occur."""
        names, fixed, used = self.class_names, self._fixed_class_names(), frozenset(self.count_images()[1])
        table = self._table() if fixed is None else None
        is_table = table is not None and not table.has_numbers
        return FileClasses(names, used, not fixed and all(map(is_number, names)), is_table)

    def _fixed_class_names(self) -> ClassNames | None:
        """Return the class names that were given or are in the class definition beside the file."""
        if self._class_names is not None:
            return self._class_names
        definition = class_definition_path(self.path)
        if file_state(definition) is None or self._ignores_definition(definition):
            return None
        return read_class_names(definition)

    def _ignores_definition(self, definition_path: Path) -> bool:
        """Whether this is a table of names from elsewhere, and mlimages wrote `definition_path` for another file.

        `mlimages label photos.csv -o photos.txt` writes the classes of photos.txt beside photos.csv.
        """
        written = written_names(self.path.parent)
        if definition_path.name not in written or self.path.name in written:
            return False
        table = self._table()
        return table is not None and not all(map(is_number, table.row_counts.labels))

    def _table(self) -> Table | None:
        """Return the table, detected again if the file has changed."""
        if self._text_items != self._read_items:
            return None
        state = (file_state(self.path), class_definition_path(self.path).exists())
        if self._known_table is None or self._known_table[0] != state or state[0] is None:
            table = detect_table(self.path, self.img_root, self._options) if self._is_table() else None
            if table and not (table.is_supported_format and state[1]):
                table.require_images()
            self._known_table = (state, table)
        return self._known_table[1]

    def _is_table(self) -> bool:
        columns = replace(self._options, multi_label=False)
        return (
            is_table(self.path)
            or columns != TableOptions()
            or (columns != self._options and not is_multi_label(self.path))
        )

    def filter(self, keep: Callable[[LabeledPath], bool]) -> LabelFile:
        """Return the images for which `keep` is true, in order."""
        return self._with_items(lambda: filter(keep, self))

    def shuffle(self, seed: int) -> LabelFile:
        """Return the images in an order that depends only on `seed`."""
        items = list(self)
        random.Random(seed).shuffle(items)
        return self._with_items(lambda: items)

    def split(
        self,
        shares: Sequence[float],
        *,
        seed: int,
        groups: Mapping[Path, object] | None = None,
        contents: Mapping[Path, str] | None = None,
    ) -> tuple[LabelFile, ...]:
        """Return one LabelFile per share, stratified by class; images with the same value in `groups` stay together.

        Near-duplicates may be separated; `mlimages.checks.split_labels`, which all commands use, keeps them together.

        Args:
            contents: identifier of each image; by default its path below the folder of its class.

        Raises:
            InputError: the shares are not positive or do not add up to 1.
        """
        names = self.defined_class_names
        parts = split(list(self), shares, seed=seed, class_names=names, groups=groups, contents=contents)
        return tuple(self._with_items(lambda part=part: part) for part in parts)  # type: ignore[misc]  # the default binds it

    def limit_per_class(self, limit: int, *, seed: int = 0) -> LabelFile:
        """Return at most `limit` images of each class, in order; the choice depends only on `seed` and the paths."""
        names = self.defined_class_names
        items = sample_per_class(list(self), limit, seed=seed, class_names=names)
        return self._with_items(lambda: items)

    def merge(self, *others: LabelFile) -> LabelFile:
        """Concatenate the images; classes are merged by name, or by number if no file has names."""
        files = (self, *others)
        _require_same_kind(files)
        if not any(file.defined_class_names for file in files):
            return LabelFile(self.path, self.img_root, items=lambda: chain(*files), class_names=())
        names, own = merge_classes(files)
        return LabelFile(self.path, self.img_root, items=lambda: _renumber(files, names, own), class_names=names)

    def without(self, paths: Iterable[Path]) -> LabelFile:
        """Return the images whose files are not in `paths`; symbolic links are resolved."""
        real = RealPaths()
        if not (dropped := {real[str(path)] for path in paths}):
            return self
        left = self._with_items(None)
        left._text_items = lambda: (item for item in self.text_items() if real[item[0]] not in dropped)
        return left

    def where(self, mask: Iterable[object]) -> LabelFile:
        """Return the images at the indices where `mask` is true; images beyond its end are excluded."""
        left = self._with_items(None)
        kept = mask if isinstance(mask, Collection) else list(mask)
        left._text_items = lambda: compress(self.text_items(), kept)
        return left

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> LabelFile:
        """Write the images and the class names atomically to `path`; return the written label file.

        Raises:
            InputError: a file exists that mlimages did not write or that was changed since, and `overwrite` is false.
        """
        write_own_label_file(as_path(path), self, self.defined_class_names, overwrite=overwrite)
        return LabelFile(path)

    def _with_items(self, items: Callable[[], Iterable[LabeledPath]] | None) -> LabelFile:
        return LabelFile(self.path, self.img_root, items=items, class_names=self.defined_class_names)

    def _read_items(self) -> Iterator[tuple[str, Label]]:
        names, table = self.defined_class_names, self._table()
        reader = LabelReader(self.path, names, has_definition=self._fixed_class_names() is not None)
        root, known = str(table.folder if table else self.img_root), reader.labels
        for row in table.rows() if table else read_text_rows(self.path):
            label = known.get(row.label)
            if label is None:
                label = reader.read(row)
            yield full_name(row.path.replace("\\", "/"), root), label


def merge_classes(files: Sequence[LabelFile]) -> tuple[ClassNames, tuple[ClassNames, ...]]:
    """Merge the classes of several label files by name; return all names, and for each file those of its class numbers.

    Labels that are numbers refer to the class names of another of the files; if none has names, each number is a name.

    Raises:
        LabelFileError: only some of the files are multi-label.
    """
    _require_same_kind(files)
    return merge_class_names([file.classes for file in files])


def _renumber(files: Iterable[LabelFile], names: ClassNames, own_names: Iterable[ClassNames]) -> Iterator[LabeledPath]:
    """Yield the images of all files, with the class numbers of `names`."""
    numbers = {name: number for number, name in enumerate(names)}
    for file, own in zip(files, own_names, strict=True):
        yield from (item.renumber(lambda label, own=own: numbers[own[label]]) for item in file)  # type: ignore[misc]


def _require_same_kind(files: Sequence[LabelFile]) -> None:
    """Raise an error if only some of the files that list images are multi-label."""
    forms = {file.is_multi_label: file.path for file in files if next(file.text_items(), None)}
    if len(forms) == 2:
        raise LabelFileError(
            f"{forms[False]} has one class per image, {forms[True]} any number of classes: read both with --multi-label"
        )
