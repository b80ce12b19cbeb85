"""Find the images named on a command line: files, folders and shards, also as `file://` URLs and fsspec addresses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from mlimages.core import InputError, as_path
from mlimages.images import find_images

URL_ERROR_MESSAGE = "URLs are not read here: download the images with `mlimages gather urls`, and use their paths"

_URL_PATTERN = re.compile(r"(https?|ftp|data):", re.IGNORECASE)


def is_unsupported_url(source: str) -> bool:
    """Return whether a source is an `http:`, `https:`, `ftp:` or `data:` URL; `file:`, `s3:` etc. are supported."""
    return _URL_PATTERN.match(source) is not None


def find_input_images(sources: Iterable[str | os.PathLike[str]]) -> Iterator[os.PathLike[str]]:
    """Yield the given files, and the images in the given folders and shards, recursively and sorted.

    Raises:
        InputError: a source is an unsupported URL (see `is_unsupported_url`), "-" (standard input), or a folder or
            shard without an image. The error is raised before the first image is yielded.
    """
    found: list[Iterator[os.PathLike[str]]] = []
    for name in sources:
        if is_unsupported_url(os.fspath(name)):
            raise InputError(f"{os.fspath(name)}: {URL_ERROR_MESSAGE}")
        if os.fspath(name) == "-":
            raise InputError(
                "- means standard input, which is supported only by `predict MODEL -`: for a file named -, write ./-"
            )
        path = as_path(os.fspath(name))
        images = find_images([path])
        if (first := next(images, None)) is None:
            kind = "folder" if path.is_dir() else "shard"
            raise InputError(
                f"{path} is a {kind} without images: no file in it has an image's suffix (.jpg, .png, ...)"
            )
        found.append(chain([first], images))
    return chain.from_iterable(found)
