"""From folders to labels, and back: a folder per class."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path
from typing import Protocol

from mlimages.core import InputError, LabeledPath, as_path, install_hint, is_remote, replacing
from mlimages.labels.class_names import ClassNames, with_class
from mlimages.labels.label_file import LabelFile

ROOT = "ROOT"
"""The class of pictures that lie in the folder itself."""

_HEIC = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})

PICTURE_SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc",
    ".fli", ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".im", ".iim", ".j2c", ".j2k", ".jfif", ".jp2",
    ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png",
    ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst",
    ".webp", ".xbm", ".xpm",
}) | (_HEIC if find_spec("pillow_heif") else frozenset())  # fmt: skip
"""File suffixes of the pictures that Pillow opens: by itself, and with pillow-heif if that is installed."""


@dataclass(frozen=True, slots=True)
class FolderLabels:
    """The pictures of a folder of class folders, and what was left out (`name: why`)."""

    labels: LabelFile
    left_out: tuple[str, ...]


def label_dir(folder: str | Path, label: int) -> LabelFile:
    """All pictures at and below `folder` as one class; hidden folders left out.

    Raises:
        InputError: no such folder.
    """
    root = _existing(as_path(folder))
    return LabelFile(
        root / "labels.txt",
        root,
        items=lambda: (LabeledPath(path, label) for path in _pictures(root)),
        class_names=with_class((), label, root.resolve().name),
    )


def label_dir_auto(folder: str | Path, *, leaf: bool = False, class_names: ClassNames | None = None) -> FolderLabels:
    """A class per folder, sorted without regard to case; pictures in `folder` itself form the class ROOT, last.

    Nothing is kept in memory: iterating the labels walks the folders.

    Args:
        folder: holds the class folders.
        leaf: each folder that holds pictures is a class, named by its path (`animals/cats`);
            else nested folders belong to the class folder they lie in.
        class_names: numbers that are fixed already.

    Raises:
        InputError: no such folder, no picture in it, or a folder whose name is not among `class_names`.
    """
    root = _existing(as_path(folder))
    folders = [path for path in (_walk(root) if leaf else _subfolders(root)) if path != root]
    classes = {_class_name(path, root): path for path in folders if _has_pictures(path, deep=not leaf)}
    empty = [f"{_class_name(path, root)}: no pictures" for path in folders if not _has_pictures(path, deep=True)]
    if _has_pictures(root, deep=False):
        classes.setdefault(ROOT, root)
    names = class_names or tuple(classes)
    _demand_known(classes, names, root)
    left_out = (*empty, *_others(root))

    def items() -> Iterator[LabeledPath]:
        for name, path in classes.items():
            label = names.index(name)
            yield from (LabeledPath(found, label) for found in _pictures(path, deep=path != root and not leaf))

    return FolderLabels(LabelFile(root / "labels.txt", root, items=items, class_names=names), left_out)


def lay_out(parts: LabelFile | Mapping[str, LabelFile], folder: str | Path, *, copy: bool = False) -> int:
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


def append(existing: LabelFile, added: LabelFile, *, by_number: bool) -> LabelFile:
    """The pictures of both files, those of `added` that `existing` lists already left out.

    Classes are united by name, or `by_number`: then only a class without a name takes that of `added`.
    """
    new = added.without(item.path for item in existing)
    merged = existing.merge(new)
    if not by_number:
        return merged
    names = existing.defined_class_names
    for number, name in enumerate(added.class_names):
        names = with_class(names, number, name)
    return LabelFile(existing.path, existing.img_root, items=lambda: chain(existing, new), class_names=names)


def _existing(root: Path) -> Path:
    if not root.is_dir():
        raise InputError(f"no folder at {root}")
    return root


def _by_name(path: Path) -> tuple[str, str]:
    return path.name.casefold(), path.name


def _hidden(name: str) -> bool:
    """Folders that are not a person's: .git, .ipynb_checkpoints, what macOS's zip adds, what `check` moved away."""
    return name.startswith(".") or name == "__MACOSX" or name.endswith("_quarantine") or not _can_be_listed(name)


def _subfolders(root: Path) -> list[Path]:
    folders = (_path(entry, root) for entry in _scan(root) if _is_folder(entry) and not _hidden(entry.name))
    return sorted(folders, key=_by_name)


def _walk(root: Path) -> Iterator[Path]:
    """`root` and all folders below it, sorted; links to folders are not followed below the first level."""
    if is_remote(root):
        yield root
        inner = sorted(
            (entry.name for entry in _scan(root) if _is_folder(entry) and not _hidden(entry.name)), key=str.casefold
        )
        yield from chain.from_iterable(_walk(root / name) for name in inner)
        return
    for top, folders, _ in os.walk(root):
        folders[:] = sorted((name for name in folders if not _hidden(name)), key=lambda name: (name.casefold(), name))
        yield Path(top)


def _pictures(root: Path, *, deep: bool = True) -> Iterator[Path]:
    for folder in _walk(root) if deep else [root]:
        files = (_path(entry, folder) for entry in _scan(folder) if _is_picture(entry))
        yield from sorted(files, key=_by_name)


class _Entry(Protocol):
    """As `os.DirEntry`."""

    @property
    def name(self) -> str: ...

    def is_dir(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Listed:
    """An entry of a folder at an address."""

    name: str
    type: str

    def is_dir(self) -> bool:
        return self.type == "directory"


def _scan(folder: Path) -> Iterator[_Entry]:
    if not is_remote(folder):
        yield from os.scandir(folder)
        return
    for found in folder.fs.ls(folder.path, detail=True):  # type: ignore[attr-defined]  # an address is no Path to mypy
        if name := found["name"].removeprefix(folder.path).strip("/"):  # type: ignore[attr-defined]
            yield _Listed(name, found["type"])


def _is_folder(entry: _Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or into a folder without permission
        return False


def _path(entry: _Entry, folder: Path) -> Path:
    return Path(entry.path) if isinstance(entry, os.DirEntry) else folder / entry.name


def _is_picture(entry: _Entry) -> bool:
    return (
        os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122  # a Path per entry is slow
        and not entry.name.startswith(".")
        and not _is_folder(entry)
        and _can_be_listed(entry.name)
    )


def _can_be_listed(name: str) -> bool:
    """No line break, no backslash (read as a slash), valid UTF-8: else a label file could not hold it."""
    return not any(char in "\n\r\\" or "\ud800" <= char <= "\udfff" for char in name)


def _has_pictures(folder: Path, *, deep: bool) -> bool:
    return next(_pictures(folder, deep=deep), None) is not None


def _class_name(folder: Path, root: Path) -> str:
    return " ".join(folder.relative_to(root).as_posix().split())


def _demand_known(classes: Iterable[str], names: ClassNames, root: Path) -> None:
    if not classes:
        found = "".join(f"; {text}" for text in _others(root))
        raise InputError(f"no pictures in {root}: expected a folder per class with pictures in it{found}")
    unknown = [name for name in classes if name not in names]
    if unknown:
        known = ", ".join(names[:10])
        raise InputError(
            f"{root / unknown[0]}: its name is not one of the {len(names)} classes ({known}): "
            "rename the folder or add a line to the class definition"
        )


def _others(root: Path) -> list[str]:
    """What is passed over, counted: folders by name, files that are no pictures by suffix."""
    others: Counter[tuple[str, str]] = Counter()
    for folder in _walk(root):
        for entry in _scan(folder):
            if not _can_be_listed(entry.name):
                others["names that no label file can hold", ""] += 1
            elif _is_folder(entry):
                if _hidden(entry.name):
                    others["folders hidden or of a tool", entry.name] += 1
                elif not (is_remote(folder) or os.access(_path(entry, folder), os.R_OK | os.X_OK)):
                    others["folders without permission", entry.name] += 1
            elif folder != root and not _is_picture(entry):
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                others["files that are no pictures", suffix or "no suffix"] += 1
    advice = dict.fromkeys(_HEIC, f" (`{install_hint('heic')}` opens them)")
    return [f"{kind}: {count} {what}{advice.get(what, '')}".strip() for (kind, what), count in sorted(others.items())]
