"""Which images a person means: files, and folders of them; no links."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from mlimages.core import InputError, as_path
from mlimages.images import find_images

NO_LINKS = "links are not downloaded here; `mlimages gather urls` downloads images"

_LINK = re.compile(r"(https?|ftp|file|data):", re.IGNORECASE)


def is_link(source: str) -> bool:
    """Whether a source is a URL that a browser would open."""
    return _LINK.match(source) is not None


def find_inputs(sources: Iterable[str | os.PathLike[str]]) -> Iterator[os.PathLike[str]]:
    """The files themselves, and in place of a folder the images in it, sorted, nested ones too.

    Raises:
        InputError: a source is a link, or a folder that holds no image; before the first image is found.
    """
    names = list(sources)
    for name in names:
        if is_link(os.fspath(name)):
            raise InputError(f"{os.fspath(name)}: {NO_LINKS}")
        path = as_path(os.fspath(name))
        if path.is_dir() and next(find_images([path]), None) is None:
            raise InputError(
                f"{path} is a folder without images: no file in it has an image's suffix (.jpg, .png, ...)"
            )
    return find_images([as_path(os.fspath(name)) for name in names])
