"""Atomic writes to local files and fsspec addresses, and the cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import platformdirs

from mlimages.core.errors import InputError, MissingExtraError, name_output_in_errors, summarize_error
from mlimages.core.shards import find_member
from mlimages.core.temporary_files import make_temporary_path

_REMOTE_URL = re.compile(r"(s3|gs|gcs|az|abfs|abfss|hdfs|oci|oss|memory):/+(.*)", re.DOTALL | re.IGNORECASE)
"""Address in remote storage: scheme and rest. Only object stores are supported: a label file from elsewhere must not
cause requests to web servers of a private network."""

_ANY_URL = re.compile(r"([a-z][a-z0-9+.-]+):(/+.*|/*)", re.DOTALL | re.IGNORECASE)
"""URL with any scheme, such as `file` or `https`: scheme and rest. `pathlib.Path` may have dropped slashes. A Windows
drive does not match."""

_FSSPEC_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"max_pool_connections": 32, "retries": {"total_max_attempts": 2}}}
}
"""Options of fsspec's file systems by scheme. By default, s3fs sends 10 requests at a time, and reports an error only
after 25 attempts, which take 40 s."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Context manager: yield a temporary path beside `path`, and rename that file to `path` at the end.

    On an error the temporary file is removed and `path` is unchanged; if the process is killed, the next command that
    writes into the folder removes it. A file that is replaced keeps its permissions, and a new file has those of the
    umask. If `path` is an fsspec address, the temporary file is local, and is uploaded at the end.

    Raises:
        InputError: `path` is a folder.
    """
    path = as_path(path)
    require_no_folder(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, path.name)
            part.touch()
            yield part
            upload(part, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = make_temporary_path(path)
    try:
        with name_output_in_errors(part, path):
            mode = stat.S_IMODE(path.stat().st_mode) if path.is_file() else None
            part.touch(exist_ok=False, mode=0o666 if mode is None else 0o600)  # the replaced file may be private
            created = part.stat()
            yield part
            if mode is None and not os.path.samestat(created, part.stat()):  # safetensors replaces it, with mode 0600
                mode = stat.S_IMODE(created.st_mode)
            if mode is not None and mode != stat.S_IMODE(part.stat().st_mode):  # some file systems refuse any chmod
                part.chmod(mode)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def require_no_folder(path: Path) -> None:
    """Check that the path of a file to write is not a folder on this machine.

    Raises:
        InputError: it is one.
    """
    if not is_remote(path) and path.is_dir():
        raise InputError(f"{path} is a folder: expected the name of a file")


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return a `Path` for a local path or a `file://` URL, or a `UPath` for an fsspec address (`s3://bucket/name`).

    An address in which `pathlib.Path` dropped a slash (`s3:/bucket/name`) is accepted.

    Raises:
        MissingExtraError: `path` is an address and universal-pathlib is not installed.
        InputError: `path` is empty or a URL that is not supported, fsspec's package for this address is not installed,
            or the store cannot be reached.
    """
    if path == "":  # as from an unset variable; pathlib would take it for the current folder
        raise InputError("the path is empty: use . for the current folder")
    if not (found := _REMOTE_URL.fullmatch(os.fspath(path)) if isinstance(path, str | os.PathLike) else None):
        return _parse_local_path(path)
    scheme = found[1].lower()
    address = f"{scheme}://{found[2]}"
    try:
        from upath import UPath
    except ModuleNotFoundError as error:
        raise MissingExtraError(address, "remote") from error
    try:
        remote = UPath(address, **_FSSPEC_OPTIONS.get(scheme, {}))
        _require_reachable_bucket(f"{remote.protocol}://{remote.path.strip('/').partition('/')[0]}")
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot use {address}: {summarize_error(error)}") from error
    return cast(Path, remote)


def _parse_local_path(path: str | os.PathLike[str]) -> Path:
    """Convert a path or a `file://` URL to a Path on this machine.

    Raises:
        InputError: `path` is a URL with a scheme other than `file`, or a `file://` URL of another machine.
    """
    url = _ANY_URL.fullmatch(os.fspath(path)) if isinstance(path, str | PurePath) else None
    if not url or os.path.exists(f"{url[1]}:"):  # noqa: PTH110  # `ab:/c.jpg` in a folder named `ab:`
        return cast(Path, path) if hasattr(path, "open") else Path(path)
    name = unquote(url[2], errors="surrogateescape")
    if url[1].lower() == "file" and (found := re.fullmatch(r"(?:/|//localhost/|/{3,})([^/].*)", name, re.DOTALL)):
        return Path(found[1] if re.match("[A-Za-z]:", found[1]) else f"/{found[1]}")
    raise InputError(
        f"{url[1]}:{url[2]} is neither a path on this machine nor a supported address, which begins with s3://, gs://, "
        "az://, abfs://, hdfs://, oci:// or oss:// and names a bucket"
    )


def require_local_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file or folder that must be on this machine.

    Raises:
        InputError: `path` is empty, an fsspec address, or a URL that does not name a file of this machine.
    """
    if found := _REMOTE_URL.fullmatch(str(path)):
        raise InputError(f"{found[1]}://{found[2]}: use a path on this machine; remote storage is not supported here")
    return as_path(path)


@lru_cache(maxsize=1000)
def _require_reachable_bucket(bucket_url: str) -> None:
    """Raise an error if there are no credentials for a bucket such as `gs://photos`, or an S3 bucket does not exist.

    If the credentials do not permit listing the bucket, no error is raised, since reading may still be permitted.
    """
    from upath import UPath

    try:
        place = UPath(bucket_url, "mlimages")
        if hasattr(place.fs, "call_s3"):  # s3fs does not tell a missing bucket from a missing object
            place.fs.call_s3("list_objects_v2", Bucket=place.path.partition("/")[0], MaxKeys=1)
        else:
            place.exists()
    except (ImportError, ValueError):
        raise
    except FileNotFoundError as error:
        response = getattr(error.__cause__, "response", {})  # another 404 may mean that listing is not offered
        if response.get("Error", {}).get("Code") != "NoSuchBucket":
            return
        raise InputError(f"there is no bucket {bucket_url}: create it, or correct its name") from error
    except OSError:  # listing may be denied where reading is allowed
        return
    except Exception as error:
        raise InputError(f"{bucket_url} cannot be reached: {summarize_error(error)}") from error


_is_within_refresh = ContextVar("_is_within_refresh", default=False)
"""Whether the code runs in a block of `refresh_remote_listings`; a nested block does not drop the listings again."""


@contextmanager
def refresh_remote_listings(path: Path) -> Iterator[None]:
    """Context manager: drop the cached listings of a remote path at the start, so that the files are listed again.

    fsspec keeps listings until the process ends. Within the `with` block, each folder is listed once.
    """
    if is_remote(path) and not _is_within_refresh.get():
        fs, name = path.fs, path.path.rstrip("/")  # type: ignore[attr-defined]  # mypy sees a Path
        fs.invalidate_cache(name)  # and the folders above
        for inner in [known for known in fs.dircache if known.startswith(f"{name}/")]:
            fs.dircache.pop(inner, None)
    token = _is_within_refresh.set(True)
    try:
        yield
    finally:
        _is_within_refresh.reset(token)


def is_remote(path: Path | str) -> bool:
    """Return whether `path` is a URL of remote storage, or the result of `as_path` for one."""
    if isinstance(path, str):
        return "://" in path and bool(_REMOTE_URL.match(path))
    return not isinstance(path, Path)


def upload(file: Path, remote_path: Path) -> None:
    """Upload a local file as the object at `remote_path`, atomically."""
    remote_path.fs.put_file(str(file), remote_path.path)  # type: ignore[attr-defined]  # mypy sees a Path


_FINGERPRINT_STRUCT = struct.Struct("<QqqQ")
"""Format of a fingerprint: size, modification time, change time (both in nanoseconds) and inode of a file."""


def fingerprint(path: Path | str) -> bytes | None:
    """Return a fingerprint that changes whenever the content may have changed; None if the file cannot be examined.

    Size and modification time do not suffice: `rsync -t` and `cp -p` may replace a file and keep both, but change its
    inode and change time. Inode and change time may change although the content does not (chmod, a restored backup);
    a different fingerprint only means that the file must be read again.
    """
    try:
        if is_remote(path):
            return _fingerprint_object(as_path(path))
        if member := find_member(path):
            _, modified, changed, inode = member.archive_stat
            size, inode = member.num_bytes, inode + member.offset
        else:
            found = os.stat(path)  # noqa: PTH116  # twice as fast as Path's
            size, modified, changed, inode = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    except OSError:
        return None
    return _FINGERPRINT_STRUCT.pack(size, modified, changed, inode & (2**64 - 1))


def _fingerprint_object(path: Path) -> bytes:
    """Return the fingerprint of a remote object.

    It includes the object's ETag or generation, since the modification time may be rounded to seconds.
    """
    found = path.stat()
    info: dict[str, object] = found.as_info()  # type: ignore[attr-defined]  # mypy sees a Path
    version = next((str(info[key]) for key in ("ETag", "etag", "generation", "created") if info.get(key)), "")
    digest = hashlib.sha256(version.encode()).digest()
    return _FINGERPRINT_STRUCT.pack(found.st_size, found.st_mtime_ns, 0, int.from_bytes(digest[:8]))


def read_file(path: Path) -> bytes:
    """Return the bytes of a file, a member of a shard, or an object at an address."""
    member = None if is_remote(path) else find_member(path)
    return member.read() if member else path.read_bytes()


def relative_name(path: Path | str, folder: Path) -> str:
    """Return `path` relative to `folder`, with `/` as the separator.

    If `path` or `folder` is remote and `path` is outside `folder`, the result is the absolute path or address.
    """
    if is_remote(path) or is_remote(folder):
        return as_path(path).absolute().as_posix().removeprefix(f"{folder.as_posix().rstrip('/')}/")
    whole, below = os.path.abspath(path), os.path.abspath(folder) + os.sep  # noqa: PTH100  # a quarter of the time
    # ".." after a symbolic link is resolved from the link's target
    name = whole[len(below) :] if whole.startswith(below) else os.path.relpath(whole, os.path.realpath(folder))
    return name.replace(os.sep, "/")


def find_name(path: Path) -> str:
    """Return the name of a file or folder; for a path such as `.` or `..`, the name of the folder that it leads to."""
    return path.name if path.name not in ("", "..") else path.resolve().name or "root"


def path_from_name(name: str, folder: Path) -> Path:
    """Return the path of a file whose name `relative_name` returned for the same `folder`."""
    return as_path(join_path(name, str(folder)))


def join_path(name: str, folder: str) -> str:
    """Return `str(path_from_name(name, folder))`, ten times as fast."""
    return name if is_remote(name) else os.path.join(folder, name)  # noqa: PTH118  # texts


def copy_bytes(source: BinaryIO, target: BinaryIO, *, offset: int, length: int) -> None:
    """Append `length` bytes of an open file, from `offset`, to another open file."""
    source.seek(offset)
    while length and (chunk := source.read(min(length, 1 << 20))):
        target.write(chunk)
        length -= len(chunk)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def cache_dir(name: str) -> Path:
    """Return the folder `name` in `MLIMAGES_CACHE` or in the user's cache folder; create it if necessary.

    Raises:
        InputError: the folder cannot be created.
    """
    root = os.environ.get("MLIMAGES_CACHE") or platformdirs.user_cache_dir("mlimages")
    folder = Path(root) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the cache folder {folder} ({error.strerror}): set MLIMAGES_CACHE to another folder"
        ) from error
    return folder
