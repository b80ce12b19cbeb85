"""Describe what is in a folder beside the images of its classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from mlimages.core import command, is_remote, written_names
from mlimages.labels.scanning import clean_name, has_images, is_listable_folder, iter_images, list_subfolders, walk
from mlimages.labels.tables import SHOWN

NUMBERED = re.compile(r"/part-\d{4,}$")
"""Matches the subfolders of a class that `gather --subfolders` creates."""


def find_loose_images(root: Path) -> list[Path]:
    """Return the images in the folder itself, without those that mlimages wrote (a mean image, a contact sheet)."""
    images = list(iter_images(root, recursive=False))
    ours = written_names(root) if images else set()
    return [path for path in images if path.name not in ours]


def describe_skipped(part_folder: Path, root: Path, *, leaf: bool) -> list[str]:
    """Describe what is skipped in a split: class folders without images, and images outside the class folders."""
    folders = [path for path in (walk(part_folder) if leaf else list_subfolders(part_folder)) if path != part_folder]
    empty = [f"{clean_name(path.relative_to(root).as_posix())}: no images" for path in folders
             if is_listable_folder(path) and not has_images(path, recursive=True)]  # fmt: skip
    return [
        *empty,
        *(f"{path.relative_to(root).as_posix()}: beside the class folders" for path in find_loose_images(part_folder)),
    ]


def describe_nested(class_folders: Sequence[Path], root: Path) -> str:
    """Describe the folders with images inside class folders, which may be the classes."""
    inner = [
        (of, path)
        for of in class_folders
        for path in walk(of)
        if path != of and has_images(path, recursive=False) and not NUMBERED.search(str(path))
    ]
    names = [path.relative_to(root).as_posix() for _, path in inner]
    shown = ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
    tops: dict[str, set[Path]] = {}
    for top, path in inner:
        tops.setdefault(path.name, set()).add(top)
    if len(class_folders) > 1 and tops and all(len(found) == len(class_folders) for found in tops.values()):
        return (
            f"{shown}: read as part of the class folder; every class folder has the same subfolders: if the subfolders "
            "are the classes, use --class-from '([^/]+)/[^/]+$' (a class per name) or --leaf (a class per subfolder)"
        )
    return f"{shown}: read as part of the class folder (with --leaf, as classes)" if inner else ""


def describe_other_entries(root: Path, part_folders: set[Path]) -> list[str]:
    """Describe the entries beside the folders of the splits, such as a test set without classes."""
    loose = [f"{path.name}: beside the folders train, val and test" for path in find_loose_images(root)]
    others = [path for path in list_subfolders(root) if path not in part_folders]
    return loose + [f"{path.name}: {sum(1 for _ in iter_images(path))} images without class folders" for path in others]


def find_tables(root: Path) -> list[Path]:
    """Return the tables in a local folder, without those that mlimages wrote."""
    if is_remote(root) or (root / "manifest.jsonl").exists():
        return []
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv", ".jsonl"))
    ours = written_names(root) if tables else set()
    return [path for path in tables if path.name not in ours]


def table_hint(*folders: Path) -> str:
    """Return what to do with the first table in these folders, of the training set if one is so named; "" for none."""
    tables = sorted(chain.from_iterable(map(find_tables, folders)), key=lambda table: "train" not in str(table))
    return f"label it by its table ({command('label', tables[0], '-o', 'labels.txt')}), " if tables else ""
