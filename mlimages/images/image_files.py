"""Find image files in folders, and copy them to one folder per class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from mlimages.core import (
    BrokenImage,
    Prediction,
    as_path,
    atomic_write,
    is_remote,
    read_file,
    refresh_remote_listings,
    require_local_path,
)
from mlimages.labels import (
    IMAGE_SUFFIXES,
    describe_renamed_folders,
    find_shards,
    is_shard,
    iter_all_images,
    iter_entries,
    list_skipped_outputs,
    make_folder_names,
    walk_folders,
)

logger = logging.getLogger(__name__)


def find_images(sources: Iterable[Path]) -> Iterator[Path]:
    """Yield the paths of images: each file in `sources`, and the image files in each folder, recursively.

    A file in `sources` may have any suffix; the image files of a folder are those with an image suffix, sorted by name.
    In a local folder, hidden files and folders are ignored. Output images of mlimages, such as a contact sheet, are
    ignored, too, but not images that `mlimages gather` downloaded. A warning gives the number of files that are not
    images. For a shard (`images-00000.tar`) or a folder of shards, yield the images in the shards, as `mlimages label`
    reads them.
    """
    for source in map(as_path, sources):
        with refresh_remote_listings(source):
            is_file = not (source.is_dir() or is_shard(source))
        if is_file:
            yield source
            continue
        if find_shards(source):
            yield from iter_all_images(source)
            continue
        if is_remote(source):
            found = sorted(source.rglob("*"), key=str)
            yield from (path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)
            continue
        skipped: Counter[str] = Counter()
        num_outputs = 0
        for folder in walk_folders(source, is_skipped=lambda name: name.startswith(".")):
            names = [name for name, is_folder in iter_entries(folder) if not is_folder]
            outputs = list_skipped_outputs(folder, names)
            for path in (folder / name for name in sorted(names) if not name.startswith(".")):
                suffix = path.suffix.lower()
                if suffix not in IMAGE_SUFFIXES:
                    skipped[suffix or "without a suffix"] += 1
                elif path.name in outputs:
                    num_outputs += 1
                else:
                    yield path
        if skipped:
            counts = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common(5))
            logger.warning(
                "%s: skipped files whose suffix is not that of an image (number by suffix): %s", source, counts
            )
        if num_outputs:
            logger.warning("%s: skipped images that mlimages wrote: %d", source, num_outputs)


def copy_by_class(
    predictions: Iterable[Prediction | BrokenImage], folder: Path, *, class_names: Sequence[str]
) -> Iterator[Prediction | BrokenImage]:
    """Copy each image to `folder/CLASS/`, or to `folder/unknown/` if its class is unknown, and yield each result.

    An image with several labels is copied to the folder of each label, an image without labels to `folder/unknown/`.
    If a class is named `unknown`, its images are copied to `folder/unknown/`, and images of unknown class to
    `folder/unknown_2/`; a warning says so. Another warning names the folders of classes whose names are no valid folder
    names. If a file of the same name exists, a number is appended to the name; an identical file is not copied again.
    Broken images are not copied.
    """
    folder = require_local_path(folder)
    *folders, unknown = make_folder_names([*class_names, "unknown"])
    notes = describe_renamed_folders(class_names, folders)
    if unknown != "unknown":
        notes.append(
            f"images that belong to no class are copied to {unknown}, since one of the classes is named unknown"
        )
    for note in notes:
        logger.warning("%s: %s", folder, note)
    for result in predictions:
        if isinstance(result, Prediction) and result.path:
            source = as_path(result.path)
            labels = result.top[:1] if result.labels is None else result.labels
            names = [folders[each.label] for each in labels if result.known is not False]
            for name in names or [unknown]:
                target = folder / name
                target.mkdir(parents=True, exist_ok=True)
                _copy_without_overwriting(source, target / source.name)
        yield result


def _copy_without_overwriting(source: Path, target: Path) -> None:
    """Copy a file to `target`, or to `NAME-2`, `NAME-3` ... if other files, folders or links have these names."""
    data = read_file(source)
    for number in count(2):
        if not os.path.lexists(target):
            with suppress(FileExistsError), atomic_write(target) as part:
                part.write_bytes(data)
                _link_if_supported(part, target)  # unlike a rename, fails if another process has created the file
                return
        if not target.is_symlink() and target.is_file() and target.read_bytes() == data:
            return
        target = target.with_name(f"{source.stem}-{number}{source.suffix}")


def _link_if_supported(source: Path, target: Path) -> None:
    """Create `target` as a hard link to `source`; do nothing if the file system does not support hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # as on FAT
        return
