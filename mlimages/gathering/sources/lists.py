"""Lists of links in files, read as streams: a broken line is passed on as the link that it is not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from mlimages.core import ImageRef, InputError, MissingExtraError

STDIN = Path("-")
_MAX_LINE = 65_536
_URL_COLUMNS = ("url", "image_url", "imageurl", "img_url", "link", "image", "src", "href")
_LABEL_COLUMNS = ("label", "class", "class_name", "category", "wnid")
_IMAGENET_ID = re.compile(r"(n\d{8})_\d+")

Columns = tuple[str | None, str | None]


def read_list(path: Path, url_col: str | None = None, label_col: str | None = None) -> Iterator[ImageRef]:
    """The links of one file, in order.

    Raises:
        InputError: it cannot be read, or has no column of links.
        MissingExtraError: see `require_reader`.
    """
    require_reader(path)
    default = "images" if path == STDIN else path.name.split(".")[0] or "images"
    columns = (url_col, label_col)
    suffix = list_suffix(path)
    if suffix == ".parquet":
        yield from _from_rows(_parquet_rows(path, columns), columns, default, path)
        return
    with _opened(path) as file:
        lines = _lines(file, path)
        match suffix:
            case ".csv":
                yield from _from_rows(_csv_rows(lines), columns, default, path)
            case ".tsv":
                yield from _from_rows((line.split("\t") for line in lines), columns, default, path)
            case ".jsonl" | ".ndjson":
                yield from _from_objects(lines, columns, default)
            case _:
                yield from _from_text(lines, default)


def require_reader(path: Path) -> None:
    """Raise MissingExtraError if this is a Parquet file and pyarrow is not installed."""
    if list_suffix(path) == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError(f"reading {path}", "parquet")


def list_suffix(path: Path) -> str:
    """What kind of list a file is, by its suffix without `.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def count_lines(path: Path) -> int:
    """How many lines a file has."""
    lines, block = 0, b"\n"
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            lines += block.count(b"\n")
    return lines + (not block.endswith(b"\n"))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path == STDIN:
        with open(0, "rb", closefd=False) as file:  # not sys.stdin: at exit Python would wait for who reads it
            yield file
        return
    try:
        if path.suffix == ".tgz":
            with tarfile.open(path, "r|gz") as archive:
                member = next((info for info in archive if info.isreg()), None)
                yield (member and archive.extractfile(member)) or io.BytesIO()
            return
        with path.open("rb") as file:
            yield io.BufferedReader(gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read to its end: {error}") from error


def _lines(file: IO[bytes], path: Path) -> Iterator[str]:
    """Lines that are not blank, without their ends; longer ones than 64 KiB are cut; UTF-8, else Latin-1."""
    first = True
    while raw := file.readline(_MAX_LINE):
        rest = raw
        while len(rest) == _MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(_MAX_LINE)
        if first:
            raw, first = raw.removeprefix(b"\xef\xbb\xbf"), False
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            line = raw.decode("latin-1")
        line = line.strip("\r\n")
        if line.strip():
            yield line


def _from_text(lines: Iterable[str], default: str) -> Iterator[ImageRef]:
    for line in lines:
        if line.startswith("#"):
            continue
        left, tab, right = line.partition("\t")
        imagenet = _IMAGENET_ID.fullmatch(left.strip())
        if not tab:
            yield ImageRef(line.strip(), default)
        elif imagenet:
            yield ImageRef(right.strip(), imagenet[1], {"wnid": imagenet[1]}, name=left.strip())
        else:
            yield ImageRef(right.strip(), left.strip() or default)


def _csv_rows(lines: Iterable[str]) -> Iterator[list[str]]:
    rows = csv.reader(f"{line}\n" for line in lines)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error:  # a field without an end, a NUL: the reader goes on with the next line
            continue


def _from_rows(rows: Iterator[Sequence[str]], columns: Columns, default: str, path: Path) -> Iterator[ImageRef]:
    header = next(rows, None)
    if header is None:
        return
    url_at, label_at = _places(header, columns, path)
    if _is_link(header[url_at]):
        yield _ref(header, url_at, label_at, default)
    for row in rows:
        yield _ref(row, url_at, label_at, default)


def _places(header: Sequence[str], columns: Columns, path: Path) -> tuple[int, int | None]:
    """Where the links and the labels are: by the names in the header, or by the look of the first row."""
    names = [name.strip().lower() for name in header]
    wanted = [
        (columns[0].lower(),) if columns[0] else _URL_COLUMNS,
        (columns[1].lower(),) if columns[1] else _LABEL_COLUMNS,
    ]
    url_at, label_at = (next((names.index(name) for name in some if name in names), None) for some in wanted)
    if url_at is None and columns[0] is None:
        url_at = next((at for at, name in enumerate(header) if _is_link(name)), None)
        if url_at is not None and len(header) == 2:
            label_at = 1 - url_at
    if url_at is None or (columns[1] and label_at is None):
        raise InputError(
            f"{path}: no such column; it has {', '.join(header)[:200]}: name them with --url-col, --label-col"
        )
    return url_at, label_at


def _is_link(text: str) -> bool:
    return "://" in text


def _ref(row: Sequence[str], url_at: int, label_at: int | None, default: str) -> ImageRef:
    url = row[url_at].strip() if url_at < len(row) else ",".join(row)[:_MAX_LINE]
    label = row[label_at].strip() if label_at is not None and label_at < len(row) else ""
    return ImageRef(url, label or default)


def _from_objects(lines: Iterable[str], columns: Columns, default: str) -> Iterator[ImageRef]:
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        values = {str(name).lower(): value for name, value in values.items()} if isinstance(values, dict) else {}
        url = _first(values, (columns[0].lower(),) if columns[0] else _URL_COLUMNS)
        label = _first(values, (columns[1].lower(),) if columns[1] else _LABEL_COLUMNS)
        yield ImageRef(url or line.strip(), label or default)


def _first(values: Mapping[str, Any], names: Sequence[str]) -> str:
    found = next((values[name] for name in names if isinstance(values.get(name), str | int)), "")
    return str(found).strip()


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Sequence[str]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            yield names
            url_at, label_at = _places(names, columns, path)
            wanted = [at for at in (url_at, label_at) if at is not None]
            for batch in table.iter_batches(batch_size=1000, columns=[names[at] for at in wanted]):
                found = dict(zip(wanted, (batch[names[at]].to_pylist() for at in wanted), strict=True))
                for row in range(batch.num_rows):
                    yield [str(found[at][row] or "") if at in found else "" for at in range(len(names))]
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
