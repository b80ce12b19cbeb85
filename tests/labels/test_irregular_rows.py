"""Lines of a table that are no row of it: what Excel declares, repeated headers, rows that are too long."""

from pathlib import Path

import pytest

from mlimages.core import LabelFileError
from mlimages.labels import LabelFile, TableOptions, open_splits
from tests.labels.test_label_folders import classes
from tests.labels.test_labels import touch

ROWS = ["a.jpg,ant", "b.jpg,bee", "c.jpg,ant", "d.jpg,bee"]
BY_CLASS = {"ant": 2, "bee": 2}


def write(folder: Path, lines: list[str], name: str = "a.csv") -> LabelFile:
    touch(folder, *(f"{name}.jpg" for name in "abcd"))
    (folder / name).write_text("\n".join([*lines, ""]))
    return LabelFile(folder / name)


@pytest.mark.parametrize("header", [["path,label"], []])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line", ["sep={}", "SEP={}", '"sep={}"', "sep={}\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_delimiter_that_excel_declares_is_no_row(
    tmp_path: Path, name: str, line: str, delimiter: str, header: list[str]
) -> None:
    rows = [row.replace(",", delimiter) for row in [*header, *ROWS, "d.jpg,"]]
    labels = write(tmp_path, [line.format(delimiter), *rows], name)
    assert classes(labels) == BY_CLASS
    assert f"(row {6 + len(header)})" in "".join(labels.notes), "numbers are those of the lines"


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        (["path,label", *ROWS[:2], "path,label", *ROWS[2:]], "left out: 1 repeated header (row 4)"),
        (["path,label", *ROWS[:2], " path , label", *ROWS[2:], "path,label"], "2 repeated headers (rows 4, 7)"),
        (["path,label,split", *(f"{row},train" for row in ROWS), "path,label,split"], "1 repeated header (row 6)"),
        (["path,label", *ROWS, "a,b.jpg,ant"], "1 row with more than 2 cells (row 6): quote cells"),
        ([*ROWS, "a,b.jpg,ant"], "1 row with more than 2 cells (row 5): quote cells"),
        (
            [*ROWS, "a.jpg,ant,bee"],
            "1 row with more than 2 cells (row 5): quote cells that contain the delimiter; "
            "write several classes in one cell (a;b)",
        ),
        (["path,label", *ROWS, "a.jpg,ant,,"], ""),
        (["path,label", *(f"{row}," for row in ROWS)], ""),
        ([*ROWS, ROWS[0]], ""),
    ],
)
def test_what_is_no_row_is_left_out_with_its_line(tmp_path: Path, lines: list[str], note: str) -> None:
    labels = write(tmp_path, lines)
    assert set(classes(labels)) == set(BY_CLASS)
    assert note in "".join(labels.notes)
    assert ("left out" in "".join(labels.notes)) == bool(note)
    assert {name for item in labels for name in item.path.name.split(",")} == {f"{name}.jpg" for name in "abcd"}


def test_a_repeated_header_spoils_neither_one_hot_labels_nor_splits(tmp_path: Path) -> None:
    header = "path,ant,bee,split"
    rows = ["a.jpg,1,0,train", "b.jpg,0,1,train", header, "c.jpg,1,0,val", "d.jpg,0,1,val"]
    write(tmp_path, [header, *rows])
    splits = open_splits(tmp_path / "a.csv")
    assert {name: classes(split) for name, split in splits.items()} == {
        "train": {"ant": 1, "bee": 1}, "val": {"ant": 1, "bee": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    "lines",
    [
        ["Images of the garden", "path,label", *ROWS],
        ["path,label", *(f"{number},{row}" for number, row in enumerate(ROWS))],
    ],
)
@pytest.mark.parametrize("options", [TableOptions(), TableOptions(multi_label=True)])
def test_a_first_row_that_has_fewer_cells_than_most_is_refused(
    tmp_path: Path, lines: list[str], options: TableOptions
) -> None:
    write(tmp_path, lines)
    with pytest.raises(LabelFileError, match=r"a.csv"):
        list(LabelFile(tmp_path / "a.csv", options=options))


@pytest.mark.parametrize("multi_label", [False, True])
def test_rows_of_open_images_with_confidence_0_are_no_labels(tmp_path: Path, *, multi_label: bool) -> None:
    rows = ["a,verification,/m/ant,1", "b,verification,/m/bee,1", "c,machine,/m/ant,0.7", "d,machine,/m/bee,0.9"]
    absent = ["c,verification,/m/bee,0", "d,verification,/m/ant,0.0"]
    write(tmp_path, ["ImageID,Source,LabelName,Confidence", absent[0], *rows, absent[1]])
    labels = LabelFile(tmp_path / "a.csv", options=TableOptions(multi_label=multi_label))
    found = {item.path.name: [labels.class_names[n] for n in item.labels or [item.label]] for item in labels}
    assert found == {"a.jpg": ["/m/ant"], "b.jpg": ["/m/bee"], "c.jpg": ["/m/ant"], "d.jpg": ["/m/bee"]}
    assert "2 rows with Confidence 0 (rows 2, 7): the image does not show the class" in "".join(labels.notes)


def test_a_confidence_of_0_in_other_tables_is_no_reason_to_leave_a_row_out(tmp_path: Path) -> None:
    labels = write(tmp_path, ["path,label,Confidence", *(f"{row},0" for row in ROWS)])
    assert classes(labels) == BY_CLASS
