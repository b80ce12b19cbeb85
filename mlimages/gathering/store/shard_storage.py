"""Gathered images in tar shards (WebDataset): `images-00000.tar` and so on, a JSON file and an image per key.

1. Each run begins a new shard, and only appends to its own shards.
2. Changes are made only in the manifest: an image stays in its shard even if it is replaced, gets another class or is
   recognized as a placeholder.
3. A killed run may leave a truncated shard. mlimages reads it up to the last complete member. Since other programs need
   a valid tar file, the next run that stores an image removes the incomplete sample at its end and writes the
   end-of-archive marker. A shard with this marker, or with unreadable data in its place, is never changed.
All images have the suffix .jpg, whatever their format: `datasets.load_dataset` requires the same suffixes for each key.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from mlimages.core import FetchResult, GatherError, ShardMember, find_member, is_truncated, iter_members
from mlimages.gathering.store.file_storage import ImageStorage, fsync_path

IMAGE_SUFFIX = ".jpg"
"""Suffix of all images, whatever their format."""
MAX_SHARD_BYTES = 10**9
"""Maximum size of a shard, unless a single image is larger."""

MAX_IMAGES_PER_SHARD = 10_000
"""Maximum number of images of a shard."""

_BLOCK_BYTES = 512
_END_OF_ARCHIVE = bytes(2 * _BLOCK_BYTES)
_SHARD_PREFIX = re.compile(r"^images(-\d{5}-of-\d{5})?-\d{5}\.tar/")


def strip_shard_name(path: str) -> str:
    """Return the path of an image within its shard; other paths are returned unchanged.

    >>> strip_shard_name("images-00000.tar/cats/1.jpg"), strip_shard_name("cats/1.jpg")
    ('cats/1.jpg', 'cats/1.jpg')
    """
    return _SHARD_PREFIX.sub("", path)


def make_sample_key(stem: str) -> str:
    """Return the key of a WebDataset sample for a path without suffix; dots in the file name become underscores.

    >>> make_sample_key("a.b/c.d")
    'a.b/c_d'
    """
    folder, slash, name = stem.rpartition("/")
    return folder + slash + name.replace(".", "_")


class ShardStorage(ImageStorage):
    """The images of a gathered folder, in tar shards.

    Args:
        name_prefix: beginning of the names of the shards that this run writes.
    """

    def __init__(self, folder: Path, name_prefix: str) -> None:
        self._folder = folder
        self._name_prefix = name_prefix
        self._file: IO[bytes] | None = None
        self._name = ""
        self._size = 0
        self._written: dict[str, ShardMember] = {}
        self._listed: set[str] = set()

    async def store(self, temp_path: Path, row: FetchResult) -> str | None:
        assert row.path
        image = temp_path.read_bytes()
        head = _make_json_tar_entry(row) + _make_tar_header(row.path, image)  # so that a complete image has its JSON
        sample = head + image + bytes(-len(image) % _BLOCK_BYTES)
        size = self._size + len(sample) + len(_END_OF_ARCHIVE)
        is_full = len(self._written) >= MAX_IMAGES_PER_SHARD or size > MAX_SHARD_BYTES
        try:
            if self._file is None or (is_full and self._written):
                self._open_next_shard()
            assert self._file
            self._file.write(sample)
            self._file.flush()
        except OSError as error:
            self.close()
            raise GatherError(f"{self._folder / self._name} cannot be written: {error.strerror}") from error
        path = f"{self._name}/{row.path}"
        self._written[path] = ShardMember(self._file.name, row.path, self._size + len(head), len(image))
        self._size += len(sample)
        temp_path.unlink()
        return path

    def size(self, path: str) -> int | None:
        self._listed.add(path.partition("/")[0])
        return member.num_bytes if (member := self._find_member(path)) else None

    def sha256(self, path: str) -> str | None:
        member = self._find_member(path)
        return hashlib.sha256(member.read()).hexdigest() if member else None

    def remove(self, path: str, sha256: str) -> None:
        """Do nothing: an image that the manifest no longer lists stays in its shard."""

    def quarantine_placeholder(self, path: str, sha256: str) -> str | None:
        """Move nothing, since images stay in their shards; return `path`, or None if no shard has the image."""
        return path if self._find_member(path) else None

    def fsync(self, paths: Iterable[str]) -> None:
        """Wait until the shard that is being written is on disk; full shards already are."""
        if self._file:
            os.fsync(self._file.fileno())
            fsync_path(str(self._folder), os.fsync)

    def iter_file_paths(self) -> Iterator[str]:
        """Yield nothing: images in shards are not files of their own, which the user might have moved."""
        yield from ()

    def close(self) -> None:
        """Remove the incomplete sample of a failed write, write the end-of-archive marker, and close the shard."""
        if self._file is None:
            return
        file, self._file = self._file, None
        # not opened by its name, which may be that of another file by now
        with suppress(OSError), os.fdopen(os.dup(file.fileno()), "r+b", buffering=0) as same:
            with suppress(OSError):  # a full disk: the next run writes it
                file.close()
            _write_end_of_archive(same, self._size)

    def _find_member(self, path: str) -> ShardMember | None:
        """Return the position of the image at `path` in its shard; None if there is no such image."""
        return self._written.get(path) or find_member(f"{self._folder}/{path}")

    def _open_next_shard(self) -> None:
        """Open a new shard; before the first one, repair the last shard of the previous run."""
        shards = sorted(self._folder.glob(f"{self._name_prefix}-[0-9][0-9][0-9][0-9][0-9].tar"))
        if self._file:
            self.close()
        elif shards and shards[-1].name in self._listed and not shards[-1].is_symlink():
            with suppress(OSError):  # not permitted
                _repair_truncated_shard(shards[-1])
        number = int(shards[-1].stem[-5:]) + 1 if shards else 0
        self._name, self._size, self._written = f"{self._name_prefix}-{number:05d}.tar", 0, {}
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / self._name).open("x+b")


def _repair_truncated_shard(shard: Path) -> None:
    """Remove an incomplete last sample from the shard of a killed run, and write the end-of-archive marker."""
    if not is_truncated(shard):
        return
    ends, name = (0, 0), ""
    for one in iter_members(shard):
        ends, name = (ends[1], one.offset + one.num_bytes + -one.num_bytes % _BLOCK_BYTES), one.name
    size = ends[0] if name.endswith(".json") else ends[1]
    with shard.open("r+b", buffering=0) as file:
        _write_end_of_archive(file, size)


def _write_end_of_archive(file: IO[bytes], size: int) -> None:
    """Truncate a shard to `size` bytes and append the end-of-archive marker; `file` must be unbuffered."""
    file.truncate(size)
    file.seek(size)
    file.write(_END_OF_ARCHIVE)
    os.fsync(file.fileno())


def _make_json_tar_entry(row: FetchResult) -> bytes:
    """Return the tar header and data of the JSON file that describes an image.

    `FetchResult.source` becomes a single string, which contains JSON, since its keys differ from image to image.
    """
    names = ("url", "label", "sha256", "width", "height", "format", "fetched_at")
    values = {name: getattr(row, name) for name in names} | {"source": json.dumps(row.source, default=str)}
    data = json.dumps(values).encode()
    assert row.path
    header = _make_tar_header(f"{row.path.removesuffix(IMAGE_SUFFIX)}.json", data)
    return header + data + bytes(-len(data) % _BLOCK_BYTES)


def _make_tar_header(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
