"""Join the classes of an image that is listed several times: in several class folders, or as copies."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mlimages.core import LabeledPath, counted, find_member, is_remote, read_file
from mlimages.labels.label_file import LabelFile


def join_copies(labels: LabelFile) -> LabelFile:
    """Return a multi-label file in which files of the same content are one image, with the classes of all of them.

    The first file is listed. Only files of the same size are compared, by their hash; remote ones are not.
    """
    files = list(labels)
    items = _join_files(files)
    joined = LabelFile(labels.path, labels.img_root, items=lambda: items, class_names=labels.defined_class_names)
    copies = len(files) - len(items)
    note = (
        f"{counted(copies, 'file')} with the same content as another: each image is listed once, with all its classes"
    )
    return joined.with_notes([*labels.notes, *[note] * bool(copies)])


def _join_files(files: Sequence[LabeledPath]) -> list[LabeledPath]:
    sizes = [_size_bytes(file.path) for file in files]
    several = {size for size, count in Counter(sizes).items() if size and count > 1}
    found: dict[object, tuple[Path, set[int]]] = {}
    for file, size in zip(files, sizes, strict=True):
        key = hashlib.sha256(read_file(file.path)).digest() if size in several else file.path
        found.setdefault(key, (file.path, set()))[1].update(file.class_indices)
    return [LabeledPath(path, -1, tuple(sorted(classes))) for path, classes in found.values()]


def _size_bytes(path: Path) -> int:
    """Return the number of bytes; 0 if the file is remote or cannot be examined."""
    try:
        if is_remote(path):
            return 0
        member = find_member(path)
        return member.size if member else path.stat().st_size
    except OSError:
        return 0
