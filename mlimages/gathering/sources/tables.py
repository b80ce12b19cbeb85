"""Parse tables of links in many formats into rows."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise, takewhile
from pathlib import Path
from typing import Any

from mlimages.core import InputError, summarize_error
from mlimages.gathering.links import redact_url
from mlimages.gathering.sources.columns import (
    IMAGE_SUFFIX_AT_END,
    IMAGE_SUFFIX_PATTERN,
    RAW_TEXT_KEY,
    NoLinksError,
    Row,
    is_header,
    is_http_url,
    is_link,
    is_link_column,
    to_text,
)
from mlimages.gathering.sources.left_out_rows import LeftOutRows
from mlimages.labels import find_coco_classes, is_repeated_header

_NO_DELIMITER = "\x1f"
"""Delimiter of a table with one column."""
_TSV_HTTP_DATA_HEADER = "TsvHttpData-1.0"
_MAX_LINES_PER_ROW = 1000
_LONG_ROW_LENGTH = 65_536
"""In rows of more characters than this, quoted cells of at least 10,000 characters are replaced by empty ones before
parsing, since Python's csv rejects cells of more than 131,072 characters."""
_LONG_QUOTED_CELL = re.compile(r'"(?:[^"]|""){10000,}"')
_TEXT_UP_TO_CLOSING_QUOTE = re.compile(r'((?:[^"]|"")*+)"')
_CLASS_AND_LINK = re.compile(r"(?!\d+[.)]\s)(\w[^:]*?)\s+(https?://.+)", re.IGNORECASE)
_LINK_AND_CLASS = re.compile(rf"(https?://[^\s?]+?{IMAGE_SUFFIX_PATTERN})\s+(\w[^:]*)", re.IGNORECASE)


def remove_leading_comments(first_lines: list[str], lines: Iterator[str]) -> tuple[list[str], Iterator[str]]:
    """Remove the comments (`# ...`) before the header or first link of a list; return new `first_lines` and `lines`.

    If the last comment is the header of several columns, as in `# url,label`, only its `#` is removed.

    Args:
        first_lines: the first lines of the list.
        lines: an iterator over all lines, the first ones included.
    """
    first_row = next((line for line in first_lines if not line.startswith("#")), ",;|\t")
    has_header, delimiters = is_header(first_row), set(first_row) & set(",;|\t")

    def is_comment(line: str) -> bool:
        cells = (cell.strip(' "') for delimiter in delimiters for cell in line.split(delimiter))
        return line.startswith("#") and (has_header or not any(map(is_http_url, cells)))  # a class may be `#ants`

    comments = list(takewhile(is_comment, first_lines))
    if not comments:
        return first_lines, lines
    header = comments[-1].lstrip("# ")
    kept = [header] if not has_header and is_header(header) and delimiters & set(header) else []
    return [*kept, *first_lines[len(comments) :]], chain(kept, islice(lines, len(comments), None))


def sniff_delimiter(lines: Sequence[str]) -> str | None:
    """Return the delimiter between links and other cells: `,`, `;`, `|` or a space; None for tabs, or if there is none.

    Links may contain these characters too. In a list without a header, a character that follows a link is a delimiter
    only if the link ends in an image suffix, as in `http://x/1.jpg,cat`.
    """
    rows = [line for line in lines if not line.startswith("#")]
    if not rows or any("\t" in row for row in rows):
        return None
    if all(map(split_class_and_link, rows)):
        return " "
    return next((each for each in ",;|" if _are_separated_by(rows, each)), None)


def _are_separated_by(rows: Sequence[str], delimiter: str) -> bool:
    """Return whether the delimiter separates a link and other cells in each row, apart from a header."""
    cells = [_parse_csv_row(row, delimiter, is_strict=False) or [] for row in rows]
    header = [cell.strip() for cell in cells[0]]
    if len(header) > 1 and not any(map(is_link, header)):
        regular = (row for row in cells[1:] if not is_repeated_header(row, header))
        below = (len(row) == len(header) and any(map(is_link, row)) for row in regular)
        return any(map(is_link_column, header)) or (len(cells) > 1 and all(below))
    return all(map(_has_one_link, cells)) and any("?" not in row for row in rows)


def _has_one_link(row: Sequence[str]) -> bool:
    """Return whether a row of several cells has exactly one link, and no other cell is probably a part of this link."""
    links = [cell.strip() for cell in row if is_link(cell)]
    others = (cell.strip() for cell in row if not is_link(cell))
    if len(row) < 2 or len(links) != 1 or any(map(IMAGE_SUFFIX_AT_END.search, others)):
        return False
    return is_link(row[-1]) or IMAGE_SUFFIX_AT_END.search(links[0]) is not None


def has_space_separated_cells(lines: Sequence[str]) -> bool:
    """Return whether all lines are like `1 http://x/1.jpg 9.5`: cells separated by spaces, an inner one a link."""
    rows = [line.split() for line in lines if "\t" not in line]
    between = (_has_one_link(row) and not is_link(row[0]) and not is_link(row[-1]) for row in rows)
    return len(rows) == len(lines) and len(set(map(len, rows))) == 1 and all(between)


def split_class_and_link(line: str) -> tuple[str, str] | None:
    """Split a line into its class and its link, in either order, if a space separates them; None otherwise.

    >>> split_class_and_link("http://x/1.jpg honey bee")
    ('honey bee', 'http://x/1.jpg')
    """
    line = line.strip()
    if found := _CLASS_AND_LINK.fullmatch(line):
        return found[1], found[2]
    found = _LINK_AND_CLASS.fullmatch(line)
    return (found[3], found[1]) if found and not IMAGE_SUFFIX_AT_END.search(found[3]) else None


def find_csv_delimiter(lines: Sequence[str]) -> str:
    """Return the delimiter of a CSV file: of `,`, `;` and tabs, the most frequent one in the first of these lines.

    If the file has one column, return a character that no line contains. This is assumed if the first line has a single
    cell and the lines below do not have several, or if the delimiter is probably a part of the link in the first line.
    """
    first, *below = lines or [""]
    delimiter = max(",;\t", key=lambda each: (first.count(each), each == ","))
    row = _parse_csv_row(first, delimiter, is_strict=True) or []  # None if a quoted cell continues in the next line
    if len(row) == 1:
        found = sniff_delimiter(below)
        return found if found in (",", ";") else _NO_DELIMITER
    return _NO_DELIMITER if _has_cut_link(row) else delimiter


def _has_cut_link(row: Sequence[str]) -> bool:
    """Return whether a link was probably cut: it has no image suffix, but the next cell has one and is no link."""
    return any(
        is_link(cell)
        and not IMAGE_SUFFIX_AT_END.search(cell)
        and not is_link(after)
        and IMAGE_SUFFIX_AT_END.search(after)
        for cell, after in pairwise(row)
    )


def parse_csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Yield the cells of each row of a CSV file; quoted cells may contain line ends.

    A line with an unclosed quote is read as a row in which quotes are ordinary characters, so that it does not affect
    other rows. A quote counts as unclosed if none of the next 1000 lines closes it, or if the lines up to the closing
    quote look like complete rows.
    """
    unread_lines: deque[str] = deque()
    source, num_columns = iter(lines), 0
    while (line := unread_lines.popleft() if unread_lines else next(source, None)) is not None:
        row = _parse_csv_row(line, delimiter, is_strict=line.count('"') % 2 == 1)
        if row is None:
            row = _join_quoted_lines(line, unread_lines, source, delimiter, num_columns)
        if row is None:
            row = [cell.strip('"') for cell in line.split(delimiter)]
        if row:
            num_columns = num_columns or len(row)
            yield row


def _join_quoted_lines(
    first_line: str, unread_lines: deque[str], source: Iterator[str], delimiter: str, num_columns: int
) -> list[str] | None:
    """Return the row that begins in `first_line`, and consume its other lines; None if no line completes the row.

    Args:
        first_line: a line that opens a quoted cell and does not close it.
        unread_lines: lines that were read from `source` but belong to no row yet; they come before those of `source`.
        source: the lines that were not read yet.
        delimiter, num_columns: delimiter and number of columns of the table; 0 columns if not known yet.
    """
    text = [first_line]
    for number in range(_MAX_LINES_PER_ROW):
        if number == len(unread_lines):
            if (line := next(source, None)) is None:
                return None
            unread_lines.append(line)
        text.append(unread_lines[number])
        if unread_lines[number].count('"') % 2:  # the first line that may close it
            row = _parse_csv_row("\n".join(text), delimiter, is_strict=True)
            if row is None or _are_separate_rows(
                text, delimiter, num_columns, is_ragged=len(row) != (num_columns or len(row))
            ):
                return None
            for _ in text[1:]:
                unread_lines.popleft()
            return row
    return None


def _are_separate_rows(lines: Sequence[str], delimiter: str, num_columns: int, *, is_ragged: bool) -> bool:
    """Return whether these lines are probably separate rows with stray quotes, rather than one row with a quoted cell.

    A line looks like a row if it has `num_columns` cells, one of them a link. If the joined lines do not have
    `num_columns` cells (`is_ragged`), return True if any line after the first looks like a row. Otherwise, return True
    if all lines look like rows with the link in the same column, and the quote that closes the cell begins another.
    """
    columns = [_find_link_column(line, delimiter, num_columns) for line in lines]
    if is_ragged:
        return any(column is not None for column in columns[1:])
    inside = _TEXT_UP_TO_CLOSING_QUOTE.match(lines[-1])
    starts_cell = inside is not None and inside[1].rstrip(" ").endswith(delimiter)
    return starts_cell and columns[0] is not None and len(set(columns)) == 1


def _find_link_column(line: str, delimiter: str, num_columns: int) -> int | None:
    """Return the index of the first link's cell; None if there is no link, or there are not `num_columns` cells."""
    cells = line.split(delimiter)
    links = (number for number, cell in enumerate(cells) if is_http_url(cell.strip(' "')))
    return next(links, None) if len(cells) == num_columns else None


def _parse_csv_row(text: str, delimiter: str, *, is_strict: bool) -> list[str] | None:
    """Return the cells of a CSV row; None if the text is not exactly one row."""
    if len(text) > _LONG_ROW_LENGTH:
        text = _LONG_QUOTED_CELL.sub('""', text)  # neither link nor class
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=is_strict))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def parse_tsv_rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the cells of each row of a TSV file, without trailing empty cells; reads Google's TsvHttpData-1.0 too."""
    for line in lines:
        if line.strip() == _TSV_HTTP_DATA_HEADER:
            yield ["url", "bytes", "md5"]
        else:
            yield line.rstrip("\t ").split("\t")


def convert_rows_to_dicts(rows: Iterator[Sequence[str]], left_out: LeftOutRows) -> tuple[bool, Iterator[Row]]:
    """Return whether the first row is a header, and the data rows as dicts by column name.

    Without a header, the names are `column 1`, `column 2` and so on. Irregular rows are recorded in `left_out`.
    """
    first = next(rows, None)
    if first is None:
        return False, iter(())
    cells = [cell.strip() for cell in first]
    regular = left_out.filter_rows(rows, cells)
    has_header = not any(map(is_link, first))
    names = [(has_header and cell) or f"column {number}" for number, cell in enumerate(cells, 1)]
    below = regular if has_header else chain([first], regular)
    return has_header, (dict(zip(names, row, strict=False)) for row in below)


def parse_json_lines(lines: Iterable[str]) -> Iterator[Row]:
    """Yield the flattened object in each line. If a line is no object, yield its text under the key `RAW_TEXT_KEY`."""
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        yield flatten_object(values) if isinstance(values, dict) else {RAW_TEXT_KEY: line.strip()}


def flatten_object(values: Mapping[str, Any], key_prefix: str = "") -> dict[str, Any]:
    """Flatten nested objects into one object with keys such as `image.url`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten_object(value, f"{key_prefix}{name}.")
        else:
            found[f"{key_prefix}{name}"] = value
    return found


def extract_json_rows(value: Any, path: str | Path) -> list[Row]:
    """Return the rows of a JSON document, which may have four forms.

    An array of links or objects, an object with one array of objects, a COCO dataset, or an object with an array of
    links per class: `{"cat": ["http://..."]}`.

    Args:
        value, path: the parsed JSON document, and its path for the error message.

    Raises:
        InputError: the document has another form, or an id of a COCO dataset is ambiguous or unknown.
    """
    if isinstance(value, list) and (not value or any(isinstance(each, dict | str) for each in value)):
        return [flatten_object(each) if isinstance(each, dict) else {"url": to_text(each)} for each in value]
    if isinstance(value, dict):
        if isinstance(value.get("images"), list) and "annotations" in value:
            return _extract_coco_rows(value, path)
        arrays = [each for each in value.values() if isinstance(each, list)]
        if len(arrays) == 1 and any(isinstance(each, dict) for each in arrays[0]):
            return extract_json_rows(arrays[0], path)
        if arrays and len(arrays) == len(value):
            return [{"url": to_text(each), "label": name} for name, urls in value.items() for each in urls]
    raise NoLinksError(f"{path}: expected a JSON array of links or objects, JSON lines, or a COCO dataset")


def _extract_coco_rows(dataset: dict[str, Any], path: str | Path) -> list[Row]:
    """Return a row for each image of a COCO dataset.

    `category` is the class of the image's annotations; None if there is none, or if they have different classes.
    Annotations without a category, such as captions, are ignored. If no annotation has a category, the dataset may lack
    `categories`.
    """
    annotations = dataset["annotations"]
    if isinstance(annotations, list):
        annotations = [each for each in annotations if not isinstance(each, dict) or "category_id" in each]
    classified = {"categories": None if annotations else [], **dataset, "annotations": annotations}
    classes = find_coco_classes(classified, path, lambda image: redact_url(_find_coco_link(image)))
    return [
        {
            "coco_url": _find_coco_link(image),
            "category": names[0] if len(set(names)) == 1 else None,
            "file_name": image.get("file_name"),
            "id": image.get("id"),
        }
        for image, names in zip(dataset["images"], classes, strict=True)
    ]


def _find_coco_link(image: Mapping[str, Any]) -> str:
    return to_text(image.get("coco_url") or image.get("flickr_url") or image.get("file_name"))


def read_parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file, with keys such as `image.url` for nested columns, without encoded images.

    Raises:
        InputError: the file cannot be read.
    """
    import pyarrow
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as table:
            names = [
                field.name
                for field in table.schema_arrow
                if not (pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type))
                or field.name.lower() in ("url", "label", "class")  # image data is left out
            ]
            for batch in table.iter_batches(batch_size=1000, columns=names):
                yield from map(flatten_object, batch.to_pylist())
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {summarize_error(error)}") from error
