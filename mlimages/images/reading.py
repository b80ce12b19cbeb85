"""A file's bytes, or why there are none."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlimages.core import BrokenImage, Fault, ImageError, InputError, Threads, counted, is_remote

MAX_BYTES = 1 << 30
"""Bound on an image file's size: what MAX_PIXELS take up uncompressed at 12 bytes a pixel."""

REQUESTS = 16
"""Images requested from an address at one time."""

_TRIES = 4
_PAUSE_S = 0.1
_MAX_FAILURES = 32
"""Failures in a row after which a store is not tried again for each image."""

_failures = 0


def read_bytes(path: Path) -> bytes:
    """A file's bytes; from an address by one request.

    Raises:
        ImageError: missing or unreadable (a dangling link, no permission, not a regular file, larger than MAX_BYTES);
            unavailable, where the store at an address refuses or fails.
    """
    try:
        if is_remote(path):
            return _requested(path)
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(Fault.UNREADABLE, f"not a regular file ({path})")
        if found.st_size > MAX_BYTES:
            raise ImageError(Fault.UNREADABLE, f"{found.st_size} bytes are more than {MAX_BYTES} ({path})")
        return path.read_bytes()
    except FileNotFoundError as error:
        fault = Fault.UNREADABLE if not is_remote(path) and path.is_symlink() else Fault.MISSING
        raise ImageError(fault, f"no file at {path}") from error
    except OSError as error:
        raise ImageError(Fault.UNREADABLE, f"{error.strerror or error} ({path})") from error


def _requested(path: Any) -> bytes:
    """The object at an address; asked for again where the store fails, but not where it refuses."""
    global _failures
    one_request = {"max_concurrency": 1} if "s3" in path.protocol else {}  # s3fs asks for the size first
    for count in range(1, _TRIES + 1):
        try:
            data: bytes = path.fs.cat_file(path.path, **one_request)
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever the address's own library raises
            if count < _TRIES and not isinstance(error, PermissionError) and _failures < _MAX_FAILURES:
                time.sleep(_PAUSE_S * 4**count)
                continue
            _failures += 1
            text = str(error) or type(error).__name__
            raise ImageError(Fault.UNAVAILABLE, f"{text} ({path})") from error
        _failures = 0
        return data
    raise AssertionError("the last try returns or raises")


def demand_available(broken: Iterable[BrokenImage], *, skip: bool) -> None:
    """See that no image is left out because its store did not give it.

    Args:
        skip: leave such images out all the same.

    Raises:
        InputError: it names the count and the address of the first.
    """
    unavailable = [one for one in broken if one.fault is Fault.UNAVAILABLE]
    if unavailable and not skip:
        raise InputError(
            f"{counted(len(unavailable), 'image')} could not be read from the store, the first: "
            f"{unavailable[0].detail}. Run the same command again; --skip-unavailable goes on without them"
        )


def missing_advice(missing: int, count: int) -> str:
    """What to tell the user if more than half of `count` images are missing; "" otherwise."""
    if 2 * missing <= count:
        return ""
    return (
        f"{missing} of {count} images are missing: paths are resolved against the label file's folder; use "
        "--images DIR to change it"
    )


def demand_existing(broken: Iterable[BrokenImage], count: int) -> None:
    """Check that at most half of `count` images are missing, so that a moved label file is not taken for a small one.

    Raises:
        InputError: more than half are missing.
    """
    if advice := missing_advice(sum(one.fault is Fault.MISSING for one in broken), count):
        raise InputError(advice)


def reading_threads(first: Path | str | None, workers: int | None = None) -> Threads:
    """Threads that read and decode images: one per CPU core, or as many as requests of an address."""
    if first is not None and is_remote(first):
        return Threads(max(REQUESTS, workers or 0), at_once=1)
    return Threads(workers or os.cpu_count() or 1)
