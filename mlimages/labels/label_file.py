"""Label files as streams of images and their class indices."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import Any

from mlimages.core import InputError, LabeledPath, LabelFileError, as_path, fingerprint, join_path, list_written_files
from mlimages.labels.class_names import (
    ClassNames,
    FileClasses,
    class_definition_path,
    is_class_index,
    merge_class_names,
    read_class_names,
    renumber_items,
    to_class_names,
)
from mlimages.labels.descriptions import render_class_table, summarize_labels
from mlimages.labels.formats import Label, is_multi_label, is_table, read_text_rows
from mlimages.labels.label_output import to_text_items, write_label_output
from mlimages.labels.label_texts import LabelReader, are_class_names
from mlimages.labels.scanning import SPLIT_NAMES_BY_ALIAS, make_path_resolver
from mlimages.labels.shared_definitions import is_definition_of_other_table, require_unchanged_classes
from mlimages.labels.splitting import require_mask, sample_per_class, shuffle, split
from mlimages.labels.table_columns import detect_table
from mlimages.labels.table_options import TableOptions
from mlimages.labels.tables import Table


class LabelFile:
    """The images and labels of a label file. Each iteration reads the file; the images are not kept in memory.

    `filter`, `shuffle`, `split` and `merge` return a LabelFile that is not yet written; `write` writes it. Pickling
    a LabelFile that is not written stores the list of its images.

    Args:
        path: the label file (.txt, .csv, .tsv, .jsonl, or an export in .json or .xml).
        img_root: the folder that the paths are relative to; by default the folder of the label file.
        items: a function that returns the images, called at each iteration; by default the file is read.
        class_names: class names by class index; by default those in `NAME_class_def.txt` beside it, or in the table.
        options: how to read a table; columns that are not specified are detected.
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
        self._cached_table: tuple[object, Table | None] | None = None
        self._items, self._class_names = items, None if class_names is None else to_class_names(class_names)
        self._text_items: Callable[[], Iterator[tuple[str, Label]]]
        self._text_items = (lambda: to_text_items(items())) if items else self._read_items

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
        """Yield the path of each image as text, and its label: three times as fast as iteration, which makes Paths.

        Raises:
            LabelFileError: as for `__iter__`.
        """
        return iter(self._text_items())

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have any number of classes, that is, whether labels are lists such as `[0,3]`."""
        table = self.table
        return table.has_label_lists if table else isinstance(next(self.text_items(), ("", 0))[1], tuple)

    def count_images(self) -> tuple[int, Counter[int]]:
        """Return the number of images, and the number by class index; an image counts once in each of its classes."""
        counts = Counter(label for _, label in self.text_items())
        by_class: Counter[int] = Counter()
        for label, count in counts.items():
            by_class.update(dict.fromkeys(label if isinstance(label, tuple) else (label,), count))
        return counts.total(), by_class

    @property
    def class_names(self) -> ClassNames:
        """Class names by class index: `defined_class_names`, or the class indices as text if there are none."""
        return self.defined_class_names or tuple(map(str, range(max(self.count_images()[1], default=-1) + 1)))

    @property
    def defined_class_names(self) -> ClassNames:
        """Class names from the constructor, else from the class definition, else from the table; may be empty.

        The labels of a table are class names (in natural order), unless they are 0 to n - 1: then they are indices.
        """
        explicit = self._find_explicit_class_names()
        if explicit is not None:
            return explicit
        table = self._detect_table()
        names = table.statistics.distinct_labels if table and not table.has_class_indices else ()
        return () if names == tuple(map(str, range(len(names)))) else names

    @property
    def is_stored(self) -> bool:
        """Whether the images are read from the file at `path`, rather than from a folder or other label files."""
        return self._text_items == self._read_items

    @property
    def table(self) -> Table | None:
        """The table and its detected columns; None if the lines are `path label`, or if not `is_stored`.

        Raises:
            LabelFileError: the table cannot be read, no columns match, or fewer than half of the images exist.
        """
        return None if self._items else self._detect_table()

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about detected columns or folders, and about rows that are left out; empty for `path label` lines.

        Raises:
            LabelFileError: as for `table`.
        """
        table = self.table
        if table is None:
            return self._notes
        if table.has_standard_columns and self._find_explicit_class_names() is not None:
            skipped_row_notes = table.skipped_row_notes
            return (*self._notes, *skipped_row_notes, *(table.multiple_classes_notes if skipped_row_notes else ()))
        notes = (*table.similar_class_notes, *table.missing_image_notes, *table.unused_column_notes)
        return (*self._notes, table.description, *table.skipped_row_notes, *table.multiple_classes_notes, *notes)

    @property
    def splits(self) -> dict[str, LabelFile]:
        """The splits train, val and test of a table with a column of splits, by name; empty for other label files."""
        split_names, files = self.table.row_split_names if self.table else (), {}
        for name in sorted(set(split_names), key=list(SPLIT_NAMES_BY_ALIAS).index):
            files[name] = self._select([split == name for split in split_names])
            files[name].path = self.path.with_stem(f"{self.path.stem}_{name}")
        return files

    def with_notes(self, notes: Iterable[str]) -> LabelFile:
        """Return a copy of the label file with these `notes` instead of its own; notes about its table still follow."""
        copied = LabelFile.__new__(type(self))
        vars(copied).update(vars(self), _notes=tuple(notes))
        if self.is_stored:
            copied._text_items = copied._read_items
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle; functions, which may not be picklable, are replaced by a list of the images."""
        images = None if self.is_stored else partial(iter, list(self.text_items()))
        return vars(self) | {"_items": None, "_text_items": images}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _text_items=state["_text_items"] or self._read_items)

    def __repr__(self) -> str:
        """Return the path, the number of images and the classes, as far as they can be read."""
        try:
            return f"<LabelFile {summarize_labels(self.path, self.count_images()[0], self.class_names)}>"
        except InputError as error:
            return f"<LabelFile {self.path}: {error}>"

    def _repr_html_(self) -> str:
        return render_class_table(self.path, self, self.class_names)

    @property
    def classes(self) -> FileClasses:
        """The class names, their origin, and the class indices that occur, as `merge_class_names` needs them."""
        names, explicit, labels = self.class_names, self._find_explicit_class_names(), frozenset(self.count_images()[1])
        table = self._detect_table() if explicit is None else None
        has_names, is_table = not all(map(is_class_index, names)), table is not None and not table.has_class_indices
        return FileClasses(names, labels, bool(explicit) or has_names, is_table)

    def _find_explicit_class_names(self) -> ClassNames | None:
        """Return the class names from the constructor, else those from the class definition; None if there are none."""
        if self._class_names is not None:
            return self._class_names
        definition = class_definition_path(self.path)
        if fingerprint(definition) is None:
            return None
        names = read_class_names(definition)
        return None if is_definition_of_other_table(definition, self.path, len(names), self._detect_table) else names

    def _has_numeric_names(self, names: ClassNames, table: Table | None) -> bool:
        """Whether numeric labels are class names; if not, they are class indices, as in files that mlimages writes."""
        has_definition = self._class_names is None and (table is None or table.has_class_indices)
        is_own = has_definition or self.path.name in list_written_files(self.path.parent)
        if is_own or not any(map(is_class_index, names)):
            return False
        labels = table.statistics.distinct_labels if table else {row.label for row in read_text_rows(self.path)}
        return are_class_names(self.path, labels, names, may_be_indices=not table or table.may_have_class_indices)

    def _detect_table(self) -> Table | None:
        """Return the table with its columns, which are detected again if the file has changed."""
        if self._text_items != self._read_items:
            return None
        state = (fingerprint(self.path), class_definition_path(self.path).exists())
        if self._cached_table is None or self._cached_table[0] != state or state[0] is None:
            table = detect_table(self.path, self.img_root, self._options) if self._should_read_as_table() else None
            if table and not (table.has_standard_columns and state[1]):
                table.require_valid_rows()
            self._cached_table = (state, table)
        return self._cached_table[1]

    def _should_read_as_table(self) -> bool:
        has_options = replace(self._options, multi_label=False) != TableOptions()
        return is_table(self.path) or has_options or (self._options.multi_label and not is_multi_label(self.path))

    def filter(self, keep: Callable[[LabeledPath], bool]) -> LabelFile:
        """Return a label file with the images for which `keep` is true, in order."""
        return self._with_items(lambda: filter(keep, self))

    def shuffle(self, seed: int) -> LabelFile:
        """Return a label file with the images in a random order, which depends only on `seed` and the input order."""
        return self._with_items(partial(iter, shuffle(self, seed)))

    def split(
        self,
        fractions: Sequence[float],
        *,
        seed: int,
        groups: Mapping[Path, object] | None = None,
        contents: Mapping[Path, str] | None = None,
        assigned: Mapping[Path, int] | None = None,
    ) -> tuple[LabelFile, ...]:
        """Split the images, stratified by class; return one LabelFile per fraction.

        Near-duplicates may be separated; `mlimages.checks.split_labels`, which all commands use, keeps them together.

        Args:
            fractions: fraction of the images in each split; they add up to 1.
            seed: random seed.
            groups: a value by image path; images with the same value stay in one split.
            contents: by image path, a text that decides the random order instead of the path, such as an image hash.
            assigned: by image path, the split index of each image that is already split; its group joins that split.

        Raises:
            InputError: the fractions are not positive or do not add up to 1.
        """
        names = self.defined_class_names
        splits = split(
            list(self), fractions, seed=seed, class_names=names, groups=groups, contents=contents, assigned=assigned
        )
        return tuple(self._with_items(partial(iter, items)) for items in splits)

    def limit_per_class(self, limit: int, *, seed: int = 0) -> LabelFile:
        """Return a label file with at most `limit` images of each class, in order; `seed` and the paths select them."""
        items = sample_per_class(list(self), limit, seed=seed, class_names=self.defined_class_names)
        return self._with_items(lambda: items)

    def merge(self, *others: LabelFile) -> LabelFile:
        """Concatenate the images; classes are merged by name, or by class index if no file has names."""
        files = (self, *others)
        names, names_by_file = merge_classes(files)
        if not any(file.defined_class_names for file in files):
            return LabelFile(self.path, self.img_root, items=lambda: chain(*files), class_names=())
        items = partial(renumber_items, files, names, names_by_file)
        return LabelFile(self.path, self.img_root, items=items, class_names=names)

    def without(self, paths: Iterable[Path]) -> LabelFile:
        """Return a label file without the images in `paths`; to compare paths, links to folders are resolved."""
        resolve = make_path_resolver()
        if not (excluded := {resolve(str(path)) for path in paths}):
            return self
        return self._with_text_items(lambda: (item for item in self.text_items() if resolve(item[0]) not in excluded))

    def where(self, mask: Iterable[object]) -> LabelFile:
        """Return a label file with the images at the indices where `mask` is true.

        Raises:
            InputError: `mask` does not consist of one boolean per image.
        """
        return self._select(require_mask(mask, self.count_images()[0]))

    def _select(self, mask: Sequence[bool]) -> LabelFile:
        return self._with_text_items(lambda: compress(self.text_items(), mask))

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> LabelFile:
        """Write the label file `path` and, with class names, `NAME_class_def.txt` beside it; return it as a LabelFile.

        Raises:
            InputError: `overwrite` is false, and a file to replace was edited, or not written by mlimages; or another
                label file, such as `NAME.csv`, has the same class definition and other classes.
        """
        names = self.defined_class_names
        require_unchanged_classes(path, names, source=self.path)
        write_label_output(as_path(path), self, names, overwrite=overwrite)
        return LabelFile(path)

    def _with_items(self, items: Callable[[], Iterable[LabeledPath]] | None) -> LabelFile:
        """Return a label file with the same path and class names that yields the images of `items()`."""
        return LabelFile(self.path, self.img_root, items=items, class_names=self.defined_class_names)

    def _with_text_items(self, text_items: Callable[[], Iterator[tuple[str, Label]]]) -> LabelFile:
        """As `_with_items`, for a function that yields paths as text, which is faster."""
        selected = self._with_items(None)  # its `_text_items` are replaced
        selected._text_items = text_items
        return selected

    def _read_items(self) -> Iterator[tuple[str, Label]]:
        names, table = self.defined_class_names, self._detect_table()
        explicit = self._find_explicit_class_names()
        numbers_are_names = explicit is None or self._has_numeric_names(names, table)
        definition = class_definition_path(self.path) if explicit is not None and self._class_names is None else None
        reader = LabelReader(self.path, names, numbers_are_names=numbers_are_names, definition=definition)
        root = str(table.folder if table else self.img_root)
        for row in table.rows() if table else read_text_rows(self.path):
            if (label := reader.labels_by_text.get(row.label)) is None:
                label = reader.read(row)
            yield join_path(row.path.replace("\\", "/"), root), label


def merge_classes(files: Sequence[LabelFile]) -> tuple[ClassNames, tuple[ClassNames, ...]]:
    """Merge the classes of several label files by name; return all names, and for each file the names by class index.

    A file without class names uses the longest list of names of the others (see `merge_class_names`), or "0", "1" ...

    Raises:
        LabelFileError: only some of the files are multi-label.
    """
    paths = {file.is_multi_label: file.path for file in files if next(file.text_items(), None)}
    if len(paths) == 2:
        raise LabelFileError(
            f"{paths[False]} has one class per image, but {paths[True]} has any number of classes per image: read both "
            "with --multi-label"
        )
    return merge_class_names([file.classes for file in files])
