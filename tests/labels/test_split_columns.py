"""Columns that name the split of each row: rows of the test set are never trained on without a word."""

import json
from itertools import cycle
from pathlib import Path

import pytest

from mlimages.core import LabelFileError
from mlimages.labels import LabelFile, TableOptions, open_splits
from mlimages.labels.split_column import SPLIT_COLUMN_NAMES
from tests.conftest import RunCli
from tests.labels.test_labels import touch

NAMES = tuple("abcdef")


def write_table(folder: Path, column: str, cells: tuple[str, ...], suffix: str = ".csv") -> Path:
    """Write a table of six images of two classes whose column repeats the cells."""
    for name in NAMES:
        (folder / f"{name}.jpg").write_text(name)
    rows = [
        {"path": f"{name}.jpg", "label": label, column: cell}
        for name, label, cell in zip(NAMES, ("ant", "ant", "ant", "bee", "bee", "bee"), cycle(cells), strict=False)
    ]
    table = folder / f"t{suffix}"
    if suffix == ".jsonl":
        table.write_text(
            "".join(json.dumps({key: value for key, value in row.items() if value}) + "\n" for row in rows)
        )
    elif suffix == ".xml":
        images = (
            f'<image name="{p}" subset="{cell}"><tag label="{c}"/></image>' for p, c, cell in map(dict.values, rows)
        )
        table.write_text(f"<annotations>{''.join(images)}</annotations>")
    else:
        header = "" if column == "column 3" else f"path,label,{column}\n"
        table.write_text(header + "".join(",".join(row.values()) + "\n" for row in rows))
    return table


def images_by_split(table: Path, *, multi_label: bool = False) -> dict[str, str]:
    splits = open_splits(table, TableOptions(multi_label=multi_label))
    return {name: "".join(item.path.stem for item in split) for name, split in splits.items()}


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("cell", ["", " ", "unused", "NaN", "UNASSIGNED", "eval", "1"])
@pytest.mark.parametrize(
    ("column", "suffix"),
    [("split", ".csv"), ("Set", ".csv"), ("fold", ".csv"), ("subset", ".xml"), ("partition", ".jsonl"),
     ("column 3", ".csv")],
)  # fmt: skip
def test_rows_that_name_no_split_are_left_out_and_counted(
    tmp_path: Path, column: str, suffix: str, cell: str, multi_label: bool
) -> None:
    table = write_table(tmp_path, column, ("train", cell, "TEST"), suffix)
    assert images_by_split(table, multi_label=multi_label) == {"train": "ad", "test": "cf"}
    note = f"left out: 2 rows without train, val or test in column {column} ({cell.strip().lower() or 'blank'}; rows "
    assert any(note.lower() in each.lower() for each in LabelFile(table).notes)


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        ("is_valid", ("0", "1", ""), {"train": "ad", "val": "be"}),
        ("is_valid", ("False", "True"), {"train": "ace", "val": "bdf"}),
        ("Is Train", ("1", "0"), {"train": "ace", "val": "bdf"}),
        ("is_train", ("True", "False", ""), {"train": "ad", "val": "be"}),
        ("split", ("train", "dev", "test"), {"train": "ad", "val": "be", "test": "cf"}),
        ("fold", ("training", "val"), {"train": "ace", "val": "bdf"}),
    ],
)
def test_the_splits_that_a_column_names(
    tmp_path: Path, column: str, cells: tuple[str, ...], expected: dict[str, str]
) -> None:
    table = write_table(tmp_path, column, cells)
    assert images_by_split(table) == expected
    assert any("left out" in note for note in LabelFile(table).notes) == ("" in cells)


@pytest.mark.parametrize(
    ("column", "cells", "found"),
    [
        ("split", ("0", "1", "2"), "0, 1, 2"),
        ("fold", ("0", "1"), "0, 1"),
        ("fold", ("1", "2", "3"), "1, 2, 3"),
        ("set", ("A", "B"), "a, b"),
        ("split", ("test",), "test"),
        ("is_valid", ("0",), "0"),
        ("subset", tuple(NAMES), "a, b, c, d, e ..."),
    ],
)
def test_a_column_that_names_no_two_splits_is_not_used_and_a_note_says_so(
    tmp_path: Path, column: str, cells: tuple[str, ...], found: str
) -> None:
    table = write_table(tmp_path, column, cells)
    assert images_by_split(table) == {"": "abcdef"}
    note = f"column {column} is not used as the split: expected at least two of train, val and test, found {found}"
    assert LabelFile(table).notes[-1] == f"{table}: {note}"


@pytest.mark.parametrize("cells", [("", "test"), ("train", "7"), ("dev", "dev", "eval"), ("test", "1", "NaN")])
@pytest.mark.parametrize("column", ["split", "fold", "is_valid"])
def test_a_column_that_names_one_split_in_some_rows_is_refused(
    tmp_path: Path, invoke_cli: RunCli, column: str, cells: tuple[str, ...]
) -> None:
    table = write_table(tmp_path, column, cells)
    with pytest.raises(
        LabelFileError, match=rf"t.csv: column {column} contains only the split \w+, and \d rows without train"
    ):
        open_splits(table)
    assert invoke_cli("label", "t.csv", "-o", "o.txt", check=False).returncode == 1
    assert not (tmp_path / "o.txt").exists()


def test_blank_cells_are_not_worth_a_note(tmp_path: Path) -> None:
    assert not any("is not used" in note for note in LabelFile(write_table(tmp_path, "split", ("",))).notes)


@pytest.mark.parametrize("columns", ["split,fold", "fold,split"])
@pytest.mark.parametrize("other", ["test", "train"])
def test_a_column_that_names_two_splits_is_used_whatever_another_one_names(
    tmp_path: Path, columns: str, other: str
) -> None:
    cells = {"split": cycle(("train", "test")), "fold": cycle((other, "1", "2"))}
    rows = (f"{name}.jpg,ant,{','.join(next(cells[column]) for column in columns.split(','))}\n" for name in NAMES)
    touch(tmp_path, *(f"{name}.jpg" for name in NAMES))
    (tmp_path / "t.csv").write_text(f"path,label,{columns}\n" + "".join(rows))
    assert images_by_split(tmp_path / "t.csv") == {"train": "ace", "test": "bdf"}


@pytest.mark.parametrize("column", SPLIT_COLUMN_NAMES)
def test_a_column_of_one_split_is_no_label_column(tmp_path: Path, column: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "t.csv").write_text(f"path,kind,{column}\na.jpg,ant,train\nb.jpg,bee,train\n")
    assert LabelFile(tmp_path / "t.csv").class_names == ("ant", "bee")


@pytest.mark.parametrize("source", ["t.csv", "photos"])
def test_images_of_one_split_are_dropped_from_it(tmp_path: Path, invoke_cli: RunCli, source: str) -> None:
    paths = [f"photos/{split}/ant/{name}.jpg" for split in ("train", "val") for name in "ab"]
    touch(tmp_path, *paths)
    rows = (f"{path},ant,{path.split('/')[1]}\n" for path in paths)
    (tmp_path / "t.csv").write_text("path,label,split\n" + "".join(rows))
    (tmp_path / "drop.txt").write_text(f"{paths[0]} 0\n")
    done = invoke_cli("label", source, "--drop", "drop.txt", "-o", "o.txt")
    assert done.stderr.count("dropped: ") == done.stderr.count("dropped: 1 image (drop.txt lists 1)") == 1
    assert [item.path.name for name in ("train", "val") for item in LabelFile(tmp_path / f"o_{name}.txt")] == [
        "b.jpg", "a.jpg", "b.jpg",
    ]  # fmt: skip


def test_the_label_column_is_no_split_column(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "t.csv").write_text("path,set\na.jpg,train\nb.jpg,bus\n")
    labels = LabelFile(tmp_path / "t.csv", options=TableOptions(label_column="set"))
    assert labels.class_names == ("bus", "train")
    assert not any("split" in note for note in labels.notes)
