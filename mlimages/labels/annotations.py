"""Read exports of annotation tools (COCO, Label Studio, CVAT) with classes of whole images as tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TextIO, TypeGuard
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from mlimages.core import LabelFileError

Objects = Iterator[tuple[int, dict[str, Any]]]
"""Rows with their line numbers."""


def annotation_objects(lines: TextIO, path: Path) -> Objects:
    """Yield the rows of a .json or .xml export.

    Raises:
        LabelFileError: the format of the export is unknown.
    """
    if path.suffix.lower() == ".xml":
        yield from _image_rows(_read_cvat(lines, path))
        return
    try:
        values = json.load(lines)
    except (ValueError, RecursionError) as error:
        raise LabelFileError(f"{path}: not JSON (with one object per line, use the suffix .jsonl)") from error
    if isinstance(values, dict) and "images" in values and "annotations" in values:
        yield from _image_rows(_read_coco(values, path))
    elif _is_list_of_objects(values) and any("annotations" in task and "data" in task for task in values):
        yield from _image_rows(_read_label_studio(values))
    elif _is_list_of_objects(values):
        yield from enumerate(values, start=1)
    else:
        raise _unknown_format_error(path)


def _is_list_of_objects(values: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _unknown_format_error(path: Path) -> LabelFileError:
    return LabelFileError(
        f"{path}: expected a list of objects, or an export of COCO, Label Studio or CVAT with classes of whole images"
    )


def _image_rows(labels: Mapping[str, Sequence[str]]) -> Objects:
    """Yield a row per image; the label is a list unless the image has one class."""
    for number, (name, found) in enumerate(labels.items(), start=1):
        yield number, {"file_name": name, "label": found[0] if len(set(found)) == 1 else found}


def _read_coco(values: Mapping[str, Any], path: Path) -> dict[str, list[str]]:
    """Read annotations without a box or mask (https://cocodataset.org/#format-data)."""
    if any(found.get("bbox") or found.get("segmentation") for found in values["annotations"]):
        raise LabelFileError(f"{path}: its annotations are boxes or masks of objects, not classes of whole images")
    try:
        names = {category["id"]: str(category["name"]) for category in values["categories"]}
        labels = defaultdict(list)
        for found in values["annotations"]:
            labels[found["image_id"]].append(names[found["category_id"]])
        return {image["file_name"]: labels[image["id"]] for image in values["images"]}
    except (KeyError, TypeError) as error:
        raise LabelFileError(f"{path}: looks like COCO, but the key {error} is missing") from error


def _read_label_studio(tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Read choices for whole images (https://labelstud.io/guide/export)."""
    labels: dict[str, list[str]] = {}
    for task in tasks:
        image = next((str(value) for value in task.get("data", {}).values() if isinstance(value, str)), "")
        results = [result for annotation in task.get("annotations", []) for result in annotation.get("result", [])]
        found = [choice for result in results for choice in result.get("value", {}).get("choices", [])]
        labels[local_name(image)] = found
    return labels


def local_name(image_path: str) -> str:
    """Return the file that a URL of Label Studio refers to.

    >>> local_name("/data/upload/1/cat.jpg"), local_name("/data/local-files/?d=photos/cat.jpg")
    ('cat.jpg', 'photos/cat.jpg')
    """
    if "/data/local-files/?d=" in image_path:
        return image_path.partition("?d=")[2]
    return unquote(PurePosixPath(image_path).name) if "/data/upload/" in image_path else image_path


def _read_cvat(lines: TextIO, path: Path) -> dict[str, list[str]]:
    """Read CVAT for images: `<image name="a.jpg"><tag label="cat"/></image>`."""
    try:
        root = ET.parse(lines).getroot()  # expat limits the expansion of entities
    except ET.ParseError as error:
        raise LabelFileError(f"{path}: not XML: {error}") from error
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        raise _unknown_format_error(path)
    if not root.findall("image/tag"):
        raise LabelFileError(f"{path}: its annotations are shapes of objects, not tags of whole images")
    return {image.get("name", ""): [tag.get("label", "") for tag in image.findall("tag")] for image in images}
