"""Exports of annotation tools: each image has the classes that its annotators submitted, or the export is refused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlimages.labels import LabelFile, TableOptions, format_label
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
    left_out = [note for note in labels.notes if "left out: 1 row without a path or exactly one class (row 4)" in note]
    assert len(left_out) == (not one)
    multi = LabelFile(tmp_path / "studio.json", options=TableOptions(multi_label=True))
    assert list_classes(multi) == ["ant", "bee", "ant", *([] if several is None else [several])]
