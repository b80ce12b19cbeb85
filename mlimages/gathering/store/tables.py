"""Tables beside the images: metadata.jsonl for Hugging Face's `imagefolder`, and the manifest as Parquet."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from mlimages.core import FetchResult, InputError, require_extra, require_writable, write_output
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.store.file_names import is_in_folder_of, label_to_folder

METADATA_NAME = "metadata.jsonl"
PARQUET_NAME = "manifest.parquet"
_ROWS_PER_BATCH = 10_000
_INTEGER_COLUMNS = {"http_status", "bytes", "width", "height", "orientation", "attempts"}


class TableWriter:
    """Writes metadata.jsonl and the manifest as Parquet, as the options request.

    Args:
        out: the gathered folder.
        options: options of the run; a run of a shard writes neither table.
    """

    def __init__(self, out: Path, options: GatherOptions) -> None:
        self._out = out
        wanted = {METADATA_NAME: options.metadata, PARQUET_NAME: options.parquet}
        self._names = [name for name, is_wanted in wanted.items() if is_wanted and not options.shard]

    def require_writable(self) -> None:
        """Check that the tables can be written without overwriting a user's file.

        Raises:
            InputError: a table exists and was not written by mlimages, or was edited since.
            MissingExtraError: pyarrow is not installed.
        """
        if PARQUET_NAME in self._names:
            require_extra("--parquet", "parquet", "pyarrow")
        for name in self._names:
            try:
                require_writable([self._out / name])
            except InputError:
                option = "--metadata" if name == METADATA_NAME else "--parquet"
                raise InputError(
                    f"{self._out / name} exists and was not written by mlimages, or was edited since: move it, or "
                    f"omit {option}"
                ) from None

    def write(self, get_rows: Callable[[], Iterable[FetchResult]], has_image: Callable[[FetchResult], bool]) -> None:
        """Write metadata.jsonl and the Parquet file, each if its option is set.

        Args:
            get_rows: returns the current rows of the manifest.
            has_image: whether the image of a row is in the folder.

        Raises:
            InputError: as for `require_writable`.
        """
        self.require_writable()
        for name in self._names:
            with write_output(self._out / name) as part:
                if name == METADATA_NAME:
                    _write_metadata(part, filter(has_image, get_rows()), _find_labels_by_folder(get_rows()))
                else:
                    _write_parquet(part, get_rows())


def _find_labels_by_folder(rows: Iterable[FetchResult]) -> Mapping[str, set[str]]:
    """Return the labels of the images in each class folder; images that the user has moved elsewhere are ignored."""
    folders: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.status == "ok" and row.path and is_in_folder_of(row.label, row.path):
            depth = label_to_folder(row.label).count("/") + 1
            folders["/".join(row.path.split("/")[:depth])].add(row.label)
    return folders


def _find_current_label(row: FetchResult, labels_by_folder: Mapping[str, set[str]]) -> str:
    """Return the class whose folder an image is in, to which the user may have moved it.

    It is `row.label` if the image is in no class's folder, or in that of several classes.
    """
    above = map(str, PurePosixPath(row.path or "").parents)
    labels = next((labels_by_folder[folder] for folder in above if folder in labels_by_folder), {row.label})
    return row.label if row.label in labels or len(labels) > 1 else next(iter(labels))


def _write_metadata(path: Path, rows: Iterable[FetchResult], labels_by_folder: Mapping[str, set[str]]) -> None:
    """Write a line of JSON for the image of each row: `file_name`, `label`, and all keys of the row's `source`."""
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            values = {"file_name": row.path, "label": _find_current_label(row, labels_by_folder)}
            out.write(json.dumps(values | {**row.source, **values}, default=str) + "\n")


def _write_parquet(path: Path, rows: Iterable[FetchResult]) -> None:
    """Write the rows with a column for each key; `source` is a string of JSON, since its keys vary by row."""
    import pyarrow
    from pyarrow import parquet

    def choose_arrow_type(column: str) -> Any:
        others = {"final": pyarrow.bool_(), "elapsed_s": pyarrow.float64()}
        return pyarrow.int64() if column in _INTEGER_COLUMNS else others.get(column, pyarrow.string())

    schema = pyarrow.schema([(field.name, choose_arrow_type(field.name)) for field in fields(FetchResult)])
    with parquet.ParquetWriter(path, schema) as out:
        left = (
            {name: getattr(row, name) for name in schema.names} | {"source": json.dumps(row.source, default=str)}
            for row in rows
        )
        while batch := list(islice(left, _ROWS_PER_BATCH)):
            out.write_table(pyarrow.Table.from_pylist(batch, schema))
