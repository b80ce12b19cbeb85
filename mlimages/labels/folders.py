"""Label images by the folder that they are in: one folder per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from mlimages.core import InputError, LabeledPath, as_path, command, counted, refreshing_listings
from mlimages.labels.class_names import ClassNames, add_class_name
from mlimages.labels.copies import join_copies
from mlimages.labels.folder_notes import (
    NUMBERED,
    describe_nested,
    describe_other_entries,
    describe_skipped,
    find_loose_images,
    find_tables,
    table_hint,
)
from mlimages.labels.label_file import LabelFile
from mlimages.labels.scanning import (
    PARTS,
    clean_name,
    describe_skipped_entries,
    has_images,
    iter_images,
    list_subfolders,
    natural_key,
    walk,
)
from mlimages.labels.shards import all_images, find_shard_classes, shards_in
from mlimages.labels.splitting import groups_by_pattern
from mlimages.labels.table_options import TableOptions
from mlimages.labels.tables import SHOWN

MAX_LOOSE_SHARE = 0.01
"""Maximum share of images beside the class folders; with more, the folder has another layout."""


@dataclass(frozen=True, slots=True)
class FolderLabels:
    """The images of a folder of class folders.

    Attributes:
        labels: all images.
        left_out: entries that were skipped (`name: reason`).
        nested: folders inside class folders, which are read as part of them, in one line; "" for none.
        parts: train, val and test by name, with common class numbers, if the folder is split into parts.
    """

    labels: LabelFile
    left_out: tuple[str, ...] = ()
    parts: Mapping[str, LabelFile] = field(default_factory=dict)
    nested: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on skipped entries and nested folders."""
        return (*([self.nested] if self.nested else []), *(f"left out: {text}" for text in self.left_out))


def open_parts(source: LabelFile | str | os.PathLike[str], table: TableOptions | None = None) -> dict[str, LabelFile]:
    """Open a label file or folder; return its label files by part: train, val and test, or "" if it is not split.

    Args:
        table: how to read a table; for a folder, only `class_from` and `multi_label` are used.

    Raises:
        InputError: as for `label_dir_auto`.
    """
    if isinstance(source, LabelFile):
        return {"": source}
    path = as_path(source)
    with refreshing_listings(path):
        return _open_parts(path, table or TableOptions())


def _open_parts(path: Path, table: TableOptions) -> dict[str, LabelFile]:
    if not path.is_dir():
        labels = LabelFile(path, options=TableOptions.from_subclass(table))
        require_items(labels)
        parts = {name: part.with_notes(labels.notes) for name, part in labels.parts.items()} or {"": labels}
        return {name: join_copies(part) for name, part in parts.items()} if table.multi_label else parts
    check_table_options(path, table)
    found = FolderLabels(label_dir_by_pattern(path, table.class_from)) if table.class_from else label_dir_auto(path)
    parts = dict(found.parts) or {"": found.labels}
    parts = {name: join_copies(part) for name, part in parts.items()} if table.multi_label else parts
    notes = found.notes
    return {
        name: part.with_notes([_summary_line(path, name, part), *part.notes, *notes]) for name, part in parts.items()
    }


def open_labels(source: LabelFile | str | os.PathLike[str], table: TableOptions | None = None) -> LabelFile:
    """Open a label file, or a folder of class folders as one that is not written.

    Args:
        table: how to read a table; for a folder, only `class_from` and `multi_label` are used.

    Raises:
        InputError: as for `label_dir_auto`, or the folder is split into parts.

    >>> open_labels("labels.txt").path.name
    'labels.txt'
    """
    parts = open_parts(source, table)
    if len(parts) > 1:
        path = as_path(source.path if isinstance(source, LabelFile) else source)
        label = command("label", path, "-o", path.with_suffix(".txt"))
        hint = "" if path.is_dir() else f"; {label} writes a file of each"
        raise InputError(f"{source} contains the parts {', '.join(parts)} of a dataset: choose one{hint}")
    return next(iter(parts.values()))


def require_items(labels: LabelFile) -> None:
    """Raise an error if a label file lists no images.

    Raises:
        InputError: it lists no images.
    """
    if next(labels.text_items(), None) is None:
        raise InputError(f"{labels.path} lists no images: create it again with `mlimages label FOLDER`")


def check_table_options(folder: Path, table: TableOptions) -> None:
    """Raise an error if an option of tables other than `class_from` and `multi_label` is given with a folder.

    Raises:
        InputError: such an option is given.
    """
    if TableOptions.from_subclass(table) != TableOptions(class_from=table.class_from, multi_label=table.multi_label):
        raise InputError(
            f"{folder} is a folder: --path-column, --label-column, --images and --suffix apply only to tables"
        )


def _summary_line(folder: Path, part_name: str, labels: LabelFile) -> str:
    count, counts = labels.count_images()
    names = [f"{name} {counts[number]}" for number, name in enumerate(labels.class_names)]
    shown = ", ".join(names[:SHOWN]) + " ..." * (len(names) > SHOWN)
    part_name = f", {part_name}" if part_name else ""
    return f"{folder}{part_name}: {counted(count, 'image')}, {counted(len(names), 'class')}: {shown}"


def label_dir(folder: str | os.PathLike[str], label: int) -> LabelFile:
    """Label all images in `folder` and below as one class; hidden folders are skipped.

    Raises:
        InputError: the folder does not exist.
    """
    root = _require_folder(as_path(folder))
    return LabelFile(
        root / "labels.txt",
        root,
        items=lambda: (LabeledPath(path, label) for path in all_images(root)),
        class_names=add_class_name((), label, root.resolve().name),
    )


def label_dir_auto(
    folder: str | os.PathLike[str], *, leaf: bool = False, class_names: ClassNames | None = None
) -> FolderLabels:
    """Label the images by class folder; classes are in natural order (1, 2, 10), ignoring case.

    A folder that only contains one folder of class folders (`flowers/flowers/rose`) is skipped. Folders train, val and
    test with class folders are parts. Iterating over the labels walks the folders; of shards (`images-00000.tar`, see
    `mlimages gather --layout tar`), which count as class folders, the paths are kept in memory.

    Args:
        folder: the folder of class folders.
        leaf: treat every folder that contains images as a class, named by its path (`animals/cats`); otherwise nested
            folders belong to their class folder.
        class_names: class names by class number; every class must be one of them. By default the folders are numbered.

    Raises:
        InputError: the folder does not exist, there is no class folder with images or there are more than a few images
            beside them, two class names are equal except for case, or a folder name is not in `class_names`.
    """
    given = _require_folder(as_path(folder))
    root = _find_class_root(given, class_names or ())
    parts = _find_part_folders(root)
    classes = {part: _find_class_images(path, leaf=leaf) for part, path in parts.items()}
    _require_distinct_classes(classes, parts)
    _require_common_class(classes, parts)
    found = sorted({name for by_name in classes.values() for name in by_name}, key=natural_key)
    names = class_names or tuple(found)
    _require_known_classes(found, names, root)
    inner = root.relative_to(given).as_posix()
    left_out = [f"{inner}: not a class itself; its subfolders are the classes"] if root != given else []
    left_out += [text for path in parts.values() for text in describe_skipped(path, root, leaf=leaf)]
    class_folders = [folder for path in parts.values() for folder in _image_folders(path)]
    for table in find_tables(root):
        left_out.append(f"{table.name}: the folders name the classes; {command('label', table)} reads it")
    if "" not in parts:
        left_out += describe_other_entries(root, set(parts.values()))

    def items(part_name: str) -> Iterator[LabeledPath]:
        for name, images in classes[part_name].items():
            label = names.index(name)
            yield from (LabeledPath(image, label) for image in images())

    def label_file_of(*part_names: str) -> LabelFile:
        path = root / (f"labels_{part_names[0]}.txt" if len(part_names) == 1 and part_names[0] else "labels.txt")
        return LabelFile(path, root, items=lambda: chain.from_iterable(map(items, part_names)), class_names=names)

    by_part = {part: label_file_of(part) for part in classes if part}
    nested = "" if leaf else describe_nested(class_folders, root)
    return FolderLabels(label_file_of(*classes), (*left_out, *describe_skipped_entries(root)), by_part, nested)


def _require_distinct_classes(classes: Mapping[str, Iterable[str]], parts: Mapping[str, Path]) -> None:
    """Raise an error if class names, of several parts or in shards, differ only in case."""
    seen: dict[str, tuple[str, Path]] = {}
    for part, names in classes.items():
        for name in names:
            other, folder = seen.setdefault(name.casefold(), (name, parts[part]))
            if other != name:
                raise InputError(
                    f"{folder / other} and {parts[part] / name} differ only in case: rename one, or correct the list "
                    "and gather again"
                )


def _require_common_class(classes: Mapping[str, Mapping[str, object]], parts: Mapping[str, Path]) -> None:
    """Raise an error if two splits have no class in common, so that their folders are probably not classes."""
    for part, own in classes.items():
        if part != "train" and own and "train" in classes and not own.keys() & classes["train"].keys():
            raise InputError(
                f"{parts[part]}: none of its folders ({', '.join(list(own)[:3])}) is a class of {parts['train']}: "
                f"label {parts['train']} alone, and {parts[part]} from a table of its labels or with --class-from"
            )


def label_dir_by_pattern(folder: str | os.PathLike[str], pattern: str) -> LabelFile:
    """Label the images in `folder` and below by the matches of a regular expression in their relative paths.

    Images whose path does not match are left out and counted in the `notes`.

    Raises:
        InputError: the folder does not exist, the expression is invalid, or half of the paths do not match.
    """
    root = _require_folder(as_path(folder))
    paths = list(all_images(root))
    found = groups_by_pattern([path.relative_to(root) for path in paths], pattern)
    class_of = [clean_name(found.get(path.relative_to(root), "")) for path in paths]
    unmatched = [str(path.relative_to(root)) for path, name in zip(paths, class_of, strict=True) if not name]
    shown = ", ".join(unmatched[:SHOWN])
    message = f"{len(unmatched)} of {len(paths)} paths do not match the regular expression {pattern} ({shown})"
    if 2 * len(unmatched) >= len(paths):
        raise InputError(message)
    names = tuple(sorted(set(filter(None, class_of)), key=natural_key))
    items = [LabeledPath(path, names.index(name)) for path, name in zip(paths, class_of, strict=True) if name]
    labels = LabelFile(root / "labels.txt", root, items=lambda: items, class_names=names)
    return labels.with_notes([f"left out: {message}"] if unmatched else [])


def has_class_folders(folder: Path) -> bool:
    """Whether the folder has shards, or subfolders with images that are not numbered parts of a class."""
    return bool(shards_in(folder)) or any(not NUMBERED.search(str(path)) for path in _image_folders(folder))


def _image_folders(root: Path) -> list[Path]:
    return [path for path in list_subfolders(root) if has_images(path, recursive=True) or shards_in(path)]


def _find_class_root(root: Path, class_names: Sequence[str]) -> Path:
    """Return the folder that contains the class folders, skipping folders that contain only one folder."""
    inner = root
    while not find_loose_images(inner) and len(sub := _image_folders(inner)) == 1 and sub[0].name not in class_names:
        inner = sub[0]
    return root if find_loose_images(inner) or not has_class_folders(inner) else inner


def _find_part_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the parts by name; the folder itself as "" if its folders are classes."""
    folders = _image_folders(root)
    if len(folders) < 2 or not all(path.name.lower() in PARTS for path in folders):
        return {"": root}
    labelled = {PARTS[path.name.lower()]: path for path in folders if has_class_folders(path)}
    if not labelled or len({PARTS[path.name.lower()] for path in folders}) < len(folders):
        names = ", ".join(path.name for path in folders)
        raise InputError(
            f"{root} contains parts of a dataset ({names}): {table_hint(root, *folders)}create folders such as "
            "train/CLASS and val/CLASS, or use --class-from REGEX if the names contain the class"
        )
    return labelled


def _find_class_images(root: Path, *, leaf: bool) -> dict[str, Callable[[], Iterator[Path]]]:
    """Return a function per class that iterates over its images, in class folders or shards."""
    if shards_in(root):
        return {name: partial(map, Path, paths) for name, paths in find_shard_classes(root, leaf=leaf).items()}
    classes: dict[str, list[Path]] = {}
    for name, path in _find_class_folders(root, leaf=leaf).items():
        classes.setdefault(NUMBERED.sub("", name) if leaf else name, []).append(path)
    return {name: partial(_find_images_in, paths, recursive=not leaf) for name, paths in classes.items()}


def _find_images_in(folders: list[Path], *, recursive: bool) -> Iterator[Path]:
    return chain.from_iterable(iter_images(folder, recursive=recursive) for folder in folders)


def _find_class_folders(root: Path, *, leaf: bool) -> dict[str, Path]:
    """Return the class folders by class name."""
    classes: dict[str, Path] = {}
    same: dict[str, Path] = {}
    for path in walk(root) if leaf else list_subfolders(root):
        if path == root or not has_images(path, recursive=not leaf):
            continue
        name = clean_name(path.relative_to(root).as_posix())
        if (other := same.setdefault(name.casefold(), path)) != path:
            raise InputError(f"{other} and {path} have the same class name ({name!r}): rename or merge them")
        classes[name] = path
    loose = find_loose_images(root)
    if loose and not classes:
        raise InputError(
            f"{root} holds {len(loose)} images and no class folders: {table_hint(root)}create a folder per class, "
            f"use --class-from REGEX if names hold the class, or {command('label', root, '--label', 'N')} for one class"
        )
    if len(loose) > MAX_LOOSE_SHARE * sum(1 for path in (classes.values() if loose else ()) for _ in iter_images(path)):
        shown = ", ".join(path.name for path in loose[:3]) + (f" and {len(loose) - 3} more" if len(loose) > 3 else "")
        raise InputError(
            f"{root}: images outside the class folders ({shown}): move each into the folder of its class or "
            f"out of {root}"
        )
    return classes


def _require_folder(root: Path) -> Path:
    with refreshing_listings(root):
        if not root.is_dir():
            raise InputError(f"no folder at {root}: check the path")
    return root


def _require_known_classes(classes: Sequence[str], names: ClassNames, root: Path) -> None:
    if not classes:
        found = "".join(f"; {text}" for text in describe_skipped_entries(root))
        raise InputError(f"no images in {root}: expected a folder per class with images in it{found}")
    unknown = [name for name in classes if name not in names]
    if unknown:
        known = ", ".join(names[:10])
        raise InputError(
            f"{root / unknown[0]}: its name is not one of the {len(names)} classes ({known}): "
            "rename the folder, or add a line to the file of class names"
        )
