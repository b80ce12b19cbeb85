"""Locks between processes."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlimages.core.errors import MlimagesError


def supports_locks(folder: Path) -> bool:
    """Return whether files in `folder` can be locked, as SQLite requires; on NFS without a lock manager, they cannot.

    On Windows and in a folder that cannot be written, this cannot be tried, and the result is True.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        return True
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
    return True


@contextmanager
def file_lock(path: Path, error_if_locked: MlimagesError, *, timeout_s: float = 2.0) -> Iterator[None]:
    """Context manager: hold an exclusive lock on the file `path`, which is also released if the process is killed.

    The file and its folder are created; the file is removed at the end if it is empty. On Windows and on file systems
    without locks, nothing is locked. The lock is on a file since NFS cannot lock folders.

    Args:
        error_if_locked: raised if another process still holds the lock after `timeout_s`.
        timeout_s: seconds to wait for the lock; a killed process releases its locks with a delay.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return

    def acquire() -> int | None:
        """Return the descriptor of the locked file; None if another process holds the lock."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another process has just removed the empty folder
            return None
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
            raise error_if_locked
        time.sleep(0.05)
    try:
        yield
    finally:
        if not os.fstat(handle).st_size:  # not a file of the user
            path.unlink(missing_ok=True)
        os.close(handle)
