"""Scan folders, local or remote, for images, subfolders and entries that are skipped."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Protocol

from mlimages.core import install_hint, is_remote, printable

_HEIC = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})

MISSING_ADVICE = "paths are relative to the label file's folder; use --images DIR for another folder"

IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc",
    ".fli", ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".im", ".iim", ".j2c", ".j2k", ".jfif", ".jp2",
    ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png",
    ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst",
    ".webp", ".xbm", ".xpm",
}) | (_HEIC if find_spec("pillow_heif") else frozenset())  # fmt: skip
"""File suffixes of the images that Pillow opens, and pillow-heif if it is installed."""


_JUNK = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of the parts of a dataset, as folders, which then are not classes, and as cells in a column of a table."""


class RealPaths:
    """Resolves links to folders in paths; each folder is resolved once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __getitem__(self, path: str) -> str:
        if is_remote(path):
            return path
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)  # noqa: PTH118  # texts


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that orders 2 before 10 and ignores case."""
    pieces = re.split(r"([0-9]+)", name.casefold())  # text and digits alternate
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], name


def is_skipped_folder(name: str) -> bool:
    """Return whether a folder of this name is skipped: a hidden folder, a tool's (.ipynb_checkpoints, __MACOSX), the
    quarantine of `check`, or one whose name a label file cannot contain."""
    return name.startswith(".") or name in _JUNK or name.endswith("_quarantine") or not can_be_listed(name)


def clean_name(name: str) -> str:
    """Normalize a class name: white space that a label file can hold, and Unicode's composed form."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def list_subfolders(root: Path) -> list[Path]:
    """Return the folders in a folder, without those of tools, in natural order."""
    folders = (
        _entry_path(entry, root) for entry in _scan(root) if _is_folder(entry) and not is_skipped_folder(entry.name)
    )
    folders = (path for path in folders if not _links_to_ancestor(path, root))
    return sorted(folders, key=lambda path: natural_key(path.name))


def _links_to_ancestor(path: Path, folder: Path) -> bool:
    """Whether `path`, a folder in `folder`, is a link to `folder` or to one above it."""
    return not is_remote(path) and path.is_symlink() and folder.resolve().is_relative_to(path.resolve())


def walk(root: Path) -> Iterator[Path]:
    """Yield `root` and all folders below it, sorted; links to folders are followed only on the first level."""
    if is_remote(root):
        yield root
        inner = sorted(
            (entry.name for entry in _scan(root) if _is_folder(entry) and not is_skipped_folder(entry.name)),
            key=natural_key,
        )
        yield from chain.from_iterable(walk(root / name) for name in inner)
        return
    for top, folders, _ in os.walk(root):
        folders[:] = sorted((name for name in folders if not is_skipped_folder(name)), key=natural_key)
        yield Path(top)


def iter_images(root: Path, *, recursive: bool = True) -> Iterator[Path]:
    """Yield the images in a folder and, if `recursive`, below it, selected by suffix, in natural order."""
    for folder in walk(root) if recursive else [root]:
        files = (_entry_path(entry, folder) for entry in _scan(folder) if _is_image(entry))
        yield from sorted(files, key=lambda path: natural_key(path.name))


def list_names(folder: Path) -> list[str]:
    """Return the names of the entries of a folder."""
    return [entry.name for entry in _scan(folder)]


class _Entry(Protocol):
    """The part of `os.DirEntry` that is used."""

    @property
    def name(self) -> str: ...

    def is_dir(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _RemoteEntry:
    """An entry of a remote folder."""

    name: str
    type: str

    def is_dir(self) -> bool:
        return self.type == "directory"


def _scan(folder: Path) -> Iterator[_Entry]:
    if not is_remote(folder):
        yield from os.scandir(folder)
        return
    for found in folder.fs.ls(folder.path, detail=True):  # type: ignore[attr-defined]  # mypy sees a Path
        if name := found["name"].removeprefix(folder.path).strip("/"):  # type: ignore[attr-defined]
            yield _RemoteEntry(name, found["type"])


def _is_folder(entry: _Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link, or a folder without permission
        return False


def _entry_path(entry: _Entry, folder: Path) -> Path:
    return Path(entry.path) if isinstance(entry, os.DirEntry) else folder / entry.name


def _is_image(entry: _Entry) -> bool:
    return is_image_name(entry.name) and not _is_folder(entry)


def is_image_name(name: str) -> bool:
    """Return whether a file name is that of an image: with an image suffix, not hidden, and allowed in a label file."""
    suffix = os.path.splitext(name)[1]  # noqa: PTH122  # a Path per entry is slow
    return suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and can_be_listed(name)


def can_be_listed(name: str) -> bool:
    """Whether a label file can hold the name: no line break, no backslash (read as a slash), valid UTF-8."""
    return not any(char in "\n\r\\" or "\ud800" <= char <= "\udfff" for char in name)


def is_listable_folder(folder: Path) -> bool:
    """Whether the permissions allow listing a folder; of a remote folder, they are not known."""
    return is_remote(folder) or os.access(folder, os.R_OK | os.X_OK)


def has_images(folder: Path, *, recursive: bool) -> bool:
    """Whether `iter_images` yields an image."""
    return next(iter_images(folder, recursive=recursive), None) is not None


def describe_skipped_entries(root: Path, *, is_class_folder: bool = False) -> list[str]:
    """Count the skipped entries: folders by name, files that are not images by suffix.

    Args:
        is_class_folder: `root` is the folder of a class; otherwise files in it that are not images are not counted.
    """
    others: Counter[tuple[str, str]] = Counter()
    for folder in walk(root):
        for entry in _scan(folder):
            if not can_be_listed(entry.name) and _is_folder(entry):
                others["folders whose names a label file cannot contain (rename them)", printable(entry.name)] += 1
            elif not can_be_listed(entry.name):
                others["names that a label file cannot contain", ""] += 1
            elif _is_folder(entry):
                if _links_to_ancestor(_entry_path(entry, folder), folder):
                    others["links to a folder above", entry.name] += 1
                elif is_skipped_folder(entry.name):
                    others["hidden folders and folders of tools", entry.name] += 1
                elif not is_listable_folder(_entry_path(entry, folder)):
                    others["folders without permission", entry.name] += 1
            elif (is_class_folder or folder != root) and not entry.name.startswith(".") and not _is_image(entry):
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                others["files that are not images", suffix or "no suffix"] += 1
    advice = dict.fromkeys(_HEIC, f" (`{install_hint('heic')}` adds support)")
    texts = {each: f"{count} {each[1]}{advice.get(each[1], '')}".strip() for each, count in sorted(others.items())}
    kinds = dict.fromkeys(kind for kind, _ in texts)
    return [f"{kind}: {', '.join(text for each, text in texts.items() if each[0] == kind)}" for kind in kinds]
