"""A label file over its life: written, edited by hand, written again, split, reduced, while images come and go.

`MLIMAGES_STATEFUL_EXAMPLES` (10) makes it try more sequences.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlimages.core import InputError, LabeledPath
from mlimages.labels import LabelFile, label_dir_auto

CLASS_NAMES = ("ant", "bee", "cat")
TABLES = (".txt", ".csv", ".tsv", ".jsonl")
OURS = ("labels.txt", "labels_class_def.txt")


class LabelFileLife(RuleBasedStateMachine):
    """The model: images with their classes, and files that the person has made or changed."""

    def __init__(self) -> None:
        super().__init__()
        self._temporary = tempfile.TemporaryDirectory()
        self.root = Path(self._temporary.name).resolve()
        self.images: dict[Path, str] = {}
        self.of_person: dict[Path, bytes] = {}
        self.count = 0

    def teardown(self) -> None:
        self._temporary.cleanup()

    @property
    def labels(self) -> LabelFile:
        return LabelFile(self.root / "labels.txt")

    @property
    def is_complete(self) -> bool:
        return self.labels.path.exists() and all(item.path in self.images for item in self.labels)

    def keep(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self.of_person[path] = data

    @initialize()
    def first_images(self) -> None:
        for class_name in CLASS_NAMES:
            self.add(class_name, 2)

    @rule(class_name=st.sampled_from(CLASS_NAMES), count=st.integers(1, 3))
    def add(self, class_name: str, count: int) -> None:
        for _ in range(count):
            self.count += 1
            path = self.root / class_name / f"{self.count}.jpg"
            self.keep(path, f"image {self.count}".encode())
            self.images[path] = class_name

    @precondition(lambda self: len(self.images) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.images)))
        del self.images[path], self.of_person[path]
        path.unlink()

    @rule(overwrite=st.booleans())
    def label(self, overwrite: bool) -> None:
        labels = label_dir_auto(self.root).labels
        if not overwrite and any(self.root / name in self.of_person for name in OURS):
            with pytest.raises(InputError, match="was not written by mlimages, or was edited since"):
                labels.write(self.labels.path)
            return
        labels.write(self.labels.path, overwrite=overwrite)
        for name in OURS:
            self.of_person.pop(self.root / name, None)
        assert by_name(self.labels) == sorted(self.images.items())

    @precondition(lambda self: self.labels.path.exists())
    @rule(name=st.sampled_from(OURS))
    def edit(self, name: str) -> None:
        text = (self.root / name).read_text()
        self.keep(self.root / name, f"{text}\n".encode())

    @precondition(lambda self: self.is_complete)
    @rule(seed=st.integers(0, 3), suffix=st.sampled_from(TABLES))
    def split(self, seed: int, suffix: str) -> None:
        parts = self.labels.split((0.7, 0.3), seed=seed)
        assert [list(part) for part in parts] == [list(part) for part in self.labels.split((0.7, 0.3), seed=seed)]
        assert sorted(pair for part in parts for pair in by_name(part)) == by_name(self.labels)
        for part, name in zip(parts, ("train", "val"), strict=True):
            if expected := by_name(part):
                assert by_name(part.write(self.root / f"{name}{suffix}")) == expected

    @precondition(lambda self: self.is_complete)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        dropped = data.draw(st.lists(st.sampled_from(sorted(self.images)), unique=True, max_size=len(self.images) - 1))
        kept = self.labels.without(dropped).write(self.root / "kept.txt")
        assert by_name(kept) == [pair for pair in by_name(self.labels) if pair[0] not in dropped]

    @invariant()
    def what_the_person_made_is_as_it_was(self) -> None:
        assert {path: path.read_bytes() for path in self.of_person} == self.of_person

    @invariant()
    def nothing_is_half_written(self) -> None:
        names = {path.name for path in self.root.iterdir() if path.is_file()}
        suffixes = {"labels": (".txt",), "kept": (".txt",), "train": TABLES, "val": TABLES}
        known = {f"{stem}{suffix}" for stem, own in suffixes.items() for suffix in (*own, "_class_def.txt")}
        assert {name for name in names - known if not name.startswith(".")} == set()


def by_name(labels: LabelFile) -> list[tuple[Path, str]]:
    return sorted((item.path, labels.class_names[item.label]) for item in labels)


TestLabelFileLife = LabelFileLife.TestCase
TestLabelFileLife.settings = settings(
    max_examples=int(os.environ.get("MLIMAGES_STATEFUL_EXAMPLES", "10")), stateful_step_count=15, deadline=None
)

THREE_IMAGES = LabelFile(
    "x.txt", items=lambda: [LabeledPath(Path(f"{n}.jpg"), n) for n in range(3)], class_names=("a", "b", "c")
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([2, 4], "expected a mask of booleans, one per image, found other values"),
        (np.array([0, 1, 2]), "found other values"),
        ([0, 1, 1], "found other values"),
        ((n % 2 for n in range(3)), "found other values"),
        ([True, False, None], "found other values"),
        (["a.jpg"], "found other values"),
        ([True, False], "expected a mask of 3 booleans, one per image, found 2"),
        (np.ones(4, bool), "expected a mask of 3 booleans, one per image, found 4"),
        ([], "expected a mask of 3 booleans, one per image, found 0"),
    ],
)
def test_indices_and_masks_of_another_length_select_no_images(values: Iterable[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        THREE_IMAGES.where(values)


@pytest.mark.parametrize(
    "mask",
    [[False, True, True], (n > 0 for n in range(3)), np.arange(3) > 0, [*(np.arange(3) > 0)], torch.arange(3) > 0],
    ids=["list", "generator", "array", "list of NumPy's booleans", "tensor"],
)
def test_a_mask_selects_the_images_where_it_is_true(mask: Iterable[object]) -> None:
    selected = THREE_IMAGES.where(mask)
    assert list(selected) == list(selected) == list(THREE_IMAGES)[1:]
