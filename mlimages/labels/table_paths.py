"""Find the image paths in the cells of a table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mlimages.core import as_path, is_file_or_member, is_remote, path_from_name
from mlimages.labels.annotations import resolve_label_studio_path
from mlimages.labels.column_names import PATH_COLUMN_NAMES, normalize_column_name, rank_path_column
from mlimages.labels.formats import detect_delimiters, is_table, read_records, read_text_rows


def get_relative_path(cell: str, strip_components: int) -> str:
    """Return the path in a cell without its first `strip_components` folders; Label Studio URLs become file paths."""
    name = resolve_label_studio_path(cell.replace("\\", "/"))
    return "/".join(name.strip("/").split("/")[strip_components:]) if strip_components else name


def find_relative_path(cell: str, strip_components: int, folder: Path, suffix: str) -> str:
    """Return the path in a cell as `get_relative_path` does; strip white space if the image exists only without it.

    Args:
        cell: the cell.
        strip_components: number of folders to strip from the start of the path.
        folder: folder that the path is relative to.
        suffix: suffix to append to the path to find the image; not part of the result.
    """
    name, bare = get_relative_path(cell, strip_components), cell.strip()
    if cell == bare or is_remote(folder) or is_file_or_member(join_relative_path(folder, name + suffix)):
        return name
    stripped = get_relative_path(bare, strip_components)
    return stripped if is_file_or_member(join_relative_path(folder, stripped + suffix)) else name


def describe_case_mismatch(path: str) -> str:
    """Return a hint such as `, but A.jpg exists` if a file name differs only in case from that of `path`; else ""."""
    folder, name = os.path.split(path)
    names = os.listdir(folder) if not is_remote(path) and os.path.isdir(folder) else []  # noqa: PTH112, PTH208
    return next((f", but {each} exists" for each in names if each.casefold() == name.casefold()), "")


def join_relative_path(folder: Path, name: str) -> str:
    """Join a folder and a relative path as text."""
    return os.path.join(str(folder), name)  # noqa: PTH118  # pathlib is slow for every row


def read_path_cells(path: Path) -> Iterator[str]:
    """Yield the cells of the path column: the column with a usual name, such as `path`, or else the first column.

    The images need not exist.
    """
    rows = read_records(path, detect_delimiters(path)[0])
    first = next(rows, None)
    if first is None or not first.cells:
        return
    names = list(map(normalize_column_name, first.cells))
    column = min(range(len(names)), key=lambda index: rank_path_column(names[index]))
    if names[column] not in PATH_COLUMN_NAMES:
        yield first.cells[column]
    yield from (row.cells[column] for row in rows if column < len(row.cells))


def read_paths(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Return an iterator over the image paths in a label file or table; relative paths are joined to its folder."""
    path = as_path(path)
    names = read_path_cells(path) if is_table(path) else (row.path for row in read_text_rows(path))
    return (path_from_name(name.replace("\\", "/"), path.parent) for name in names)
