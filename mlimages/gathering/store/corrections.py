"""Move images whose class was corrected in the list.

1. If the list has a link under another class than that of its stored image, the link is not downloaded yet but
   deferred until the list is read to its end.
2. If the list has the link under one new class and no longer under the old one, its class was corrected. Otherwise, the
   deferred link is downloaded like any other.
3. Images of corrected classes are moved to the folder of the new class, unless the user has moved or edited them. In
   tar shards, images stay where they are.
4. The manifest is replaced by one with the new classes and paths.
If a run is killed between steps 3 and 4, the manifest has the old classes and paths. The next run finds the images at
their new paths, as if the user had moved them, and writes the new classes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mlimages.core import FetchResult, ImageRef, atomic_write
from mlimages.gathering.links import hash_link, redact_url
from mlimages.gathering.store.file_names import (
    PathsInUse,
    generate_paths,
    is_in_folder_of,
    label_to_folder,
    strip_subfolder,
)
from mlimages.gathering.store.file_storage import FileStorage
from mlimages.gathering.store.manifest import UInt64Set, dump_row, parse_row
from mlimages.gathering.store.shard_storage import ShardStorage

_ANY_CLASS = "\0"
"""Label with which `hash_link` hashes a URL regardless of its class."""


@dataclass(frozen=True, slots=True)
class ImageToMove:
    """An image to move to the folder of its class, because the list has corrected the class or the folder is wrong.

    Attributes:
        image_ref: the link of the image, with the class to whose folder the image is moved.
        old_row: the row of the image in the manifest, with its old class and path.
    """

    image_ref: ImageRef
    old_row: FetchResult


class ClassCorrections:
    """Finds links whose class in the list differs from their class in the manifest.

    The links of the manifest are kept as 64-bit hashes.
    """

    def __init__(self) -> None:
        self._stored_urls = UInt64Set()
        self._without_image = UInt64Set()
        self._named = UInt64Set()
        self._waiting: list[ImageRef] = []

    def add_row(self, key: int, row: FetchResult) -> None:
        """Remember whether the link in a manifest row has an image.

        Args:
            key: `hash_link` of the link.
            row: the row of a link that this run does not retry.
        """
        if row.status in ("duplicate", "failed"):
            self._without_image.add(key)
        elif row.status == "ok" and not row.removed:
            self._stored_urls.add(hash_link(_ANY_CLASS, row.url))

    def defer_if_needed(self, image_ref: ImageRef, key: int, *, is_done: bool) -> bool:
        """Defer a link until `resolve_deferred` if its image is stored only under another class than that in the list.

        Args:
            image_ref: the link, with its class in the list.
            key: `hash_link` of the link and this class.
            is_done: whether the manifest has a result for `key`, and this run does not retry it. Such a link is
                deferred only if the result is a failure or a duplicate, so that no image is stored under this class.

        Returns:
            Whether the link is deferred.
        """
        if is_done and key not in self._without_image:
            self._named.add(key)
            return False
        if hash_link(_ANY_CLASS, image_ref.url) not in self._stored_urls:
            return False
        self._waiting.append(image_ref)
        return True

    def resolve_deferred(self, rows: Iterable[FetchResult]) -> tuple[list[ImageToMove], list[ImageRef]]:
        """Return the images whose class the list has corrected, and the other deferred links, which can be requested.

        The class was corrected if the list has the link under one class only, which is not blank, and the image is
        stored under one other class only.

        Args:
            rows: rows of the manifest; they are read only if a link was deferred.
        """
        named: dict[str, dict[str, ImageRef]] = {}
        stored: dict[str, dict[str, FetchResult]] = {}
        for image_ref in self._waiting:
            named.setdefault(redact_url(image_ref.url), {})[image_ref.label] = image_ref
        for row in rows if named else ():
            if row.url in named and row.status == "ok" and not row.removed:
                stored.setdefault(row.url, {})[row.label] = row
        found: list[ImageToMove] = []
        others: list[ImageRef] = []
        for url, image_refs in named.items():
            old = stored.get(url, {})
            listed = image_refs.keys() | {label for label in old if hash_link(label, url) in self._named}
            if len(listed) == len(old) == 1 and "" not in listed:
                found.append(ImageToMove(next(iter(image_refs.values())), next(iter(old.values()))))
            else:
                others.extend(image_refs.values())
        return found, others


def find_misplaced_images(rows: Iterable[FetchResult], paths_in_use: PathsInUse) -> list[ImageToMove]:
    """Return the images to move because their folder belongs to another class (see `PathsInUse.is_misplaced`)."""
    return [
        ImageToMove(ImageRef(row.url, row.label, row.source), row)
        for row in rows
        if row.status == "ok" and row.path and not row.removed and paths_in_use.is_misplaced(row.label, row.path)
    ]


def move_images(
    images: list[ImageToMove],
    storage: FileStorage | ShardStorage,
    manifest: Path,
    paths_in_use: PathsInUse,
    num_images_by_class: Mapping[str, int],
) -> int:
    """Move images to the folders of their classes, then update their rows; return the number of updated rows.

    Images that the user has edited or moved, or that are behind a symbolic link, are skipped. Only the row is updated
    if an image is in a tar shard, or in the folder of its class already.

    If a class loses all its images, its folder is free for another class, as after the correction of `Dog` to `dog`.

    Args:
        images: the images to move.
        storage: the stored images.
        manifest: the manifest, with one row for each link.
        paths_in_use: the folders and file names in use.
        num_images_by_class: number of images of each class before the move.
    """
    counts = Counter(image.old_row.label for image in images)
    new_classes = {image.image_ref.label for image in images}
    emptied = {label for label, count in counts.items() if count == num_images_by_class[label]} - new_classes
    if emptied:
        paths_in_use.release_folders(emptied)
    rows: dict[int, FetchResult] = {}
    paths: dict[str | None, str] = {}
    for image in images:
        old, path = image.old_row, _move_image(image, storage, paths_in_use)
        if path:
            paths[old.path] = path
            rows[hash_link(old.label, old.url)] = replace(
                old, label=image.image_ref.label, path=path, source=image.image_ref.source
            )
    if rows:
        storage.fsync(paths.values())
        _replace_rows(manifest, dict(rows), paths)
    return len(rows)


def _move_image(image: ImageToMove, storage: FileStorage | ShardStorage, paths_in_use: PathsInUse) -> str | None:
    """Move the image to the folder of its class; return its path there, or None if it cannot be moved.

    Images in tar shards, and those that are already in this folder, keep their path, which is returned.
    """
    image_ref, old = image.image_ref, image.old_row
    if isinstance(storage, ShardStorage):
        return old.path if storage.size(old.path or "") is not None else None
    path, folder = PurePosixPath(old.path or ""), paths_in_use.assign_folder(image_ref.label)
    old_folder = strip_subfolder(str(path.parent))
    if old_folder == folder:  # moved there by hand, or by a run that was killed
        return old.path if storage.size(str(path)) is not None else None
    depth = label_to_folder(old.label).count("/")
    if old_folder.count("/") != depth or not is_in_folder_of(old.label, f"{old_folder}/"):  # moved by hand
        return None
    folder += str(path.parent).removeprefix(old_folder)
    free = generate_paths(
        f"{folder}/{path.stem}", path.suffix, f"{hash_link(image_ref.label, image_ref.url):016x}", is_only_writer=True
    )
    return storage.move(
        str(path), old.sha256 or "", (name for name in free if paths_in_use.reserve(image_ref.label, name))
    )


def _replace_rows(manifest: Path, new_rows: dict[int, FetchResult], new_paths: dict[str | None, str]) -> None:
    """Replace rows of the manifest, and update the paths in `same_as`.

    If a link has a row under its new class already, such as that of a failed download, that row is removed.

    Args:
        manifest: the manifest to rewrite.
        new_rows: the new rows, by the `hash_link` of the rows that they replace.
        new_paths: the new path of each moved image, by its old path.
    """
    replaced = new_rows.keys() | {hash_link(row.label, row.url) for row in new_rows.values()}
    with atomic_write(manifest) as part, manifest.open("rb") as lines, part.open("wb") as out:
        for line in lines:
            row = parse_row(line)
            if row and (key := hash_link(row.label, row.url)) in replaced:
                row = new_rows.pop(key, None)
                line = b""
            if row:
                line = dump_row(replace(row, same_as=new_paths.get(row.same_as, row.same_as)))
            out.write(line)
        out.flush()
        os.fsync(out.fileno())
