"""Read image-level annotations exported from annotation tools: COCO, Label Studio and CVAT."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TextIO
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from mlimages.core import LabelFileError

NumberedDicts = Iterator[tuple[int, dict[str, Any]]]
"""JSON objects with their line numbers or, in an export, their positions from 1."""

_AnnotatedImage = tuple[str, list[str] | None, dict[str, str]]
"""The path of an image, its classes (None if it is not annotated), and further keys of its row."""


def read_annotations(file: TextIO, path: Path) -> NumberedDicts:
    """Yield each image of a .json or .xml export: its number from 1, and a dict with its path and its label.

    Raises:
        LabelFileError: the format of the export is unknown, or its ids are ambiguous.
    """
    if path.suffix.lower() == ".xml":
        yield from _to_numbered_dicts(_read_cvat(file, path))
        return
    try:
        values = json.load(file)
    except (ValueError, RecursionError) as error:
        raise LabelFileError(
            f"{path} is not valid JSON; if it has one object per line, use the suffix .jsonl"
        ) from error
    if isinstance(values, dict) and "images" in values and "annotations" in values:
        yield from _to_numbered_dicts(_read_coco(values, path))
    elif not _is_list_of_dicts(values):
        raise _make_unknown_format_error(path)
    elif any("annotations" in task and "data" in task for task in values):
        yield from _to_numbered_dicts(_read_label_studio(values))
    else:
        yield from enumerate(values, start=1)


def _to_numbered_dicts(images: Iterable[_AnnotatedImage]) -> NumberedDicts:
    """Yield a number from 1 and a dict with the keys `file_name` and `label` for each image."""
    for number, (name, classes, keys) in enumerate(images, start=1):
        label = classes[0] if classes and len(set(classes)) == 1 else classes
        yield number, {"file_name": name, "label": label, **keys}


def _is_list_of_dicts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _make_unknown_format_error(path: Path) -> LabelFileError:
    return LabelFileError(
        f"{path}: expected a JSON list of objects, or image-level annotations exported from COCO, Label Studio or CVAT"
    )


def _read_coco(document: Mapping[str, Any], path: Path) -> Iterator[_AnnotatedImage]:
    """Read the images and their classes (https://cocodataset.org/#format-data); a repeated image id counts once.

    Raises:
        LabelFileError: an annotation has a box or a mask, or something that COCO requires is missing.
    """
    _require_coco_lists(document, path)
    if any(each.get("bbox") or each.get("segmentation") for each in document["annotations"]):
        raise LabelFileError(f"{path} contains bounding boxes or masks; expected image-level annotations")
    listed = zip(document["images"], find_coco_classes(document, path), strict=True)
    images = {_read_coco_value(image, "id", "images", path): (image, classes) for image, classes in listed}
    for image, classes in images.values():
        yield _read_coco_value(image, "file_name", "images", path), classes, {}


def find_coco_classes(
    document: Mapping[str, Any], path: str | Path, read_name: Callable[[Mapping[str, Any]], str] | None = None
) -> list[list[str]]:
    """Return, for each image of a COCO dataset in order, the names of the categories of its annotations.

    Ids are compared as text, since some tools write "7" in one list and 7 in another.

    Args:
        document: the parsed JSON file.
        path: path of the file, for error messages.
        read_name: returns the name of an image; by default its `file_name`. Images with the same id must have the
            same name.

    Raises:
        LabelFileError: a list or a key that COCO requires is missing, or an id is ambiguous or unknown.
    """
    _require_coco_lists(document, path)
    images = _map_ids_to_names(document, "images", read_name or "file_name", path)
    names = _map_ids_to_names(document, "categories", "name", path)
    labels: dict[str, list[str]] = {image_id: [] for image_id in images}
    image_ids = _read_referenced_ids(document["annotations"], "image_id", images, path)
    category_ids = _read_referenced_ids(document["annotations"], "category_id", names, path)
    for image_id, category_id in zip(image_ids, category_ids, strict=True):
        labels[image_id].append(names[category_id])
    return [labels[_read_coco_value(image, "id", "images", path)] for image in document["images"]]


def _require_coco_lists(document: Mapping[str, Any], path: str | Path) -> None:
    for key in ("images", "categories", "annotations"):
        if not _is_list_of_dicts(document.get(key)):
            raise LabelFileError(f"{path}: expected a list of objects under {key!r}, which COCO requires")


def _read_referenced_ids(
    annotations: Sequence[Mapping[str, Any]], key: str, known_ids: Container[str], path: str | Path
) -> list[str]:
    """Return the value of `key` (`image_id` or `category_id`) of each annotation; check that the ids are known."""
    ids = [_read_coco_value(each, key, "annotations", path) for each in annotations]
    if unknown := [each for each in ids if each not in known_ids]:
        list_key = {"image_id": "images", "category_id": "categories"}[key]
        raise LabelFileError(
            f"{path}: {key} {unknown[0]} of an annotation is not in {list_key!r} ({len(unknown)} of {len(ids)} "
            f"annotations): remove these annotations, or add the missing {list_key}"
        )
    return ids


def _map_ids_to_names(
    document: Mapping[str, Any], list_key: str, name_from: str | Callable[[Mapping[str, Any]], str], path: str | Path
) -> dict[str, str]:
    """Return, by id, the names of the objects in the list `list_key` (`images` or `categories`).

    `name_from` is the key of the name, or a function that returns the name. An id may only be repeated with the same
    name.
    """
    names: dict[str, str] = {}
    for each in document[list_key]:
        object_id = _read_coco_value(each, "id", list_key, path)
        name = _read_coco_value(each, name_from, list_key, path) if isinstance(name_from, str) else name_from(each)
        if names.setdefault(object_id, name) != name:
            raise LabelFileError(
                f"{path}: id {object_id} in {list_key!r} is both {names[object_id]} and {name}: give each an id of its "
                "own (lists of several exports cannot be concatenated unchanged)"
            )
    return names


def _read_coco_value(values: Mapping[str, Any], key: str, list_key: str, path: str | Path) -> str:
    """Return the value of `key` in a COCO object as text; the error message names the list `list_key` that it is in."""
    if values.get(key) is None:
        raise LabelFileError(f"{path}: an object in {list_key!r} has no {key!r}, which COCO requires: {values!s:.80}")
    value = values[key]
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _read_label_studio(tasks: Iterable[Mapping[str, Any]]) -> Iterator[_AnnotatedImage]:
    """Read the classes of whole images, which Label Studio calls choices (https://labelstud.io/guide/export).

    Annotations that the annotator skipped are ignored, as in Label Studio's own converter, although they keep the
    choices that were selected before.
    """
    for task in tasks:
        image = next((str(value) for value in task.get("data", {}).values() if isinstance(value, str)), "")
        annotations = [each for each in task.get("annotations", []) if not each.get("was_cancelled")]
        results = [result for annotation in annotations for result in annotation.get("result", [])]
        choices = [choice for result in results for choice in result.get("value", {}).get("choices", [])]
        yield resolve_label_studio_path(image), choices if annotations else None, {}


def resolve_label_studio_path(image_path: str) -> str:
    """Return the file path that an image URL of Label Studio refers to; other paths are unchanged.

    >>> resolve_label_studio_path("/data/upload/1/cat.jpg")
    'cat.jpg'
    >>> resolve_label_studio_path("/data/local-files/?d=my%20photos/cat.jpg")
    'my photos/cat.jpg'
    """
    if "/data/local-files/?d=" in image_path:
        return unquote(image_path.partition("?d=")[2]).replace("\\", "/")
    return unquote(PurePosixPath(image_path).name) if "/data/upload/" in image_path else image_path


def _read_cvat(file: TextIO, path: Path) -> Iterator[_AnnotatedImage]:
    """Read the format "CVAT for images": `<image name="a.jpg" subset="Train"><tag label="cat"/></image>`."""
    try:
        root = ET.parse(file).getroot()  # expat limits the expansion of entities
    except ET.ParseError as error:
        raise LabelFileError(f"{path} is not valid XML: {error}") from error
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        raise _make_unknown_format_error(path)
    if not root.findall("image/tag"):
        raise LabelFileError(f"{path} contains shapes but no tags; expected image-level annotations (tags)")
    for image in images:
        subset = image.get("subset")
        classes = [tag.get("label", "") for tag in image.findall("tag")]
        yield image.get("name", ""), classes, {"subset": subset} if subset else {}
