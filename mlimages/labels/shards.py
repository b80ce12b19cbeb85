"""Read images in tar shards (WebDataset) like images in class folders.

Images are never removed from a shard, so some may no longer be valid. The manifest beside the shards lists the valid
images and their classes. Without a manifest, an image belongs to the class of its folder in the shard: `cats/0001.jpg`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from mlimages.core import InputError, find_member, is_remote, iter_members
from mlimages.labels.scanning import (
    has_images,
    is_image_name,
    is_skipped_folder,
    is_valid_name,
    iter_images,
    list_entry_names,
    list_subfolders,
    normalize_class_name,
)

_SHARD_NAME = re.compile(r"(.*-)?[0-9]{5,}\.tar")


def is_shard(path: Path) -> bool:
    """Whether the path is a local shard (`images-00000.tar`)."""
    return bool(_SHARD_NAME.fullmatch(path.name)) and not is_remote(path) and path.is_file()


def find_shards(folder: Path) -> list[Path]:
    """Return the shards in a folder (`images-00000.tar`), sorted.

    The result is empty if a subfolder contains images: then the dataset consists of class folders.

    Args:
        folder: a folder, or the path of a shard, which is then the only result.

    Raises:
        InputError: the shards are remote.
    """
    if is_shard(folder):
        return [folder]
    names = list_entry_names(folder) if is_remote(folder) else (path.name for path in folder.glob("*.tar"))
    shards = sorted(folder / name for name in names if _SHARD_NAME.fullmatch(name))
    if shards and any(has_images(path, recursive=True) for path in list_subfolders(folder)):
        return []
    if shards and is_remote(folder):
        raise InputError(
            f"{folder} is remote, but shards can only be read from a local folder: copy the shards (aws s3 sync ...)"
        )
    return [path for path in shards if path.is_file()]


def iter_all_images(folder: Path) -> Iterator[Path]:
    """Yield the images in the shards of a folder or, if it has no shards, in the folder and its subfolders."""
    if find_shards(folder):
        yield from (Path(path) for path, _ in _read_shard_images(folder))
    else:
        yield from iter_images(folder)


def find_shard_images_by_class(folder: Path, *, leaf: bool) -> dict[str, list[str]]:
    """Return the paths of the images in the shards of a folder, by class.

    Args:
        leaf: use the whole path as the class name: `animals/cats` instead of `animals`.

    Raises:
        InputError: there is no manifest, and the path of an image in a shard has no folder: `0001.jpg`.
    """
    classes: dict[str, list[str]] = {}
    for path, label in _read_shard_images(folder):
        names = [name for name in map(normalize_class_name, label.split("/")) if name]
        if not names:
            raise InputError(
                f"{path} has no class: expected a manifest.jsonl of `mlimages gather` beside the shard, or a folder "
                "per class in the shard (cats/0001.jpg)"
            )
        classes.setdefault("/".join(names) if leaf else names[0], []).append(path)
    return classes


def is_labeled_shard(path: Path) -> bool:
    """Whether the path is a shard whose images have classes, from the manifest beside the shard or from folders."""
    return is_shard(path) and any(label for _, label in _read_shard_images(path))


def _read_shard_images(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the path and the class of each image in the shards.

    If there are manifests, only the images that they list are valid; an image without a class gets the class "images".
    Without a manifest, all images in the shards are valid; the class is the folder in the shard, or "" for none.
    """
    shards = find_shards(folder)
    folder = folder.parent if folder in shards else folder
    names = {shard.name for shard in shards}
    if manifests := [path for path in folder.glob("manifest*.jsonl") if path.is_file()]:
        manifests.sort(key=lambda path: (path.name != "manifest.jsonl", path.name))
        for path, label in _read_manifest_labels(manifests).items():
            if path.partition("/")[0] in names and is_valid_name(path) and find_member(f"{folder}/{path}"):
                yield f"{folder}/{path}", label or "images"
        return
    for shard in shards:
        for member in iter_members(shard):
            label, _, name = member.name.rpartition("/")
            if is_image_name(name) and not any(map(is_skipped_folder, label.split("/"))):
                yield f"{shard}/{member.name}", label


def _read_manifest_labels(manifests: list[Path]) -> dict[str, str]:
    """Return the classes by image path; the last of several rows with the same path applies."""
    labels: dict[str, str] = {}
    for manifest in manifests:
        with manifest.open("rb") as lines:
            for line in lines:
                row = _parse_json_row(line)
                path = row.get("path")
                if isinstance(path, str) and row.get("status") == "ok" and not row.get("removed"):
                    labels[path] = str(row.get("label") or "")
                elif isinstance(path, str):
                    labels.pop(path, None)
    return labels


def _parse_json_row(line: bytes) -> dict[str, object]:
    """Parse a row of a manifest; return an empty dict if it is not a JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # torn by a crash
        return {}
    return row if isinstance(row, dict) else {}
