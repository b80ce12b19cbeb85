"""A label file as a stream of pictures and their class numbers."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress
from pathlib import Path

from mlimages.core import (
    LabeledPath,
    LabelFileError,
    as_path,
    demand_free,
    full_name,
    is_remote,
    named_path,
    relative_name,
    replacing,
    writing,
)
from mlimages.labels.class_names import (
    ClassNames,
    class_definition_path,
    class_lines,
    read_class_names,
    write_class_names,
)
from mlimages.labels.formats import known_suffix, read_rows, write_rows
from mlimages.labels.splitting import split

MAX_CLASSES = 1_000_000


class LabelFile:
    """A label file, read as a stream: iterating reads it anew; nothing is kept in memory.

    `filter`, `shuffle`, `split` and `merge` return another LabelFile that stands for a file
    not written yet; `write` writes it.

    Args:
        path: the label file (.txt, .csv, .tsv, .jsonl).
        img_root: the folder that its paths are relative to; its own by default.
        items: the pictures in place of the file's, called anew at each iteration.
        class_names: the names in place of the class definition beside the file.
    """

    def __init__(
        self,
        path: str | Path,
        img_root: str | Path | None = None,
        *,
        items: Callable[[], Iterable[LabeledPath]] | None = None,
        class_names: ClassNames | None = None,
    ) -> None:
        self.path = as_path(path)
        self.img_root = as_path(img_root) if img_root is not None else self.path.parent
        self._items = items
        self._named = (lambda: ((str(item.path), item.label) for item in items())) if items else self._read
        self._class_names = class_names

    def __iter__(self) -> Iterator[LabeledPath]:
        """Each picture in order.

        Raises:
            LabelFileError: the file is missing, or a line (path:line) is not `path label`.
        """
        if self._items:
            return iter(self._items())
        return (LabeledPath(as_path(name), label) for name, label in self.named())

    def named(self) -> Iterator[tuple[str, int]]:
        """Each picture's path as text and its class number: without Path objects it takes a third of the time.

        Raises:
            LabelFileError: as iterating.
        """
        return iter(self._named())

    @property
    def class_names(self) -> ClassNames:
        """The `defined_class_names`; without any the numbers."""
        if names := self.defined_class_names:
            return names
        return tuple(str(label) for label in range(max((item.label for item in self), default=-1) + 1))

    @property
    def defined_class_names(self) -> ClassNames:
        """The names given, or in the class definition beside the file, or in its rows (sorted); nothing without any."""
        if self._class_names is not None:
            return self._class_names
        definition = class_definition_path(self.path)
        return read_class_names(definition) if definition.exists() else self._names_in_rows()

    def filter(self, keep: Callable[[LabeledPath], bool]) -> LabelFile:
        """The pictures for which `keep` is true, in order."""
        return self._with(lambda: filter(keep, self))

    def shuffle(self, seed: int) -> LabelFile:
        """The pictures in an order that depends on `seed` alone."""
        items = list(self)
        random.Random(seed).shuffle(items)
        return self._with(lambda: items)

    def split(
        self,
        shares: Sequence[float],
        *,
        seed: int,
        groups: Mapping[Path, object] | None = None,
        contents: Mapping[Path, str] | None = None,
    ) -> tuple[LabelFile, ...]:
        """One LabelFile per share, each class in proportion; images with the same value in `groups` stay together.

        It knows no near-duplicates: `mlimages.checks.split_labels` finds them first, as all commands do.

        Args:
            contents: what identifies an image; else its path below the folder of its class.

        Raises:
            InputError: the shares are not positive or do not add up to 1.
        """
        names = self.defined_class_names
        parts = split(
            list(self), shares, seed=seed, root=self.img_root, class_names=names, groups=groups, contents=contents
        )
        return tuple(self._with(lambda part=part: part) for part in parts)  # type: ignore[misc]  # the default binds it

    def merge(self, *others: LabelFile) -> LabelFile:
        """All pictures one after the other, classes united by name; by number where one file has no names."""
        files = (self, *others)
        known = [file.defined_class_names for file in files]
        if not all(known):
            longest = max(known, key=len)
            return LabelFile(self.path, self.img_root, items=lambda: chain(*files), class_names=longest)
        names = tuple(dict.fromkeys(chain(*known)))
        return LabelFile(self.path, self.img_root, items=lambda: _renumbered(files, names), class_names=names)

    def without(self, paths: Iterable[Path]) -> LabelFile:
        """The images whose files are not among `paths`, whatever links lead to them."""
        real = _RealPaths()
        if not (dropped := {real[str(path)] for path in paths}):
            return self
        left = self._with(None)
        left._named = lambda: (named for named in self.named() if real[named[0]] not in dropped)
        return left

    def where(self, wanted: Iterable[object]) -> LabelFile:
        """The pictures at the places at which `wanted` is true; none beyond its end."""
        left = self._with(None)
        left._named = lambda: compress(self.named(), wanted)
        return left

    def write(self, path: str | Path, *, overwrite: bool = False) -> LabelFile:
        """Write the images and the class names to `path`, whole or not at all; return that file.

        Raises:
            InputError: a file is there that mlimages did not write, or that was changed since; unless `overwrite`.
        """
        write_own_label_file(as_path(path), self, self.defined_class_names, overwrite=overwrite)
        return LabelFile(path)

    def _with(self, items: Callable[[], Iterable[LabeledPath]] | None) -> LabelFile:
        return LabelFile(self.path, self.img_root, items=items, class_names=self.defined_class_names)

    def _names_in_rows(self) -> ClassNames:
        """A table's labels where they are names, sorted; nothing where all are numbers."""
        if self._named != self._read or known_suffix(self.path) == ".txt":
            return ()
        labels = {row.label for row in read_rows(self.path)}
        names = sorted(labels, key=lambda name: (name.casefold(), name))
        return () if all(map(_is_number, labels)) else tuple(names)

    def _read(self) -> Iterator[tuple[str, int]]:
        names, root = self.defined_class_names, str(self.img_root)
        in_rows = self._class_names is None and not class_definition_path(self.path).exists()
        numbers = {name: number for number, name in enumerate(names) if in_rows or not _is_number(name)}
        for row in read_rows(self.path):
            label = numbers.get(row.label)
            if label is None:
                label = int(row.label) if _is_number(row.label) else -1
                if not 0 <= label < (len(names) or MAX_CLASSES):
                    raise LabelFileError(f"{self.path}:{row.number}: {_wanted(names)}, found {row.label[:80]!r}")
                numbers[row.label] = label
            yield full_name(row.path.replace("\\", "/"), root), label


def write_label_file(path: Path, items: Iterable[LabeledPath], class_names: Sequence[str] = ()) -> int:
    """Write a label file and, with `class_names`, its class definition, in a folder of ours; return the count."""
    with replacing(path) as part:
        count = _write_rows(part, path, items)
    if class_names:
        write_class_names(class_definition_path(path), class_names)
    return count


def write_own_label_file(
    path: Path, items: Iterable[LabeledPath], class_names: Sequence[str] = (), *, overwrite: bool = False
) -> int:
    """As `write_label_file`, in a folder of the person's: only what we wrote there is replaced.

    Raises:
        InputError: one of the two files is there and is not ours, or was changed; unless `overwrite`.
    """
    definition = class_definition_path(path)
    demand_free([path, *([definition] if class_names else [])], overwrite=overwrite)
    with writing(path, overwrite=overwrite) as part:
        count = _write_rows(part, path, items)
    if class_names:
        with writing(definition, overwrite=overwrite) as part:
            part.write_text(class_lines(class_names), encoding="utf-8")
    return count


def _write_rows(part: Path, path: Path, items: Iterable[LabeledPath]) -> int:
    named = items.named() if isinstance(items, LabelFile) else ((item.path, item.label) for item in items)
    with part.open("w", encoding="utf-8") as out:
        return write_rows(out, path, ((relative_name(name, path.parent), label) for name, label in named))


def listed_paths(path: Path) -> Iterator[Path]:
    """The pictures that a table lists in its path column (a label file, rejected.tsv, suspects.tsv)."""
    return (named_path(row.path.replace("\\", "/"), path.parent) for row in read_rows(path))


class _RealPaths:
    """Paths with all links to folders followed; each folder is asked for once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __getitem__(self, path: str) -> str:
        if is_remote(path):
            return path
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)  # noqa: PTH118  # texts


def _renumbered(files: Iterable[LabelFile], names: ClassNames) -> Iterator[LabeledPath]:
    numbers = {name: number for number, name in enumerate(names)}
    for file in files:
        own = file.class_names
        yield from (LabeledPath(item.path, numbers[own[item.label]]) for item in file)


def _wanted(names: ClassNames) -> str:
    if not names:
        return "expected `path label`, the label a class number"
    return f"expected a class number from 0 to {len(names) - 1} or a class name ({', '.join(names[:3])} ...)"


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit() and len(label) <= 9 and int(label) < MAX_CLASSES
