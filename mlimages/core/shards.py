"""Members of tar shards (WebDataset) as paths: `photos/images-00000.tar/ants/1.jpg` is a member of images-00000.tar.

The headers of a shard are read once, into 24 bytes of memory per member; then each member is read at its offset.
tarfile would take five times as long. A shard truncated by a crash is read to its last complete member.
"""

from __future__ import annotations

import os
import posixpath
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import IO

_BLOCK_BYTES = 512
_MAX_EXTENDED_BYTES = 2**16
"""Maximum number of bytes of an extended header that are read; names are shorter."""

_SHARD_SUFFIX = re.compile(r"\.tar(?=/)")
_OCTAL_DIGITS = re.compile(rb"[0-7]+")
_PAX_RECORD_LENGTH = re.compile(rb"(\d{1,9}) ")
_index_lock = Lock()
"""Lock that is held while an index is loaded, so that threads that need the same index load it once."""


@dataclass(frozen=True, slots=True)
class ShardMember:
    """A file in a tar archive (shard).

    Attributes:
        archive: path of the archive.
        name: normalized path of the file within the archive, without `.`, `..` or a leading slash.
        offset: position of the file's first byte in the archive.
        num_bytes: size of the file.
        archive_stat: size, modification time, change time (both in nanoseconds) and inode of the archive; empty if
            unknown.
    """

    archive: str
    name: str
    offset: int
    num_bytes: int
    archive_stat: tuple[int, ...] = ()

    def read(self) -> bytes:
        """Return the bytes of the file.

        Raises:
            OSError: the archive cannot be read.
        """
        with open(self.archive, "rb", buffering=0) as file:  # noqa: PTH123  # a str
            file.seek(self.offset)
            return file.read(self.num_bytes)


def is_member_path(path: Path | str) -> bool:
    """Return whether a path has the form of a member of a shard: one of its folders ends in `.tar`."""
    return ".tar/" in os.fspath(path)


def is_file_or_member(path: str) -> bool:
    """Return whether a local path is a file or a member of a shard."""
    try:
        return os.path.isfile(path) or find_member(path) is not None  # noqa: PTH113  # faster than pathlib
    except OSError:  # a shard without permission
        return False


def find_member(path: Path | str) -> ShardMember | None:
    """Return the member at a path; None if there is no such shard or member.

    Raises:
        OSError: the shard cannot be read.
    """
    text = os.fspath(path)
    for suffix in _SHARD_SUFFIX.finditer(text):
        archive, name = text[: suffix.end()], text[suffix.end() + 1 :]
        if os.path.isfile(archive):  # noqa: PTH113  # faster than pathlib
            found = os.stat(archive)  # noqa: PTH116
            stat = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
            with _index_lock:
                position = _load_index(archive, stat).find(name)
            return ShardMember(archive, name, *position, stat) if position else None
    return None


def iter_members(archive: Path | str) -> Iterator[ShardMember]:
    """Yield the regular files of an uncompressed archive (ustar, pax or GNU), in order, up to the last complete file.

    Raises:
        OSError: the archive cannot be read.
    """
    with open(archive, "rb") as file:  # noqa: PTH123
        long_name = ""
        for header, offset, size in _iter_entries(file):
            match header[156:157]:
                case b"x" | b"L" as kind:
                    long_name = _parse_long_name(file.read(min(size, _MAX_EXTENDED_BYTES)), is_pax_header=kind == b"x")
                case b"0" | b"\0":
                    name = posixpath.normpath(f"/{long_name or _parse_short_name(header)}").lstrip("/")
                    yield ShardMember(str(archive), name, offset, size)
                    long_name = ""
                case _:
                    long_name = ""


def is_truncated(archive: Path | str) -> bool:
    """Return whether an archive was cut off, as by a crash: the end-of-archive marker is missing or incomplete.

    An archive with data that this module cannot read counts as complete.

    Raises:
        OSError: the archive cannot be read.
    """
    with open(archive, "rb") as file:  # noqa: PTH123
        end = max((offset + _round_up_to_block(size) for _, offset, size in _iter_entries(file)), default=0)
        file.seek(end)
        rest = file.read(2 * _BLOCK_BYTES)
    if len(rest) < _BLOCK_BYTES:
        return end > 0 or not rest
    if rest[257:262] == b"ustar":
        return _parse_octal(rest[124:136]) is not None  # else damaged, or of 8 GB and more
    return len(rest) < 2 * _BLOCK_BYTES and not rest.strip(b"\0")


def _iter_entries(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yield the header of each complete entry, and the offset and size of its data."""
    end, at = os.fstat(file.fileno()).st_size, 0
    while len(header := file.read(_BLOCK_BYTES)) == _BLOCK_BYTES and header[257:262] == b"ustar":
        size, offset = _parse_octal(header[124:136]), at + _BLOCK_BYTES
        if size is None or offset + size > end:
            return
        yield header, offset, size
        at = offset + _round_up_to_block(size)
        file.seek(at)


def _round_up_to_block(size: int) -> int:
    return size + -size % _BLOCK_BYTES


def _parse_octal(field: bytes) -> int | None:
    """Return the number in a header field; None if it is damaged, or in the binary format for 8 GB and more."""
    digits = field.strip(b"\0 ")
    return int(digits, 8) if _OCTAL_DIGITS.fullmatch(digits) else None


def _parse_short_name(header: bytes) -> str:
    """Return the path in a header, from its fields `name` and `prefix`."""
    name, prefix = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
    whole = prefix + b"/" + name if prefix and header[262:263] == b"\0" else name
    return whole.decode("utf-8", "surrogateescape")


def _parse_long_name(data: bytes, *, is_pax_header: bool) -> str:
    """Return the path that an extended header holds; "" if it holds none.

    An extended header of POSIX (pax) consists of records `LENGTH KEY=VALUE`; one of GNU is the path alone.
    """
    if not is_pax_header:
        return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    at = 0
    while record := _PAX_RECORD_LENGTH.match(data, at):
        end = max(at + int(record[1]), record.end())
        key, _, value = data[record.end() : end - 1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
        at = end
    return ""


class _ArchiveIndex:
    """Offsets and sizes of the members of an archive, by hash of their name.

    If several members have the same name, the last one is found.
    """

    def __init__(self, archive: str) -> None:
        rows = sorted((hash(one.name), one.offset, one.num_bytes) for one in iter_members(archive))
        self._hashes, self._offsets, self._sizes = (array("q", (row[field] for row in rows)) for field in range(3))

    def find(self, name: str) -> tuple[int, int] | None:
        """Return offset and size in bytes of the member with this name; None if there is none."""
        row = bisect_right(self._hashes, hash(name)) - 1
        if row < 0 or self._hashes[row] != hash(name):
            return None
        return self._offsets[row], self._sizes[row]


@lru_cache(maxsize=4096)
def _load_index(archive: str, archive_stat: tuple[int, ...]) -> _ArchiveIndex:
    """Return the index of an archive; cached by path and `archive_stat` (size, times and inode)."""
    return _ArchiveIndex(archive)
