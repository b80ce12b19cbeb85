"""A file's bytes, or why there are none."""

from __future__ import annotations

import stat
from pathlib import Path

from mlimages.core import Fault, ImageError, is_remote

MAX_BYTES = 1 << 30
"""Bound on an image file's size: what MAX_PIXELS take up uncompressed at 12 bytes a pixel."""


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        ImageError: missing or unreadable (a dangling link, no permission, not a regular file, larger than MAX_BYTES).
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(Fault.UNREADABLE, f"not a regular file ({path})")
        if found.st_size > MAX_BYTES:
            raise ImageError(Fault.UNREADABLE, f"{found.st_size} bytes are more than {MAX_BYTES} ({path})")
        return path.read_bytes()
    except FileNotFoundError as error:
        fault = Fault.UNREADABLE if path.is_symlink() else Fault.MISSING
        raise ImageError(fault, f"no file at {path}") from error
    except OSError as error:
        raise ImageError(Fault.UNREADABLE, f"{error.strerror or error} ({path})") from error
    except Exception as error:  # what an address's own library raises costs the image, too
        if not is_remote(path) or isinstance(error, ImageError):
            raise
        raise ImageError(Fault.UNREADABLE, f"{error} ({path})") from error
