"""Temporary files beside an output, which a later command removes if the process that wrote them was killed.

The name holds the process id and a checksum, so that neither a person's file nor one in use is ever removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path

from mlimages.core.errors import name_output_in_errors

_TEMPORARY_NAME = re.compile(r"(\..*\.)(([0-9a-f]{6})[0-9a-f]{4})([0-9a-f]{6})\.part", re.DOTALL)
"""Name of a temporary file: start of the output's name, process id and random digits, process id, checksum."""


def make_temporary_path(path: Path) -> Path:
    """Return a path beside `path` that does not exist yet; first remove files of killed processes in that folder."""
    _remove_abandoned_files(path.parent.absolute())
    start, number = f".{path.name[:50]}.", f"{os.getpid():06x}{secrets.token_hex(2)}"
    return path.with_name(f"{start}{number}{_compute_checksum(start, number)}.part")


@contextmanager
def temporary_folder_beside(path: Path) -> Iterator[Path]:
    """Context manager: create a temporary folder beside `path`, and remove it at the end.

    If a write to the folder fails, the error gives `path` as the file name, not the temporary folder.
    """
    folder = make_temporary_path(path)
    folder.mkdir()
    try:
        with name_output_in_errors(folder, path):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1000)
def _remove_abandoned_files(folder: Path) -> None:
    """Remove the temporary files and folders of ended processes of this machine; a process does so once per folder."""
    with suppress(OSError):
        for name in filter(_is_abandoned, os.listdir(folder)):  # noqa: PTH208  # names
            with suppress(OSError):
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                else:
                    (folder / name).unlink()


def _is_abandoned(name: str) -> bool:
    """Return whether `make_temporary_path` made this name, in a process that has ended.

    False for a name that was made before the last reboot or in another container: the checksum in the name covers the
    boot and the container.
    """
    found = _TEMPORARY_NAME.fullmatch(name)
    if not found or not _read_pid_scope() or found[4] != _compute_checksum(found[1], found[2]):
        return False
    try:
        os.kill(int(found[3], 16), 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def _compute_checksum(start: str, number: str) -> str:
    """Return the last part of a temporary name: a checksum of the parts before it, and of boot and container."""
    text = f"mlimages {start}{number} {_read_pid_scope()}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:6]


@cache
def _read_pid_scope() -> str:
    """Return an identifier of the current boot and container, within which process ids are unique; "" if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:  # not on Linux
        return ""
