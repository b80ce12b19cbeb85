"""Lists of links as people have them are understood before any link is used, or refused with their first row."""

import asyncio
import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlimages import UrlList
from mlimages.core import ImageRef, InputError
from mlimages.gathering import GatherOptions, read_list, read_manifest
from mlimages.gathering.sources.columns import LinkListOptions
from mlimages.gathering.sources.list_files import MAX_LINE_LENGTH
from mlimages.gathering.sources.lists import LinkFile
from mlimages.gathering.sources.tables import parse_csv_rows
from tests.conftest import RunCli
from tests.gathering.conftest import run
from tests.labels.test_annotations import AMBIGUOUS_COCO, coco
from tests.servers import Site, answer, photo

A, B, C = "http://x/a.jpg", "http://x/b.jpg?c=1&d=2", 'http://x/b,"c".jpg?d=e f'
COCO = {
    "images": [{"id": 1, "coco_url": A, "file_name": "a.jpg"}, {"id": 2, "coco_url": B, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 1, "category_id": 7},
                    {"image_id": 2, "category_id": 7}, {"image_id": 2, "category_id": 8}],
    "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
}  # fmt: skip


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def pairs(path: Path) -> list[tuple[str, str]]:
    return [(ref.label, ref.url) for ref in read_list(path)]


CAT_A, CAT_B = ("cat", A), ("cat", B)
X_A, X_B = ("x", A), ("x", B)

FORMS = {
    "label first": ("x.txt", f"cat\t{A}\ncat\t{B}\n", [CAT_A, CAT_B]),
    "link first": ("x.txt", f"{A}\tcat\n{B}\tcat\n", [CAT_A, CAT_B]),
    "byte order mark and comment": ("x.txt", f"\ufeff{A}\r\n\n# no\n{C}\n", [X_A, ("x", C)]),
    "no label": ("x.txt", f"big cat\t{A}\n\t{C}", [("big cat", A), ("x", C)]),
    "ImageNet's ids": ("x.txt", f"n00004475_6590\t{A}\n", [("n00004475", A)]),
    "quotes in links": ("x.csv", f'id,URL,Label\n1,{A},cat\n2,"{C.replace(chr(34), chr(34) * 2)}",\n',
                        [CAT_A, ("x", C)]),
    "TSV": ("x.tsv", f"image_url\tcategory\n{A}\tcat\n{C}\tdog\n", [CAT_A, ("dog", C)]),
    "odd JSON lines": ("x.jsonl", f'{{"url": "{A}", "label": 3}}\n[1]\n{{', [("3", A), ("x", "[1]"), ("x", "{")]),
    "a quote alone": ("x.csv", f'url,label\n{A},cat\n"', [CAT_A, ("x", "")]),
    "further cells": ("x.txt", f"cat\t{A}\ncat\t{B}\t12\n", [CAT_A, CAT_B]),
    "trailing tabs": ("x.txt", f"{A}\tcat\t\t\n{B}\t\n", [CAT_A, X_B]),
    "quoted": ("x.txt", f"\"{A}\"\n'{B}'\n", [X_A, X_B]),
    "angle brackets": ("x.txt", f"<{A}>\n <{B}> \n", [X_A, X_B]),
    "Markdown": ("x.md", f"# Cats\n- ![a cat]({A})\n2. [b]({B} \"title\")\n", [X_A, X_B]),
    "bullets": ("x.txt", f"- {A}\n* {B}\n", [X_A, X_B]),
    "escaped ampersand": ("x.txt", f"{A}\n{B.replace('&', '&amp;')}\n", [X_A, X_B]),
    "UTF-16": ("x.txt", f"cat\t{A}\ncat\t{B}\n".encode("utf-16"), [CAT_A, CAT_B]),
    "UTF-16 CSV": ("x.csv", f"url,label\r\n{A},cat\r\n{B},cat\r\n".encode("utf-16"), [CAT_A, CAT_B]),
    "semicolons": ("x.csv", f"url;label\n{A};cat\n{B};cat\n", [CAT_A, CAT_B]),
    "no header": ("x.csv", f"{A},cat\n{B},cat\n", [CAT_A, CAT_B]),
    "tabs in .txt": ("x.txt", f"url\tlabel\n{A}\tcat\n{B}\tcat\n", [CAT_A, CAT_B]),
    "image_url beside url": ("x.csv", f"url,image_url,label\nhttp://p/1,{A},cat\nhttp://p/2,{B},cat\n", [CAT_A, CAT_B]),
    "suffix tells": ("x.csv", f"page,photo\nhttp://p/1,{A}\nhttp://p/2,{B}\n", [X_A, X_B]),
    "caption": ("x.csv", f"url,caption\n{A},a cat\n{B},a dog\n", [X_A, X_B]),
    "JSON array": ("x.json", json.dumps([A, B]), [X_A, X_B]),
    "JSON array in .txt": ("x.txt", json.dumps([A, B], indent=1), [X_A, X_B]),
    "JSON objects": ("x.json", json.dumps([{"url": A, "class": "cat"}, {"url": B}]), [CAT_A, X_B]),
    "JSON object with one array": ("x.json", json.dumps({"n": 2, "hits": [{"image": {"url": A}}]}), [X_A]),
    "JSON by class": ("x.json", json.dumps({"cat": [A, B]}), [CAT_A, CAT_B]),
    "separator line": ("x.csv", f"sep=;\r\nlabel;url\r\ncat;{A}\r\n;{B}\r\n", [CAT_A, X_B]),
    "separator line in .txt": ("x.txt", f'"sep=|"\nlabel|url\ncat|{A}\n', [CAT_A]),
    "COCO": ("x.json", json.dumps(COCO), [CAT_A, X_B]),
    "COCO with repeated objects": ("x.json", json.dumps({key: 2 * each for key, each in COCO.items()}),
                                   [CAT_A, X_B, CAT_A, X_B]),
    "COCO with captions": ("x.json", json.dumps({"images": COCO["images"],
                           "annotations": [{"image_id": 1, "caption": "a"}]}), [X_A, X_B]),
    "JSON lines": ("x.jsonl", f'{{"url": "{A}", "label": 1.0}}\n{{"url": "{B}", "label": false}}\n',
                   [("1", A), ("False", B)]),
    "JSON lines in .json": ("x.json", f'{{"url": "{A}", "by": "a\u2028b"}}\n{{"url": "{B}"}}\n', [X_A, X_B]),
    "a space": ("x.txt", f"{A} cat\nhttp://x/b.png cat\n", [CAT_A, ("cat", "http://x/b.png")]),
    "a space, class first": ("x.txt", f"honey bee {A}\ncat {B}\n", [("honey bee", A), CAT_B]),
    "spaces, link between numbers": ("x.txt", f"1 {A} 16.5 1\n2 {A} 9.6 0\n", [X_A, X_A]),
    "a bar": ("x.txt", f"{A} | cat\n{A}|honey bee\n", [CAT_A, ("honey bee", A)]),
    "a bar in CSV": ("x.csv", f"{A}|cat\n", [CAT_A]),
    "commas in .txt": ("x.txt", f"{A},cat\n{A},cat\n", [CAT_A, CAT_A]),
    "CSV in .txt": ("x.txt", f"url,label\n{A},cat\n{B},cat\n", [CAT_A, CAT_B]),
    "commas in links": ("x.txt", "http://x/w_1,h_1/a.jpg\nhttp://x/b.jpg?c=1,2\n",
                        [("x", "http://x/w_1,h_1/a.jpg"), ("x", "http://x/b.jpg?c=1,2")]),
    "spaces in links": ("x.txt", f"http://x/my cat.jpg\n{A}\n", [("x", "http://x/my cat.jpg"), X_A]),
    "cells left empty": ("x.csv", f"url,label\n{A},cat\n,dog\n{B},\n", [CAT_A, ("dog", ""), X_B]),
    "repeated header": ("x.csv", f"url,label\n{A},cat\nurl,label\n{B},cat\n url , label\n", [CAT_A, CAT_B]),
    "repeated header in .txt": ("x.txt", f"page,photo\n1,{A}\npage,photo\n2,{B}\n", [X_A, X_B]),
    "repeated header of TSV": ("x.tsv", f"label\turl\t\ncat\t{A}\nlabel\turl\t\ncat\t{B}\n", [CAT_A, CAT_B]),
    "repeated header of one column": ("x.txt", f"url\n{A}\nurl\n{B}\n", [X_A, X_B]),
    "repeated header after a separator line": ("x.csv", f"sep=;\nlabel;url\ncat;{A}\nlabel;url\ncat;{B}\n",
                                               [CAT_A, CAT_B]),
    "a row like a header": ("x.csv", f"url,label\n{A},label\nurl,cat\n", [("label", A), ("cat", "url")]),
    "Google's TsvHttpData twice": ("x.tsv", f"TsvHttpData-1.0\n{A}\t1\ta\nTsvHttpData-1.0\n{B}\t2\td=\n", [X_A, X_B]),
    "comment before the header": ("x.csv", f"# my list, 2024\nurl,label\n{A},cat\n", [CAT_A]),
    "comments with a link": ("x.csv", f"# from http://x\n#\n\nurl,label\n{A},cat\n", [CAT_A]),
    "comment before rows": ("x.csv", f"# my list\n{A},cat\n{A},cat\n", [CAT_A, CAT_A]),
    "comment before TSV": ("x.tsv", f"# my list\nlabel\turl\ncat\t{A}\n", [CAT_A]),
    "comment before a separator line": ("x.csv", f"# my list\nsep=;\nlabel;url\ncat;{A}\n", [CAT_A]),
    "header that begins as a comment": ("x.tsv", f"#label\turl\ncat\t{A}\n", [CAT_A]),
    "such a header after a comment": ("x.csv", f"# my list\n# label,url\ncat,{A}\n", [CAT_A]),
    "classes that begin as comments": ("y.csv", f"#ant,{A}\n#bee,{A}\ncat,{A}\n", [("#ant", A), ("#bee", A), CAT_A]),
    "only such classes": ("y.csv", f'#ant,{A}\n"#bee","{A}"\n#ant, {A}\n', [("#ant", A), ("#bee", A), ("#ant", A)]),
    "one such class": ("y.csv", f"#ant,{A}\n", [("#ant", A)]),
    "comment with a link and a comma": ("x.csv", f"# http://x, 2024\n{A},cat\n", [CAT_A]),
    "row that is commented out": ("x.csv", f"#{A},dog\n{A},cat\n", [CAT_A]),
    "comment with a link before rows": ("x.csv", f"# from http://x\n{A},cat\n{A},cat\n", [CAT_A, CAT_A]),
    "comment before such classes": ("y.csv", f"# my list\n#ant,{A}\ncat,{A}\n", [("#ant", A), CAT_A]),
    "comment that is a column's name": ("x.txt", f"# image\n{A}\n# more\n{B}\n", [X_A, X_B]),
    "header of classes and links": ("x.txt", f"class\tlink\ncat\t{A}\n", [CAT_A]),
    "such a header that begins as a comment": ("x.txt", f"# class\tlink\ncat\t{A}\n", [CAT_A]),
    "header with a line end": ("y.csv", f'"image\nlink",label\n{A},cat\n,dog\n', [CAT_A, ("dog", "")]),
    "comments like rows": ("x.csv", f"# from http://x, 2024\n# class,link\nurl,label\n{A},cat\n", [CAT_A]),
    "title like a header": ("x.txt", f"image, class\ncat\t{A}\n", [("x", "image, class"), CAT_A]),
    "only comments": ("x.csv", "# my list\n# to be filled\n", []),
    "JSON objects in a line": ("x.txt", f"\ufeff {json.dumps([{'url': A, 'label': 'cat'}])}\n", [CAT_A]),
    "parameters with names of HTML": ("x.txt", "http://x/?a=1&copy=2&amp;lt;=3\n", [("x", "http://x/?a=1&copy=2&lt;=3")]),
}  # fmt: skip


DAMAGE = [
    'http://x/{n}.jpg,dog,"open',
    'http://x/{n}.jpg,dog,5" wide',
    '"http://x/{n}.jpg",dog,"a "b" c',
    'http://x/{n}.jpg,dog,"',
]
CELLS = ["plain", '"a, b"', '"say ""yes"""', '"two\nlines\n"', "''", "", '"' + "long " * 20_000 + '"']


@given(st.lists(st.sampled_from([*DAMAGE, *(f"http://x/{{n}}.jpg,dog,{cell}" for cell in CELLS)]), max_size=12))
@settings(deadline=None, max_examples=60)
def test_a_damaged_row_costs_no_other_row(rows: list[str]) -> None:
    text = "\n".join(["url,label,caption", *(row.replace("{n}", str(n)) for n, row in enumerate(rows))])
    read = [row[:2] for row in parse_csv_rows(text.split("\n"), ",")][1:]
    assert read == [[f"http://x/{n}.jpg", "dog"] for n in range(len(rows))]


PIECES = st.sampled_from(
    ["a", "Red", " ", ",", '"', "\n", "\n\n", "\nRed, big", "http://x/1.jpg", "\nhttp://x/2.jpg, b"]
)
# a cell whose last character is a comma closes its quote as a new cell would open one, which may be damage
VALID_CELLS = st.lists(PIECES, max_size=6).map("".join).map(lambda cell: cell.rstrip(", "))


ROWS = st.integers(1, 4).map(lambda width: st.lists(VALID_CELLS, min_size=width, max_size=width))
TABLES = ROWS.flatmap(lambda row: st.lists(row, min_size=1, max_size=8))


@given(TABLES, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
@settings(deadline=None, max_examples=300)
def test_a_valid_table_is_read_as_the_csv_module_reads_it(rows: list[list[str]], quoting: Any) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", quoting=quoting).writerows(rows)
    lines = file.getvalue().removesuffix("\n").split("\n")
    assert list(parse_csv_rows(lines, ",")) == list(csv.reader(io.StringIO(file.getvalue()))) == rows


@pytest.mark.parametrize(
    ("columns", "caption"),
    [
        (["label", "caption", "url"], "A flower.\nRed, big"),
        (["caption", "url", "label"], "nice\nflower"),
        (["url", "label", "caption"], "Rose\nhttp://x/license, by, Ann"),
        (["url", "label", "caption"], "Rose, red\nhttp://x/license"),
    ],
)
def test_a_line_end_in_a_quoted_cell_splits_no_row(tmp_path: Path, columns: list[str], caption: str) -> None:
    links = [("rose", A), ("tulip", B), ("rose", "http://x/c.jpg")]
    file = io.StringIO()
    table = csv.DictWriter(file, columns)
    table.writeheader()
    table.writerows({"label": label, "url": url, "caption": caption} for label, url in links)
    assert pairs(write(tmp_path / "x.csv", file.getvalue())) == links


@pytest.mark.parametrize("form", FORMS)
def test_lists_are_read_as_people_have_them_with_their_classes_or_one_for_all_links(tmp_path: Path, form: str) -> None:
    name, data, expected = FORMS[form]
    assert pairs(write(tmp_path / name, data)) == expected
    file = LinkFile(tmp_path / name, LinkListOptions(class_name="pet"))
    assert [(ref.label, ref.url) for ref in file] == [("pet", url) for _, url in expected]
    if isinstance(data, str):
        for end in ("\r\n", "\r"):
            assert pairs(write(tmp_path / name, data.replace("\n", end))) == expected
        assert pairs(write(tmp_path / f"{name}.gz", gzip.compress(data.encode(), 1))) == expected


@pytest.mark.parametrize(
    "form", [form for form, (name, _, _) in FORMS.items() if name in ("x.csv", "x.txt", "x.jsonl")]
)
def test_standard_input_is_understood_as_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    _, data, expected = FORMS[form]
    path = write(tmp_path / "x", data)
    monkeypatch.setattr("mlimages.gathering.sources.list_files.open_stdin", lambda: path.open("rb"))
    found = [(ref.label.replace("images", "x"), ref.url) for ref in LinkFile(Path("-"), LinkListOptions())]
    assert found == expected


@pytest.mark.parametrize(
    ("rows", "warnings"),
    [
        ([A, "x/b.jpg", "C:\\c.jpg"], ["2 of 3 rows without an http(s) link, such as x/b.jpg"]),
        (["url,label", f"{A},cat", f"{B},", ",dog"], ["1 of 3 rows without an http(s) link",
                                                      "1 of 3 rows without a class, which are put into class x"]),
        ([A, f"{A}, {B}"], [f"1 of 2 rows with several links in a cell, such as {A}, {B}: put each link in its own "
                            "row"]),
        ([f"cat\t{A}", B], ["1 of 2 rows without a class, which are put into class x"]),
        ([f"cat\t{A}", f"cat\t{B}"], []),
        (3 * ["label\turl", f"cat\t{A}"], ["left out: 2 repeated headers"]),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_as_they_are_are_said(tmp_path: Path, rows: list[str], warnings: list[str]) -> None:
    file = LinkFile(write(tmp_path / "x.txt", "\n".join(rows)), LinkListOptions())
    assert list(file.warnings) == warnings
    assert file.description.endswith(f"; first link {A}")


def test_long_rows_are_not_all_held_to_detect_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlimages.gathering.sources.lists.MAX_HEAD_LENGTH", 1000)
    rows = [f"{url},{'text' * 100}" for url in ["x/b.jpg", *[A] * 9]]
    file = LinkFile(write(tmp_path / "x.csv", "\n".join(["url,note", *rows])), LinkListOptions())
    assert file.warnings == ("1 of the first 3 rows without an http(s) link, such as x/b.jpg",)
    assert len(list(file)) == 10


SPACED = "http://x/a b.jpg"


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("x.txt", f"{SPACED}\n", "separate classes from links by tabs"),
        ("x.txt", f"cat\t{SPACED}\n", "its own column"),
        ("x.csv", f"breed,link\ncat,{SPACED}\n", "its own column"),
        ("x.csv", f"link\n{SPACED}\n", "its own column"),
        ("x.json", f'["{SPACED}"]', "its own column"),
    ],
)
def test_advice_about_a_space_in_a_link_fits_the_format(tmp_path: Path, name: str, text: str, advice: str) -> None:
    (warning,) = LinkFile(write(tmp_path / name, text), LinkListOptions()).warnings
    assert warning.startswith(f"1 of 1 row with a space in the link, such as {SPACED}: ")
    assert warning.endswith(advice)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", f"# url,label\n{A},cat\n{B},dog\n"),
        ("x.csv", f"# of 2020\nurl,label\n{A},cat\n{B},dog\n"),
        ("x.csv", f"label,url\n#ant,{A}\n#bee,{B}\n"),
        ("x.csv", f"sep=;\nlabel;url\n#ant;{A}\n#bee;{B}\n"),
        ("x.txt", f'["{A}", "{B}", "{A}"]'),
        ("x.txt", f'[\n"{A}", "{B}",\n"{A}"]'),
        ("x.jsonl", f'{{"url": "{A}"}}\n{{"url": "{B}"}}\n'),
        ("x.txt", f"# of 2020\n{A}\n{B}\n"),
        ("x.txt", f"{A}\n\n \t\r\n{B}"),
        ("x.txt", f"{A}\n\xa0\n{B}\n"),
        ("x.txt", f"{A}\r\n\r\n{B}\r\n".encode("utf-16")),
        ("x.txt", f"{A}\r\r{B}\r"),
    ],
)
def test_the_total_of_the_progress_bar_is_never_too_small_and_leaves_blank_lines_out(
    tmp_path: Path, name: str, text: str | bytes
) -> None:
    total = asyncio.run(UrlList(write(tmp_path / name, text)).count_links())
    num_links = len(list(read_list(tmp_path / name)))
    assert num_links >= 2
    assert total is None if str(text).startswith("[") else total in (num_links, num_links + str(text).count("# of"))


def test_counting_the_hosts_of_an_opened_list_leaves_its_links(tmp_path: Path) -> None:
    source = UrlList(write(tmp_path / "x.txt", "\n".join(f"http://a.example/{n}" for n in range(20))))

    async def read() -> tuple[dict[str, int], int]:
        await source.count_links()
        return await source.count_shards_by_host(2), len([ref async for ref in source])

    assert asyncio.run(read()) == ({"a.example": 2}, 20)


def archive(path: Path, members: dict[str, str | bytes]) -> Path:
    """Write a zip or a tar of files, and of folders, whose names end in `/`."""
    contents = {name: data.encode() if isinstance(data, str) else data for name, data in members.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, data in contents.items():
                zipped.writestr(name, data)
        return path
    mode: Any = f"w:{path.suffix.removeprefix('.').replace('tar', '').replace('tgz', 'gz')}"
    with tarfile.open(path, mode) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_compressed_lists_are_read_and_a_cut_one_ends_in_one_sentence(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    data = compress(f"url,label\n{A},cat\n".encode())
    assert pairs(write(tmp_path / f"x.csv.{suffix}", data)) == [CAT_A]
    with pytest.raises(InputError, match="cannot be read completely"):
        pairs(write(tmp_path / f"y.csv.{suffix}", data[:-12]))


@pytest.mark.parametrize("suffix", ["zip", "tar", "tgz", "tar.gz", "tar.bz2", "TAR.xz"])
@pytest.mark.parametrize(("name", "text"), [("x.csv", f"url,label\n{A},cat\n"), ("x.json", json.dumps({"cat": [A]}))])
def test_a_list_in_an_archive_is_read_and_a_cut_one_ends_in_one_sentence(
    tmp_path: Path, name: str, text: str, suffix: str
) -> None:
    path = archive(tmp_path / f"{name}.{suffix}", {"lists/": "", f"lists/{name}": text, "lists/README": text[:6]})
    assert pairs(path) == [CAT_A]
    assert asyncio.run(UrlList(path).count_links()) is None
    with pytest.raises(InputError, match="cannot be read completely"):
        pairs(write(tmp_path / f"cut-{name}.{suffix}", path.read_bytes()[:100]))


@pytest.mark.parametrize("suffix", ["json", "json.gz"])
@pytest.mark.parametrize("form", ["links", "objects", "by class", "COCO"])
def test_json_is_read_however_long_its_only_line_is(tmp_path: Path, form: str, suffix: str) -> None:
    links = [f"http://x/{n:0100}.jpg" for n in range(12_000)]
    images = [{"id": n, "coco_url": link} for n, link in enumerate(links)]
    value = {"links": links, "objects": [{"url": link} for link in links], "by class": {"x": links},
             "COCO": {"images": images, "annotations": []}}[form]  # fmt: skip
    data = json.dumps(value).encode()
    assert len(data) > MAX_LINE_LENGTH
    path = write(tmp_path / f"x.{suffix}", gzip.compress(data, 1) if suffix.endswith("gz") else data)
    assert pairs(path) == [("x", link) for link in links]


def test_parquet_is_read_in_batches_with_nested_columns_and_odd_labels(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"label": ["cat"] * 2500, "extra": [None] * 2500, "url": [f"http://x/{n}" for n in range(2500)]}
    parquet.write_table(arrow.table(columns), tmp_path / "x.parquet")
    assert pairs(tmp_path / "x.parquet")[2499] == ("cat", "http://x/2499")
    with pytest.raises(InputError, match="cannot be read"):
        pairs(write(tmp_path / "y.parquet", b"PAR1 no"))
    columns = {"image": [{"url": A, "width": 3}, {"url": B, "width": 4}]}
    odd = [([0, 1], ["0", "1"]), ([False, True], ["False", "True"]), ([b"cat", b"dog"], ["cat", "dog"])]
    for number, (labels, expected) in enumerate(odd):
        path = tmp_path / f"{number}.parquet"
        parquet.write_table(arrow.table({**columns, "label": labels}), path)
        assert pairs(path) == list(zip(expected, (A, B), strict=True))
        assert [ref.source for ref in read_list(path)] == [{"image.width": 3}, {"image.width": 4}]


@pytest.mark.parametrize(
    ("data", "choice"),
    [
        (f"1,cat,{A}\n2,dog,{B}\n", LinkListOptions("3", "2")),
        (f"no,kind,where\n1,cat,{A}\n2,dog,{B}\n", LinkListOptions("3", "2")),
        (f"no,kind,where\n1,cat,{A}\n2,dog,{B}\n", LinkListOptions("where", "KIND")),
    ],
)
def test_columns_are_named_by_name_or_number(tmp_path: Path, data: str, choice: LinkListOptions) -> None:
    refs = list(read_list(write(tmp_path / "x.csv", data), choice.url_col, choice.label_col))
    assert [(ref.label, ref.url) for ref in refs] == [("cat", A), ("dog", B)]
    with pytest.raises(InputError, match="has no column '9' \\(columns:"):
        LinkFile(tmp_path / "x.csv", LinkListOptions("9"))


def test_other_columns_are_kept_and_what_was_understood_is_said(tmp_path: Path) -> None:
    file = LinkFile(write(tmp_path / "x.csv", f"id,image_url,category,by\n7,{A},cat,\n"), LinkListOptions())
    assert file.description == f"column image_url as link, category as class; 2 other columns kept; first link {A}"
    assert list(file) == [ImageRef(A, "cat", {"id": "7"})]
    one = LinkFile(tmp_path / "x.csv", LinkListOptions(class_name="pet"))
    assert [(ref.label, ref.source["category"]) for ref in one] == [("pet", "cat")]
    assert list(LinkFile(write(tmp_path / "x.md", f"- [a cat]({A})\n- {B}\n"), LinkListOptions())) == [
        ImageRef(A, "x", {"text": "a cat"}), ImageRef(B, "x")
    ]  # fmt: skip
    file = LinkFile(write(tmp_path / "x.csv", f"Image,Espèce,Auteur\n{A},bourdon,Ann\n"), LinkListOptions())
    assert "2 other columns kept: Espèce, Auteur (--label-column chooses the classes)" in file.description


def test_a_line_that_is_no_json_is_no_column(tmp_path: Path) -> None:
    file = LinkFile(write(tmp_path / "x.jsonl", f'{{"url": "{A}", "n": 1}}\n{{"url": \n'), LinkListOptions())
    assert "1 other column kept: n (" in file.description
    assert [ref.source for ref in file] == [{"n": 1}, {}]


def test_a_json_array_without_links_and_objects_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a JSON array of links or objects"):
        LinkFile(write(tmp_path / "x.json", json.dumps([[3, A, {}]])), LinkListOptions())


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.json", "odd.txt"])
def test_a_list_without_a_link_is_refused_with_its_first_row(tmp_path: Path, name: str) -> None:
    rows = "ftp://x/cats/1.jpg\n//x/2.jpg\n" if name == "odd.txt" else "cats/1.jpg,b\ncats/2.jpg,c\n"
    path = write(tmp_path / name, '["cats/1.jpg", "b"]' if name == "x.json" else rows)
    with pytest.raises(
        InputError, match=r"no (http\(s\) )?link in the first (row|2 rows) .*first row: .*cats/[12]\.jpg"
    ):
        LinkFile(path, LinkListOptions())


BINARY_STARTS = {
    "zip": b"PK\x03\x04",
    "xls": b"\xd0\xcf\x11\xe0",
    "zstd": b"\x28\xb5\x2f\xfd",
    "gzip": gzip.compress(b"text")[:12],
    "bzip2": bz2.compress(b"text")[:12],
    "xz": lzma.compress(b"text")[:12],
    "7z": b"7z\xbc\xaf\x27\x1c",
    "RAR": b"Rar!\x1a\x07",
    "tar": b"links.tsv\0\0\0http://x/a.jpg\n",
    "another": f"cat\t{A}\n\0\n".encode(),
}
"""The first bytes of files that are no text."""


@pytest.mark.parametrize("name", ["x.xlsx", "x.csv", "x.txt", "x.json", "x.jsonl", "x.tsv.zst", "x.csv.gz", "-"])
@pytest.mark.parametrize("kind", BINARY_STARTS)
def test_a_binary_file_is_refused_as_one_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    data = BINARY_STARTS[kind] + b"\x01\xff" * 20
    path = write(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    monkeypatch.setattr("mlimages.gathering.sources.list_files.open_stdin", lambda: path.open("rb"))
    with pytest.raises(InputError, match=r"spreadsheet or an archive, .*: save it as CSV, or extract it"):
        LinkFile(Path("-") if name == "-" else path, LinkListOptions())


def test_a_web_page_or_a_folder_in_place_of_a_list_is_refused(tmp_path: Path) -> None:
    page = write(tmp_path / "x.txt", '<!DOCTYPE html>\n<a href="http://x/login">Log in</a>\n')
    with pytest.raises(InputError, match="is a web page"):
        LinkFile(page, LinkListOptions())
    with pytest.raises(InputError, match="is a folder: pass the lists of links"):
        UrlList(tmp_path)


@pytest.mark.parametrize(("changes", "message"), AMBIGUOUS_COCO)
def test_ids_of_coco_are_refused_as_in_label_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if isinstance(changes.get("images"), dict):
        message = "expected a JSON array of links or objects, JSON lines, or a COCO dataset"
    with pytest.raises(InputError, match=message):
        list(read_list(write(tmp_path / "x.json", coco(changes))))


def test_a_message_about_two_links_with_one_id_has_no_password(tmp_path: Path) -> None:
    images = [{"id": 1, "coco_url": f"http://me:secret@x/{name}.jpg"} for name in "ab"]
    path = write(tmp_path / "x.json", json.dumps({**COCO, "images": images}))
    with pytest.raises(InputError, match=r"id 1 in 'images' is both http://x/a.jpg and http://x/b.jpg"):
        list(read_list(path))


def test_captions_are_not_taken_as_classes_unless_somebody_says_so(tmp_path: Path) -> None:
    rows = "".join(f"a cat number {n}\thttp://x/{n}.jpg\n" for n in range(1200))
    path = write(tmp_path / "x.tsv", rows)
    with pytest.raises(InputError, match=r"1200 of the first 1200 links .* use --class NAME"):
        LinkFile(path, LinkListOptions())
    assert {ref.label for ref in LinkFile(path, LinkListOptions(class_name="cat"))} == {"cat"}
    assert len({ref.label for ref in LinkFile(path, LinkListOptions(label_col="1"))}) == 1200


@given(st.binary(max_size=300), st.sampled_from(["txt", "csv", "tsv", "jsonl", "txt.gz", "tgz"]))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lists_of_noise_end_as_links_or_one_clear_error(tmp_path: Path, noise: bytes, suffix: str) -> None:
    path = write(tmp_path / f"noise.{suffix}", b"url,label\nhttp://x/1,a\n" + noise if "csv" in suffix else noise)
    with contextlib.suppress(InputError):
        assert all(isinstance(ref.url, str) and ref.label for ref in read_list(path))


def test_a_line_without_end_is_cut_and_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", b"http://x/" + b"y" * 5_000_000 + f"\n{A}\n".encode())
    first, second = read_list(path)
    assert (len(first.url), second.url) == (2**20, A)


def count_and_tell(path: Path, **options: Any) -> tuple[dict[str, int | None], list[str]]:
    told: list[str] = []
    return asyncio.run(UrlList(path, tell=told.append, **options).count_links_by_class()), told


ANTS_AND_BEES = {"ants.txt": f"{A}\n{B}\n", "more/bees.txt": f"{A}\n"}
MANY_ANTS = "".join(f"http://x/{n}.jpg\n" for n in range(6000))
ARCHIVED = {
    "two lists": (ANTS_AND_BEES, {"ants": 2, "bees": 1}, []),
    "one list": ({"ants.txt": f"{A}\n"}, {"lists": 1}, []),
    "more rows than are checked at first": ({**ANTS_AND_BEES, "ants.txt": MANY_ANTS}, {"ants": 6000, "bees": 1}, []),
    "a table with its own format": ({"a.csv": f"url,label\n{A},cat\n", **ANTS_AND_BEES},
                                    {"cat": 1, "ants": 2, "bees": 1}, []),
    "an empty file": ({"empty.txt": "", **ANTS_AND_BEES}, {"ants": 2, "bees": 1}, ["empty.txt"]),
    "a README": ({"README.txt": "see LICENSE\n", **ANTS_AND_BEES}, {"ants": 2, "bees": 1}, ["README.txt"]),
    "a README of several lines": ({"README.md": f"# Links, of\nants\n\nsee <{A}>, ok\n", **ANTS_AND_BEES},
                                  {"ants": 2, "bees": 1}, ["README.md"]),
    "files of macOS": ({"__MACOSX/._ants.txt": b"\0\5\x16", ".DS_Store": b"\0", "ants.txt": f"{A}\n"},
                       {"lists": 1}, ["__MACOSX/._ants.txt", ".DS_Store"]),
    "an image, a page and JSON": ({"a.jpg": photo(1), "index.html": "<html><p>ants", "x.json": "[1]", "ants.txt": A},
                                  {"ants": 1}, ["a.jpg", "index.html", "x.json"]),
    "text with the suffix of binary files": ({"x.gz": "ants", "x.parquet": "ants", "x.zip": A, "ants.txt": A},
                                            {"x": 1, "ants": 1}, ["x.gz", "x.parquet"]),
    "names that are no file names": ({"../ants.txt": A, "/bees.txt": A, f"{'wasps' * 60}.csv": f"url,label\n{A},wasps"},
                                     {"ants": 1, "bees": 1, "wasps": 1}, []),
    "names of tar": ({f"./{name}": data for name, data in ANTS_AND_BEES.items()}, {"ants": 2, "bees": 1}, []),
}  # fmt: skip
"""Archives: their files, the links by class, and the files that are left out."""


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
@pytest.mark.parametrize("form", ARCHIVED)
def test_every_list_of_an_archive_is_read_and_other_files_are_named(tmp_path: Path, form: str, suffix: str) -> None:
    members, classes, left_out = ARCHIVED[form]
    path = archive(tmp_path / f"lists{suffix}", members)
    counts, told = count_and_tell(path)
    assert counts == classes
    said = f"{path.name}: left out: {len(left_out)} of {len(members)} files, which are no lists of links: "
    assert [text for text in told if "left out" in text] == [said + ", ".join(left_out)] * bool(left_out)
    assert sum(1 for _ in read_list(path)) == sum(classes.values())


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ({"README": "see LICENSE", "a.jpg": photo(1)}, {}, r"lists\.zip: none of its 2 files is a list of links"),
        ({"a/ants.txt": A, "b/ants.txt": B}, {}, r"lists\.zip/a/ants.txt and .*lists\.zip/b/ants.txt list no classes"),
        ({"a.csv": f"photo\n{A}", "b.csv": f"image\n{B}"}, {"url_col": "photo"}, r"zip/b\.csv has no column 'photo'"),
        ({"a.txt": A, "b.json": f'["{B}"'}, {}, r"lists\.zip/b\.json cannot be read"),
    ],
)
def test_a_list_of_an_archive_that_cannot_be_used_is_named(
    tmp_path: Path, members: dict[str, str | bytes], options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        count_and_tell(archive(tmp_path / "lists.zip", members), **options)


def test_files_of_the_same_name_in_an_archive_are_all_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "lists.tar", "w") as tar:
        for link in (A, B):
            tar.add(write(tmp_path / "ants.txt", link), "ants.txt")
    assert [ref.url for ref in read_list(tmp_path / "lists.tar")] == [A, B]


@pytest.mark.parametrize(("limit", "message"), [("MAX_LISTS", "1 lists"), ("MAX_TEXT_BYTES", "1 bytes of text")])
def test_an_archive_of_too_many_or_too_large_lists_is_refused(
    tmp_path: Path, limit: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"mlimages.gathering.sources.archived_lists.{limit}", 1)
    with pytest.raises(InputError, match=rf"lists\.zip has more than {message}: extract it"):
        count_and_tell(archive(tmp_path / "lists.zip", ANTS_AND_BEES))


def test_names_from_lists_and_archives_are_printed_without_control_characters(
    site: Site, tmp_path: Path, run_cli: RunCli
) -> None:
    site.routes = {f"/{number}.jpg": answer(photo(number)) for number in (1, 2)}
    lists = {
        "\x1b[2Jants.txt": site.url("/1.jpg"),
        "\x1b[2J.csv": f"url,label\n{site.url('/2.jpg')},\x1b[2Jbees",
        "\x1b": "",
    }
    words = ["gather", "urls", str(archive(tmp_path / "lists.zip", lists)), "-o", str(tmp_path / "out")]
    for option in ("--dry-run", "--allow-private"):
        result = run_cli(*words, option)
        assert "\x1b" not in result.stdout + result.stderr
        assert r"\x1b[2Jbees" in result.stdout


def test_a_file_without_links_in_an_archive_needs_no_column(tmp_path: Path) -> None:
    members = {"README": "see,LICENSE\nand,NOTICE\n", "a.csv": f"photo,kind\n{A},cat\n"}
    counts, told = count_and_tell(archive(tmp_path / "x.zip", members), url_col="photo", label_col="kind")
    assert counts == {"cat": 1}
    assert told[0] == "x.zip: left out: 1 of 2 files, which are no lists of links: README"


def test_every_list_of_an_archive_at_an_address_is_read(site: Site, tmp_path: Path) -> None:
    lists = {f"{name}.txt": site.url(f"/{name}.jpg") for name in ("ants", "bees")}
    site.routes = {f"/{name}.jpg": answer(photo(number)) for number, name in enumerate(("ants", "bees"))}
    site.routes["/lists.zip"] = answer(archive(tmp_path / "lists.zip", lists).read_bytes())
    source = UrlList(site.url("/lists.zip"), http_options=GatherOptions(allow_private=True))
    assert run(source, tmp_path / "out").classes == {"ants": 1, "bees": 1}


def test_a_damaged_archive_at_an_address_is_named_by_its_address(site: Site) -> None:
    site.fallback = answer(b"ants")
    for name in ("/lists.zip", "/lists.tgz"):
        with pytest.raises(InputError, match=f"^{site.url(name)} cannot be read completely"):
            asyncio.run(UrlList(site.url(name), http_options=GatherOptions(allow_private=True)).count_links())


def test_every_list_is_understood_before_a_link_is_asked_for(site: Site, tmp_path: Path) -> None:
    site.fallback = answer(photo(1))
    good = write(tmp_path / "good.txt", site.url("/1.jpg"))
    bad = write(tmp_path / "bad.csv", "a,b\n1,2\n")
    with pytest.raises(InputError, match=r"bad\.csv: no link in the first row \(columns: a, b; .*--url-column"):
        run([good, bad], tmp_path / "out")
    assert site.requests == []


def test_a_list_at_an_address_is_read(site: Site, tmp_path: Path) -> None:
    site.routes = {"/1.jpg": answer(photo(1))}
    site.routes["/lists/pets.csv"] = answer(f"url,label,by\n{site.url('/1.jpg')},cat,Ann\n".encode())
    said: list[str] = []
    source = UrlList(site.url("/lists/pets.csv"), http_options=GatherOptions(allow_private=True), tell=said.append)
    assert run(source, tmp_path / "out").classes == {"cat": 1}
    understood = "column url as link, label as class; 1 other column kept"
    assert said == [f"{site.url('/lists/pets.csv')}: {understood}; first link {site.url('/1.jpg')}"]
    assert [row.source for row in read_manifest(tmp_path / "out")] == [{"by": "Ann"}]
    site.routes["/"] = answer(b"<html><p>Index of /</p></html>")
    for address, options, message in (
        (site.url("/"), GatherOptions(allow_private=True), rf"^{site.url('/')} is a web page"),
        (site.url("/"), GatherOptions(), "cannot download .*: private address: --allow-private permits it"),
        ("http://nowhere.invalid/x.csv", GatherOptions(), "cannot download .*: the host name does not resolve$"),
    ):
        with pytest.raises(InputError, match=message):
            asyncio.run(UrlList(address, http_options=options).count_links_by_class())
    with pytest.raises(InputError, match="cannot download the list"):
        run(UrlList(site.url("/none.csv"), http_options=GatherOptions(allow_private=True)), tmp_path / "no")


@pytest.mark.parametrize(
    ("names", "data", "class_name", "is_refused"),
    [
        (("cats/urls.txt", "dogs/urls.txt"), f"{A}\n", None, True),
        (("cats/urls.txt", "dogs/urls.txt"), f"{A}\n", "pets", False),
        (("cats/urls.txt", "cats/urls.txt"), f"{A}\n", None, False),
        (("cats/urls.txt", "dogs/urls.csv"), f"url\n{A}\n", None, True),
        (("cats/urls.csv", "dogs/urls.csv"), f"url,label\n{A},\n", None, True),
        (("cats/urls.csv", "dogs/urls.csv"), f"url,label\n{A},cat\n", None, False),
        (("cats/urls.csv", "dogs/urls.csv"), f"url,label\n{A},urls\n", None, False),
        (("cats/urls.txt", "dogs/urls.txt"), f"cat\t{A}\n", None, False),
        (("cats/urls.jsonl", "mice/mice.txt", "dogs/urls.txt"), f'{{"url": "{A}"}}\n', None, True),
        (("lists/cats.txt", "lists/dogs.txt"), f"{A}\n", None, False),
    ],
)  # fmt: skip
def test_two_lists_whose_names_give_one_class_are_refused(
    tmp_path: Path, names: tuple[str, ...], data: str, class_name: str | None, is_refused: bool
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, f"{A}\n" if name.startswith("mice") else data)
    source = UrlList(*(tmp_path / name for name in names), class_name=class_name)
    if is_refused:
        named = f"{names[0]} and .*{names[-1]} list no classes, so that both would be the class .*--class urls"
        with pytest.raises(InputError, match=named):
            asyncio.run(source.count_links())
    else:
        assert asyncio.run(source.count_links()) == len(names)


def test_rows_without_a_class_in_two_lists_may_have_a_given_class(tmp_path: Path) -> None:
    lists = [write(tmp_path / name, f"url,label\n{A},\n") for name in ("a.csv", "b.csv")]
    source = UrlList(*lists, label_col="label", class_name="pet")
    assert asyncio.run(source.count_links_by_class()) == {"pet": 2}
