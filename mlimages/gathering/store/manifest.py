"""The record of a gathered folder: manifest.jsonl, one line per finished link."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import fields
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any

from mlimages.core import FetchResult, GatherError, Reason

VERSION = 1
NAME = "manifest.jsonl"
_FIELDS = tuple(field.name for field in fields(FetchResult))
_values = attrgetter(*_FIELDS)
_BUCKETS = 1 << 14
_encode = json.JSONEncoder(default=str).encode


def manifest_path(folder: Path, shard: tuple[int, int] | None) -> Path:
    """The manifest of a run into `folder`, or of one shard of it."""
    return folder / (f"manifest-{shard[0]:05d}.jsonl" if shard else NAME)


def manifests(folder: Path) -> list[Path]:
    """Every manifest of the folder, in order: its own, and those of its shards, whose rows are later."""
    return sorted(folder.glob("manifest*.jsonl"), key=lambda path: (path.name != NAME, path.name))


def read_manifest(folder: str | Path) -> Iterator[FetchResult]:
    """Every row of a gathered folder's manifests, in order.

    Raises:
        GatherError: a row of a later version.
    """
    return read_rows(manifests(Path(folder)))


def read_rows(paths: Iterable[Path]) -> Iterator[FetchResult]:
    """The rows of these manifests in order; lines that are none (a crash tore them) are passed over."""
    for path in paths:
        with path.open("rb") as lines:
            for line in lines:
                row = parse_row(line)
                if row:
                    yield row


def parse_row(line: bytes) -> FetchResult | None:
    """One line of a manifest; None if it is no row.

    Raises:
        GatherError: a row of a later version.
    """
    try:
        values = json.loads(line)
        version = values.get("v")
    except (ValueError, AttributeError, RecursionError):
        return None
    if isinstance(version, int) and version > VERSION:
        raise GatherError(f"a manifest of version {version} was made by a later mlimages: update this one")
    return _row(values)


def _row(values: dict[str, Any]) -> FetchResult | None:
    known = {name: values[name] for name in _FIELDS if name in values}
    try:
        if known.get("reason") is not None:
            known["reason"] = Reason(known["reason"])
        row = FetchResult(**known)
    except (ValueError, TypeError):
        return None
    return row if _is_whole(row) else None


def _is_whole(row: FetchResult) -> bool:
    if not (isinstance(row.url, str) and isinstance(row.label, str) and isinstance(row.source, dict)):
        return False
    if not _is_hexadecimal(row.sha256, 64) and (row.sha256 is not None or row.status != "failed"):
        return False
    if row.status in ("failed", "duplicate"):
        return row.path is None
    known = _is_hexadecimal(row.dhash, 16) and isinstance(row.bytes, int)
    return row.status == "ok" and known and isinstance(row.path, str) and _is_inside(row.path)


def _is_hexadecimal(value: object, length: int) -> bool:
    return isinstance(value, str) and len(value) == length and set(value) <= set("0123456789abcdef")


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)  # a manifest from elsewhere must not name files outside its folder
    return not pure.is_absolute() and ".." not in pure.parts and "\\" not in path and "\0" not in path


def dump_row(row: FetchResult) -> bytes:
    """One line of a manifest."""
    values = {"v": VERSION, **dict(zip(_FIELDS, _values(row), strict=True))}
    return _encode(values).encode() + b"\n"


class KeySet:
    """A set of row keys at some ten bytes each, of which a million are met; Python's own takes 70 and more."""

    def __init__(self) -> None:
        self._buckets: dict[int, array[int]] = {}

    def __contains__(self, key: int) -> bool:
        return key in self._buckets.get(key % _BUCKETS, ())

    def add(self, key: int) -> None:
        """Add a key, if it is not there."""
        bucket = self._buckets.setdefault(key % _BUCKETS, array("Q"))
        if key not in bucket:
            bucket.append(key)


class ManifestWriter:
    """Appends rows, each by one write; a torn last line of an earlier run is cut off."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        _cut_torn_line(self._file)

    def append(self, row: FetchResult) -> None:
        """Record one finished link.

        Raises:
            GatherError: the disk is full.
        """
        try:
            self._file.write(dump_row(row))
        except OSError as error:
            raise GatherError(f"{self._file.name} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut_torn_line(file: Any) -> None:
    """Truncate behind the last line end."""
    end = file.seek(0, os.SEEK_END)
    keep = end
    while keep:
        start = max(0, keep - 65536)
        file.seek(start)
        newline = file.read(keep - start).rfind(b"\n")
        if newline >= 0:
            keep = start + newline + 1
            break
        keep = start
    if keep < end:
        file.truncate(keep)
