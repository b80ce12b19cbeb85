"""Rows with more cells than the first row are left out and counted: an unquoted delimiter cuts links and classes."""

import asyncio
from pathlib import Path

import pytest

from mlimages import UrlList
from mlimages.core import InputError
from mlimages.gathering import read_list
from mlimages.gathering.sources.columns import LinkListOptions
from mlimages.gathering.sources.lists import LinkFile

A, B = "http://x/a.jpg", "http://x/b.jpg"
TABLES = {
    "comma in a link": ("x.csv", "url,label", "http://x/w,1.jpg,cat", f"{A},dog"),
    "comma in a class": ("x.csv", "url,label", f"{B},cat, black", f"{A},dog"),
    "comma in .txt": ("x.txt", "url,label", "http://x/w,1.jpg,cat", f"{A},dog"),
    "semicolon": ("x.csv", "url;label", "http://x/w;1.jpg;cat", f"{A};dog"),
    "declared semicolon": ("x.csv", "sep=;\nurl;label", "http://x/w;1.jpg;cat", f"{A};dog"),
    "bar": ("x.csv", "url|label", "http://x/w|1.jpg|cat", f"{A}|dog"),
    "tab": ("x.tsv", "label\turl", "black\tcat\thttp://x/w", f"dog\t{A}"),
    "no header": ("x.csv", f"{A},dog", "http://x/w,1.jpg,cat", f"{A},dog"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_row_with_more_cells_than_the_first_row_is_left_out_and_counted_if_most_rows_have_no_more(
    tmp_path: Path, name: str
) -> None:
    file_name, first, irregular, regular = TABLES[name]
    (tmp_path / file_name).write_text("\n".join([first, irregular, regular]))
    file = LinkFile(tmp_path / file_name, LinkListOptions())
    (warning,) = file.warnings
    assert warning.startswith("left out: 1 row with more than 2 cells (row 2), such as ")
    assert {(ref.label, ref.url) for ref in file} == {("dog", A)}
    (tmp_path / file_name).write_text("\n".join([first, irregular, irregular, irregular, regular]))
    with pytest.raises(InputError, match=r"3 of \d rows have more cells than the first row \(2\), such as row 2, "):
        LinkFile(tmp_path / file_name, LinkListOptions())


@pytest.mark.parametrize("header", ["url", '"url"', "URL ", ""])
def test_a_line_of_a_table_with_one_column_is_a_whole_link(tmp_path: Path, header: str) -> None:
    links = ["http://x/w_1,h_2/a.jpg", "http://x/b;c,1.jpg", B, '"http://x/d,2.jpg"']
    (tmp_path / "x.csv").write_text("\n".join([header, *links]))
    assert [(ref.label, ref.url) for ref in read_list(tmp_path / "x.csv")] == [("x", link.strip('"')) for link in links]


@pytest.mark.parametrize("at", [5, 150])
def test_rows_that_are_left_out_are_counted_once_also_below_the_checked_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("mlimages.gathering.sources.lists.MAX_HEAD_ROWS", 10)
    rows = [f"http://x/{n}.jpg,cat" for n in range(200)]
    rows.insert(at, "http://x/a,1.jpg,cat")
    (tmp_path / "x.csv").write_text("\n".join(["url,label", *rows]))
    messages: list[str] = []
    assert asyncio.run(UrlList(tmp_path / "x.csv", tell=messages.append).count_links_by_class()) == {"cat": 200}
    within = " in the first 10 rows" if at < 10 else ""
    assert [text.partition(" with more")[0] for text in messages[1:]] == [f"x.csv: left out: 1 row{within}"]


@pytest.mark.parametrize("first", ["url", "My list", A])
def test_a_table_of_which_only_the_first_row_has_one_cell_is_refused(tmp_path: Path, first: str) -> None:
    (tmp_path / "x.csv").write_text("\n".join([first, f"{A},cat", f"{B},dog"]))
    with pytest.raises(InputError, match=r"2 of [23] rows have more cells than the first row \(1\)"):
        LinkFile(tmp_path / "x.csv", LinkListOptions())
