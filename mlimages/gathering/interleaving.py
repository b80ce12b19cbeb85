"""Order the links of a list so that hosts alternate."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import IO

from mlimages.core import ImageRef
from mlimages.gathering.links import parse_host

MAX_LINKS_IN_MEMORY = 50_000
"""Maximum number of links in memory; once it is reached, fewer links are read ahead.

Each host has at most 2 * `BLOCK_SIZE` links in memory, so only lists with many hosts reach it. A link takes about 0.3
KB, or more if its row in the list has other columns.
"""

BLOCK_SIZE = 128
"""Number of links of a host that are written to the temporary file at once."""

_LINKS_READ_PER_YIELD = 32


async def interleave_hosts(
    image_refs: AsyncIterator[ImageRef], *, max_in_memory: int = MAX_LINKS_IN_MEMORY, block_size: int = BLOCK_SIZE
) -> AsyncIterator[ImageRef]:
    """Yield links of alternating hosts, so that a list sorted by host keeps several hosts busy from the start.

    The order of the links of each host is kept. Links that are read ahead are held in memory, and those of hosts with
    many links in a temporary file. If `image_refs` raises an error, it is raised again once all links before it are
    yielded.

    Args:
        image_refs: links that have no `ImageRef.load`, and an `ImageRef.source` that can be stored as JSON.
        max_in_memory: maximum number of links in memory.
        block_size: number of links that are written to the temporary file at once.
    """
    queues: OrderedDict[str, _HostQueue] = OrderedDict()
    num_in_memory, is_at_end, error = 0, False, None
    with _open_temporary_file() as file:
        while queues or not is_at_end:
            for _ in range(0 if is_at_end else min(_LINKS_READ_PER_YIELD, max_in_memory - num_in_memory)):
                try:
                    image_ref = await anext(image_refs)
                except Exception as stopped:  # StopAsyncIteration, or an error of the source
                    is_at_end = True
                    error = error if isinstance(stopped, StopAsyncIteration) else stopped
                    break
                if (queue := queues.get(host := parse_host(image_ref.url))) is None:
                    queue = queues[host] = _HostQueue(file, block_size)
                num_in_memory -= queue.num_in_memory
                queue.append(image_ref)
                num_in_memory += queue.num_in_memory
            if queues:
                host, queue = queues.popitem(last=False)
                num_in_memory -= queue.num_in_memory
                yield queue.popleft()
                if queue.num_in_memory:
                    queues[host] = queue
                    num_in_memory += queue.num_in_memory
    if error:
        raise error


@contextmanager
def _open_temporary_file() -> Iterator[IO[bytes]]:
    """Open a temporary file. An OSError, for example because the disk is full, names the folder of the file."""
    try:
        with tempfile.TemporaryFile() as file:
            yield file
    except OSError as error:
        error.filename = error.filename or tempfile.gettempdir()
        raise


class _HostQueue:
    """Queue of the links of a host: both ends are in memory, the middle in blocks of a temporary file."""

    def __init__(self, file: IO[bytes], block_size: int) -> None:
        self._file, self._block_size = file, block_size
        self._first: deque[ImageRef] = deque()
        self._written: deque[tuple[int, int]] = deque()  # offset and size of each block
        self._last: list[ImageRef] = []

    @property
    def num_in_memory(self) -> int:
        """Number of links in memory; 0 only if the queue is empty."""
        return len(self._first) + len(self._last)

    def append(self, image_ref: ImageRef) -> None:
        if len(self._first) < self._block_size and not self._written and not self._last:
            self._first.append(image_ref)
            return
        self._last.append(image_ref)
        if len(self._last) == self._block_size:
            rows = [(each.url, each.label, each.source, each.name, each.is_api) for each in self._last]
            data = zlib.compress(json.dumps(rows, default=str).encode(), level=1)
            self._written.append((self._file.seek(0, 2), len(data)))
            self._file.write(data)
            self._last = []

    def popleft(self) -> ImageRef:
        image_ref = self._first.popleft()
        if not self._first and self._written:
            offset, size = self._written.popleft()
            self._file.seek(offset)
            rows = json.loads(zlib.decompress(self._file.read(size)))
            self._first.extend(ImageRef(url, label, source, name, is_api=api) for url, label, source, name, api in rows)
        elif not self._first:
            self._first.extend(self._last)
            self._last = []
        return image_ref
