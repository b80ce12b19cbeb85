"""Lists of links in files, whose format is detected from the first rows."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from mlimages.core import ImageRef, InputError, MissingExtraError, escape_unprintable, pluralize, summarize_error
from mlimages.gathering.links import remove_credentials
from mlimages.gathering.sources.columns import (
    LinkListOptions,
    NoLinksError,
    Row,
    TableColumns,
    choose_columns,
    extract_markdown_link_text,
    is_header,
    is_http_url,
    is_link,
    to_text,
    unwrap_link,
)
from mlimages.gathering.sources.left_out_rows import LeftOutRows
from mlimages.gathering.sources.list_files import (
    STDIN,
    count_buffered_lines,
    get_list_suffix,
    is_binary,
    is_compressed,
    is_json_array,
    open_list,
    read_lines,
)
from mlimages.gathering.sources.tables import (
    convert_rows_to_dicts,
    extract_json_rows,
    find_csv_delimiter,
    has_space_separated_cells,
    parse_csv_rows,
    parse_json_lines,
    parse_tsv_rows,
    read_parquet_rows,
    remove_leading_comments,
    sniff_delimiter,
    split_class_and_link,
)
from mlimages.labels import normalize_class_name, parse_separator_line

MAX_HEAD_ROWS = 5000
"""Maximum number of rows at the start of a list that are checked for mistakes before the first link is used."""

MAX_HEAD_LENGTH = 2**26
"""Maximum total length in characters of the rows that are checked; reached before `MAX_HEAD_ROWS` if rows are long."""

_MAX_SNIFFED_LINES = 100
"""Maximum number of lines from which the format is detected."""
_MAX_SINGLE_LINK_CLASSES = 1000
"""Maximum number of classes with one link; a list with more probably has captions instead of classes."""
_LINK_PER_LINE = "one link per line"
_T = TypeVar("_T")
_SECOND_LINK = re.compile(r"[,;|\s]\s*https?://")
"""Matches a delimiter that is followed by another link in the same cell."""
_IMAGENET_IMAGE_ID = re.compile(r"(n\d{8})_\d+")


def require_parquet_extra(path: Path) -> None:
    """Raise MissingExtraError if this is a Parquet file and pyarrow is not installed."""
    if get_list_suffix(path) == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError(f"reading {path}", "parquet")


class LinkFile:
    """An open list of links whose format has been detected; it can be iterated over once.

    Args:
        path: path of the list; `-` is standard input.
        options: columns and class of the links; columns that are not specified are detected.
        name: name of the list in messages; "" for the name of the file.
        file_name: file name after which the class is named, and whose suffix is that of the format; "" for that of
            `path`.

    Attributes:
        origin: path of the list, or the argument `name` if it is given.
        name: name of the list in messages.
        description: the detected columns and the first link, in one line.
        warnings: probable mistakes in the first rows, one line each.
        has_rows: whether there is a row that may contain a link.
        num_header_lines: number of lines that are a header or declare the separator.
        file_class: the class named after the file (`cats` for `cats.txt`) if none of the first links has another class;
            "" otherwise.

    Raises:
        NoLinksError: the file has rows but no links, or is not text.
        InputError: the list cannot be read, or its classes look like captions.
        MissingExtraError: see `require_parquet_extra`.
    """

    def __init__(self, path: Path, options: LinkListOptions, *, name: str = "", file_name: str = "") -> None:
        require_parquet_extra(path)
        self._path = path
        self.origin: str | Path = name or path
        self._options = options
        self.name = name or ("standard input" if path == STDIN else path.name)
        file_name = file_name or path.name
        file_class = "" if path == STDIN else normalize_class_name(file_name.split(".")[0])
        self._default_class = options.class_name or file_class or "images"
        self._format_description, self.num_header_lines = "", 0
        self._num_buffered_lines = sys.maxsize
        self._unclassified = 0
        self._left_out = LeftOutRows()
        self._has_long_rows = self._is_json = self._skips_comments = False
        self._suffix = get_list_suffix(Path(file_name))
        head, self._links = self._peek(self._parse_image_refs(), MAX_HEAD_ROWS)
        self.has_rows = bool(head)
        is_named_by_file = options.class_name is None and self._unclassified == len(head) > 0
        self.file_class = self._default_class if is_named_by_file else ""
        self._left_out.reject_if_most_are_too_long(len(head), self.name)
        self._left_out_of_head = tuple(self._left_out.describe())
        links = [image_ref.url for image_ref in head if is_http_url(image_ref.url)]
        others = [image_ref.url for image_ref in head if not is_http_url(image_ref.url)]
        self._require_links(links, others)
        if options.label_col is None:
            self._reject_captions(head)
        self.description = self._format_description + (f"; first link {_shorten_url(links[0])}" if links else "")
        self.warnings = tuple(self._find_warnings(links, others))

    def __iter__(self) -> Iterator[ImageRef]:
        return self._links

    def find_late_warnings(self) -> tuple[str, ...]:
        """Return warnings about left-out rows that are not in `warnings`; to be called once all links are read."""
        return tuple(text for text in self._left_out.describe() if text not in self._left_out_of_head)

    def count_max_links(self) -> int | None:
        """Return the number of lines that may contain links; None if the lines are not counted.

        Not counted are compressed files and standard input, and JSON and Parquet, whose links are not in lines.
        """
        if is_compressed(self._path) or not self._path.is_file() or self._is_json or self._suffix == ".parquet":
            return None
        with self._path.open("rb") as file:
            num_lines = sum(1 for line in read_lines(file) if not (self._skips_comments and line.startswith("#")))
        return num_lines - self.num_header_lines

    def _require_links(self, links: list[str], others: list[str]) -> None:
        if self._path == STDIN and len(others) < 2:  # a line that was typed; more may follow
            return
        if others and not links:
            first = next(filter(None, others), "")
            first_rows = pluralize(len(others), "row").removeprefix("1 ")
            raise NoLinksError(
                f"{self.name}: no http(s) link in the first {first_rows} (first row: {_shorten_url(first, 200)}): "
                "use a list of links"
            )

    def _find_warnings(self, links: list[str], others: list[str]) -> Iterator[str]:
        num_rows = len(links) + len(others)
        has_more = num_rows == MAX_HEAD_ROWS or self._has_long_rows
        rows = f"of the first {num_rows} rows" if has_more else f"of {pluralize(num_rows, 'row')}"
        if others:
            example = next((f", such as {_shorten_url(url)}" for url in others if url), "")
            yield f"{len(others)} {rows} without an http(s) link{example}"
        if several := list(filter(_SECOND_LINK.search, links)):
            example = _shorten_url(several[0])
            yield f"{len(several)} {rows} with several links in a cell, such as {example}: put each link in its own row"
        if spaced := [url for url in links if " " in url and not _SECOND_LINK.search(url)]:
            advice = "if the space is not part of the link, put what follows it into its own column"
            if self._format_description.startswith(_LINK_PER_LINE):
                advice = "separate classes from links by tabs"
            yield f"{len(spaced)} {rows} with a space in the link, such as {_shorten_url(spaced[0])}: {advice}"
        yield from self._left_out.describe(f" in the first {num_rows} rows" * has_more)
        if 0 < self._unclassified < num_rows:
            yield f"{self._unclassified} {rows} without a class, which are put into class {self._default_class}"

    def _reject_captions(self, first_links: list[ImageRef]) -> None:
        """Raise InputError if so many classes occur only once that they are probably captions."""
        single = [label for label, count in Counter(image_ref.label for image_ref in first_links).items() if count == 1]
        if len(single) > _MAX_SINGLE_LINK_CLASSES:
            raise InputError(
                f"{self.name}: {len(single)} of the first {len(first_links)} links have a class that occurs once, such "
                f"as {single[0][:60]!r}: use --class NAME to put all links into one class, or "
                "--label-column to choose the column of classes"
            )

    def _parse_image_refs(self) -> Iterator[ImageRef]:
        if self._suffix == ".parquet":
            yield from self._parse_rows(read_parquet_rows(self._path))
            return
        with open_list(self._path) as file:
            if is_binary(file):
                raise NoLinksError(
                    f"{self.name} is a spreadsheet or an archive, not a list of links: save it as CSV, or extract it"
                )
            if self._suffix == ".json" or is_json_array(file):
                yield from self._parse_json("\n".join(read_lines(file, max_length=-1)))  # often a single line
                return
            lines = read_lines(file)
            if self._path == STDIN:
                self._num_buffered_lines = count_buffered_lines(file)
            head, lines = self._peek(lines, min(self._num_buffered_lines, _MAX_SNIFFED_LINES))
            yield from self._detect_format_and_parse(head, self._track_buffered_lines(lines))

    def _track_buffered_lines(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self._num_buffered_lines -= 1
            yield line

    def _detect_format_and_parse(self, first_lines: list[str], lines: Iterator[str]) -> Iterator[ImageRef]:
        """Return the links in `lines`; their format is detected from `first_lines`, which `lines` yields again."""
        first_lines, lines = remove_leading_comments(first_lines, lines)
        first = first_lines[0] if first_lines else ""
        if first.lstrip().lower().startswith(("<!doctype html", "<html")):
            raise NoLinksError(
                f"{self.name} is a web page, perhaps a login page, not a list of links: download the list itself"
            )
        if self._suffix in (".jsonl", ".ndjson") or first.startswith('{"'):
            return self._parse_rows(parse_json_lines(lines))
        if first.startswith("[") and first.rstrip("[ {\"'") == "":
            return self._parse_json("\n".join(lines))
        if declared := parse_separator_line(first):
            image_refs = self._parse_table(parse_csv_rows(islice(lines, 1, None), declared))
            self.num_header_lines += 1
            return image_refs
        if has_space_separated_cells(first_lines):
            return self._parse_table(line.split() for line in lines)
        delimiter = None if self._suffix == ".tsv" else sniff_delimiter(first_lines)
        if delimiter == " ":
            return self._parse_text("\t".join(split_class_and_link(line) or (line,)) for line in lines)
        if self._suffix == ".csv" and delimiter != "|":
            delimiter = find_csv_delimiter(first_lines)
        if delimiter:
            return self._parse_table(parse_csv_rows(lines, delimiter))
        cells = first.rstrip("\t ").split("\t")
        is_table = len(cells) > 2 or self._options.url_col or self._options.label_col
        is_tsv = (self._suffix == ".tsv" and len(cells) > 1) or first.strip() == "TsvHttpData-1.0"
        if is_table or is_tsv or is_header(first, "\t"):
            return self._parse_table(parse_tsv_rows(lines))
        return self._parse_text(lines)

    def _parse_table(self, cells: Iterator[list[str]]) -> Iterator[ImageRef]:
        has_header, rows = convert_rows_to_dicts(cells, self._left_out)
        self.num_header_lines = int(has_header)
        return self._parse_rows(rows)

    def _parse_json(self, text: str) -> Iterator[ImageRef]:
        self._is_json = True
        try:
            value = json.loads(text)
        except RecursionError as error:
            raise InputError(f"{self.origin} cannot be read: the JSON is nested too deeply") from error
        except ValueError as error:
            if "\n" in text and text.startswith("{"):  # JSON lines with another suffix
                return self._parse_rows(parse_json_lines(text.split("\n")))
            raise InputError(f"{self.origin} cannot be read: {summarize_error(error)}") from error
        return self._parse_rows(iter(extract_json_rows(value, self.origin)))

    def _parse_rows(self, rows: Iterator[Row]) -> Iterator[ImageRef]:
        head, rows = self._peek(rows, 100)
        names = list(dict.fromkeys(name for row in head for name in row))
        if not names:
            return
        columns: TableColumns = choose_columns(names, head, self._options, self.name)
        label_column = columns.label_column
        default = f"; class {self._default_class}" if label_column is None else ""
        self._format_description = columns.describe() + default
        for row in rows:
            label = to_text(row.get(label_column)) if label_column is not None else self._options.class_name
            self._unclassified += not (label or "").strip()
            yield columns.make_image_ref(row, self._default_class)

    def _parse_text(self, lines: Iterable[str]) -> Iterator[ImageRef]:
        self._skips_comments = True
        self._format_description = f"{_LINK_PER_LINE}; class {self._default_class}"
        for line in lines:
            if line.startswith("#"):
                continue
            left, tab, right = line.rstrip("\t ").partition("\t")
            if not tab:
                text = extract_markdown_link_text(left)
                self._unclassified += self._options.class_name is None
                yield ImageRef(unwrap_link(left), self._default_class, {"text": text} if text else {})
                continue
            left, right = (right, left) if is_link(left) and not is_link(right) else (left, right)
            right = next(filter(is_link, right.split("\t")), right)  # further cells are ignored
            if imagenet := _IMAGENET_IMAGE_ID.fullmatch(left.strip()):
                label = self._options.class_name or imagenet[1]
                yield ImageRef(unwrap_link(right), label, {"wnid": imagenet[1]}, name=left.strip())
            else:
                label = self._options.class_name or normalize_class_name(left.strip().strip("\"'"))
                self._format_description = "one class and link per line"
                yield ImageRef(unwrap_link(right), label or self._default_class)

    def _peek(self, items: Iterator[_T], max_items: int) -> tuple[list[_T], Iterator[_T]]:
        """Return a list of the first `max_items` items, and an iterator over all items, the first ones included.

        The list is shorter if its items exceed `MAX_HEAD_LENGTH`, if the next line of standard input has not arrived
        yet, or if reading an item raises an error. The iterator raises that error after the items in the list; if the
        list is empty, this method raises it.
        """
        head: list[_T] = []
        size = 0
        try:
            for item in islice(items, max_items):
                head.append(item)
                size += len(repr(item))
                if size > MAX_HEAD_LENGTH:
                    self._has_long_rows = True
                    break
                if self._num_buffered_lines <= 0:
                    break
        except Exception as error:
            if not head:
                raise
            items = map(_raise, [error])
        return head, chain(head, items)


def _shorten_url(url: str, length: int = 100) -> str:
    return escape_unprintable(remove_credentials(url)[:length])


def _raise(error: Exception) -> Any:
    raise error
