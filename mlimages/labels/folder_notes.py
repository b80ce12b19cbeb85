"""Describe the files and folders of a dataset that are not used as class folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from mlimages.core import InputError, format_command, format_examples, is_remote, list_written_files
from mlimages.labels.scanning import (
    can_list_folder,
    describe_skipped_entries,
    has_images,
    iter_images,
    list_subfolders,
    normalize_class_name,
    walk_folders,
)

NUMBERED_SUBFOLDER = re.compile(r"/part-\d{4,}$")
"""Matches the path of a subfolder of a class that `gather --subfolders` creates."""

_SHARD_MANIFEST = re.compile(r"manifest-(\d{5})-of-(\d{5})\.jsonl")
"""Matches the name of a manifest that `gather --shard` writes."""


def find_root_images(root: Path) -> list[Path]:
    """Return the images directly in a folder."""
    return list(iter_images(root, recursive=False))


def describe_skipped_split_entries(split_folder: Path, root: Path, *, leaf: bool) -> list[str]:
    """Return a line about each class folder without images, and about each image outside the class folders.

    With `leaf`, folders at any depth are class folders.
    """
    folders = walk_folders(split_folder) if leaf else list_subfolders(split_folder)
    empty = [
        f"{normalize_class_name(path.relative_to(root).as_posix())}: no images"
        for path in folders
        if path != split_folder and can_list_folder(path) and not has_images(path, recursive=True)
    ]
    outside = find_root_images(split_folder)
    return empty + [f"{path.relative_to(root).as_posix()}: outside the class folders" for path in outside]


def describe_class_root(root: Path, source: Path) -> list[str]:
    """Return lines about `root`, a folder inside `source` in which the class folders were found.

    The first line names `root`; the others are about skipped entries beside `root`, or beside its parent folders.
    """
    inner = root.relative_to(source)
    notes = [f"{inner.as_posix()}: not a class folder; its subfolders are the classes"]
    for wrapper in (source / parent for parent in inner.parents):
        notes += describe_skipped_split_entries(wrapper, source, leaf=False)
        notes += describe_skipped_entries(wrapper, recursive=False)
    return notes


def describe_nested_folders(class_folders: Sequence[Path], root: Path) -> str:
    """Return a warning about images in subfolders of class folders; "" if there are none.

    Such a subfolder may be the actual class, as `cats` is in `animals/cats/1.jpg`.
    """
    nested: list[str] = []
    parents_by_name: dict[str, set[Path]] = {}
    for class_folder in class_folders:
        for path in walk_folders(class_folder):
            if path == class_folder or NUMBERED_SUBFOLDER.search(str(path)) or not has_images(path, recursive=False):
                continue
            nested.append(path.relative_to(root).as_posix())
            parents_by_name.setdefault(path.name, set()).add(class_folder)
    if not nested:
        return ""
    text = f"images in nested folders belong to the class folder that contains them ({format_examples(nested)})"
    if len(class_folders) > 1 and all(len(parents) == len(class_folders) for parents in parents_by_name.values()):
        return (
            f"{text}. Every class folder has the same subfolders; if these are the classes, use --class-from "
            "'([^/]+)/[^/]+$' (subfolders of the same name are one class) or --leaf (each subfolder is a class)"
        )
    return f"{text}; --leaf makes each folder a class"


def describe_entries_outside_splits(root: Path, split_folders: set[Path]) -> list[str]:
    """Return a line about each image and folder beside the splits' folders, such as a test set without classes."""
    images = [f"{path.name}: outside the folders train, val and test" for path in find_root_images(root)]
    folders = [path for path in list_subfolders(root) if path not in split_folders]
    return images + [
        f"{path.name}: {sum(1 for _ in iter_images(path))} images without class folders" for path in folders
    ]


def describe_tables_and_missing_shards(root: Path) -> Iterator[str]:
    """Yield lines about tables in a local folder, which are not read, and about shards that are not gathered yet."""
    for table in find_tables(root):
        yield f"{table.name}: not read, since the folders are the classes; to read it: {format_command('label', table)}"
    names = [] if is_remote(root) else [path.name for path in root.glob("manifest-*.jsonl")]
    shards = [tuple(map(int, found.groups())) for name in names if (found := _SHARD_MANIFEST.fullmatch(name))]
    for count in sorted({count for _, count in shards}):
        if missing := [str(n) for n in range(1, count + 1) if (n, count) not in shards]:
            yield (
                f"shards {format_examples(missing)} of {count}: not gathered yet; the gather command without --shard "
                "merges the shards and downloads the images that are missing"
            )


def find_tables(root: Path) -> list[Path]:
    """Return the tables in a local folder, without those that mlimages wrote; none if `gather` wrote the folder."""
    if is_remote(root) or (root / "manifest.jsonl").exists():
        return []
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv", ".jsonl"))
    written = list_written_files(root) if tables else set()
    return [path for path in tables if path.name not in written and not _SHARD_MANIFEST.fullmatch(path.name)]


def make_no_images_error(root: Path, *, is_class_folder: bool) -> InputError:
    """Return the error for a folder without images, which lists the skipped entries."""
    expected = "images in it or in its subfolders" if is_class_folder else "a folder per class with images in it"
    skipped = "".join(f"; {text}" for text in describe_skipped_entries(root, is_class_folder=is_class_folder))
    return InputError(f"no images in {root}: expected {expected}{skipped}")


def suggest_table(*folders: Path) -> str:
    """Return a hint to use a table in these folders, preferably that of the training set; "" if there are no tables."""
    tables = sorted(chain.from_iterable(map(find_tables, folders)), key=lambda table: "train" not in str(table))
    return f"label the images by a table ({format_command('label', tables[0], '-o', 'labels.txt')}), " if tables else ""
