"""Read and write class definitions: `0 cats` lines in `NAME_class_def.txt` beside the label file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

from mlimages.core import InputError, LabeledPath, LabelFileError, as_path, fingerprint, format_examples, write_output
from mlimages.labels.formats import open_text
from mlimages.labels.scanning import fold_class_name, natural_sort_key, normalize_class_name

MAX_CLASSES = 1_000_000

ClassNames = tuple[str, ...]
"""Class names by class index: `names[label]`."""

_UNIQUE = "give each class a unique name"


def class_definition_path(label_file: str | os.PathLike[str]) -> Path:
    """Return the path of a label file's class definition, `NAME_class_def.txt` beside it.

    >>> class_definition_path("photos/labels.csv").name
    'labels_class_def.txt'
    """
    path = as_path(label_file)
    return path.parent / f"{path.stem}_class_def.txt"


def read_class_names(path: str | os.PathLike[str]) -> ClassNames:
    """Read a class definition: lines such as `0 cats`, or one name per line if no line has this form.

    Raises:
        LabelFileError: the file does not exist, a line is not `index name`, the indices are not 0, 1, 2 ..., or two
            lines have the same name.
    """
    path = as_path(path)
    return _read_class_names(path, fingerprint(path))


@lru_cache(maxsize=64)
def _read_class_names(path: Path, fingerprint: bytes | None) -> ClassNames:
    """Read a class definition; `fingerprint` is part of the cache key, so that a changed file is read again."""
    if not path.exists():
        raise LabelFileError(f"no class definition at {path}: expected lines such as `0 cats`")
    with open_text(path) as file:
        return _parse_definition(file.read().split("\n"), path)


def _parse_definition(lines: Sequence[str], path: Path) -> ClassNames:
    has_indices = _has_class_indices(lines)
    line_numbers: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not (name := line.strip()):
            continue
        if has_indices:
            index, *rest = name.split(maxsplit=1)
            if index != str(len(line_numbers)) or not rest:
                raise LabelFileError(f"{path}:{number}: expected `{len(line_numbers)} NAME`, found {name[:80]!r}")
            name = rest[0]
        if (first := line_numbers.setdefault(name, number)) != number:
            raise LabelFileError(f"{path}:{number}: the class name {name[:80]!r} is already on line {first}: {_UNIQUE}")
    return tuple(line_numbers)


def to_class_names(class_names: Sequence[str]) -> ClassNames:
    """Convert class names from a caller to a tuple, and check that they are distinct strings.

    Raises:
        InputError: two classes have the same name.
        TypeError: `class_names` is not a sequence of strings.
    """
    names = tuple(class_names)
    if isinstance(class_names, str | Mapping) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"class_names={class_names!r}: expected a list of names, such as ('cats', 'dogs')")
    if repeated := _find_repeated_name(names):
        raise InputError(f"class_names contains {repeated!r} more than once: {_UNIQUE}")
    return names


def _find_repeated_name(class_names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(class_names).items() if count > 1), None)


def _has_class_indices(lines: Iterable[str]) -> bool:
    return any(re.match(r"\s*\d+\s+\S", line) for line in lines)


def format_added_class_names(path: Path, class_names: Sequence[str]) -> str | None:
    """Return the lines to append to a class definition so that it has these names; None if it must be written anew."""
    if not path.exists():
        return None
    with open_text(path) as file:
        lines = file.read().split("\n")
    start = len(read_class_names(path))
    has_indices = not start or _has_class_indices(lines)
    added = [f"{n} {name}" if has_indices else name for n, name in enumerate(class_names[start:], start)]
    with suppress(LabelFileError):  # among names without indices, `3 cats` would be read as an index
        if _parse_definition([*lines, *added], path) == tuple(class_names):
            return "".join(f"{line}\n" for line in added)
    return None


def write_class_names(path: str | os.PathLike[str], class_names: Sequence[str], *, overwrite: bool = False) -> None:
    """Write a class definition: lines such as `0 cats`.

    Raises:
        InputError: a file exists that mlimages did not write or that was changed since, and `overwrite` is false; or a
            class definition cannot contain one of the names.
    """
    check_class_names(as_path(path), class_names)
    with write_output(as_path(path), overwrite=overwrite) as temporary_path:
        temporary_path.write_text(format_class_definition(class_names), encoding="utf-8")


def check_class_names(definition_path: Path, class_names: Collection[str]) -> None:
    """Check that a class definition with these names can be read again.

    Raises:
        InputError: a name is blank, begins or ends with white space, contains a line break, or occurs more than once.
    """
    if repeated := _find_repeated_name(class_names):
        raise InputError(f"{definition_path} cannot contain the class name {repeated!r} more than once: {_UNIQUE}")
    for name in class_names:
        if name != name.strip() or not name or any(char in "\n\r" or "\ud800" <= char <= "\udfff" for char in name):
            raise InputError(
                f"{definition_path} cannot contain the class name '{escape_invisible_characters(name)}': rename the "
                "class without line breaks, and without white space around its name"
            )


def is_valid_class_name(name: str) -> bool:
    """Whether a text in a label file may be a class name: not empty, and without control characters and line breaks."""
    return bool(name) and not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name)


def format_class_definition(class_names: Sequence[str]) -> str:
    """Return the text of a class definition: a line such as `0 cats` per class."""
    return "".join(f"{number} {name}\n" for number, name in enumerate(class_names))


def add_class_name(names: ClassNames, class_index: int, name: str) -> ClassNames:
    """Return a copy of `names` in which the class `class_index` is named `name`, unless it already has a name.

    If `names` is too short, it is extended; the other added classes are named by their index, such as "3", or
    "unnamed 3" if another class has this name.
    """
    padded = list(_pad_names(names, [class_index]))
    if padded[class_index] in (str(class_index), f"unnamed {class_index}"):
        padded[class_index] = name
    counts = Counter(padded)
    is_taken = (counts[each] > 1 and each == str(index) and index != class_index for index, each in enumerate(padded))
    return tuple(f"unnamed {each}" if taken else each for each, taken in zip(padded, is_taken, strict=True))


@dataclass(frozen=True, slots=True)
class FileClasses:
    """The classes of one label file.

    Attributes:
        names: names by class index.
        class_indices: class indices that occur in the file.
        has_names: whether the classes are named: by a class definition, by the constructor of LabelFile, or because a
            label in the file is not a number.
        may_have_numeric_names: whether a number in the file may be a class name, as in a table without a class
            definition; otherwise, it is a class index.
    """

    names: ClassNames
    class_indices: frozenset[int]
    has_names: bool
    may_have_numeric_names: bool


def merge_class_names(files: Sequence[FileClasses]) -> tuple[ClassNames, tuple[ClassNames, ...]]:
    """Merge the classes of several files by name; return all names, and for each file the names by its class indices.

    A file without class names contains only numbers: usually class indices, which refer to the longest list of names
    of the other files. In a table without a class definition (`may_have_numeric_names`), they are class names instead
    if a number is missing: if those of all files without class names, and the indices of all named classes, are
    together not 0, 1, 2 ... without a gap.
    """
    files = _unify_spellings(files)
    by_file = [_pad_names(file.names, file.class_indices) for file in files]
    numbers = {
        int(own[label])
        for own, file in zip(by_file, files, strict=True)
        if not file.has_names
        for label in file.class_indices
    }
    defined = [file.names for file in files if file.has_names and not file.may_have_numeric_names]
    numbers.update(index for names in defined for index in range(len(names)))
    are_indices = numbers == set(range(len(numbers)))
    longest = max((file.names for file in files if file.has_names), key=len, default=())
    names_by_index = dict(enumerate(longest))
    for index, file in enumerate(files):
        if not file.has_names and (are_indices or not file.may_have_numeric_names):
            by_file[index] = tuple(names_by_index.get(int(name), name) for name in by_file[index])
    names = dict.fromkeys(name for file in files if file.has_names for name in file.names)
    occurring = {own[label] for own, file in zip(by_file, files, strict=True) for label in file.class_indices}
    return (*names, *sorted(occurring - names.keys(), key=natural_sort_key)), tuple(by_file)


def _unify_spellings(files: Sequence[FileClasses]) -> list[FileClasses]:
    """Return the classes with names that differ only in their Unicode form spelled as in the first file."""
    spellings: dict[str, str] = {}
    for name in chain.from_iterable(file.names for file in files):
        spellings.setdefault(unicodedata.normalize("NFC", name), name)
    first = [file.names for file in files[:1]]
    others = (tuple(spellings[unicodedata.normalize("NFC", name)] for name in file.names) for file in files[1:])
    return [replace(file, names=names) for file, names in zip(files, chain(first, others), strict=True)]


def _pad_names(names: ClassNames, class_indices: Collection[int]) -> ClassNames:
    """Extend `names` to the largest of the class indices; each added class is named by its index, such as "3"."""
    return (*names, *map(str, range(len(names), max(class_indices, default=-1) + 1)))


def describe_similar_names(names: Iterable[str]) -> Iterator[str]:
    r"""Yield up to two texts: about the names that differ only in case, and about those that look the same.

    >>> list(describe_similar_names(["Cats", "cats", "dogs", "dogs\u200b"]))
    ['case: Cats and cats', 'characters that are not visible: dogs and dogs\\u200b']
    """
    by_folded_name: dict[str, list[str]] = {}
    for name in names:
        by_folded_name.setdefault(fold_class_name(name), []).append(name)
    texts: dict[str, list[str]] = {}
    for spellings in by_folded_name.values():
        if len(spellings) > 1:
            text = " and ".join(map(escape_invisible_characters, spellings))
            texts.setdefault(_describe_difference(spellings), []).append(text)
    return (f"{difference}: {format_examples(found)}" for difference, found in sorted(texts.items()))


def _describe_difference(spellings: Iterable[str]) -> str:
    return "case" if len(set(map(str.casefold, spellings))) == 1 else "characters that are not visible"


def escape_invisible_characters(name: str) -> str:
    """Escape the characters of a name that cannot be seen, such as line breaks."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def reject_similar_class_names(classes: Mapping[str, Iterable[str]], split_folders: Mapping[str, Path]) -> None:
    """Check that no two class names differ only in case (`Cats` in one split, `cats` in another), or look the same.

    Args:
        classes: for each split, its class names.
        split_folders: for each split, its folder, for the error message.

    Raises:
        InputError: two class names differ only in case, or in characters that are not visible.
    """
    by_folded_name: dict[str, tuple[str, Path]] = {}
    for split, names in classes.items():
        for name in names:
            other, folder = by_folded_name.setdefault(fold_class_name(name), (name, split_folders[split]))
            if other != name:
                raise InputError(
                    f"the class names of {folder / other} and {split_folders[split] / name} differ only in "
                    f"{_describe_difference([other, name])}: rename a folder, or if they were gathered, correct the "
                    "class in the list of links and gather again"
                )


def check_common_classes(classes: Mapping[str, Mapping[str, object]], split_folders: Mapping[str, Path]) -> None:
    """Check that each split has a class in common with the training set; if not, its folders are probably not classes.

    Args:
        classes: for each split, its images by class name.
        split_folders: for each split, its folder, for the error message.

    Raises:
        InputError: a split has no class in common with the training set.
    """
    for split, own in classes.items():
        if split != "train" and own and "train" in classes and not own.keys() & classes["train"].keys():
            folder, train = split_folders[split], split_folders["train"]
            raise InputError(
                f"{folder} and {train} have no class in common ({folder} has {format_examples(list(own), 3)}): label "
                f"only {train}, and label {folder} by a table or with --class-from"
            )


def find_class_indices(folder: Path, found_names: Iterable[str], class_names: ClassNames) -> dict[str, int]:
    """Return the index in `class_names` of each class folder in `folder`; its Unicode form may differ.

    Raises:
        InputError: a folder has another name.
    """
    exact = {name: index for index, name in enumerate(class_names)}
    indices = {normalize_class_name(name): index for name, index in exact.items()} | exact
    if unknown := [name for name in found_names if name not in indices]:
        raise InputError(
            f"{folder / unknown[0]}: the folder name is not in the given class names "
            f"({format_examples(class_names)}): rename the folder, or add its name to the class names"
        )
    return indices


def renumber_items(
    images_by_file: Iterable[Iterable[LabeledPath]], class_names: ClassNames, names_by_file: Iterable[ClassNames]
) -> Iterator[LabeledPath]:
    """Yield the images of all files, their class indices changed to those of `class_names`.

    Args:
        images_by_file: for each file, its images.
        class_names: the class names of all files; contains each name in `names_by_file`.
        names_by_file: for each file, the class names by the class indices of its images.
    """
    indices = {name: index for index, name in enumerate(class_names)}
    for images, names in zip(images_by_file, names_by_file, strict=True):
        yield from (item.renumber_classes(lambda label, names=names: indices[names[label]]) for item in images)  # type: ignore[misc]


def is_class_index(text: str) -> bool:
    """Whether a label is a class index, rather than a class name."""
    return text.isascii() and text.isdigit() and len(text) <= 9 and int(text) < MAX_CLASSES
