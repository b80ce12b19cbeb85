"""Exports of annotation tools: each image has the classes that its annotators submitted, or the export is refused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlimages.core import LabelFileError
from mlimages.labels import LabelFile, TableOptions, format_label, open_splits
from tests.labels.test_labels import touch

NAMES = ("a", "b", "c", "d")


def annotation(*choices: str, **keys: bool) -> dict[str, Any]:
    return {"result": [{"value": {"choices": [choice]}, "type": "choices"} for choice in choices], **keys}


def list_classes(labels: LabelFile) -> list[str]:
    return [format_label(item.labels if item.labels is not None else item.label, labels.class_names) for item in labels]


SUBMITTED = {"a": [annotation("ant", was_cancelled=False)], "b": [annotation("bee")], "c": [annotation("ant")]}


@pytest.mark.parametrize(
    ("annotations", "one", "several"),
    [
        ([], "", None),
        ([annotation("ant", was_cancelled=True)], "", None),
        ([annotation("ant", was_cancelled=True), annotation("bee", was_cancelled=True)], "", None),
        ([annotation("bee", was_cancelled=False)], "bee", "bee"),
        ([annotation("bee"), annotation("ant", was_cancelled=True)], "bee", "bee"),
        ([annotation("ant", was_cancelled=True), annotation("bee")], "bee", "bee"),
        ([annotation("bee"), annotation("bee")], "bee", "bee"),
        ([annotation("bee"), annotation("ant")], "", "ant;bee"),
        ([annotation()], "", ""),
        ([annotation(), annotation("ant", was_cancelled=True)], "", ""),
    ],
)
def test_an_annotation_that_was_skipped_is_none(
    tmp_path: Path, annotations: Sequence[Mapping[str, Any]], one: str, several: str | None
) -> None:
    touch(tmp_path, *(f"{name}.jpg" for name in NAMES))
    tasks = [
        {"data": {"image": f"/data/upload/1/{name}.jpg"}, "annotations": each}
        for name, each in {**SUBMITTED, "d": annotations}.items()
    ]
    (tmp_path / "studio.json").write_text(json.dumps(tasks))
    labels = LabelFile(tmp_path / "studio.json")
    assert list_classes(labels) == ["ant", "bee", "ant", *[one] * bool(one)]
    skipped_row_notes = [
        note for note in labels.notes if "left out: 1 row without a path, or without exactly one class (row 4)" in note
    ]
    assert len(skipped_row_notes) == (not one)
    multi = LabelFile(tmp_path / "studio.json", options=TableOptions(multi_label=True))
    assert list_classes(multi) == ["ant", "bee", "ant", *([] if several is None else [several])]


CATEGORIES = [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]


def coco(changes: Mapping[str, Any]) -> str:
    images = [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate(NAMES)]
    annotations = [{"id": n, "image_id": n, "category_id": 1 + n % 2} for n in range(4)]
    return json.dumps({"images": images, "categories": CATEGORIES, "annotations": annotations, **changes})


def images(*pairs: tuple[object, str]) -> dict[str, Any]:
    return {"images": [{"id": image_id, "file_name": f"{name}.jpg"} for image_id, name in pairs]}


def annotations(*pairs: tuple[object, object]) -> dict[str, Any]:
    return {"annotations": [{"image_id": image_id, "category_id": category} for image_id, category in pairs]}


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "a ant, b bee, c ant, d bee"),
        (annotations(("0", 1), ("1", 2), (2, "1"), (3, "2")), "a ant, b bee, c ant, d bee"),
        (annotations((0.0, 1), (1, 2.0), (2, 1), (3, 2)), "a ant, b bee, c ant, d bee"),
        (images(("0", "a"), ("1", "b"), ("2", "c"), ("3", "d")), "a ant, b bee, c ant, d bee"),
        (images((0, "a"), (1, "b"), (2, "c"), (3, "d"), (3, "d")), "a ant, b bee, c ant, d bee"),
        (images((0, "a"), (1, "a"), (2, "c"), (3, "d")), "a ant, a bee, c ant, d bee"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "a ant, b bee, c ant, d bee"),
    ],
)
def test_each_image_of_coco_has_the_classes_of_its_id(
    tmp_path: Path, changes: dict[str, Any], expected: str, multi_label: bool
) -> None:
    touch(tmp_path, *(f"{name}.jpg" for name in NAMES))
    (tmp_path / "coco.json").write_text(coco(changes))
    labels = LabelFile(tmp_path / "coco.json", options=TableOptions(multi_label=multi_label))
    rows = [f"{item.path.stem} {name}" for item, name in zip(labels, list_classes(labels), strict=True)]
    merged = expected.replace("a ant, a bee", "a ant;bee")
    assert ", ".join(rows) == (merged if multi_label else expected)


AMBIGUOUS_COCO = [
    (images((7, "a"), (7, "b")), "id 7 in 'images' is both a.jpg and b.jpg"),
    (images((7, "a"), ("7", "b")), "id 7 in 'images' is both a.jpg and b.jpg"),
    ({"categories": [*CATEGORIES, {"id": 2, "name": "cat"}]}, "id 2 in 'categories' is both bee and cat"),
    (annotations((7, 1), (0, 1)), r"image_id 7 of an annotation is not in 'images' \(1 of 2 annotations\)"),
    (annotations(("x7", 1), ("x8", 2)), r"image_id x7 of an annotation is not in 'images' \(2 of 2 annotations\)"),
    (annotations((0, 7), (1, 1)), r"category_id 7 of an annotation is not in 'categories' \(1 of 2 annotations\)"),
    ({"categories": [{"name": "ant"}]}, "an object in 'categories' has no 'id'"),
    ({"categories": None}, "expected a list of objects under 'categories'"),
    ({"annotations": [7]}, "expected a list of objects under 'annotations'"),
    ({"images": {"7": "a.jpg"}}, "expected a list of objects under 'images'"),
]
"""Changes that give an export ambiguous or unknown ids, and what the message says."""


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *AMBIGUOUS_COCO,
        ({"annotations": [{"image_id": 1}]}, "an object in 'annotations' has no 'category_id'.*'image_id': 1"),
        ({"images": [{"id": 1}]}, "an object in 'images' has no 'file_name'"),
    ],
)
def test_ids_of_coco_that_are_ambiguous_or_unknown_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, multi_label: bool
) -> None:
    touch(tmp_path, *(f"{name}.jpg" for name in NAMES))
    (tmp_path / "coco.json").write_text(coco(changes))
    with pytest.raises(LabelFileError, match=message):
        list(LabelFile(tmp_path / "coco.json", options=TableOptions(multi_label=multi_label)))


def write_cvat(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    texts = (f'<image name="{n}.jpg"{s and f" subset={s!r}"}><tag label="{c}"/></image>' for n, c, s in rows)
    path.write_text(f"<annotations>{''.join(texts)}</annotations>")
    return path


@pytest.mark.parametrize("export", ["coco.json", "studio.json", "cvat.xml"])
def test_an_image_that_is_listed_twice_is_read_as_in_a_table(tmp_path: Path, export: str) -> None:
    """So that `check` reports its two classes."""
    touch(tmp_path, *(f"{name}.jpg" for name in NAMES))
    rows = [("a", "ant"), ("b", "bee"), ("c", "ant"), ("a", "bee")]
    path = write_cvat(tmp_path / "cvat.xml", [(*row, "") for row in rows])
    (tmp_path / "coco.json").write_text(coco(images(*enumerate(name for name, _ in rows))))
    tasks = [{"data": {"image": f"{name}.jpg"}, "annotations": [annotation(label)]} for name, label in rows]
    (tmp_path / "studio.json").write_text(json.dumps(tasks))
    labels = LabelFile(path.with_name(export))
    assert [(item.path.stem, name) for item, name in zip(labels, list_classes(labels), strict=True)] == rows


@pytest.mark.parametrize(
    ("subsets", "expected"),
    [
        (["Train", "Validation", "Test", "Train"], {"train": "ad", "val": "b", "test": "c"}),
        (["Train", "Train", "Validation", "Validation"], {"train": "ab", "val": "cd"}),
        (["", "", "", ""], {"": "abcd"}),
        (["default"] * 4, {"": "abcd"}),
        (["Train"] * 4, {"": "abcd"}),
        (["Train", "Validation", "Train", ""], {"train": "ac", "val": "b"}),
        (["Train", "Validation", "Train", "mine"], {"train": "ac", "val": "b"}),
    ],
)
@pytest.mark.parametrize("copies", [1, 100])
def test_subsets_of_cvat_are_splits(tmp_path: Path, subsets: list[str], expected: dict[str, str], copies: int) -> None:
    touch(tmp_path, *(f"{name}.jpg" for name in NAMES))
    rows = [(name, "ant", subset) for name, subset in zip(NAMES, subsets, strict=True) for _ in range(copies)]
    splits = open_splits(write_cvat(tmp_path / "cvat.xml", rows))
    assert {
        name: "".join(dict.fromkeys(item.path.stem for item in split)) for name, split in splits.items()
    } == expected


@pytest.mark.parametrize("export", ["studio.json", "min.json", "studio.csv"])
@pytest.mark.parametrize("host", ["", "http://localhost:8080"])
@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("my%20photos/%C3%A9t%C3%A9/{}.jpg", "my photos/été/{}.jpg"),
        ("my photos/été/{}.jpg", "my photos/été/{}.jpg"),
        ("100%25%20sure/{}.jpg", "100% sure/{}.jpg"),
        ("100% sure/{}.jpg", "100% sure/{}.jpg"),
        ("a%2Bb/{}%23.jpg", "a+b/{}#.jpg"),
        ("photos%5C{}.jpg", "photos/{}.jpg"),
    ],
)
def test_local_files_of_label_studio_are_found_whatever_their_names(
    tmp_path: Path, url: str, path: str, host: str, export: str
) -> None:
    touch(tmp_path, *(path.format(name) for name in NAMES))
    rows = [(f"{host}/data/local-files/?d={url.format(name)}", "ab"[n % 2]) for n, name in enumerate(NAMES)]
    tasks = [{"data": {"image": image}, "annotations": [annotation(label)]} for image, label in rows]
    (tmp_path / "studio.json").write_text(json.dumps(tasks))
    (tmp_path / "min.json").write_text(json.dumps([{"image": image, "choice": label} for image, label in rows]))
    (tmp_path / "studio.csv").write_text("image,choice\n" + "".join(f"{image},{label}\n" for image, label in rows))
    labels = LabelFile(tmp_path / export)
    assert [item.path for item in labels] == [tmp_path / path.format(name) for name in NAMES]
    assert list_classes(labels) == ["a", "b", "a", "b"]
