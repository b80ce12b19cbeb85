"""Files that are whole or not there, here or at an address; and the one folder of caches."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import cast

import platformdirs

from mlimages.core.errors import InputError, MissingExtraError, MlimagesError

_ADDRESS = re.compile(r"(s3|gs|gcs|az|abfs|abfss|hdfs|oci|oss|memory):/+(.*)", re.DOTALL)
"""Stores of objects alone: a label file from elsewhere must not make us ask a web server in the house."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place at the end.

    On an error the temporary file is removed and `path` stays as it was. An address is put as a whole object.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, path.name)
            part.touch()
            yield part
            put(part, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.part")
    try:
        part.touch(exist_ok=False)
        yield part
        part.replace(path)
    except OSError as error:
        if error.errno and str(error.filename) in ("None", str(part)):  # a full disk does not say where
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


WRITTEN = ".mlimages-written"
"""In a folder: what we wrote there, as `sha256sum` lists files. A file that is not ours or not as we left it stays."""


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """`replacing` for a file that a person may have made or changed: only what we wrote ourselves is replaced.

    Raises:
        InputError: as `demand_free`.
    """
    demand_free([path], overwrite=overwrite)
    with replacing(path) as part:
        yield part
        _record(path, _sha256(part))  # before it takes its place: a file of ours without a record would be refused


def demand_free(paths: Iterable[Path], *, overwrite: bool = False) -> None:
    """See that nothing is lost if these files are written.

    Raises:
        InputError: one is there and was not written by us, or was changed since; unless `overwrite` says to replace it.
    """
    for path in paths if not overwrite else ():
        if path.is_dir() or (path.exists() and f"{_sha256(path)}  {path.name}" not in _records(path.parent)):
            raise InputError(
                f"{path} is there, and mlimages did not write it or it was changed since: "
                "move it away, choose another name with -o, or say --force to replace it"
            )


def note_written(paths: Iterable[Path]) -> None:
    """Remember files just written as ours."""
    for path in paths:
        _record(path, _sha256(path))


def written_names(folder: Path) -> set[str]:
    """The names of the files that we wrote in a folder."""
    return {line.partition("  ")[2] for line in _records(folder)}


def _records(folder: Path) -> set[str]:
    try:
        return set((folder / WRITTEN).read_text(encoding="utf-8", errors="surrogateescape").splitlines())
    except OSError:
        return set()


def _record(path: Path, digest: str) -> None:
    """Earlier lines stay, so that two commands may write into one folder at a time."""
    line, known = f"{digest}  {path.name}", _records(path.parent)
    if line in known:
        return
    if is_remote(path):
        write_text(path.parent / WRITTEN, "".join(f"{one}\n" for one in sorted({*known, line})))
        return
    with (path.parent / WRITTEN).open("a", encoding="utf-8", errors="surrogateescape") as out:
        out.write(f"{line}\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        if is_remote(path):
            return hashlib.sha256(file.read()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_path(path: str | os.PathLike[str]) -> Path:
    """A local path or, of an fsspec address (`s3://bucket/name`), an object that is used like one.

    `Path("s3://bucket/name")`, which has lost a slash, is understood as well.

    Raises:
        MissingExtraError: an address, and fsspec is not installed.
        InputError: what this kind of address needs is not installed, or it cannot be reached.
    """
    found = _ADDRESS.fullmatch(os.fspath(path)) if isinstance(path, str | os.PathLike) else None
    if found is None:
        return cast(Path, path) if hasattr(path, "open") else Path(path)
    address = f"{found[1]}://{found[2]}"
    try:
        from upath import UPath
    except ImportError as error:
        raise MissingExtraError(address, "remote") from error
    try:
        made = UPath(address)
        _demand_reach(f"{made.protocol}://{made.path.strip('/').partition('/')[0]}")
    except (ImportError, ValueError) as error:
        raise InputError(f"{address}: {error}") from error
    return cast(Path, made)


@lru_cache(maxsize=1000)
def _demand_reach(root: str) -> None:
    """Raise at once what the address's own library would raise at each file (no credentials, no way there)."""
    from upath import UPath

    try:
        UPath(root, "mlimages").exists()  # of a bucket itself s3fs tells nothing
    except (ImportError, ValueError):
        raise
    except OSError:  # no right to look is not yet no right to read
        return
    except Exception as error:
        raise InputError(f"{root} cannot be reached: {error}") from error


def is_remote(path: Path | str) -> bool:
    """Whether this is an address, or `as_path` made it of one."""
    if isinstance(path, str):
        return "://" in path and bool(_ADDRESS.match(path))
    return not isinstance(path, Path)


def put(file: Path, address: Path) -> None:
    """Store a file as the object at `address`, whole or not at all."""
    address.fs.put_file(str(file), address.path)  # type: ignore[attr-defined]  # an address is no Path to mypy


_STATE = struct.Struct("<QqqQ")


def file_state(path: Path | str) -> bytes | None:
    """What changes when a file's content may have changed; None where the file cannot be asked.

    Size and modification time are not enough: `rsync -t` and `cp -p` replace a file and keep both where its size is the
    same, but not the change time and the inode. These also change without the content (chmod, a restored backup): a
    state that differs means to read the file again, no more.
    """
    try:
        found = as_path(path).stat() if is_remote(path) else os.stat(path)  # noqa: PTH116  # twice as fast as Path's
    except OSError:
        return None
    changed, inode = getattr(found, "st_ctime_ns", 0), getattr(found, "st_ino", 0)  # an address may have neither
    return _STATE.pack(found.st_size, found.st_mtime_ns, changed, inode & (2**64 - 1))


def relative_name(path: Path | str, folder: Path) -> str:
    """How a file in `folder` names `path`; from or to an address in full, unless it lies below it."""
    if is_remote(path) or is_remote(folder):
        return as_path(path).absolute().as_posix().removeprefix(f"{folder.as_posix().rstrip('/')}/")
    whole, below = os.path.abspath(path), os.path.abspath(folder) + os.sep  # noqa: PTH100  # a quarter of the time
    # ".." leads out of the folder that a link leads to, not back along the link
    name = whole[len(below) :] if whole.startswith(below) else os.path.relpath(whole, os.path.realpath(folder))
    return name.replace(os.sep, "/")


def named_path(name: str, folder: Path) -> Path:
    """The inverse of `relative_name`."""
    return as_path(full_name(name, str(folder)))


def full_name(name: str, folder: str) -> str:
    """`named_path` as text, which takes a tenth of its time."""
    return name if is_remote(name) else os.path.join(folder, name)  # noqa: PTH118  # texts


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path`, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def locked(path: Path, in_use: MlimagesError, *, timeout_s: float = 2.0) -> Iterator[None]:
    """Hold the lock file `path` against other processes; the system releases it when this process ends in any way.

    On Windows, and on file systems that cannot lock, nothing is held. NFS locks files, not folders.

    Args:
        in_use: raised if another process holds it.
        timeout_s: how long a process that was just killed may take to release it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return

    def acquire() -> int | None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # locks are not supported here
            return handle
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # its last holder has just removed it
        return None

    deadline = time.monotonic() + timeout_s
    while (handle := acquire()) is None:
        if time.monotonic() > deadline:
            raise in_use
        time.sleep(0.05)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def cache_dir(room: str) -> Path:
    """The folder of one room's cache (`MLIMAGES_CACHE`, else the user's cache folder); made if absent."""
    root = os.environ.get("MLIMAGES_CACHE") or platformdirs.user_cache_dir("mlimages")
    folder = Path(root) / room
    folder.mkdir(parents=True, exist_ok=True)
    return folder
