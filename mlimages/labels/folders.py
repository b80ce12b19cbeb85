"""Label images by their folders: one folder per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from mlimages.core import InputError, LabeledPath, as_path, format_command, format_examples, refresh_remote_listings
from mlimages.labels.class_names import (
    ClassNames,
    add_class_name,
    check_common_classes,
    find_class_indices,
    reject_similar_class_names,
    to_class_names,
)
from mlimages.labels.descriptions import summarize_labels
from mlimages.labels.folder_notes import (
    NUMBERED_SUBFOLDER,
    describe_class_root,
    describe_entries_outside_splits,
    describe_nested_folders,
    describe_skipped_split_entries,
    describe_tables_and_missing_shards,
    find_root_images,
    make_no_images_error,
    suggest_table,
)
from mlimages.labels.grouping import group_by_pattern
from mlimages.labels.identical_images import merge_identical_images
from mlimages.labels.label_file import LabelFile
from mlimages.labels.scanning import (
    SPLIT_NAMES_BY_ALIAS,
    describe_skipped_entries,
    fold_class_name,
    has_images,
    iter_images,
    list_subfolders,
    natural_sort_key,
    normalize_class_name,
    walk_folders,
)
from mlimages.labels.shards import find_shard_images_by_class, find_shards, iter_all_images
from mlimages.labels.table_options import TableOptions

MAX_ROOT_IMAGE_FRACTION = 0.01
"""Maximum ratio of images outside the class folders to images inside; above it, the images are probably not arranged in
class folders."""


@dataclass(frozen=True, slots=True)
class FolderLabels:
    """The labelled images of a folder of class folders.

    Attributes:
        labels: all images.
        skipped_notes: lines about skipped files and folders, with the reason and the names or their number.
        nested_note: a line about folders with images inside class folders; "" for none.
        splits: label files by split (train, val, test), with the same class indices; empty if the folder is not split.
    """

    labels: LabelFile
    skipped_notes: tuple[str, ...] = ()
    splits: Mapping[str, LabelFile] = field(default_factory=dict)
    nested_note: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about nested folders, and about skipped files and folders."""
        return (*[self.nested_note] * bool(self.nested_note), *(f"left out: {text}" for text in self.skipped_notes))


def open_splits(source: LabelFile | str | os.PathLike[str], table: TableOptions | None = None) -> dict[str, LabelFile]:
    """Open a label file or folder; return its label files by split: train, val and test, or "" if it is not split.

    Args:
        source: a label file, its path, or the path of a folder.
        table: how to read a table; for a folder, only `class_from` and `multi_label` may be set.

    Raises:
        InputError: as for `label_dir_auto`, or the label file cannot be read or lists no images.
    """
    if isinstance(source, LabelFile):
        return {"": source}
    path, options = as_path(source), table or TableOptions()
    merge = merge_identical_images if options.multi_label else lambda labels: labels
    with refresh_remote_listings(path):
        if not path.is_dir():
            labels = LabelFile(path, options=TableOptions.from_options(options))
            require_images(labels)
            splits = {name: split.with_notes(labels.notes) for name, split in labels.splits.items()} or {"": labels}
            return {name: merge(split) for name, split in splits.items()}
        check_table_options(path, options)
        pattern = options.class_from
        folder = FolderLabels(label_dir_by_pattern(path, pattern)) if pattern else label_dir_auto(path)
        splits = {name: merge(split) for name, split in (folder.splits or {"": folder.labels}).items()}
        return {
            name: split.with_notes([_summarize_split(path, name, split), *split.notes, *folder.notes])
            for name, split in splits.items()
        }


def open_labels(source: LabelFile | str | os.PathLike[str], table: TableOptions | None = None) -> LabelFile:
    """Open a label file, or label the images of a folder of class folders without writing a file.

    Args:
        source: a label file, its path, or the path of a folder.
        table: how to read a table; for a folder, only `class_from` and `multi_label` may be set.

    Raises:
        InputError: as for `open_splits`, or there are several splits (train, val, test).

    >>> open_labels("labels.txt").class_names
    ('cats', 'dogs')
    """
    splits = open_splits(source, table)
    if len(splits) > 1:
        path = as_path(source.path if isinstance(source, LabelFile) else source)
        hint = "use one of its subfolders"
        if not path.is_dir():
            label = format_command("label", path, "-o", path.with_suffix(".txt"))
            hint = f"to write a label file per split, use {label}"
        raise InputError(f"{source} contains several splits ({', '.join(splits)}), expected one: {hint}")
    return next(iter(splits.values()))


def require_images(labels: LabelFile) -> None:
    """Check that a label file lists images.

    Raises:
        InputError: it lists no images.
    """
    if next(labels.text_items(), None) is None:
        raise InputError(f"{labels.path} lists no images: create the file again with `mlimages label FOLDER`")


def check_table_options(folder: Path, table: TableOptions) -> None:
    """Check that no option that applies only to tables is given with a folder.

    Raises:
        InputError: an option other than `class_from` and `multi_label` is given.
    """
    if TableOptions.from_options(table) != TableOptions(class_from=table.class_from, multi_label=table.multi_label):
        raise InputError(
            f"{folder} is a folder: --path-column, --label-column, --images and --suffix apply only to tables"
        )


def _summarize_split(folder: Path, split_name: str, labels: LabelFile) -> str:
    count, counts = labels.count_images()
    names = tuple(f"{name} {counts[label]}" for label, name in enumerate(labels.class_names))
    return summarize_labels(f"{folder}, {split_name}" if split_name else folder, count, names)


def label_dir(folder: str | os.PathLike[str], label: int) -> LabelFile:
    """Label the images in `folder` and its subfolders, except hidden ones, with the class index `label`.

    The class has the name of the folder.

    Raises:
        InputError: the folder does not exist, or contains no images.
    """
    root = _require_folder(as_path(folder))
    if next(iter_all_images(root), None) is None:
        raise make_no_images_error(root, is_class_folder=True)
    return LabelFile(
        root / "labels.txt",
        root,
        items=lambda: (LabeledPath(path, label) for path in iter_all_images(root)),
        class_names=add_class_name((), label, normalize_class_name(root.resolve().name)),
    )


def label_dir_auto(
    folder: str | os.PathLike[str], *, leaf: bool = False, class_names: ClassNames | None = None
) -> FolderLabels:
    """Label images by class folder; classes are in natural order (1, 2, 10), ignoring case.

    If `folder` has a single subfolder, and that contains class folders (`flowers/flowers/rose`), these are the classes.
    Folders named train, val and test that contain class folders are splits. Each iteration over the labels walks the
    folders. Shards (`images-00000.tar`, see `mlimages gather --layout tar`) count as class folders; their image paths
    are kept in memory.

    Args:
        folder: the folder of class folders.
        leaf: treat every folder that contains images as a class, named by its path: `animals/cats`. Otherwise,
            `animals/cats/1.jpg` belongs to the class `animals`.
        class_names: class names by class index; every class must be one of them. By default classes are indexed in the
            order of their folders.

    Raises:
        InputError: the folder does not exist, there is no class folder with images, more than 1 % of the images are
            outside the class folders, two class names differ only in case, a folder is not in `class_names`, or
            folders named train, val and test contain no class folders or have no class in common.
        TypeError: `class_names` is not a sequence of strings.
    """
    source = _require_folder(as_path(folder))
    given_names = () if class_names is None else to_class_names(class_names)
    root = _find_class_root(source, given_names)
    split_folders = _find_split_folders(root)
    images_by_class = {split: _make_image_iterators(path, leaf=leaf) for split, path in split_folders.items()}
    reject_similar_class_names(images_by_class, split_folders)
    check_common_classes(images_by_class, split_folders)
    found = sorted({name for by_name in images_by_class.values() for name in by_name}, key=natural_sort_key)
    if not found:
        raise make_no_images_error(root, is_class_folder=False)
    names = given_names or tuple(found)
    class_indices = find_class_indices(root, found, names)
    skipped_notes = describe_class_root(root, source) if root != source else []
    skipped_notes += [
        text for path in split_folders.values() for text in describe_skipped_split_entries(path, root, leaf=leaf)
    ]
    skipped_notes += describe_tables_and_missing_shards(root)
    if "" not in split_folders:
        skipped_notes += describe_entries_outside_splits(root, set(split_folders.values()))

    def iter_items(split: str) -> Iterator[LabeledPath]:
        for name, images in images_by_class[split].items():
            label = class_indices[name]
            yield from (LabeledPath(image, label) for image in images())

    def make_label_file(file_name: str, *split_names: str) -> LabelFile:
        return LabelFile(
            root / file_name, root, items=lambda: chain.from_iterable(map(iter_items, split_names)), class_names=names
        )

    by_split = {split: make_label_file(f"labels_{split}.txt", split) for split in split_folders if split}
    class_folders = [] if leaf else [path for folder in split_folders.values() for path in _list_image_folders(folder)]
    return FolderLabels(
        make_label_file("labels.txt", *split_folders),
        (*skipped_notes, *describe_skipped_entries(root)),
        by_split,
        describe_nested_folders(class_folders, root),
    )


def label_dir_by_pattern(folder: str | os.PathLike[str], pattern: str) -> LabelFile:
    """Label the images in `folder` and its subfolders by the match of a regular expression in their relative paths.

    Images whose path does not match are left out and counted in the `notes`.

    Raises:
        InputError: the folder does not exist or contains no images, the expression is invalid, or at least half of the
            paths do not match.
    """
    root = _require_folder(as_path(folder))
    if not (paths := list(iter_all_images(root))):
        raise make_no_images_error(root, is_class_folder=True)
    found = group_by_pattern(paths, pattern, folder=root)
    class_of = [normalize_class_name(found.get(path, "")) for path in paths]
    unmatched = [str(path.relative_to(root)) for path, name in zip(paths, class_of, strict=True) if not name]
    shown = format_examples(unmatched)
    message = f"{len(unmatched)} of {len(paths)} paths do not match the regular expression {pattern} ({shown})"
    if 2 * len(unmatched) >= len(paths):
        raise InputError(f"{message}: correct the expression, so that it matches more than half of them")
    names = tuple(sorted({*class_of} - {""}, key=natural_sort_key))
    items = [LabeledPath(path, names.index(name)) for path, name in zip(paths, class_of, strict=True) if name]
    labels = LabelFile(root / "labels.txt", root, items=lambda: items, class_names=names)
    return labels.with_notes([f"left out: {message}"] if unmatched else [])


def has_class_folders(folder: Path) -> bool:
    """Whether a folder contains shards or class folders; `part-0001` ... (subfolders of one class) do not count."""
    return bool(find_shards(folder)) or any(
        not NUMBERED_SUBFOLDER.search(str(path)) for path in _list_image_folders(folder)
    )


def _list_image_folders(root: Path) -> list[Path]:
    return [path for path in list_subfolders(root) if has_images(path, recursive=True) or find_shards(path)]


def _find_class_root(root: Path, class_names: Sequence[str]) -> Path:
    """Return the parent of the class folders: from `root`, enter a single subfolder unless its name is a class name."""
    inner = root
    while not find_root_images(inner) and len(inside := _list_image_folders(inner)) == 1:
        if inside[0].name in class_names:
            break
        inner = inside[0]
    return root if find_root_images(inner) or not has_class_folders(inner) else inner


def _find_split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits by name; `{"": root}` if the subfolders of `root` are classes."""
    folders = _list_image_folders(root)
    if len(folders) < 2 or not all(path.name.lower() in SPLIT_NAMES_BY_ALIAS for path in folders):
        return {"": root}
    by_split = {SPLIT_NAMES_BY_ALIAS[path.name.lower()]: path for path in folders if has_class_folders(path)}
    labelled = {name: by_split[name] for name in SPLIT_NAMES_BY_ALIAS if name in by_split}  # train, val, test
    names = ", ".join(path.name for path in folders)
    if labelled and len({SPLIT_NAMES_BY_ALIAS[path.name.lower()] for path in folders}) < len(folders):
        raise InputError(f"{root} contains two folders for the same split ({names}): merge or rename them")
    if not labelled:
        raise InputError(
            f"{root} contains the splits {names} without class folders: {suggest_table(root, *folders)}create "
            "folders such as train/CLASS and val/CLASS, or use --class-from REGEX if the file names contain the class"
        )
    return labelled


def _make_image_iterators(root: Path, *, leaf: bool) -> dict[str, Callable[[], Iterator[Path]]]:
    """Return, by class name, a function that iterates over the images of the class, in folders or shards."""
    if find_shards(root):
        return {name: partial(map, Path, paths) for name, paths in find_shard_images_by_class(root, leaf=leaf).items()}
    classes: dict[str, list[Path]] = {}
    for name, path in _find_class_folders(root, leaf=leaf).items():
        classes.setdefault(NUMBERED_SUBFOLDER.sub("", name) if leaf else name, []).append(path)
    return {name: partial(_iter_images_in, paths, recursive=not leaf) for name, paths in classes.items()}


def _iter_images_in(folders: list[Path], *, recursive: bool) -> Iterator[Path]:
    return chain.from_iterable(iter_images(folder, recursive=recursive) for folder in folders)


def _find_class_folders(root: Path, *, leaf: bool) -> dict[str, Path]:
    classes: dict[str, Path] = {}
    by_folded_name: dict[str, Path] = {}
    for path in walk_folders(root) if leaf else list_subfolders(root):
        if path == root or not has_images(path, recursive=not leaf):
            continue
        name = normalize_class_name(path.relative_to(root).as_posix())
        if (other := by_folded_name.setdefault(fold_class_name(name), path)) != path:
            raise InputError(f"{other} and {path} have the same class name ({name!r}): rename or merge them")
        classes[name] = path
    outside = find_root_images(root)
    if outside and not classes:
        raise InputError(
            f"{root} contains {len(outside)} images and no class folders: {suggest_table(root)}create a folder "
            "per class, use --class-from REGEX if the file names contain the class, or "
            f"{format_command('label', root, '--label', 'N')} for one class"
        )
    inside = sum(1 for path in classes.values() for _ in iter_images(path)) if outside else 0
    if len(outside) > MAX_ROOT_IMAGE_FRACTION * inside:
        more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
        raise InputError(
            f"{root} contains images outside the class folders ({', '.join(path.name for path in outside[:3])}{more}): "
            f"move each into the folder of its class, or out of {root}"
        )
    return classes


def _require_folder(root: Path) -> Path:
    with refresh_remote_listings(root):
        if not root.is_dir():
            raise InputError(f"no folder at {root}: check the path")
    return root
