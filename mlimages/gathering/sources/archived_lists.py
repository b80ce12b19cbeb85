"""Open the lists of links at a path, which may be an archive of several lists."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from mlimages.core import ImageRef, InputError, format_examples
from mlimages.gathering.sources.columns import LinkListOptions, NoLinksError
from mlimages.gathering.sources.list_files import (
    READ_ERRORS,
    is_archive,
    is_binary,
    is_hidden,
    iter_members,
    make_read_error,
)
from mlimages.gathering.sources.lists import LinkFile

logger = logging.getLogger(__name__)


def read_list(path: Path, url_col: str | None = None, label_col: str | None = None) -> Iterator[ImageRef]:
    """Yield the links of a file, in order, with their classes.

    Args:
        path, url_col, label_col: see `UrlList`.

    Raises:
        InputError: the file cannot be read, has rows but no links, or its classes look like captions. (An empty file
            yields nothing.)
        MissingExtraError: see `require_parquet_extra`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "cats.txt"
        >>> _ = path.write_text("http://example.com/1.jpg")
        >>> [ref.label for ref in read_list(path)]
        ['cats']
    """
    files, note = open_lists(path, LinkListOptions(url_col, label_col))
    if note:
        logger.info("%s: %s", path.name, note)
    for file in files:
        yield from file


def open_lists(path: Path, options: LinkListOptions, *, name: str = "") -> tuple[list[LinkFile], str]:
    """Open the lists at a path; return them, and a text about the files of an archive that were left out ("" for none).

    An archive with a single file is a list like any other compressed one. Of an archive with several files, each list
    is opened with the class and the format of its own name; files that are no lists of links are left out.

    Args:
        path, options, name: see `LinkFile`.

    Raises:
        InputError: a list cannot be used, or no file of an archive is a list of links.
        MissingExtraError: see `require_parquet_extra`.
    """
    members = _find_members(path) if is_archive(path) else []
    if sum(not is_hidden(member) for member in members) < 2:
        files, left_out = [LinkFile(path, options, name=name)], list(filter(is_hidden, members))
    else:
        by_member = _open_members(path, options, name or str(path))
        files, left_out = list(by_member.values()), [member for member in members if member not in by_member]
    if not files:
        raise InputError(f"{name or path}: none of its {len(members)} files is a list of links: use a list of links")
    counts = f"{len(left_out)} of {len(members)} files"
    return files, f"left out: {counts}, which are no lists of links: {format_examples(left_out)}" if left_out else ""


def _find_members(path: Path) -> list[str]:
    try:
        return [member for member, _ in iter_members(path)]
    except READ_ERRORS as error:
        raise make_read_error(path, error) from error


def _open_members(path: Path, options: LinkListOptions, name: str) -> dict[str, LinkFile]:
    """Return the lists in an archive by the names of their files."""
    files: dict[str, LinkFile] = {}
    with tempfile.TemporaryDirectory(prefix="mlimages-lists-") as folder:
        for member, copied in _extract_text_files(path, Path(folder)):
            with suppress(NoLinksError):
                file = LinkFile(copied, options, name=f"{name}/{member}")
                if file.has_rows:
                    files[member] = file
    return files


def _extract_text_files(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Copy each visible text file of an archive to a folder of its own in `folder`; yield its name and its copy."""
    try:
        for number, (member, file) in enumerate(iter_members(path)):
            if is_hidden(member) or is_binary(file):
                continue
            copied = folder / str(number) / PurePosixPath(member).name
            copied.parent.mkdir()
            with copied.open("wb") as target:
                shutil.copyfileobj(file, target)
            yield member, copied
    except READ_ERRORS as error:
        raise make_read_error(path, error) from error
