"""From a label file to folders: an image by its class, under a name that hides no other."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from mlimages.core import InputError, LabeledPath, is_remote, replacing
from mlimages.labels.label_file import LabelFile


def lay_out(parts: LabelFile | Mapping[str, LabelFile], folder: str | os.PathLike[str], *, copy: bool = False) -> int:
    """Lay the images out as `folder/CLASS/NAME`, as links to the originals or as copies; return the count.

    Of several `parts` by name each gets a folder: `folder/PART/CLASS/NAME`. Of images with the same name the later
    ones get `_2`, `_3` ...; what lies there already from the same labels stays.

    Raises:
        InputError: `folder` holds other files.
    """
    named = {"": parts} if isinstance(parts, LabelFile) else parts
    root = Path(folder)
    targets = {target: item.path for name, part in named.items() for target, item in _laid_out(part, root / name)}
    strangers = sorted(set(_files(root)) - set(targets)) if root.exists() else []
    strangers += [target for target, source in targets.items() if not _may_place(source, target)]
    if strangers:
        raise InputError(
            f"{root} holds {len(strangers)} files that are not of these labels ({strangers[0]}): name an empty folder"
        )
    for target, source in targets.items():
        _place(source, target, copy=copy)
    return len(targets)


def folder_names(class_names: Sequence[str], *, longest: int = 120) -> tuple[str, ...]:
    """A folder name for each class: without separators, cut at `longest` letters, and no two the same on any disk."""
    taken: set[str] = set()
    return tuple(
        _free(name.replace("/", "_").replace("\\", "_").lstrip(".").rstrip(". ")[:longest] or "_", taken)
        for name in class_names
    )


def _free(name: str, taken: set[str]) -> str:
    """`name`, or with `_2`, `_3` ... the first that is not taken; it is then."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    for number in count(1):
        found = name if number == 1 else f"{stem}_{number}{suffix}"
        if (key := unicodedata.normalize("NFC", found).casefold()) not in taken:
            taken.add(key)
            return found
    raise AssertionError


def _laid_out(labels: LabelFile, folder: Path) -> Iterator[tuple[Path, LabeledPath]]:
    names = folder_names(labels.class_names)
    taken: dict[int, set[str]] = {}
    for item in labels:
        yield folder / names[item.label] / _free(item.path.name, taken.setdefault(item.label, set())), item


def _files(folder: Path) -> Iterator[Path]:
    for top, _, names in os.walk(folder):
        yield from (Path(top, name) for name in names if not name.startswith("."))


def _may_place(image: Path, target: Path) -> bool:
    """Nothing there, or the same image."""
    if not os.path.lexists(target):
        return True
    if target.is_symlink():
        return os.path.realpath(target) == os.path.realpath(image)
    return target.is_file() and target.read_bytes() == image.read_bytes()


def _place(image: Path, target: Path, *, copy: bool) -> None:
    if os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy or is_remote(image):
        with replacing(target) as part:
            part.write_bytes(image.read_bytes())
    else:
        target.symlink_to(image.resolve())
