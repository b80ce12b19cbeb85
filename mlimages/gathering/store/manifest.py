"""The manifest of a gathered folder: manifest.jsonl, one line per finished link, and a commit row per run.

A commit row (status `closed`) records that the images of all rows before it are on disk."""

from __future__ import annotations

import json
import os
import re
from array import array
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any

from mlimages.core import RETRYABLE_REASONS, FetchResult, GatherError, Reason, as_path

MANIFEST_VERSION = 1
"""Version of the file format, stored in each row as `v`."""
MANIFEST_NAME = "manifest.jsonl"
_ROW_FIELDS = tuple(field.name for field in fields(FetchResult))
_get_row_values = attrgetter(*_ROW_FIELDS)
_encode_json = json.JSONEncoder(default=str).encode
_MANIFEST_NAME_PATTERN = re.compile(r"manifest(-\d{5}(-of-\d{5})?)?(-[0-9a-f]{16})?\.jsonl")
_ROW_PREFIX = b'{"v": '
_COMMIT_ROW_MARK = b'"status": "closed"'


def make_manifest_path(folder: Path, shard: tuple[int, int] | None) -> Path:
    """Return the path of the manifest that a run writes to `folder`; `shard` is (number from 1, number of shards).

    >>> make_manifest_path(Path("out"), (2, 8)).name
    'manifest-00002-of-00008.jsonl'
    """
    return folder / (f"manifest-{shard[0]:05d}-of-{shard[1]:05d}.jsonl" if shard else MANIFEST_NAME)


def is_manifest_name(name: str) -> bool:
    """Return whether a file name is one that this or an earlier version of mlimages gives to a manifest."""
    return _MANIFEST_NAME_PATTERN.fullmatch(name) is not None


def find_manifests(folder: Path, *, already_merged: bool = False) -> list[Path]:
    """Return the manifests of the folder: `manifest.jsonl`, then those of shards and runs, whose rows are newer.

    Other files that are named `manifest*.jsonl` are ignored.

    Args:
        already_merged: return the manifests whose rows are already in `manifest.jsonl`, but which are not yet removed;
            by default, return all others.

    Raises:
        GatherError: a manifest was written by a later version of mlimages.
    """
    merged = _read_merged_manifest_names(folder)
    named = [path for path in folder.glob("manifest*.jsonl") if is_manifest_name(path.name)]
    found = sorted(filter(is_manifest, named), key=lambda path: (path.name != MANIFEST_NAME, path.name))
    return [path for path in found if (path.name in merged) == already_merged]


def _read_merged_manifest_names(folder: Path) -> list[str]:
    """Return the names of the manifests that were merged into `manifest.jsonl`, from its first line."""
    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            values = _parse_json(file.readline())
    except OSError:
        return []
    return values.get("merged", []) if values.get("status") == "closed" else []


def is_manifest(path: Path) -> bool:
    """Return whether a file is a manifest, judging by its first line.

    An empty file counts as a manifest, and so does the beginning of a row without a line end, as after a crash.

    Raises:
        GatherError: the manifest was written by a later version of mlimages.
    """
    try:
        with path.open("rb") as file:
            first = file.readline()
    except OSError:
        return False
    if not first.endswith(b"\n"):
        return not first.strip(b"\0") or first.startswith(_ROW_PREFIX) or _ROW_PREFIX.startswith(first)
    values = _parse_json(first)
    return isinstance(values.get("v"), int) and all(isinstance(values.get(key), str) for key in ("url", "status"))


def read_manifest(folder: str | Path) -> Iterator[FetchResult]:
    """Yield every row of the manifests of a gathered folder, local or remote; a link that was retried may have several.

    Nothing is yielded if the folder does not exist or has no manifest.

    Raises:
        GatherError: a manifest was written by a later version of mlimages.
    """
    return read_rows(find_manifests(as_path(folder)))


def read_rows(paths: Iterable[Path]) -> Iterator[FetchResult]:
    """Yield the rows of these manifests in order, without commit rows and invalid lines (truncated by a crash)."""
    for path in paths:
        with path.open("rb") as lines:
            yield from filter(None, map(parse_row, lines))


def parse_row(line: bytes) -> FetchResult | None:
    """Parse a line of a manifest; return None if it is a commit row or not a row.

    Raises:
        GatherError: the row was written by a later version of mlimages.
    """
    values = _parse_json(line)
    known = {name: values[name] for name in _ROW_FIELDS if name in values}
    try:
        if known.get("reason") is not None:
            known["reason"] = Reason(known["reason"])
        if known.get("reason") is Reason.PLACEHOLDER:  # earlier versions recorded it as a failure
            known["status"] = "placeholder"
        known.setdefault("final", known.get("reason") not in RETRYABLE_REASONS)  # absent in earlier versions
        row = FetchResult(**known)
    except (ValueError, TypeError):
        return None
    return row if _is_valid(row) else None


def _parse_json(line: bytes) -> dict[str, Any]:
    """Return the JSON object in a line; empty if there is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    version = values.get("v")
    if isinstance(version, int) and version > MANIFEST_VERSION:
        raise GatherError(
            f"a later version of mlimages wrote this manifest (format version {version}): upgrade mlimages"
        )
    return values


def _is_valid(row: FetchResult) -> bool:
    """Return whether the types and values of a parsed row fit its status, and its path is inside the folder."""
    if not (isinstance(row.url, str) and isinstance(row.label, str) and isinstance(row.source, dict)):
        return False
    if not isinstance(row.final, bool) or row.removed not in (None, "user"):
        return False
    if not _is_hexadecimal(row.sha256, 64) and (row.sha256 is not None or row.status in ("ok", "duplicate")):
        return False
    if row.path is not None and not (isinstance(row.path, str) and _is_safe_relative_path(row.path)):
        return False
    match row.status:
        case "failed" | "duplicate":
            return row.path is None
        case "placeholder":
            return row.path is None or row.sha256 is not None
    known = _is_hexadecimal(row.dhash, 16) and isinstance(row.bytes, int)
    return row.status == "ok" and known and row.path is not None


def _is_hexadecimal(value: object, length: int) -> bool:
    return isinstance(value, str) and len(value) == length and set(value) <= set("0123456789abcdef")


def _is_safe_relative_path(path: str) -> bool:
    pure = PurePosixPath(path)  # a foreign manifest must not refer to files outside its folder
    return not pure.is_absolute() and ".." not in pure.parts and "\\" not in path and "\0" not in path


def dump_row(row: FetchResult) -> bytes:
    """Serialize a row as a line of the manifest."""
    values = {"v": MANIFEST_VERSION, **dict(zip(_ROW_FIELDS, _get_row_values(row), strict=True))}
    return _encode_json(values).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class CommitRows:
    """Summary of the commit rows of a manifest. A commit row records that the images of all rows before it are on disk.

    Attributes:
        last_line_number: line number of the last commit row, from 1; 0 if there is none.
        is_at_end: whether the last line of the manifest is a commit row; True also if the manifest is empty.
        keeps_duplicates: whether any commit row records that its run kept every copy of the same bytes.
    """

    last_line_number: int
    is_at_end: bool
    keeps_duplicates: bool


def read_commit_rows(path: Path) -> CommitRows:
    """Return a summary of the commit rows of the manifest at `path`."""
    number = closed = 0
    keeps_duplicates = False
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if _COMMIT_ROW_MARK in line and (values := _parse_json(line)).get("status") == "closed":
                closed = number
                keeps_duplicates |= values.get("keep_duplicates") is True
    return CommitRows(closed, closed == number, keeps_duplicates)


def read_rows_with_fsync_flags(paths: Iterable[Path]) -> Iterator[tuple[FetchResult, bool]]:
    """Yield each row of these manifests in order, and whether a later commit row records that its image is on disk."""
    for path in paths:
        closed = read_commit_rows(path).last_line_number
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                row = parse_row(line)
                if row:
                    yield row, number < closed


def dump_commit_row(*, keep_duplicates: bool, merged_names: Sequence[str] = ()) -> bytes:
    """Return a commit row as a line; it records that the images of all rows before it are on disk.

    Args:
        keep_duplicates: whether the run kept every copy of the same bytes.
        merged_names: if a merged manifest begins with this row, the names of the manifests that were merged into it.
    """
    nothing = dict.fromkeys(_ROW_FIELDS)  # so that a table of the lines has every column
    values = {"v": MANIFEST_VERSION, **nothing, "url": "", "label": "", "status": "closed"}
    values["keep_duplicates"] = keep_duplicates
    return _encode_json(values | ({"merged": sorted(merged_names)} if merged_names else {})).encode() + b"\n"


class UInt64Set:
    """A set of 64-bit integers (keys of rows) that takes 9 bytes per key; a Python set takes 70 or more.

    Keys with the same last 12 bits are in one sorted array, which is searched by bisection.
    """

    def __init__(self) -> None:
        self._parts: defaultdict[int, array[int]] = defaultdict(partial(array, "Q"))

    def __contains__(self, key: int) -> bool:
        part = self._parts[key & 4095]
        at = bisect_left(part, key)
        return at < len(part) and part[at] == key

    def add(self, key: int) -> bool:
        """Add a key; return whether it is new."""
        if key in self:
            return False
        insort(self._parts[key & 4095], key)
        return True


class ManifestWriter:
    """Appends rows to a manifest without buffering; first removes an incomplete last line of an earlier run.

    Raises:
        GatherError: the file at `path` was not written by mlimages, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                if not is_manifest(path):
                    raise GatherError(f"{path} was not written by mlimages: move the file, or choose another folder")
                _remove_incomplete_line(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            problem = "its folder is a file" if isinstance(error, FileExistsError) else error.strerror
            raise GatherError(f"{path} cannot be written: {problem}") from error

    def append(self, row: FetchResult) -> None:
        """Record a finished link.

        Raises:
            GatherError: the manifest cannot be written.
        """
        self._write(dump_row(row))

    def append_commit_row(self, *, keep_duplicates: bool) -> None:
        """Append a commit row, which records that the images of all rows so far are on disk.

        The caller makes sure that they are (`ImageStorage.fsync`); only the manifest itself is synced here.

        Args:
            keep_duplicates: whether the run kept every copy of the same bytes.

        Raises:
            GatherError: the manifest cannot be written.
        """
        self._write(dump_commit_row(keep_duplicates=keep_duplicates), is_synced=True)

    def _write(self, line: bytes, *, is_synced: bool = False) -> None:
        try:
            left = memoryview(line)
            while left:  # a nearly full disk writes only a part
                left = left[self._file.write(left) :]
            if is_synced:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise GatherError(f"{self._file.name} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _remove_incomplete_line(path: Path) -> None:
    """Remove an incomplete last line from the file."""
    with path.open("r+b") as file:
        size = sum(len(line) for line in file if line.endswith(b"\n"))
        if size < file.seek(0, os.SEEK_END):
            file.truncate(size)
