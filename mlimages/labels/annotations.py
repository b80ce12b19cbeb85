"""Read image-level annotations exported from annotation tools: COCO, Label Studio and CVAT."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TextIO
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from mlimages.core import LabelFileError

NumberedObjects = Iterator[tuple[int, dict[str, Any]]]
"""JSON objects with their line numbers, or with their numbers from 1."""


def read_annotations(file: TextIO, path: Path) -> NumberedObjects:
    """Yield each image of a .json or .xml export: its number from 1, and a dict with its path and its label.

    Raises:
        LabelFileError: the format of the export is unknown.
    """
    labels: Mapping[str, list[str] | None]
    if path.suffix.lower() == ".xml":
        labels = _read_cvat(file, path)
    else:
        try:
            values = json.load(file)
        except (ValueError, RecursionError) as error:
            raise LabelFileError(
                f"{path} is not valid JSON; if it has one object per line, use the suffix .jsonl"
            ) from error
        if isinstance(values, dict) and "images" in values and "annotations" in values:
            labels = _read_coco(values, path)
        elif not (isinstance(values, list) and all(isinstance(value, dict) for value in values)):
            raise _make_unknown_format_error(path)
        elif any("annotations" in task and "data" in task for task in values):
            labels = _read_label_studio(values)
        else:
            yield from enumerate(values, start=1)
            return
    for number, (name, classes) in enumerate(labels.items(), start=1):
        yield number, {"file_name": name, "label": classes[0] if classes and len(set(classes)) == 1 else classes}


def _make_unknown_format_error(path: Path) -> LabelFileError:
    return LabelFileError(
        f"{path}: expected a JSON list of objects, or image-level annotations exported from COCO, Label Studio or CVAT"
    )


def _read_coco(values: Mapping[str, Any], path: Path) -> dict[str, list[str]]:
    """Read annotations without a box or mask (https://cocodataset.org/#format-data)."""
    if any(each.get("bbox") or each.get("segmentation") for each in values["annotations"]):
        raise LabelFileError(f"{path} contains bounding boxes or masks; expected image-level annotations")
    try:
        names = {category["id"]: str(category["name"]) for category in values["categories"]}
        labels = defaultdict(list)
        for annotation in values["annotations"]:
            labels[annotation["image_id"]].append(names[annotation["category_id"]])
        return {image["file_name"]: labels[image["id"]] for image in values["images"]}
    except (KeyError, TypeError) as error:
        raise LabelFileError(f"{path}: the key {error} is missing, which COCO annotations require") from error


def _read_label_studio(tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[str] | None]:
    """Read choices for whole images (https://labelstud.io/guide/export); None for an image without annotations.

    An annotation that the annotator skipped is none, as in Label Studio's own converter: it keeps the choices that
    were selected before.
    """
    labels: dict[str, list[str] | None] = {}
    for task in tasks:
        image = next((str(value) for value in task.get("data", {}).values() if isinstance(value, str)), "")
        annotations = [each for each in task.get("annotations", []) if not each.get("was_cancelled")]
        results = [result for annotation in annotations for result in annotation.get("result", [])]
        choices = [choice for result in results for choice in result.get("value", {}).get("choices", [])]
        labels[resolve_label_studio_path(image)] = choices if annotations else None
    return labels


def resolve_label_studio_path(image_path: str) -> str:
    """Return the file path that an image URL of Label Studio refers to; other paths are unchanged.

    >>> resolve_label_studio_path("/data/upload/1/cat.jpg")
    'cat.jpg'
    >>> resolve_label_studio_path("/data/local-files/?d=photos/cat.jpg")
    'photos/cat.jpg'
    """
    if "/data/local-files/?d=" in image_path:
        return image_path.partition("?d=")[2]
    return unquote(PurePosixPath(image_path).name) if "/data/upload/" in image_path else image_path


def _read_cvat(file: TextIO, path: Path) -> dict[str, list[str]]:
    """Read CVAT for images: `<image name="a.jpg"><tag label="cat"/></image>`."""
    try:
        root = ET.parse(file).getroot()  # expat limits the expansion of entities
    except ET.ParseError as error:
        raise LabelFileError(f"{path} is not valid XML: {error}") from error
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        raise _make_unknown_format_error(path)
    if not root.findall("image/tag"):
        raise LabelFileError(f"{path} contains shapes, but no tags; expected image-level annotations")
    return {image.get("name", ""): [tag.get("label", "") for tag in image.findall("tag")] for image in images}
