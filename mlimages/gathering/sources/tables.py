"""Tables of many formats as rows that give a value for each name."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mlimages.core import InputError
from mlimages.gathering.sources.columns import RAW, Row, is_link, text_of

_HTTP_DATA = "TsvHttpData-1.0"


def delimiter_of(line: str) -> str:
    """What separates the cells of a CSV file, by its first line."""
    return max(",;\t", key=lambda each: (line.count(each), each == ","))


def csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """The cells of each line; quoted ones may hold line ends."""
    rows = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error:  # a field without an end, a NUL: the reader goes on with the next line
            continue


def tab_rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """The cells of each line of a TSV file, without empty ones at the end; Google's TsvHttpData among them."""
    for line in lines:
        if line.strip() == _HTTP_DATA:
            yield ["url", "bytes", "md5"]
        else:
            yield line.rstrip("\t ").split("\t")


def named_rows(rows: Iterator[Sequence[str]]) -> tuple[bool, Iterator[Row]]:
    """Whether the first row is a header, and the rows by its names, else by `column 1`, `column 2` ..."""
    first = next(rows, None)
    if first is None:
        return False, iter(())
    if any(map(is_link, first)):
        names = [f"column {number}" for number in range(1, len(first) + 1)]
        rows, has_header = chain([first], rows), False
    else:
        names, has_header = [name.strip() or f"column {number}" for number, name in enumerate(first, 1)], True
    return has_header, (dict(zip(names, row, strict=False)) for row in rows)


def object_rows(lines: Iterable[str]) -> Iterator[Row]:
    """JSON lines; one that is no object is a row without names."""
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        yield flat(values) if isinstance(values, dict) else {RAW: line.strip()}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with names such as `image.url`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def json_rows(value: Any, path: Path) -> list[Row]:
    """The rows of a JSON document: an array, a COCO dataset, an object with one array, or lists of links by class.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(value, list):
        return [flat(each) if isinstance(each, dict) else {"url": text_of(each)} for each in value]
    if isinstance(value, dict):
        if isinstance(value.get("images"), list) and "annotations" in value:
            return _coco_rows(value)
        arrays = [each for each in value.values() if isinstance(each, list)]
        if len(arrays) == 1 and any(isinstance(each, dict) for each in arrays[0]):
            return json_rows(arrays[0], path)
        if arrays and len(arrays) == len(value):
            return [{"url": text_of(each), "label": name} for name, urls in value.items() for each in urls]
    raise InputError(f"{path}: expected a JSON array of links or objects, JSON lines, or a COCO dataset")


def _coco_rows(dataset: dict[str, Any]) -> list[Row]:
    """The images of a COCO dataset, with their category where all their annotations have one."""
    names = {each.get("id"): each.get("name") for each in dataset.get("categories", [])}
    found: dict[Any, set[Any]] = defaultdict(set)
    for each in dataset["annotations"]:
        if "category_id" in each:
            found[each.get("image_id")].add(each["category_id"])
    rows: list[Row] = []
    for image in dataset["images"]:
        categories = found.get(image.get("id"), set())
        url = image.get("coco_url") or image.get("flickr_url") or image.get("file_name", "")
        category = names.get(next(iter(categories))) if len(categories) == 1 else None
        rows.append({"coco_url": url, "category": category, "file_name": image.get("file_name"), "id": image.get("id")})
    return rows


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, read in batches, nested columns as `image.url`.

    Raises:
        InputError: it cannot be read.
    """
    import pyarrow
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as table:
            names = [
                field.name
                for field in table.schema_arrow
                if not (pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type))
                or field.name.lower() in ("url", "label", "class")  # images themselves are left out
            ]
            for batch in table.iter_batches(batch_size=1000, columns=names):
                yield from map(flat, batch.to_pylist())
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
