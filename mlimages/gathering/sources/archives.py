"""Read the files in local and remote archives without extracting them, and in folders."""

from __future__ import annotations

import asyncio
import tarfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import aiohttp

from mlimages.gathering.sources.list_files import READ_ERRORS, make_read_error

_BLOCK_BYTES = tarfile.BLOCKSIZE
_SKIPPED_BYTES = 2**20  # how much of a skipped file is in memory at once
_MAX_ATTEMPTS = 5
_GZIP_SUFFIXES = (".gz", ".tgz")
_ARCHIVE_SUFFIXES = (".tar", ".zip", *_GZIP_SUFFIXES)
MAX_MEMBER_BYTES = 64 * 2**20
"""Maximum size of a file in a zip, a compressed tar or a remote tar; larger files are skipped."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a `RemoteTar`.

    Attributes:
        name: file name, without the path in the tar.
        offset, size: start of the content in the tar, and its length, in bytes.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """A regular file of an archive or a folder.

    Attributes:
        url: URL of the file, such as `file:///data/pets.tar#cats/a.jpg`.
        path: path that begins with the name of the archive, without its suffix, or of the folder: `pets/cats/a.jpg`.
        load: returns the bytes of the file.
    """

    url: str
    path: str
    load: Callable[[], Awaitable[bytes]]


def iter_entries(path: Path) -> Iterator[ArchiveEntry]:
    """Yield the regular files of a tar (plain or gzip), of a zip, or of a folder and the archives in it.

    The files of a compressed tar are already in memory; other files are read when `ArchiveEntry.load` is called.

    Raises:
        InputError: an archive cannot be read to its end.
    """
    if path.is_dir():
        path = path.absolute()
        for inner in filter(Path.is_file, sorted(path.rglob("*"))):
            folder = inner.parent.relative_to(path.parent).as_posix()
            if inner.suffix in _ARCHIVE_SUFFIXES:
                yield from (replace(entry, path=f"{folder}/{entry.path}") for entry in iter_entries(inner))
            else:
                read = partial(asyncio.to_thread, inner.read_bytes)
                yield ArchiveEntry(inner.as_uri(), f"{folder}/{inner.name}", read)
        return
    try:
        for name, load in _iter_archive(path):
            yield ArchiveEntry(f"{path.absolute().as_uri()}#{name}", f"{path.name.partition('.')[0]}/{name}", load)
    except READ_ERRORS as error:
        raise make_read_error(path, error) from error


def _iter_archive(path: Path) -> Iterator[tuple[str, Callable[[], Awaitable[bytes]]]]:
    """Yield the path and the `load` function of each regular file of a zip or a tar, and of the tars in a tar."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as zipped:
            for info in zipped.infolist():
                if not info.is_dir() and info.file_size <= MAX_MEMBER_BYTES:
                    yield info.filename, partial(asyncio.to_thread, _read_zip_member, path, info.filename)
        return
    is_compressed = path.suffix in _GZIP_SUFFIXES
    with tarfile.open(path, "r|gz" if is_compressed else "r:") as archive:
        yield from _iter_tar(archive, None if is_compressed else path)


def _read_zip_member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _iter_tar(
    archive: tarfile.TarFile, path: Path | None, offset: int = 0
) -> Iterator[tuple[str, Callable[[], Awaitable[bytes]]]]:
    """Do what `_iter_archive` does for an open tar.

    The path of a file in the nested tar `n02123394.tar` begins with `n02123394/`.

    Args:
        archive: the tar; it starts at `offset` in the outermost tar.
        path: path of the outermost tar, from which `load` reads; None if it is compressed, so files are read at once.
    """
    for info in filter(tarfile.TarInfo.isreg, archive):
        if info.name.endswith(".tar"):
            with tarfile.open(fileobj=archive.extractfile(info), mode="r:" if path else "r|") as inner:
                for name, load in _iter_tar(inner, path, offset + info.offset_data):
                    yield f"{Path(info.name).stem}/{name}", load
        elif path:
            yield info.name, partial(asyncio.to_thread, _read_range, path, offset + info.offset_data, info.size)
        elif info.size <= MAX_MEMBER_BYTES and (file := archive.extractfile(info)):
            yield info.name, partial(return_data, file.read())


async def return_data(data: bytes) -> bytes:
    """Return `data`; serves as `ArchiveEntry.load` for a file that has already been read."""
    return data


def _read_range(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


class RemoteTar:
    """A tar file at a URL, read as a stream that resumes at the same offset after a broken connection.

    Raises (while iterating):
        aiohttp.ClientError, TimeoutError: the file cannot be read to its end.
        tarfile.TarError: the file is not a tar, or is truncated.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._at = 0
        self._buffer = bytearray()
        self._chunks = self._read_chunks()

    async def members(self) -> AsyncIterator[tuple[TarMember, bytes]]:
        """Yield each regular file of at most `MAX_MEMBER_BYTES` and its bytes, in order."""
        while (header := await self._read_exactly(_BLOCK_BYTES)).strip(b"\0"):
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            offset = self._at
            padded = -(-info.size // _BLOCK_BYTES) * _BLOCK_BYTES
            if info.isreg() and info.size <= MAX_MEMBER_BYTES:
                data = await self._read_exactly(padded)
                yield TarMember(Path(info.name).name, offset, info.size), bytes(data[: info.size])
                continue
            while padded:
                padded -= len(await self._read_exactly(min(padded, _SKIPPED_BYTES)))

    async def read(self, member: TarMember) -> bytes:
        """Read the bytes of one member in a separate request."""
        last = member.offset + member.size - 1
        async with self._session.get(self._url, headers={"Range": f"bytes={member.offset}-{last}"}) as response:
            response.raise_for_status()
            if response.status != 206:
                raise aiohttp.ClientPayloadError("the server does not support range requests")
            return await response.content.readexactly(member.size)  # read(n) may return less

    async def _read_exactly(self, size: int) -> bytearray:
        while len(self._buffer) < size:
            if (chunk := await anext(self._chunks, None)) is None:
                raise tarfile.ReadError("the archive is truncated")
            self._buffer += chunk
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        self._at += size
        return taken

    async def _read_chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the file in chunks; after a broken connection, request the rest."""
        at = 0
        for attempt in range(_MAX_ATTEMPTS):
            try:
                headers = {"Range": f"bytes={at}-"} if at else {}
                async with self._session.get(self._url, headers=headers) as response:
                    response.raise_for_status()
                    skip = 0 if response.status == 206 else at  # a server may not support range requests
                    async for chunk in response.content.iter_any():
                        new = chunk[skip:]
                        skip -= len(chunk) - len(new)
                        at += len(new)
                        yield new
                    return
            except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, TimeoutError):
                if not at or attempt == _MAX_ATTEMPTS - 1:
                    raise
