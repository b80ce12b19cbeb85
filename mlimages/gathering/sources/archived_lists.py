"""Open the lists of links at a path, which may be an archive of several lists."""

from __future__ import annotations

import logging
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

MAX_LISTS = 2000
"""Maximum number of lists in an archive: the first rows of each are in memory until it is read."""
MAX_TEXT_BYTES = 2**32
"""Maximum total size of the text files in an archive of several files, which are copied to a temporary folder."""
_BLOCK_BYTES = 2**20
_EXTRACT_ADVICE = "extract it, and pass the lists in it"


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
    shown = name or str(path)
    members = _find_members(path, shown) if is_archive(path) else []
    if sum(not is_hidden(member) for member in members) < 2:
        files, left_out = [LinkFile(path, options, name=name)], list(filter(is_hidden, members))
    else:
        files, left_out = _open_members(path, options, shown)
    if not files:
        raise InputError(f"{shown}: none of its {len(members)} files is a list of links: use a list of links")
    counts = f"{len(left_out)} of {len(members)} files"
    return files, f"left out: {counts}, which are no lists of links: {format_examples(left_out)}" if left_out else ""


def _find_members(path: Path, name: str) -> list[str]:
    try:
        return [member for member, _ in iter_members(path)]
    except READ_ERRORS as error:
        raise make_read_error(name, error) from error


def _open_members(path: Path, options: LinkListOptions, name: str) -> tuple[list[LinkFile], list[str]]:
    """Return the lists in an archive, and the names of the other files."""
    files: list[LinkFile] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mlimages-lists-") as folder:
        for member, copy in _extract_text_files(path, Path(folder), name):
            shown, file_name = f"{name}/{member}", PurePosixPath(member).name
            with suppress(NoLinksError):
                if copy and (file := LinkFile(copy, options, name=shown, file_name=file_name)).has_rows:
                    files.append(file)
                    if len(files) > MAX_LISTS:
                        raise InputError(f"{name} has more than {MAX_LISTS} lists: {_EXTRACT_ADVICE}")
                    continue
            left_out.append(member)
    return files, left_out


def _extract_text_files(path: Path, folder: Path, name: str) -> Iterator[tuple[str, Path | None]]:
    """Yield the name of each file of an archive and its copy in `folder`; None instead if it is hidden or binary."""
    num_bytes = 0
    try:
        for number, (member, file) in enumerate(iter_members(path)):
            if is_hidden(member) or is_binary(file) or member.lower().endswith(".parquet"):
                yield member, None
                continue
            copy = folder / str(number)  # not the name in the archive, which may be no valid file name
            with copy.open("wb") as target:
                while block := file.read(_BLOCK_BYTES):
                    num_bytes += target.write(block)
                    if num_bytes > MAX_TEXT_BYTES:
                        raise InputError(f"{name} has more than {MAX_TEXT_BYTES} bytes of text: {_EXTRACT_ADVICE}")
            yield member, copy
    except READ_ERRORS as error:
        raise make_read_error(name, error) from error
