"""What each format of a label file is told by, and the numbers of its lines."""

import io
from pathlib import Path

import pytest

from mlimages.core import LabelFileError
from mlimages.labels.formats import (
    ANY_WHITESPACE,
    FORMAT_SAMPLE_SIZE,
    LAST_WHITESPACE,
    Record,
    _unquote,
    detect_delimiters,
    is_table,
    read_records,
    read_text_rows,
    write_rows,
)


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg,cat\n" * FORMAT_SAMPLE_SIZE + "a.jpg 0\n", True),
        ("a.jpg,cat\n" * (FORMAT_SAMPLE_SIZE - 1) + "a.jpg\n", False),
        ("a.jpg,cat\nb.jpg cat\n", False),
        ("a.jpg 0\n" * 3, False),
        ("a b,c.jpg 0\n", False),
        ("a.jpg,b\n\n  \nc.jpg;d\n", True),
        ("", False),
    ],
)
def test_a_text_file_is_a_table_if_each_of_its_first_lines_has_a_delimiter(
    tmp_path: Path, text: str, expected: bool
) -> None:
    assert is_table(written(tmp_path, "a.txt", text)) is expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "a,b\tc;d\n", [",", "\t", ";"]),
        ("a.tsv", "a,b\tc\n", ["\t", ","]),
        ("a.csv", "a\n", [","]),
        ("a.tsv", "a\n", ["\t"]),
        ("a.txt", "a;b\nc;d\n", [";"]),
        ("a.txt", "a.jpg 0\n", [LAST_WHITESPACE]),
        ("a.jsonl", "{}\n", [""]),
    ],
)
def test_the_usual_delimiter_of_a_suffix_is_tried_first(
    tmp_path: Path, name: str, text: str, expected: list[str]
) -> None:
    path = written(tmp_path, name, text)
    assert detect_delimiters(path) == expected
    assert detect_delimiters(path, split_at_whitespace=True) == (
        [ANY_WHITESPACE] if expected == [LAST_WHITESPACE] else expected
    )


@pytest.mark.parametrize(
    ("name", "delimiter", "text", "expected"),
    [
        ("a.txt", LAST_WHITESPACE, "\na b.jpg 1\nc d\n'e' 2\n", [(2, ["a b.jpg", "1"]), (3, ["c d"]), (4, ["e", "2"])]),
        ("a.txt", ANY_WHITESPACE, "a  b\n\nc\td e\n", [(1, ["a", "b"]), (3, ["c", "d", "e"])]),
        ("a.csv", ",", 'a,b\n,\n"c\nd",e\n', [(1, ["a", "b"]), (4, ["c\nd", "e"])]),
        ("a.jsonl", "", '{"A": 1}\n\n{"a": true, "B": 2.5}\n', [(1, ["a", "B"]), (1, ["1", ""]), (3, ["1", "2.5"])]),
    ],
)
def test_rows_have_the_numbers_of_their_lines(
    tmp_path: Path, name: str, delimiter: str, text: str, expected: list[tuple[int, list[str]]]
) -> None:
    found = list(read_records(written(tmp_path, name, text), delimiter))
    assert found == [Record(number, cells) for number, cells in expected]


def test_a_line_without_a_label_is_shown_to_80_characters(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "a.jpg 0\n\n" + "x" * 100 + "\n")
    with pytest.raises(LabelFileError) as error:
        list(read_text_rows(path))
    assert str(error.value) == f"{path}:3: expected `path label`, found {'x' * 80!r}"


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
def test_rows_are_counted_and_written_as_they_are(suffix: str) -> None:
    expected = {
        ".txt": 'ä.jpg 0\n" b,.jpg" 1\n"c;" 2\n',
        ".csv": 'path,label\nä.jpg,0\n" b,.jpg",1\nc;,2\n',
        ".tsv": "path\tlabel\nä.jpg\t0\n b,.jpg\t1\nc;\t2\n",
        ".jsonl": '{"path": "ä.jpg", "label": 0}\n{"path": " b,.jpg", "label": 1}\n{"path": "c;", "label": 2}\n',
    }
    for name, column in (("a", "path"), ("metadata", "file_name")):
        out = io.StringIO()
        assert write_rows(out, Path(f"{name}{suffix}"), [("ä.jpg", 0), (" b,.jpg", 1), ("c;", 2)]) == 3
        assert out.getvalue() == expected[suffix].replace("path", column)
    assert write_rows(io.StringIO(), Path(f"a{suffix}"), []) == 0


@pytest.mark.parametrize(
    ("text", "expected"), [('"a"', "a"), ("'a'", "a"), ("\"a'", "\"a'"), ('"', '"'), ('""', ""), ("aa", "aa"), ("", "")]
)
def test_quotes_around_a_text_are_removed_in_pairs(text: str, expected: str) -> None:
    assert _unquote(text) == expected
