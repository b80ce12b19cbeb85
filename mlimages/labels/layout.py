"""Link or copy the images of a label file into class folders, under unique names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from mlimages.core import InputError, LabeledPath, is_member, is_remote, local_path, read_file, replacing
from mlimages.labels.label_file import LabelFile
from mlimages.labels.tables import SHOWN


def write_class_folders(
    parts: LabelFile | Mapping[str, LabelFile], folder: str | os.PathLike[str], *, copy: bool = False
) -> int:
    """Link the images as `folder/CLASS/NAME`, or copy them; return their number.

    If `parts` maps names to label files, each gets a folder: `folder/PART/CLASS/NAME`. If images have the same name,
    `_2`, `_3` ... is appended to the later ones. Existing files of the same labels are kept.

    Raises:
        InputError: `folder` holds other files, or the images have any number of classes.
    """
    named = {"": parts} if isinstance(parts, LabelFile) else parts
    for part in named.values():
        if part.is_multi_label:
            raise InputError(f"{part.path} is a multi-label file: class folders require one class per image")
    root = local_path(folder)
    targets = {
        target: item.path for name, part in named.items() for target, item in _choose_target_paths(part, root / name)
    }
    others = sorted(set(_find_files(root)) - set(targets)) if root.exists() else []
    others += [target for target, source in targets.items() if not _is_free_or_same(source, target)]
    if others:
        raise InputError(
            f"{root} contains {len(others)} files that do not belong to these labels ({others[0]}): use an empty folder"
        )
    for target, source in targets.items():
        _link_or_copy(source, target, copy=copy)
    return len(targets)


def folder_names(class_names: Sequence[str], *, max_length: int = 120) -> tuple[str, ...]:
    """Return a folder name for each class: no separators, at most `max_length` letters, unique on any file system."""
    taken: set[str] = set()
    return tuple(
        _unique_name(name.replace("/", "_").replace("\\", "_").lstrip(".").rstrip(". ")[:max_length] or "_", taken)
        for name in class_names
    )


def describe_renamed(class_names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Return a line on the classes whose folder has another name; none if all folders are named as the classes."""
    renamed = [f"{name} as {folder}" for name, folder in zip(class_names, folders, strict=True) if name != folder]
    more = " ..." * (len(renamed) > SHOWN)
    text = f"folders whose name differs from the class name: {', '.join(renamed[:SHOWN])}{more}"
    return [text] if renamed else []


def _unique_name(name: str, used_names: set[str]) -> str:
    """Append `_2`, `_3` ... to `name` if it is used; add the result to `used_names`."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    for number in count(1):
        found = name if number == 1 else f"{stem}_{number}{suffix}"
        if (key := unicodedata.normalize("NFC", found).casefold()) not in used_names:
            used_names.add(key)
            return found
    raise AssertionError


def _choose_target_paths(labels: LabelFile, folder: Path) -> Iterator[tuple[Path, LabeledPath]]:
    names = folder_names(labels.class_names)
    taken: dict[int, set[str]] = {}
    for item in labels:
        yield folder / names[item.label] / _unique_name(item.path.name, taken.setdefault(item.label, set())), item


def _find_files(folder: Path) -> Iterator[Path]:
    for top, _, names in os.walk(folder):
        yield from (Path(top, name) for name in names if not name.startswith("."))


def _is_free_or_same(image: Path, target: Path) -> bool:
    """Whether `target` does not exist or is the same image."""
    if not os.path.lexists(target):
        return True
    if target.is_symlink():
        return os.path.realpath(target) == os.path.realpath(image)
    return target.is_file() and target.read_bytes() == read_file(image)


def _link_or_copy(image: Path, target: Path, *, copy: bool) -> None:
    if os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy or is_remote(image) or is_member(image):
        with replacing(target) as part:
            part.write_bytes(read_file(image))
    else:
        target.symlink_to(image.resolve())
