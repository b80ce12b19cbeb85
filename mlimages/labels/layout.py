"""Link or copy the images of a label file into class folders."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path

from mlimages.core import (
    InputError,
    as_path,
    atomic_write,
    format_examples,
    is_member_path,
    is_remote,
    pluralize,
    read_file,
    require_local_path,
)
from mlimages.labels.folder_notes import NUMBERED_SUBFOLDER
from mlimages.labels.label_file import LabelFile
from mlimages.labels.scanning import normalize_class_name
from mlimages.labels.shards import is_shard

_MAX_NAME_BYTES = 240
"""Maximum length of a folder name without a suffix such as `_2`; most file systems allow 255 bytes in total."""


def write_class_folders(
    labels: LabelFile | Mapping[str, LabelFile], folder: str | os.PathLike[str], *, copy: bool = False
) -> int:
    """Link or copy images into class folders, `folder/CLASS/NAME`; return the number of images.

    If several images of a class have the same name, `_2`, `_3` ... is appended to all but the first. Links and copies
    that an earlier call created for the same images are kept; with `copy`, such links are replaced by copies.

    Args:
        labels: a label file, or label files by split for `folder/SPLIT/CLASS/NAME`.
        copy: copy the images instead of linking them. Remote images and images in shards are always copied.

    Raises:
        InputError: `folder` contains a file that is not one of these images or, with `copy`, a link that this function
            did not create; or a label file is multi-label.
    """
    splits = {"": labels} if isinstance(labels, LabelFile) else labels
    for file in splits.values():
        if file.is_multi_label:
            raise InputError(f"{file.path} is a multi-label file: class folders require one class per image")
    root = require_local_path(folder)
    targets = {
        target: source for name, file in splits.items() for target, source in _choose_target_paths(file, root / name)
    }
    found = {Path(top, name) for top, _, names in os.walk(root) for name in names if not name.startswith(".")}
    others = sorted(found - set(targets))
    others += [target for target, source in targets.items() if not _can_place_image(source, target, copy=copy)]
    if others:
        raise InputError(
            f"{root} contains {pluralize(len(others), 'other file')}, such as {others[0]}: use an empty folder"
        )
    for target, source in targets.items():
        _link_or_copy(source, target, copy=copy)
    return len(targets)


def require_outside_dataset(folder: str | os.PathLike[str], *sources: LabelFile | str | os.PathLike[str]) -> None:
    """Check that a folder for images is outside the datasets that a command reads.

    Otherwise, the next scan of a dataset would read these images as part of it.

    Args:
        folder: the folder to which images are written.
        sources: what the command reads: folders, which are datasets; label files (LabelFile), whose images may be in
            the class folders of a dataset; and paths of files, which are ignored.

    Raises:
        InputError: `folder` is a dataset, or inside it.
    """
    out = require_local_path(folder).resolve()
    for source in sources:
        for root in _find_class_roots(source) if isinstance(source, LabelFile) else {as_path(source)}:
            root = root.parent if is_shard(root) else root
            if not is_remote(root) and root.is_dir() and out.is_relative_to(root.resolve()):
                raise InputError(
                    f"{folder} is the dataset {root}, or inside it, where its images would later be read as part of "
                    f"the dataset: choose a folder outside {root}"
                )


def _find_class_roots(labels: LabelFile) -> set[Path]:
    """Return the folders that contain class folders: `data`, for an image `data/cats/1.jpg` of the class `cats`."""
    names = labels.class_names
    folders = {(os.path.dirname(path), label) for path, label in labels.text_items()}  # noqa: PTH120  # texts
    classes = (
        (as_path(NUMBERED_SUBFOLDER.sub("", folder) or "."), names[index])
        for folder, label in folders
        for index in (label if isinstance(label, tuple) else (label,))
    )
    return {
        folder.parents[name.count("/")]
        for folder, name in classes
        if "/".join(map(normalize_class_name, ("", *folder.parts))).endswith(f"/{name}")
    }


def make_folder_names(class_names: Sequence[str], *, max_length: int = 120) -> tuple[str, ...]:
    """Return a unique folder name for each class, without slashes, leading dots, and trailing dots and spaces.

    Args:
        class_names: class names by class index.
        max_length: maximum number of characters, not counting a suffix such as `_2` that makes the name unique. Names
            of more than 240 bytes are cut, too.
    """
    used: set[str] = set()
    shortened = (name.replace("/", "_").replace("\\", "_").lstrip(".")[:max_length] for name in class_names)
    cut = (name.encode(errors="ignore")[:_MAX_NAME_BYTES].decode(errors="ignore") for name in shortened)
    return tuple(_make_unique(name.rstrip(". ") or "_", used) for name in cut)


def describe_renamed_folders(class_names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Return a list with one line about all classes whose folder has another name; an empty list for none."""
    renamed = [f"{name} as {folder}" for name, folder in zip(class_names, folders, strict=True) if name != folder]
    return [f"folders whose name differs from the class name: {format_examples(renamed)}"] if renamed else []


def _make_unique(name: str, used_names: set[str]) -> str:
    """Return `name`, with `_2`, `_3` ... before its suffix if it is already used; add the result to `used_names`."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    candidates = chain([name], (f"{stem}_{number}{suffix}" for number in count(2)))
    keys = ((unicodedata.normalize("NFC", candidate).casefold(), candidate) for candidate in candidates)
    key, unique = next((key, candidate) for key, candidate in keys if key not in used_names)
    used_names.add(key)
    return unique


def _choose_target_paths(labels: LabelFile, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield, for each image, the path of its link or copy in a class folder, and the path of the image."""
    names = make_folder_names(labels.class_names)
    used: dict[int, set[str]] = {}
    for item in labels:
        yield folder / names[item.label] / _make_unique(item.path.name, used.setdefault(item.label, set())), item.path


def _can_place_image(image_path: Path, target: Path, *, copy: bool) -> bool:
    """Whether `target` can be written or kept: it does not exist, or is a link to the image or a copy of it.

    With `copy`, a link will be replaced by a copy. It must then point to the resolved path of the image, like the links
    that `_link_or_copy` creates; any other link may be the user's own.
    """
    if not os.path.lexists(target):
        return True
    if target.is_symlink() and copy:
        return target.readlink() == image_path.resolve()
    if target.is_symlink():
        return os.path.realpath(target) == os.path.realpath(image_path)
    return target.is_file() and target.read_bytes() == read_file(image_path)


def _link_or_copy(image_path: Path, target: Path, *, copy: bool) -> None:
    """Link or copy an image to `target`; an existing file is kept unless it is a link and `copy` is true."""
    if os.path.lexists(target) and not (copy and target.is_symlink()):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy or is_remote(image_path) or is_member_path(image_path):
        with atomic_write(target) as temporary_path:
            temporary_path.write_bytes(read_file(image_path))
    else:
        target.symlink_to(image_path.resolve())
