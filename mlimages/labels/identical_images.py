"""Merge the classes of identical image files, such as an image in several class folders."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from mlimages.core import LabeledPath, find_member, is_remote, pluralize, read_file
from mlimages.labels.label_file import LabelFile


def merge_identical_images(labels: LabelFile) -> LabelFile:
    """Return a multi-label file that lists files with the same content as one image, with the classes of all of them.

    The first path is kept. Only files of the same size are compared, by their hash; remote files are not compared.
    """
    items = list(labels)
    sizes = [_get_file_size(item.path) for item in items]
    repeated_sizes = {size for size, count in Counter(sizes).items() if size and count > 1}
    merged: dict[object, tuple[Path, set[int]]] = {}
    for item, size in zip(items, sizes, strict=True):
        key = hashlib.sha256(read_file(item.path)).digest() if size in repeated_sizes else item.path
        merged.setdefault(key, (item.path, set()))[1].update(item.class_indices)
    images = [LabeledPath(path, -1, tuple(sorted(classes))) for path, classes in merged.values()]
    result = LabelFile(labels.path, labels.img_root, items=lambda: images, class_names=labels.defined_class_names)
    copies = len(items) - len(images)
    note = (
        f"{pluralize(copies, 'file')} with the same content as another file: each image is listed once, with all its "
    )
    return result.with_notes([*labels.notes, *[f"{note}classes"] * bool(copies)])


def _get_file_size(path: Path) -> int:
    """Return the file size, or 0 if the file is remote or cannot be examined."""
    try:
        if is_remote(path):
            return 0
        member = find_member(path)
        return member.num_bytes if member else path.stat().st_size
    except OSError:
        return 0
