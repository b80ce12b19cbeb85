"""Scan folders, local or remote, for images, subfolders and entries that are skipped."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from mlimages.core import RECORDS_FILE_NAME, escape_unprintable, is_remote, list_written_files, make_install_command

_HEIC_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})

MISSING_IMAGES_ADVICE = "paths are relative to the label file's folder; use --images DIR for another folder"

IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc",
    ".fli", ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".im", ".iim", ".j2c", ".j2k", ".jfif", ".jp2",
    ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png",
    ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst",
    ".webp", ".xbm", ".xpm",
}) | (_HEIC_SUFFIXES if find_spec("pillow_heif") else frozenset())  # fmt: skip
"""File suffixes of the images that Pillow opens, and pillow-heif if it is installed."""


_TOOL_FOLDERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


SPLIT_NAMES_BY_ALIAS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Split names by alias: `validation` means `val`. A folder with such a name contains a split, not a class."""


def make_path_resolver() -> Callable[[str], str]:
    """Return a function that resolves the symbolic links in the folder of a path, but not a link to the file itself.

    The resolved folders are cached.
    """
    resolve_folder = cache(os.path.realpath)

    def resolve(path: str) -> str:
        folder, name = os.path.split(path)
        return path if is_remote(path) else os.path.join(resolve_folder(folder), name)  # noqa: PTH118  # texts

    return resolve


def natural_sort_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that orders 2 before 10 and ignores case."""
    pieces = re.split(r"([0-9]+)", name.casefold())  # text and digits alternate
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], name


def is_skipped_folder(name: str) -> bool:
    """Whether a folder is skipped by its name: hidden, created by a tool (such as __MACOSX), a quarantine folder of
    `check`, or with a name that a label file cannot contain."""
    return name.startswith(".") or name in _TOOL_FOLDERS or name.endswith("_quarantine") or not is_valid_name(name)


def normalize_class_name(name: str) -> str:
    """Collapse white space in a class name to single spaces and normalize it to Unicode form NFC."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def fold_class_name(name: str) -> str:
    """Return a key that is equal for names that differ only in case, in invisible characters or in repeated spaces."""
    visible = (char for char in name if unicodedata.category(char) != "Cf")
    return normalize_class_name("".join(visible)).casefold()


def list_subfolders(root: Path) -> list[Path]:
    """Return the subfolders that are not skipped, in natural order."""
    folders = (root / name for name, is_folder in iter_entries(root) if is_folder and not is_skipped_folder(name))
    return sorted(
        (path for path in folders if not _links_to_ancestor(path, root)), key=lambda path: natural_sort_key(path.name)
    )


def _links_to_ancestor(path: Path, *folders: Path) -> bool:
    """Whether `path` is a link to one of the folders or to one of their parent folders."""
    if is_remote(path) or not path.is_symlink():
        return False
    target = path.resolve()
    return any(folder.resolve().is_relative_to(target) for folder in folders)


def walk_folders(root: Path, *, is_skipped: Callable[[str], bool] = is_skipped_folder) -> Iterator[Path]:
    """Yield `root` and all folders below it in natural order, each once; folders behind links come last.

    A link is not followed if its target contains `root` or the link itself.

    Args:
        root: the folder.
        is_skipped: whether a local folder of this name is skipped; for remote folders, `is_skipped_folder` is used.
    """
    if is_remote(root):
        yield root
        yield from chain.from_iterable(map(walk_folders, list_subfolders(root)))
        return
    walked: set[str] = set()
    links = deque([root])
    while links:
        for top, names, _ in os.walk(links.popleft()):
            if (real_path := os.path.realpath(top)) in walked:
                names.clear()
                continue
            walked.add(real_path)
            folder = Path(top)
            names[:] = sorted((name for name in names if not is_skipped(name)), key=natural_sort_key)
            inner_links = (path for path in (folder / name for name in names) if path.is_symlink())
            links.extend(path for path in inner_links if not _creates_cycle(path, folder, root))
            yield folder


def _creates_cycle(path: Path, folder: Path, root: Path) -> bool:
    """Whether `path`, an entry of `folder`, is a link to a folder that contains `folder` or `root`."""
    return _links_to_ancestor(path, folder, root, root.absolute().parent)


def iter_images(root: Path, *, recursive: bool = True) -> Iterator[Path]:
    """Yield the images in a folder and, if `recursive`, in its subfolders, selected by suffix, in natural order.

    Images that mlimages wrote, such as a mean image or a contact sheet, are skipped.
    """
    for folder in walk_folders(root) if recursive else [root]:
        names = [name for name, is_folder in iter_entries(folder) if not is_folder]
        images = set(filter(is_image_name, names)) - list_skipped_outputs(folder, names)
        yield from (folder / name for name in sorted(images, key=natural_sort_key))


def list_skipped_outputs(folder: Path, file_names: Collection[str]) -> set[str]:
    """Return the names of the files in a folder that are skipped because mlimages wrote them.

    `file_names` are the names of all files in the folder.
    """
    return list_written_files(folder).intersection(file_names) if RECORDS_FILE_NAME in file_names else set()


def _is_broken_link(path: Path) -> bool:
    return not is_remote(path) and path.is_symlink() and not os.path.exists(path)  # noqa: PTH110  # no OSError


def list_entry_names(folder: Path) -> list[str]:
    """Return the names of the files and subfolders in a folder."""
    return [name for name, _ in iter_entries(folder)]


def iter_entries(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the name of each file and subfolder in a folder, and whether it is a subfolder."""
    if is_remote(folder):
        for entry in folder.fs.ls(folder.path, detail=True):  # type: ignore[attr-defined]  # mypy sees a Path
            if name := entry["name"].removeprefix(folder.path).strip("/"):  # type: ignore[attr-defined]
                yield name, entry["type"] == "directory"
        return
    for entry in os.scandir(folder):
        is_folder = False
        with suppress(OSError):  # a circular link, or a folder without permission
            is_folder = entry.is_dir()
        yield entry.name, is_folder


def is_image_name(name: str) -> bool:
    """Whether a file name is that of an image: with an image suffix, not hidden, and allowed in a label file."""
    suffix = os.path.splitext(name)[1]  # noqa: PTH122  # a Path per entry is slow
    return suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and is_valid_name(name)


def is_valid_name(name: str) -> bool:
    """Whether a label file can contain the name: no line break, no backslash (read as a slash), valid UTF-8."""
    return not any(char in "\n\r\\" or "\ud800" <= char <= "\udfff" for char in name)


def can_list_folder(folder: Path) -> bool:
    """Whether the permissions allow listing a local folder; true for a remote folder, whose permissions are unknown."""
    return is_remote(folder) or os.access(folder, os.R_OK | os.X_OK)


def has_images(folder: Path, *, recursive: bool) -> bool:
    """Whether `iter_images` yields an image."""
    return next(iter_images(folder, recursive=recursive), None) is not None


def describe_skipped_entries(root: Path, *, is_class_folder: bool = False, recursive: bool = True) -> list[str]:
    """Return a line per reason for which files or folders in `root` are skipped: `links to a parent folder: 1 all`.

    Args:
        root: the folder.
        is_class_folder: whether `root` itself contains the images of a class. If not, files in it that are not images
            are not reported; those in its subfolders are.
        recursive: whether the contents of subfolders are reported, too.
    """
    skipped: Counter[tuple[str, str]] = Counter()
    for folder in walk_folders(root) if recursive else [root]:
        is_in_class, entries = is_class_folder or folder != root, list(iter_entries(folder))
        outputs = list_skipped_outputs(folder, [name for name, _ in entries])
        for name, is_folder in entries:
            if not is_valid_name(name) and is_folder:
                skipped["folders whose names a label file cannot contain (rename them)", escape_unprintable(name)] += 1
            elif not is_valid_name(name):
                skipped["file names that a label file cannot contain", ""] += 1
            elif is_folder:
                if _creates_cycle(folder / name, folder, root):
                    skipped["links to a parent folder", name] += 1
                elif is_skipped_folder(name):
                    skipped["hidden folders and folders created by tools", name] += 1
                elif not can_list_folder(folder / name):
                    skipped["folders without read permission", name] += 1
            elif not is_image_name(name) and _is_broken_link(folder / name):
                skipped["links to files or folders that do not exist", name] += 1
            elif is_in_class and name in outputs and is_image_name(name):
                skipped["images that mlimages wrote", ""] += 1
            elif is_in_class and not name.startswith(".") and not is_image_name(name):
                suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
                skipped["files whose suffix is not that of an image", suffix or "without a suffix"] += 1
    hints = dict.fromkeys(_HEIC_SUFFIXES, f" (`{make_install_command('heic')}` adds support)")
    by_reason: dict[str, list[str]] = {}
    for (reason, name), count in sorted(skipped.items()):
        by_reason.setdefault(reason, []).append(f"{count} {name}{hints.get(name, '')}".strip())
    return [f"{reason}: {', '.join(texts)}" for reason, texts in by_reason.items()]
