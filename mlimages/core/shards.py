"""Members of tar shards (WebDataset) as paths: `photos/images-00000.tar/ants/1.jpg` is a member of images-00000.tar.

The headers of a shard are read once, into 24 bytes of memory per member; then each member is read at its offset.
tarfile would take five times as long for the headers. A shard that a crash cut is read to its last complete member.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

_BLOCK = 512
_lock = Lock()


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar archive.

    Attributes:
        archive: path of the archive.
        name: path of the file within the archive.
        offset: position of its first byte in the archive.
        size: number of bytes.
        state: size, modification time and inode of the archive.
    """

    archive: str
    name: str
    offset: int
    size: int
    state: tuple[int, ...] = ()

    def read(self) -> bytes:
        """Return the bytes.

        Raises:
            OSError: the archive cannot be read.
        """
        with open(self.archive, "rb", buffering=0) as file:  # noqa: PTH123  # a str
            file.seek(self.offset)
            return file.read(self.size)


def is_member(path: Path | str) -> bool:
    """Whether a path may be that of a member of a shard, or of a file in a folder with such a name."""
    return ".tar/" in os.fspath(path)


def is_file(path: str) -> bool:
    """Whether there is a file, or a member of a shard, at a local path."""
    return os.path.isfile(path) or find_member(path) is not None  # noqa: PTH113  # faster than pathlib


def find_member(path: Path | str) -> Member | None:
    """Return the member at a path; None if there is no such shard or member.

    Raises:
        OSError: the shard cannot be read.
    """
    text, at = os.fspath(path), 0
    while (at := text.find(".tar/", at) + 4) > 3:
        if os.path.isfile(text[:at]):  # noqa: PTH113  # faster than pathlib
            name = text[at + 1 :]
            found = os.stat(text[:at])  # noqa: PTH116
            state = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
            with _lock:  # threads that need the same index
                place = _index(text[:at], state).find(name)
            return Member(text[:at], name, *place, state) if place else None
    return None


def members(archive: Path | str) -> Iterator[Member]:
    """Yield the regular files of an uncompressed archive, in order, up to the last complete one.

    Raises:
        OSError: it cannot be read.
    """
    with open(archive, "rb") as file:  # noqa: PTH123
        end, at, long_name = os.fstat(file.fileno()).st_size, 0, ""
        while len(header := file.read(_BLOCK)) == _BLOCK and header[257:262] == b"ustar":
            size, offset = _octal(header[124:136]), at + _BLOCK
            at = offset + size + -size % _BLOCK
            if offset + size > end:
                return
            match header[156:157]:
                case b"x" | b"L":
                    long_name = _long_name(file.read(size), is_pax=header[156:157] == b"x")
                case b"0" | b"\0":
                    yield Member(str(archive), long_name or _short_name(header), offset, size)
                    long_name = ""
                case _:
                    long_name = ""
            file.seek(at)


def _octal(field: bytes) -> int:
    try:
        return int(field.strip(b"\0 "), 8)
    except ValueError:  # damaged, or 8 GB and more: as if cut here
        return 1 << 62


def _short_name(header: bytes) -> str:
    name, prefix = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
    whole = prefix + b"/" + name if prefix and header[262:263] == b"\0" else name
    return whole.decode("utf-8", "surrogateescape")


def _long_name(data: bytes, *, is_pax: bool) -> str:
    """Return the name in an extended header: records `LENGTH path=NAME` of POSIX, or GNU's name and a zero."""
    if not is_pax:
        return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not int(length):
            return ""
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return ""


class _Index:
    """Offsets and sizes of the members of an archive, found by a hash of the name; the last of equal names counts."""

    def __init__(self, archive: str) -> None:
        rows = sorted((hash(one.name), one.offset, one.size) for one in members(archive))
        self._hashes, self._offsets, self._sizes = (array("q", (row[field] for row in rows)) for field in range(3))

    def find(self, name: str) -> tuple[int, int] | None:
        row = bisect_right(self._hashes, hash(name)) - 1
        if row < 0 or self._hashes[row] != hash(name):
            return None
        return self._offsets[row], self._sizes[row]


@lru_cache(maxsize=4096)
def _index(archive: str, state: tuple[int, ...]) -> _Index:
    return _Index(archive)
