"""Pictures inside tar files and folders, near and far; members are read, never extracted."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from mlimages.core import InputError

_BLOCK = tarfile.BLOCKSIZE
_RESUMES = 5
MAX_MEMBER_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of an archive: its name, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int


def tar_members(path: Path, *, at: int = 0) -> Iterator[Member]:
    """The regular files of a local tar (one that begins at byte `at`), in order, no links, devices or folders.

    Raises:
        InputError: it is no tar.
    """
    try:
        with path.open("rb") as file:
            file.seek(at)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for info in archive:
                    if info.isreg():
                        yield Member(Path(info.name).name, info.offset_data, info.size)
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} is no tar that can be read: {error}") from error


async def read_member(path: Path, member: Member) -> bytes:
    """One member's bytes."""

    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)

    return await asyncio.to_thread(read)


class RemoteTar:
    """A tar behind a URL, read as a stream; a broken connection is taken up again where it broke.

    Raises (while iterating):
        aiohttp.ClientError, TimeoutError: it cannot be had, or not to its end.
        tarfile.TarError: it is no tar.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._at = 0
        self._buffer = bytearray()
        self._chunks: AsyncIterator[bytes] | None = None

    async def members(self) -> AsyncIterator[tuple[Member, bytes]]:
        """Each regular file with its bytes, in order."""
        self._chunks = self._stream()
        while True:
            header = await self._take(_BLOCK)
            if not header.strip(b"\0"):
                return
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            offset = self._at
            padded = -(-info.size // _BLOCK) * _BLOCK
            if info.isreg() and info.size <= MAX_MEMBER_BYTES:
                data = await self._take(padded)
                yield Member(Path(info.name).name, offset, info.size), bytes(data[: info.size])
            else:
                await self._skip(padded)

    async def read(self, member: Member) -> bytes:
        """One member's bytes, by a request for these alone."""
        last = member.offset + member.size - 1
        async with self._session.get(self._url, headers={"Range": f"bytes={member.offset}-{last}"}) as response:
            response.raise_for_status()
            if response.status != 206:
                raise aiohttp.ClientPayloadError("the server does not serve parts of a file")
            return await response.content.readexactly(member.size)  # read(n) returns what has arrived

    async def _take(self, size: int) -> bytearray:
        while len(self._buffer) < size:
            await self._more()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        self._at += size
        return taken

    async def _skip(self, size: int) -> None:
        self._at += size
        while size > len(self._buffer):
            size -= len(self._buffer)
            self._buffer.clear()
            await self._more()
        del self._buffer[:size]

    async def _more(self) -> None:
        assert self._chunks
        try:
            self._buffer += await anext(self._chunks)
        except StopAsyncIteration:
            raise tarfile.ReadError("the archive ends too early") from None

    async def _stream(self) -> AsyncIterator[bytes]:
        at = 0
        for attempt in range(_RESUMES):
            try:
                headers = {"Range": f"bytes={at}-"} if at else {}
                async with self._session.get(self._url, headers=headers) as response:
                    response.raise_for_status()
                    skip = 0 if response.status == 206 else at  # a server without ranges begins anew
                    async for chunk in response.content.iter_any():
                        new = chunk[skip:]
                        skip -= len(chunk) - len(new)
                        at += len(new)
                        yield new
                    return
            except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, TimeoutError):
                if not at or attempt == _RESUMES - 1:
                    raise
