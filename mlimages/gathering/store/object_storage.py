"""A remote gathered folder (`s3://bucket/folder`): its images and manifests.

1. A checked image is uploaded under a name with the hash of its link, and only if no object has this name.
2. Each run uploads its rows as manifests of its own, `manifest-ID.jsonl`, which are never changed afterwards.
3. A run without --shard merges all `manifest-ID.jsonl` into `manifest.jsonl`. It replaces that only if no other run has
   changed it meanwhile (checked on S3; other stores do not check), and otherwise reads all manifests and merges again.
   Then it removes the merged `manifest-ID.jsonl` and the replaced images.
4. The first line of `manifest.jsonl` names the merged `manifest-ID.jsonl`. Until they are removed, runs ignore them.
So no run overwrites images or rows of another, and the next run finds what a killed run has uploaded.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from mlimages.core import FetchResult, GatherError, summarize_error
from mlimages.gathering.store.attribution import ATTRIBUTION_STEM
from mlimages.gathering.store.file_storage import ImageStorage, make_quarantine_path
from mlimages.gathering.store.image_index import open_temporary_database
from mlimages.gathering.store.manifest import MANIFEST_NAME, ManifestWriter, is_manifest, is_manifest_name

logger = logging.getLogger(__name__)

MAX_ROWS_PER_MANIFEST = 10_000
"""Maximum rows of each manifest in a remote folder.

A killed run loses the rows of its last manifest if that is not uploaded yet; their images already are.
"""

_MAX_CONCURRENT_UPLOADS = 16

_MAX_UPLOAD_BYTES = 4 * 2**30
"""Maximum bytes of an upload in one request; conditional requests do not work with multipart uploads."""

_MAX_ATTEMPTS = 5
_BACKOFF_S = 0.8
"""Pause in seconds before the first retry; each further pause is four times as long."""

_T = TypeVar("_T")


class ObjectStorage(ImageStorage):
    """The objects of a remote folder, and its manifests with local copies.

    Args:
        address: the remote folder, as returned by `as_path`.
        folder: local folder for the copies of the manifests.
    """

    allows_concurrent_runs = True

    def __init__(self, address: Path, folder: Path) -> None:
        self._address = address
        self._fs: Any = address.fs  # type: ignore[attr-defined]  # mypy sees a Path
        self._root: str = address.path.rstrip("/")  # type: ignore[attr-defined]
        self._folder = folder
        self._pool = ThreadPoolExecutor(_MAX_CONCURRENT_UPLOADS, "put")
        self._sizes = open_temporary_database("")
        self._manifests: dict[str, Any] = {}  # states of the objects that were copied
        self._is_retrying = False

    def close(self) -> None:
        """Wait for pending uploads, and remove the temporary database of object sizes."""
        self._pool.shutdown()
        self._sizes.close()

    async def store(self, temp_path: Path, row: FetchResult) -> str | None:
        path = row.path or ""
        loop = asyncio.get_running_loop()
        size = temp_path.stat().st_size
        is_placed = await loop.run_in_executor(self._pool, self._create_object, temp_path, path)
        if is_placed:
            self._record_sizes({path: size})
            temp_path.unlink()
        return path if is_placed else None

    def size(self, path: str) -> int | None:
        row = self._sizes.execute("SELECT size FROM objects WHERE path = ?", (path,)).fetchone()
        return row[0] if row else None

    def sha256(self, path: str) -> str | None:
        try:
            return hashlib.sha256(self._retry("read", path, lambda at: self._fs.cat_file(at))).hexdigest()
        except FileNotFoundError:
            return None

    def remove(self, path: str, sha256: str) -> None:
        if self.is_unchanged(path, sha256):
            self._remove_object(path)

    def quarantine_placeholder(self, path: str, sha256: str) -> str | None:
        aside = make_quarantine_path(path, sha256)
        if self.is_unchanged(path, sha256):
            self._retry("written", aside, lambda at: self._fs.copy(f"{self._root}/{path}", at))
            self._record_sizes({aside: self.size(path) or 0})
            self._remove_object(path)
        return aside if self.size(aside) is not None else None

    def iter_file_paths(self) -> Iterator[str]:
        query = "SELECT path FROM objects WHERE path NOT LIKE '.%' AND path NOT LIKE '%/.%' ORDER BY path"
        for (path,) in self._sizes.execute(query).fetchall():
            yield path

    def refresh_manifests(self) -> bool:
        """List the objects and download the manifests; return whether they have changed since the last call."""
        before = dict(self._manifests)
        while True:
            try:
                listed = self._scan_objects()
                for name in self._manifests.keys() - listed.keys():
                    (self._folder / name).unlink(missing_ok=True)
                    del self._manifests[name]
                for name, state in listed.items():
                    if self._manifests.get(name) != state:
                        self._download_object(name, size=state["size"])
                        self._manifests[name] = state
            except FileNotFoundError:  # another run has just merged or replaced it
                continue
            if MANIFEST_NAME in self._manifests and not is_manifest(self._folder / MANIFEST_NAME):
                raise GatherError(
                    f"{self._address}/{MANIFEST_NAME} was not written by mlimages: choose another address"
                )
            return before != self._manifests

    def upload_manifest(self, path: Path) -> None:
        """Upload a manifest of this run, whose name no other run uses."""
        is_stored = self._create_object(path, path.name)
        # if the response to the first attempt was lost, the second one finds the object
        if not is_stored and self.sha256(path.name) != hashlib.sha256(path.read_bytes()).hexdigest():
            raise GatherError(
                f"{self._address}/{path.name} was written by another run: "
                "wait until that run has ended, then run the same command again"
            )
        self._manifests[path.name] = None

    def publish_manifest(self, path: Path) -> bool:
        if MANIFEST_NAME not in self._manifests:
            return self._create_object(path, MANIFEST_NAME)
        etag = (self._manifests[MANIFEST_NAME] or {}).get("ETag")
        match = {"IfMatch": etag, "chunksize": _MAX_UPLOAD_BYTES} if etag else {}
        try:
            self._retry("written", MANIFEST_NAME, lambda at: self._fs.pipe_file(at, path.read_bytes(), **match))
        except FileExistsError:
            return False
        return True

    def upload_file(self, path: Path) -> None:
        """Upload a file such as ATTRIBUTION.md, replacing an earlier one."""
        self._retry("written", path.name, lambda at: self._fs.put_file(str(path), at))

    def remove_manifest(self, path: Path) -> None:
        self._remove_object(path.name)
        self._manifests.pop(path.name, None)
        path.unlink()

    def _download_object(self, name: str, *, size: int) -> None:
        """Download the object `name`, which has this size, to the local folder.

        Raises:
            FileNotFoundError: another run has replaced or removed the object since it was listed.
        """
        copy = self._folder / name
        self._retry("read", name, lambda at: self._fs.get_file(at, str(copy)))
        if copy.stat().st_size != size:
            raise FileNotFoundError(name)

    def _create_object(self, file: Path, path: str) -> bool:
        """Upload a file as a new object; return False if the object exists."""
        try:
            self._retry("written", path, lambda at: self._fs.pipe_file(at, file.read_bytes(), mode="create"))
        except FileExistsError:
            return False
        return True

    def _remove_object(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._retry("removed", path, self._fs.rm_file)
        self._sizes.execute("DELETE FROM objects WHERE path = ?", (path,))

    def _scan_objects(self) -> dict[str, Any]:
        """List all objects; return the state of each manifest (size, time stamps and ETag), by name.

        The sizes of all other objects are recorded, and files named ATTRIBUTION*.md are downloaded. Folders are listed
        one at a time, since a listing takes 1 KB of memory per object.
        """
        self._sizes.executescript(
            "DROP TABLE IF EXISTS objects; CREATE TABLE objects (path TEXT PRIMARY KEY, size INT);"
        )
        manifests = {}
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            self._fs.invalidate_cache()
            try:
                found = self._retry("listed", folder, lambda at: self._fs.ls(at.rstrip("/"), detail=True))
            except FileNotFoundError:
                continue
            files = {}
            for info in found:
                path = info["name"].removeprefix(self._root).lstrip("/")
                if info["type"] == "directory" and path.strip("/") != folder:
                    waiting.append(path.strip("/"))
                elif not folder and is_manifest_name(path):
                    manifests[path] = {key: info.get(key) for key in ("ETag", "size", "created", "updated")}
                elif not folder and fnmatch(path, f"{ATTRIBUTION_STEM}*.md"):
                    self._download_object(path, size=info["size"])
                elif info["type"] == "file":
                    files[path] = info["size"]
            self._record_sizes(files)
        self._fs.invalidate_cache()
        return manifests

    def _record_sizes(self, sizes: dict[str, int]) -> None:
        self._sizes.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?)", sizes.items())

    def _retry(self, operation: str, path: str, action: Callable[[str], _T]) -> _T:
        """Return the result of `action`, called with the address of the object at `path`; retry after errors.

        Args:
            operation: `read`, `written`, `listed` or `removed`, for the message "PATH cannot be read".
            path: path of the object in the remote folder.
            action: the request to the object store.

        Raises:
            FileNotFoundError: the object does not exist.
            FileExistsError: the object to create exists, or the object to replace has changed since it was read.
            GatherError: the store fails repeatedly, or denies access.
        """
        at = f"{self._root}/{path}"
        for count in range(1, _MAX_ATTEMPTS + 1):
            try:
                return action(at)
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # depends on the fsspec implementation
                if _is_conflict(error):
                    raise FileExistsError(path) from error
                failure = f"{self._address}/{path}".rstrip("/") + f" cannot be {operation}: {summarize_error(error)}"
                if count == _MAX_ATTEMPTS or isinstance(error, PermissionError):
                    raise GatherError(f"{failure}; run the same command again to resume") from error
                if not self._is_retrying:
                    logger.warning("%s; trying again", failure)
                self._is_retrying = True  # one message is enough
                time.sleep(_BACKOFF_S * 4 ** (count - 1))
        raise AssertionError("unreachable: the last attempt returns or raises")


class RemoteManifestWriter:
    """Writes the rows of a run to one manifest after another; each is uploaded when it is full or the run ends.

    Args:
        manifest: determines the paths of the manifests: for `manifest.jsonl`, they are `manifest-ID.jsonl`, where ID
            is 16 hexadecimal digits.
        upload: called with the path of each finished manifest.
        keep_duplicates: whether the run keeps every copy of the same bytes.
    """

    def __init__(self, manifest: Path, upload: Callable[[Path], None], *, keep_duplicates: bool) -> None:
        self._manifest = manifest
        self._upload = upload
        self._keep_duplicates = keep_duplicates
        self._path = manifest
        self._writer: ManifestWriter | None = None
        self._count = 0

    def append(self, row: FetchResult) -> None:
        """Write the row of a finished link; if the link has an image, the caller has stored the image before."""
        if self._writer is None:
            unique_id = f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(2)}"  # sorts by time
            self._path = self._manifest.with_name(f"{self._manifest.stem}-{unique_id}.jsonl")
            self._writer, self._count = ManifestWriter(self._path), 0
        self._writer.append(row)
        self._count += 1
        if self._count == MAX_ROWS_PER_MANIFEST:
            self.append_commit_row(keep_duplicates=self._keep_duplicates)

    def append_commit_row(self, *, keep_duplicates: bool) -> None:
        """Append a commit row to the current manifest, and upload the manifest; do nothing if it has no rows.

        Args:
            keep_duplicates: whether the run kept every copy of the same bytes.
        """
        if self._writer:
            self._writer.append_commit_row(keep_duplicates=keep_duplicates)
            self.close()
            self._upload(self._path)

    def close(self) -> None:
        """Close the current manifest without uploading it."""
        if self._writer:
            self._writer.close()
        self._writer = None


def _is_conflict(error: Exception) -> bool:
    """Return whether a conditional request failed: status 412, or 409 if another request is in progress."""
    text = f"{error} {error.__cause__}"
    conflicts = ("PreconditionFailed", "ConditionalRequestConflict", "At least one of the pre-cond")
    return any(conflict in text for conflict in conflicts)
