"""Write files and record them, so that only files that mlimages wrote, and nobody edited since, are replaced."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from mlimages.core.errors import InputError
from mlimages.core.files import as_path, atomic_write, fingerprint, is_remote, require_no_folder, write_text

RECORDS_FILE_NAME = ".mlimages-written"
"""Name of the file that lists the files that mlimages wrote into a folder, in the format of `sha256sum`.

A listed file may be replaced, unless its hash has changed.
"""

_ESCAPED_BREAKS = {"n": "\n", "r": "\r"}
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})


@contextmanager
def write_output(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Context manager: write a file as `atomic_write` does, and record that mlimages wrote it.

    Raises:
        InputError: as for `require_writable`.
    """
    path = as_path(path)
    require_writable([path], overwrite=overwrite)
    with atomic_write(path) as part:
        yield part
        # record before the rename: without a record, the file could not be replaced later
        _append_record(path, f"{_sha256(part)}  {path.name}")


@contextmanager
def append_output(path: Path) -> Iterator[Path]:
    """Context manager: yield a temporary copy of a file, to append to, and replace the file by it at the end.

    The file may be a user's, or edited by a user. Such a file is not recorded as written by mlimages, so that no later
    command overwrites it. If `path` is a link, the file that it leads to is replaced. To check beforehand that the file
    can be replaced, use `require_writable(appends=True)`.
    """
    path = as_path(path)
    path = path if is_remote(path) else path.resolve()
    is_ours = is_unchanged_output(path)
    with atomic_write(path) as part:
        part.write_bytes(path.read_bytes())
        yield part
        if is_ours:
            _append_record(path, f"{_sha256(part)}  {path.name}")


def require_writable(
    paths: Iterable[Path],
    *,
    overwrite: bool = False,
    appends: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Check that these files can be written without overwriting a user's file, or one of the `inputs`.

    Args:
        paths: the files to write.
        overwrite: allow any file to be overwritten.
        appends: allow a user's file, since its content is kept.
        inputs: files that the command reads.

    Raises:
        InputError: the folder of a file is read-only, or a path is a folder. If `overwrite` is false, also: a file is
            read-only, is one of the `inputs`, is a link, exists but was not written by mlimages, or was edited since.
    """
    read, paths = {as_path(each).resolve() for each in inputs}, [*map(as_path, paths)]
    for path in paths:
        folder = next((folder for folder in path.parents if not is_remote(folder) and folder.exists()), None)
        if folder and not os.access(folder, os.W_OK):
            raise InputError(
                f"{path} cannot be written, since {folder} is read-only: choose an output in another folder, "
                "or first write the label file there, with `mlimages label FOLDER -o FILE`"
            )
        require_no_folder(path)
    for path in paths if not overwrite else ():
        if read and path.resolve() in read:
            raise InputError(f"{path} is also an input: choose another name with -o, or replace it with --force")
        # root may write to a file that is marked as read-only all the same
        if not is_remote(path) and path.is_file() and not path.stat().st_mode & 0o222:
            raise InputError(
                f"{path} is read-only: make it writable, choose another name, or replace it with --force "
                "(in Python, overwrite=True)"
            )
        exists = path.exists() or path.is_symlink()  # a dangling link does not exist
        if exists and not appends and not is_unchanged_output(path):
            raise InputError(
                f"{path} exists and was not written by mlimages, or was edited since: "
                "move or rename it, or replace it with --force (in Python, overwrite=True)"
            )


def is_unchanged_output(path: Path) -> bool:
    """Return whether mlimages wrote the file, and nobody changed it or replaced it by a link since."""
    return path.is_file() and not path.is_symlink() and f"{_sha256(path)}  {path.name}" in _read_records(path.parent)


def write_text_output(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write UTF-8 `text` to `path` as `write_output` does.

    Raises:
        InputError: as for `require_writable`.
    """
    with write_output(path, overwrite=overwrite) as part:
        part.write_text(text, encoding="utf-8")


def list_written_files(folder: Path) -> set[str]:
    """Return the names of the files that mlimages wrote into a folder; some may have been edited or deleted since."""
    return {line.partition("  ")[2] for line in _read_records(folder) if not line.startswith("#")}


def _read_records(folder: Path) -> dict[str, None]:
    """Return the lines of the folder's `RECORDS_FILE_NAME`, in order of the last time that each was recorded."""
    path = folder / RECORDS_FILE_NAME
    return _read_lines_cached(path, found) if (found := fingerprint(path)) else {}


@lru_cache(maxsize=64)
def _read_lines_cached(path: Path, fingerprint: bytes) -> dict[str, None]:
    """Return the lines of a file; the result is cached until the file's fingerprint changes."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:  # splitlines() would split names at U+2028
            last_first = dict.fromkeys(_unescape_line(line.rstrip("\n")) for line in reversed(list(lines)))
    except OSError:
        return {}
    return dict.fromkeys(reversed(last_first))


def record_settings(path: Path, settings: str) -> None:
    """Record the settings with which the file at `path` was written, as a comment in its folder's RECORDS_FILE_NAME."""
    if read_settings(path) != settings:
        _append_record(path, f"{_format_settings_prefix(path)}{settings}")


def read_settings(path: str | os.PathLike[str]) -> str:
    """Return the settings that `record_settings` recorded last for a file; "" if there are none."""
    prefix = _format_settings_prefix(as_path(path))
    lines = (line for line in reversed(_read_records(as_path(path).parent)) if line.startswith(prefix))
    return next(lines, "").removeprefix(prefix)


def _format_settings_prefix(path: Path) -> str:
    return f"# {path.name}: "  # `sha256sum -c` ignores comments


def _append_record(path: Path, line: str) -> None:
    """Append a line to the records of a folder; in a local folder, two commands can do so at the same time."""
    known = _read_records(path.parent)
    if line in known and not line.startswith("#"):
        return
    if is_remote(path):
        write_text(path.parent / RECORDS_FILE_NAME, "".join(f"{_escape_line(one)}\n" for one in [*known, line]))
        return
    with (path.parent / RECORDS_FILE_NAME).open("a", encoding="utf-8", errors="surrogateescape") as out:
        out.write(f"{_escape_line(line)}\n")


def _escape_line(line: str) -> str:
    """Return a line of the records without line breaks: as `sha256sum` does, escape them and prefix a backslash."""
    return f"\\{line.translate(_ESCAPES)}" if "\n" in line or "\r" in line else line


def _unescape_line(line: str) -> str:
    """Return the line that `_escape_line` escaped."""
    if not line.startswith("\\"):
        return line
    return re.sub(r"\\(.)", lambda found: _ESCAPED_BREAKS.get(found[1], found[1]), line[1:])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        if is_remote(path):
            return hashlib.sha256(file.read()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()
