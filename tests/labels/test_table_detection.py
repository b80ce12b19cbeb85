"""What is detected in a table and said about it, by literals: columns, folder, suffix, counts and notes."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlimages.core import InputError, LabelFileError, as_path
from mlimages.labels import LabelFile, TableOptions
from mlimages.labels.table_columns import detect_table
from mlimages.labels.table_paths import get_relative_path
from mlimages.labels.tables import Table
from tests.labels.test_labels import touch

SUFFIX_LESS = "id,kind\na,x\nb,y\nc,y\nd,x\n"
PATHS = "path,kind\na.jpg,x\nb.jpg,y\nc.jpg,y\nd.jpg,x\n"
TWO = "{},{},label\na.png,a.jpg,x\nb.png,b.jpg,y\n"

DETECTED: dict[str, tuple[list[str], str, dict[str, Any], dict[str, Any]]] = {
    # files, table, options, what is detected
    "half of the images are here": (
        ["a.jpg", "b.jpg", "in/a.jpg", "in/b.jpg", "in/c.jpg"], PATHS, {}, {"folder": "."},
    ),
    "under half are": (["a.jpg", "in/a.jpg", "in/b.jpg", "in/c.jpg"], PATHS, {}, {"folder": "in"}),
    "a folder that holds more": (
        ["in/a.jpg", "in/b.jpg", "to/a.jpg", "to/b.jpg", "to/c.jpg", "up/a.jpg"], PATHS, {}, {"folder": "to"},
    ),
    "hidden folders are not searched": ([".in/a.jpg", ".in/b.jpg", ".in/c.jpg"], PATHS, {}, {"folder": "."}),
    "nor others where the folder is given": (
        ["in/a.jpg", "to/a.jpg", "to/b.jpg", "to/c.jpg"], PATHS, {"images": "in"}, {"folder": "in"},
    ),
    "the first suffix of the images": (
        ["a.png", "b.PNG", "c.PNG", "d.PNG"], SUFFIX_LESS, {}, {"suffix": ".PNG", "path_column_index": 0},
    ),
    "a suffix is added where it is given": (
        ["a.png", "a.jpg", "b.jpg", "c.jpg"], SUFFIX_LESS, {"suffix": ".png"}, {"suffix": ".png"},
    ),
    "of two columns that exist the first name that is known": (
        ["a.png", "a.jpg", "b.png", "b.jpg"], TWO.format("mask", "filename"), {},
        {"path_column_index": 1, "labels": (2,)},
    ),
    "of two known names the better one": (
        ["a.png", "a.jpg", "b.png", "b.jpg"], TWO.format("id", "path"), {}, {"path_column_index": 1},
    ),
    "of two unknown names the first": (
        ["a.png", "a.jpg", "b.png", "b.jpg"], TWO.format("one", "two"), {"label_column": "3"}, {"path_column_index": 0},
    ),
    "the column that exists whatever its name": (
        ["a.jpg", "b.jpg"], TWO.format("path", "scan"), {}, {"path_column_index": 1},
    ),
    "the column with more images": (
        ["a.png", "a.jpg", "b.jpg"], TWO.format("path", "scan"), {}, {"path_column_index": 1},
    ),
    "a known name where nothing exists": ([], TWO.format("scan", "path"), {}, {"path_column_index": 1}),
    "the better name where nothing exists": ([], TWO.format("image", "file"), {}, {"path_column_index": 1}),
    "a column by its number": (
        ["a.jpg"], "x,y\na.jpg,b\n", {"path_column": "1"}, {"path_column_index": 0, "labels": (1,)},
    ),
    "a column by its last number": (
        ["a.jpg"], "y,x\nb,a.jpg\n", {"path_column": "2"}, {"path_column_index": 1, "labels": (0,)},
    ),
    "several columns by name or number": (
        ["a.jpg"], "x,p,Q,r\na.jpg,1,0,0\n", {"label_column": "4, q"},
        {"labels": (3, 2), "has_class_name_columns": False},
    ),
    "parent folders are stripped": (
        ["in/c.jpg", "in/d.jpg"], "path,kind\n/a/b/c.jpg,x\n/a/b/d.jpg,y\n", {"images": "in"},
        {"strip_components": 2},
    ),
    "as few as needed": (
        ["in/b/c.jpg", "in/c.jpg"], "path,kind\na/b/c.jpg,x\n", {"images": "in"}, {"strip_components": 1},
    ),
    "none without a given folder": (["c.jpg"], "path,kind\na/c.jpg,x\n", {}, {"strip_components": 0}),
    "no header": (["a.jpg"], "a.jpg,x\nb.jpg,y\n", {}, {"has_header": False, "column_names": ("", "")}),
    "no header, without suffixes": (["a.jpg", "b.jpg"], "a,x\nb,y\n", {}, {"has_header": False}),
    "a header": (["a.jpg"], "path , Kind\na.jpg,x\n", {}, {"has_header": True, "column_names": ("path", "Kind")}),
    "the best name of a label": (
        ["a.jpg"], "path,y,label,breed\na.jpg,1,2,3\n", {}, {"labels": (2,), "split": None},
    ),
    "the only other column": (["a.jpg"], "path,height,kind,url\na.jpg,1,x,u\n", {}, {"labels": (2,)}),
    "one-hot": (
        ["a.jpg", "b.jpg"], "path,p,q,size\na.jpg,1,0,0\nb.jpg,0,1,1\n", {},
        {"labels": (1, 2), "has_class_name_columns": False},
    ),
    "several columns of names": (
        ["a.jpg"], "path,p,q\na.jpg,x,1\n", {"label_column": "p,q", "multi_label": True},
        {"has_class_name_columns": True},
    ),
    "any number of ones": (
        ["a.jpg"], "path,p,q\na.jpg,1,1\n", {"multi_label": True},
        {"labels": (1, 2), "has_class_name_columns": False, "has_label_lists": True, "merges_rows": True},
    ),
    "lists": (["a.jpg"], 'path,tags\na.jpg,"[1, 2]"\nb.jpg,\n', {}, {"labels": (1,), "has_label_lists": True}),
    "no lists": (["a.jpg"], 'path,tags\na.jpg,"[1, 2]"\nb.jpg,x\n', {}, {"has_label_lists": False}),
    "no lists in a column of another name": (["a.jpg"], 'path,box\na.jpg,"[1, 2]"\n', {}, {"has_label_lists": False}),
    "lists in a column that is given": (
        ["a.jpg"], 'path,box\na.jpg,"[1, 2]"\n', {"label_column": "box"}, {"has_label_lists": True},
    ),
    "only blank cells are no lists": (["a.jpg"], "path,tags\na.jpg,\n", {}, {"has_label_lists": False}),
    "parts": (
        ["a.jpg"], "path,label,fold,split\na.jpg,x,train,train\nb.jpg,y,val,val\n", {}, {"split": 3},
    ),
    "one part is none": (
        ["a.jpg"], "path,label,split\na.jpg,x,train\nb.jpg,y,train\n", {}, {"split": None},
    ),
    "cells that are no parts": (
        ["a.jpg"], "path,label,split\na.jpg,x,train\nb.jpg,y,val\nc.jpg,y,odd\n", {}, {"split": 2},
    ),
    "parts without a header": (
        ["b.jpg"], "TRAIN,a.jpg,x\nVALIDATION,b.jpg,y\nTEST,c.jpg,y\n", {}, {"split": 0, "labels": (2,)},
    ),
    "classes that are called as parts": (
        ["a.jpg"], "a.jpg,train\nb.jpg,test\n", {}, {"split": None, "labels": (1,)},
    ),
    "numbers without a header are no parts": (
        ["a.jpg"], "a.jpg,0,x\nb.jpg,1,y\n", {"label_column": "3"}, {"split": None},
    ),
    "classes from paths": (["a.jpg"], "path,x,y\na.jpg,1,2\n", {"class_from": "(.)"}, {"labels": ()}),
    "semicolons": (["a.jpg"], "path;label\na.jpg;x,y\n", {}, {"delimiter": ";"}),
    "the delimiter with more columns": (["a.jpg"], "a.jpg,x;y\n", {}, {"delimiter": ",", "labels": (1,)}),
    "nothing": ([], "", {}, {"path_column_index": 0, "labels": (), "has_header": False, "column_names": ()}),
}  # fmt: skip


@pytest.mark.parametrize("case", DETECTED)
def test_what_is_detected(tmp_path: Path, case: str) -> None:
    files, text, options, expected = DETECTED[case]
    touch(tmp_path, *files)
    (tmp_path / "a.csv").write_text(text)
    images = {"images": tmp_path / options["images"]} if "images" in options else {}
    found = detect_table(tmp_path / "a.csv", tmp_path, TableOptions(**{**options, **images}))
    names = {"labels": "label_column_indices", "split": "split_column"}
    told = {name: getattr(found, names.get(name, name)) for name in expected}
    told |= {"split": found.split_column and found.split_column.index} if "split" in told else {}
    assert told == {**expected, **({"folder": tmp_path / expected["folder"]} if "folder" in expected else {})}


def test_at_most_20_folders_are_searched(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\na.jpg,x\n")
    touch(tmp_path, *(f"{n:02}/b.jpg" for n in range(19)), "19/a.jpg", "20/a.jpg", "18.jpg")
    assert detect_table(tmp_path / "a.csv", tmp_path, TableOptions()).folder == tmp_path / "19"
    (tmp_path / "19/a.jpg").unlink()
    assert detect_table(tmp_path / "a.csv", tmp_path, TableOptions()).folder == tmp_path


def test_the_paths_of_a_remote_folder_are_in_the_column_of_the_best_name(tmp_path: Path) -> None:
    pytest.importorskip("upath")
    (tmp_path / "a.csv").write_text("scan,image,label\nx.jpg,a.jpg,ant\n")
    found = detect_table(tmp_path / "a.csv", as_path("memory://images"), TableOptions())
    assert (found.path_column_index, found.label_column_indices, found.statistics.missing_paths) == (1, (2,), ())


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,a,b\n1.jpg,1,x\n", {}, "a.csv:1: expected a column named label or class, found 'path, a, b': specify"),
        (
            "path,a,b\n1.jpg,1,1\n",
            {},
            "(columns: path, a, b), or --multi-label if a row may contain 1 in several columns",
        ),
        ("path,a,b\n1.jpg,1\n2.jpg,0,1\n", {"multi_label": True}, None),
        ("path,label\n1.jpg,x\n", {"path_column": "0"}, "has no column '0'; its columns: path, label"),
        ("path,label\n1.jpg,x\n", {"path_column": "3"}, "has no column '3'"),
        ("1.jpg,x\n", {"label_column": "x"}, "has no header: give the column's number, not 'x' .first row: 1.jpg, x."),
        ("url,label\nhttps://x/1.jpg,a\n", {}, "contains URLs instead of paths"),
        ("path,label\na.jpg,httpx://a\n", {}, None),
    ],
)
def test_what_cannot_be_detected(tmp_path: Path, text: str, options: dict[str, Any], message: str | None) -> None:
    (tmp_path / "a.csv").write_text(text)
    if message is None:
        detect_table(tmp_path / "a.csv", tmp_path, TableOptions(**options))
        return
    with pytest.raises(InputError, match=message.replace("(columns", r"\(columns").replace("b),", r"b\),")):
        detect_table(tmp_path / "a.csv", tmp_path, TableOptions(**options))


def table_of(folder: Path, text: str, name: str = "a.csv", **options: Any) -> Table:
    (folder / name).write_text(text)
    return detect_table(folder / name, folder, TableOptions(**options))


def numbered(count: int) -> str:
    return ", ".join(map(str, range(1, count + 1)))


@pytest.mark.parametrize("count", [1, 9, 10, 11, 12])
def test_notes_show_ten_names_and_count_the_others(tmp_path: Path, count: int) -> None:
    rows = "".join(f"{n}.jpg,{n}\n" for n in range(1, count + 1))
    missing = table_of(tmp_path, f"path,label\n{rows}")
    classes = f"{count} class{'' if count == 1 else 'es'}: {numbered(min(count, 10))}{' ...' if count > 10 else ''}"
    assert missing.description == (
        f"{tmp_path}/a.csv: column path as image, label as label; 0 of {count} images exist; {classes}"
    )
    names = ", ".join(f"{n}.jpg" for n in range(1, min(count, 10) + 1))
    more = f" and {count - 10} more" if count > 10 else ""
    assert missing.missing_image_notes == (f"{tmp_path}/a.csv: missing: {names}{more}",)
    blank = table_of(tmp_path, "path,label\n" + "a.jpg,\n" * count + "b.jpg,x\n")
    lines = ", ".join(str(n) for n in range(2, min(count, 10) + 2)) + (" ..." if count > 10 else "")
    rows = f"row{'s' * (count > 1)}"
    what = f"left out: {count} {rows} without a path, or without exactly one class ({rows} {lines})"
    assert blank.skipped_row_notes == (f"{tmp_path}/a.csv: {what}",)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a.jpg,x\n", {}, "column 1 as image, column 2 as label; 1 of 1 images exist; 1 class: x"),
        ("path,\na.jpg,x\n", {}, "column path as image, column 2 as label; 1 of 1 images exist; 1 class: x"),
        (
            "path,p,q\na.jpg,1,0\nb.jpg,0,1\n", {},
            "column path as image, p, q (one-hot) as label; 1 of 2 images exist; 2 classes: p, q",
        ),
        (
            "path,p,q\na.jpg,1,\nb.jpg,0,1\n", {"multi_label": True},
            "column path as image, p, q (one-hot, several per image, blank cells as 0) as label; "
            "1 of 2 images exist; 2 classes: p, q",
        ),
        (
            "path,p,q\na.jpg,1,0\nb.jpg,1,1\n", {"multi_label": True},
            "column path as image, p, q (one-hot, several per image) as label; 1 of 2 images exist; 2 classes: p, q",
        ),
        (
            "path,tags\na.jpg,x;y\n./a.jpg,z\nb.jpg,\n", {"multi_label": True},
            "column path as image, tags (several per image) as label; 1 of 1 images exist; 3 classes: x, y, z",
        ),
        (
            'path,tags\na.jpg,"[2, 10]"\n./a.jpg,"[3]"\n', {},
            "column path as image, tags (several per image) as label; 2 of 2 images exist; 3 classes: 2, 3, 10",
        ),
        (
            "path,label,split\na.jpg,x,train\nb.jpg,y,val\n", {},
            "column path as image, label as label, split as split; 1 of 2 images exist; 2 classes: x, y",
        ),
        (
            "path,x\na.jpg,1\nb.jpg,2\n", {"class_from": r"^(\w)"},
            r"column path as image, match of '^(\w)' in the path as label; 1 of 2 images exist; 2 classes: a, b",
        ),
    ],
)  # fmt: skip
def test_what_is_said_about_a_table(tmp_path: Path, text: str, options: dict[str, Any], expected: str) -> None:
    touch(tmp_path, "a.jpg")
    assert table_of(tmp_path, text, **options).description == f"{tmp_path}/a.csv: {expected}"


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("label,path\nx,a.jpg\ny\nz,,c\n,b.jpg\n", {}, [(2, "a.jpg", "x")]),
        ("path,p,q\na.jpg,1,0\nb.jpg,1,1\nc.jpg,0,0\nd.jpg,0\ne.jpg,yes,no\n", {"label_column": "p,q"},
         [(2, "a.jpg", "p"), (6, "e.jpg", "p")]),
        ("path,p,q\na.jpg,1,0\nb.jpg,1,1\nc.jpg,0,\nd.jpg,,\ne.jpg,-1,1\n", {"multi_label": True},
         [(2, "a.jpg", '["p"]'), (3, "b.jpg", '["p", "q"]'), (4, "c.jpg", "[]")]),
        ("path,tag\na.jpg,y\nb.jpg,x\n./a.jpg,x\na.jpg,y\n", {"multi_label": True},
         [(2, "a.jpg", '["y", "x"]'), (3, "b.jpg", '["x"]')]),
        ("path,tag,split\na.jpg,x,train\na.jpg,y,val\na.jpg,z,train\n", {"multi_label": True},
         [(2, "a.jpg", '["x", "z"]'), (3, "a.jpg", '["y"]')]),
        ("path,x\na_1.jpg,1\nb.jpg,2\n", {"class_from": r"_(\d)"}, [(2, "a_1.jpg", "1")]),
        ("path,x\na_1.jpg,1\nb.jpg,2\n", {"class_from": r"_(\d)", "multi_label": True}, [(2, "a_1.jpg", '["1"]')]),
    ],
)  # fmt: skip
def test_the_rows_of_a_table(
    tmp_path: Path, text: str, options: dict[str, Any], expected: list[tuple[int, str, str]]
) -> None:
    touch(tmp_path, *(f"{name}.jpg" for name in "abcde"))
    found = table_of(tmp_path, text, **options)
    assert [(row.line_number, row.path, row.label) for row in found.rows()] == expected
    if found.split_column:
        assert found.row_split_names == ("train", "val")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["x"], ["y"]], ()),
        ([["x"], ["x", "y"]], ("1 row with several classes: use --multi-label to keep all classes",)),
        (
            [["x", "y"], ["x"], [], ["x", "y", "z"]],
            ("2 rows with several classes: use --multi-label to keep all classes",),
        ),
    ],
)
def test_rows_of_several_classes_are_counted(tmp_path: Path, rows: list[list[str]], expected: tuple[str, ...]) -> None:
    lines = [json.dumps({"file": f"{n}.jpg", "kind": kinds}) for n, kinds in enumerate(rows)]
    lines.append(json.dumps({"file": "z.jpg", "kind": "x"}))
    found = table_of(tmp_path, "\n".join(lines), "a.jsonl")
    assert found.multiple_classes_notes == tuple(f"{tmp_path}/a.jsonl: {text}" for text in expected)


def test_a_class_of_words_that_are_classes_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    found = table_of(tmp_path, "path,tag\na.jpg,x y\nb.jpg,x\nc.jpg,y\nd.jpg,z z1\n", multi_label=True)
    assert found.multiple_classes_notes == (
        f"{tmp_path}/a.csv: 1 class name made of other class names: separate classes by ';', not spaces",
    )


@pytest.mark.parametrize(("exist", "is_error"), [(1, True), (2, False), (3, False)])
def test_half_of_the_images_must_exist(tmp_path: Path, exist: int, is_error: bool) -> None:
    touch(tmp_path, *(f"{name}.jpg" for name in "abcd"[:exist]))
    table = table_of(tmp_path, PATHS)
    if not is_error:
        table.require_valid_rows()
        return
    with pytest.raises(LabelFileError) as error:
        table.require_valid_rows()
    assert str(error.value).startswith(
        f"{tmp_path}/a.csv: only 1 of 4 images exist (paths from column path; no file at {tmp_path}/b.jpg): specify "
    )


@pytest.mark.parametrize(("blank", "is_error"), [(1, False), (2, True), (3, True)])
def test_rows_with_a_label_must_be_more_than_those_without(tmp_path: Path, blank: int, is_error: bool) -> None:
    touch(tmp_path, "a.jpg")
    table = table_of(tmp_path, "path,label\na.jpg,x\na.jpg,y\n" + "a.jpg,\n" * blank)
    if not is_error:
        table.require_valid_rows()
        return
    share = f"no label in {blank} of {2 + blank} rows"
    with pytest.raises(LabelFileError, match=rf"a.csv:4: expected a path and a label \(one class\); {share}: specify"):
        table.require_valid_rows()


@pytest.mark.parametrize(("lines", "numbers"), [("a.jpg 0\nb.jpg 1\n", True), ("a.jpg 0\nb.jpg ant\n", False)])
def test_lines_of_which_some_have_names_have_names(tmp_path: Path, lines: str, numbers: bool) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    assert table_of(tmp_path, lines, "a.txt", suffix="").has_class_indices is numbers


@pytest.mark.parametrize(
    ("cell", "strip", "expected"),
    [("a/b/c.jpg", 0, "a/b/c.jpg"), ("a/b/c.jpg", 1, "b/c.jpg"), ("/a/b/c.jpg", 2, "c.jpg"), ("a\\c.jpg", 1, "c.jpg")],
)
def test_a_path_without_its_first_folders(cell: str, strip: int, expected: str) -> None:
    assert get_relative_path(cell, strip) == expected


def test_a_note_says_what_a_label_file_of_the_own_format_leaves_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "a_class_def.txt").write_text("0 ant\n1 bee\n")
    (tmp_path / "a.jsonl").write_text("".join(
        json.dumps({"path": f"{name}.jpg", "label": label}) + "\n"
        for name, label in (("a", "ant"), ("b", ["ant", "bee"]), ("c", "bee"))
    ))  # fmt: skip
    assert LabelFile(tmp_path / "a.jsonl").notes == (
        f"{tmp_path}/a.jsonl: left out: 1 row without a path, or without exactly one class (row 2)",
        f"{tmp_path}/a.jsonl: 1 row with several classes: use --multi-label to keep all classes",
    )
