"""Read the bytes of image files, local or remote."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlimages.core import (
    BrokenImage,
    Fault,
    ImageError,
    InputError,
    ThreadPool,
    count_available_cores,
    find_member,
    is_remote,
    pluralize,
    summarize_error,
)
from mlimages.labels import MISSING_IMAGES_ADVICE

MAX_FILE_BYTES = 1 << 30
"""Maximum size of an image file: MAX_PIXELS uncompressed pixels of 12 bytes."""

MIN_REMOTE_READERS = 16
"""Minimum number of threads that read remote images; each waits for one request."""

_MAX_ATTEMPTS = 4
_RETRY_DELAY_S = 0.1
"""The delay before the n-th retry is this times 4 ** n: 0.4, 1.6 and 6.4 seconds."""

_MAX_CONSECUTIVE_FAILURES = 32
"""After this many consecutive files that cannot be read, requests are not retried until one succeeds."""

_consecutive_failures = 0


def read_bytes(path: Path) -> bytes:
    """Read a file, or a member of a shard (`images-00000.tar/cats/1.jpg`); a remote file is read with one request.

    Raises:
        ImageError: `fault` is MISSING if the file, or the target of a link, does not exist; UNREADABLE without
            permission, for a folder or a device, and for a local file larger than MAX_FILE_BYTES; UNAVAILABLE if a
            remote store denies access or fails.
    """
    try:
        if is_remote(path):
            return _read_remote(path)
        if member := find_member(path):
            size, read = member.num_bytes, member.read
        else:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise ImageError(Fault.UNREADABLE, f"not a regular file ({path})")
            size, read = found.st_size, path.read_bytes
        if size > MAX_FILE_BYTES:
            raise ImageError(
                Fault.UNREADABLE, f"the file has {size} bytes; at most {MAX_FILE_BYTES} are supported ({path})"
            )
        return read()
    except (FileNotFoundError, NotADirectoryError) as error:
        link = ", a link to a missing file" if not is_remote(path) and path.is_symlink() else ""
        raise ImageError(Fault.MISSING, f"no file at {path}{link}") from error
    except OSError as error:
        raise ImageError(Fault.UNREADABLE, f"{summarize_error(error)} ({path})") from error


def _read_remote(path: Any) -> bytes:
    """Read a remote file; retry if the store fails, but not if it denies access or has no such file."""
    global _consecutive_failures
    one_request = {"max_concurrency": 1} if "s3" in path.protocol else {}  # by default, s3fs requests the size first
    for count in range(1, _MAX_ATTEMPTS + 1):
        try:
            data: bytes = path.fs.cat_file(path.path, **one_request)
        except FileNotFoundError:
            raise
        except Exception as error:  # depends on the fsspec implementation
            may_retry = count < _MAX_ATTEMPTS and _consecutive_failures < _MAX_CONSECUTIVE_FAILURES
            if may_retry and not isinstance(error, PermissionError):
                time.sleep(_RETRY_DELAY_S * 4**count)
                continue
            _consecutive_failures += 1
            raise ImageError(Fault.UNAVAILABLE, f"{summarize_error(error)} ({path})") from error
        _consecutive_failures = 0
        return data
    raise AssertionError("unreachable: the last attempt returns or raises")


def raise_for_unavailable_images(broken_images: Iterable[BrokenImage], *, skip: bool) -> None:
    """Raise an error if a remote image could not be downloaded, unless `skip` is true.

    Args:
        broken_images: images that could not be read.
        skip: do not raise an error.

    Raises:
        InputError: an image could not be downloaded, and `skip` is false. The message gives the number of such images
            and the first path.
    """
    unavailable = [image for image in broken_images if image.fault is Fault.UNAVAILABLE]
    if unavailable and not skip:
        raise InputError(
            f"{pluralize(len(unavailable), 'image')} could not be downloaded; the first: "
            f"{unavailable[0].detail}. Run the same command again, or skip them with --skip-unavailable"
        )


def describe_if_most_images_missing(num_missing: int, num_images: int, advice: str = MISSING_IMAGES_ADVICE) -> str:
    """Return a message with the advice if more than half of the images are missing, else ""."""
    return f"{num_missing} of {num_images} images are missing: {advice}" if 2 * num_missing > num_images else ""


def raise_if_most_images_missing(
    broken_images: Iterable[BrokenImage], num_images: int, *, advice: str = MISSING_IMAGES_ADVICE
) -> None:
    """Raise an error if more than half of the images are missing: the label file was probably moved.

    Args:
        broken_images: images that could not be read.
        num_images: number of all images.
        advice: end of the message, which says what to do.

    Raises:
        InputError: more than half of the images are missing; the message gives the first path.
    """
    missing = [image.path for image in broken_images if image.fault is Fault.MISSING]
    if message := describe_if_most_images_missing(len(missing), num_images, advice):
        raise InputError(f"{message}; the first: {missing[0]}")


def make_reader_pool(first_path: Path | str | None, workers: int | None = None) -> ThreadPool:
    """Return a pool of threads that read and decode images; for remote images, the pool has more threads.

    Args:
        first_path: path of the first image, by which all images are assumed to be local or remote; None for local.
        workers: number of threads; by default one per CPU core. For remote images, at least 16 threads are used, even
            if `workers` is lower.
    """
    if first_path is not None and is_remote(first_path):
        return ThreadPool(max(MIN_REMOTE_READERS, workers or 0), chunk_size=1)
    return ThreadPool(workers or count_available_cores())
