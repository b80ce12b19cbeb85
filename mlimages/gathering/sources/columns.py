"""Choose the columns of links and of classes in a table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from mlimages.core import ImageRef, InputError, escape_unprintable, pluralize
from mlimages.labels import normalize_class_name

RAW_TEXT_KEY = "\0raw"
"""The only key of a row that cannot be parsed; its value is the text of the row."""

Row = Mapping[str, Any]
"""A row of a table: values by column name."""

_IMAGE_COLUMN_NAMES = ("image_url", "imageurl", "img_url", "coco_url", "image", "img", "photo_url")
_URL_COLUMN_NAMES = ("url", "link", "src", "href", "uri")
_LABEL_COLUMN_NAMES = ("label", "class", "class_name", "category", "wnid")
IMAGE_SUFFIX_PATTERN = r"\.(jpe?g|png|gif|webp|bmp|tiff?|avif|heic)"
"""Regular expression for the suffix of an image file; it contains one group."""
IMAGE_SUFFIX_AT_END = re.compile(IMAGE_SUFFIX_PATTERN + r"([?#]|$)", re.IGNORECASE)
"""Matches an image suffix at the end of a URL's path."""
_MARKDOWN_LINK = re.compile(
    r"(?:(?:[-*+]|\d+[.)])\s+)?!?\[(?P<text>[^\]]*)\]\(\s*<?(?P<link>[^\s>)]+(?:\([^\s)]*\)[^\s>)]*)?)>?[^)]*\)\s*"
)


class NoLinksError(InputError):
    """Raised if a file has no links. In an archive of several files, such a file, such as a README, is left out."""


@dataclass(frozen=True, slots=True)
class LinkListOptions:
    """Options for reading a list of links.

    Attributes:
        url_col, label_col: columns of links and classes, by name or by number from 1; None: they are detected.
        class_name: one class for all links; None: the classes in the list.
    """

    url_col: str | None = None
    label_col: str | None = None
    class_name: str | None = None


@dataclass(frozen=True, slots=True)
class TableColumns:
    """Names of the columns of a table.

    Attributes:
        url_column: column of links.
        label_column: column of classes; None if there is none.
        other_columns: columns that are copied to the manifest.
    """

    url_column: str
    label_column: str | None
    other_columns: tuple[str, ...]

    def make_image_ref(self, row: Row, default_label: str) -> ImageRef:
        """Return the link in a row, with its class and the values of other columns.

        If the row names no class, the class is `default_label`.
        """
        url = to_text(row.get(self.url_column)) or to_text(row.get(RAW_TEXT_KEY))
        label = to_text(row.get(self.label_column)) if self.label_column else ""
        source = {
            name: value for name in self.other_columns if (value := _to_json_value(row.get(name))) not in (None, "")
        }
        return ImageRef(unwrap_link(url), normalize_class_name(label) or default_label, source)

    def describe(self) -> str:
        """Return a description of the columns for the user, such as "column image_url as link, category as class"."""
        kept = f"; {pluralize(len(self.other_columns), 'other column')} kept" if self.other_columns else ""
        if kept and not self.label_column:
            names = escape_unprintable(shorten(", ".join(self.other_columns), 100, placeholder=" ..."))
            kept += f": {names} (--label-column chooses the classes)"
        url, label = (name.removeprefix("column ") for name in (self.url_column, self.label_column or "none"))
        return f"column {url} as link, {label} as class{kept}"


def choose_columns(names: Sequence[str], rows: Sequence[Row], options: LinkListOptions, list_name: str) -> TableColumns:
    """Choose the columns of links and of classes by the options, or else by their names and the first rows.

    Raises:
        NoLinksError: `rows` contain no link.
        InputError: a column of the options does not exist.
    """
    has_links = any(is_link(to_text(value)) for row in rows for value in row.values())
    for column, option in ((options.url_col, "--url-column"), (options.label_col, "--label-column")):
        if column is not None and _find_column(names, column) is None:
            shown = ", ".join(names)[:200]
            raise (InputError if has_links else NoLinksError)(
                f"{list_name} has no column {column!r} (columns: {shown}): choose one with {option}"
            )
    url = _find_column(names, options.url_col) or _choose_link_column(names, rows)
    if url is None:
        first = " | ".join(filter(None, map(to_text, rows[0].values())))[:200]
        first_rows = pluralize(len(rows), "row").removeprefix("1 ")
        raise NoLinksError(
            f"{list_name}: no link in the first {first_rows} (columns: {', '.join(names)[:200]}; "
            f"first row: {escape_unprintable(first)}): choose the column of links with --url-column and that of "
            "classes with --label-column"
        )
    label = _find_column(names, options.label_col)
    if label is None and options.class_name is None:
        label = next((name for known in _LABEL_COLUMN_NAMES for name in names if _get_leaf_name(name) == known), None)
        if label is None and len(names) == 2 and names[0] == "column 1":
            label = names[1 - names.index(url)]
    others = tuple(name for name in names if name not in (url, label, RAW_TEXT_KEY))
    return TableColumns(url, label if label != url else None, others)


def _find_column(names: Sequence[str], column: str | None) -> str | None:
    """Return the name of a column that the user chose by name or number; None if there is none, or `column` is None."""
    if column is None:
        return None
    for name in names:
        if column.lower() == name.lower():
            return name
    return names[int(column) - 1] if column.isdecimal() and 1 <= int(column) <= len(names) else None


def _choose_link_column(names: Sequence[str], rows: Sequence[Row]) -> str | None:
    """Return the name of the column most likely to contain links to images; None if no column contains links."""

    def make_sort_key(name: str) -> tuple[bool, bool, bool]:
        """Return (name is like `image_url`, most links end in image suffixes, name is like `url`); True is better."""
        links = [text for row in rows if is_link(text := to_text(row.get(name)))]
        images = sum(IMAGE_SUFFIX_AT_END.search(text) is not None for text in links)
        leaf = _get_leaf_name(name)
        return leaf in _IMAGE_COLUMN_NAMES, 2 * images > len(links), leaf in _URL_COLUMN_NAMES

    candidates = (name for name in names if any(is_link(to_text(row.get(name))) for row in rows))
    return max(candidates, key=make_sort_key, default=None)


def _get_leaf_name(name: str) -> str:
    """Return the last part of the name of a nested column, in lower case: `url` for `Image.URL`."""
    return name.rpartition(".")[2].strip().lower()


def is_link(text: str) -> bool:
    """Return whether a text contains `://`, as links do."""
    return "://" in text


def is_link_column(name: str) -> bool:
    """Return whether columns with this name usually contain links."""
    return _get_leaf_name(name) in _IMAGE_COLUMN_NAMES + _URL_COLUMN_NAMES


def is_header(line: str, delimiters: str = ",;|\t") -> bool:
    """Return whether a line is the header of a table of links: a cell is the usual name of a column, none is a link."""
    names = [_get_leaf_name(cell.strip("\"' ")) for cell in re.split(f"[{delimiters}]", line)]
    return not is_link(line) and any(is_link_column(name) or name in _LABEL_COLUMN_NAMES for name in names)


def is_http_url(url: str) -> bool:
    """Return whether a link has the scheme http or https."""
    return url.lower().startswith(("http://", "https://"))


def unwrap_link(text: str) -> str:
    """Strip quotes, angle brackets and Markdown around a URL, and replace `&amp;` by `&`.

    Other HTML entities, such as `&copy`, are kept, since they may be parameters of the URL.
    """
    text = text.strip()
    if text[:1] not in ("h", "H"):
        if markdown := _MARKDOWN_LINK.fullmatch(text):
            text = markdown["link"]
        elif text[:1] in "-*+" and text[1:2] == " " and is_link(text):
            text = text[2:].strip()
        for start, end in ('""', "''", "<>"):
            if len(text) > 1 and text[0] == start and text[-1] == end:
                text = text[1:-1].strip()
    return text.replace("&amp;", "&")


def extract_markdown_link_text(text: str) -> str:
    """Return the text of a Markdown link, such as `a cat` for `[a cat](https://...)`; "" for other text."""
    found = _MARKDOWN_LINK.fullmatch(text.strip()) if "](" in text else None
    return found["text"] if found else ""


def to_text(value: object) -> str:
    """Convert text, a number, a bool or short bytes of a table to text; missing and other values become ""."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace") if len(value) < 8192 else ""
    if isinstance(value, float):
        return f"{value:.15g}" if math.isfinite(value) else ""
    return str(value) if isinstance(value, str | int) else ""


def _to_json_value(value: object) -> Any:
    """Convert a value to a JSON type; return None for binary data, nested objects, NaN and infinity.

    Arrays are cut to 100 items.
    """
    if isinstance(value, list | tuple):
        return [_to_json_value(each) for each in value[:100]]
    if isinstance(value, bytes | Mapping) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
