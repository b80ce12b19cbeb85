"""Open lists of links in files, plain or compressed, as lines of text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from mlimages.core import InputError, summarize_error

STDIN = Path("-")
"""Path that means standard input."""
MAX_LINE_LENGTH = 2**20
"""Maximum number of characters of a line of text; the rest is ignored."""
_MAX_TESTED_BYTES = 4096
_OPENER_BY_SUFFIX: dict[str, Callable[[Path, str], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
_TAR_SUFFIX = re.compile(r"\.(tgz|tar(\.(gz|bz2|xz))?)$", re.IGNORECASE)
_COMPRESSION_SUFFIX = re.compile(rf"{_TAR_SUFFIX.pattern}|\.(gz|bz2|xz|zip)$", re.IGNORECASE)
_BINARY_SIGNATURES = (
    b"PK\3\4",
    b"\xd0\xcf\x11\xe0",
    b"\x1f\x8b",
    b"BZh91AY&SY",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
    b"7z\xbc\xaf",
    b"Rar!",
)
"""The first bytes of zip (such as .xlsx), .xls, gzip, bzip2, xz, zstd, 7z and RAR files."""
_JSON_ARRAY_START = re.compile(rb'(\xef\xbb\xbf)?\s*\[\s*["{[]')
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, RuntimeError)
"""Errors that reading a compressed file or an archive may raise."""


def get_list_suffix(path: Path) -> str:
    """Return the suffix of a list without that of its compression, such as `.csv` for `links.csv.gz`."""
    return Path(_COMPRESSION_SUFFIX.sub("", path.name)).suffix.lower()


def is_compressed(path: Path) -> bool:
    """Return whether a file is compressed or an archive, judging by its name."""
    return _COMPRESSION_SUFFIX.search(path.name) is not None


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip or a tar, judging by its name."""
    return _TAR_SUFFIX.search(path.name) is not None or path.suffix.lower() == ".zip"


def is_hidden(name: str) -> bool:
    """Return whether a file of an archive is hidden or one that macOS adds: `.DS_Store`, `__MACOSX/._cats.txt`."""
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in PurePosixPath(name).parts)


def iter_members(path: Path) -> Generator[tuple[str, IO[bytes]], None, None]:
    """Yield the name and the stream of each regular file of a zip or a tar; only the last stream can be read."""
    if _TAR_SUFFIX.search(path.name):
        with tarfile.open(path) as archive:
            for info in archive:
                if info.isreg() and (file := archive.extractfile(info)):
                    yield info.name, file
        return
    with zipfile.ZipFile(path) as zipped:
        for entry in zipped.infolist():
            if not entry.is_dir():
                with zipped.open(entry) as file:
                    yield entry.filename, file


def open_stdin() -> IO[bytes]:
    """Open standard input without `sys.stdin`: a thread that waits for `sys.stdin` would keep Python from exiting."""
    return open(0, "rb", closefd=False)


@contextmanager
def open_list(path: Path) -> Iterator[IO[bytes]]:
    """Context manager: open a list as a stream of decompressed bytes; for a zip or a tar, open its first visible file.

    Raises:
        InputError: the file cannot be read to its end.
    """
    if path == STDIN:
        with open_stdin() as file:
            yield file
        return
    try:
        if is_archive(path):
            with closing(iter_members(path)) as members:
                yield next((file for name, file in members if not is_hidden(name)), io.BytesIO())
        else:
            with _OPENER_BY_SUFFIX.get(path.suffix.lower(), open)(path, "rb") as file:
                yield file
    except READ_ERRORS as error:
        raise make_read_error(path, error) from error


def make_read_error(path: str | Path, error: Exception) -> InputError:
    """Return an InputError that says why a file cannot be read; `error` is one of `READ_ERRORS`."""
    is_tar_error = isinstance(error, tarfile.TarError)
    problem = "damaged, or not a tar archive" if is_tar_error else summarize_error(error)
    return InputError(f"{path} cannot be read completely: {problem}")


def is_binary(file: IO[bytes]) -> bool:
    """Return whether a file is no text, judging by its signature and by NUL bytes at its start."""
    start = _peek(file, _MAX_TESTED_BYTES)
    return start.startswith(_BINARY_SIGNATURES) or (b"\0" in start and not start.startswith(_UTF_16_MARKS))


def is_json_array(file: IO[bytes]) -> bool:
    """Return whether a file begins like a JSON array of strings, objects or arrays in UTF-8."""
    return _JSON_ARRAY_START.match(_peek(file, _MAX_TESTED_BYTES)) is not None


def _peek(file: IO[bytes], size: int) -> bytes:
    """Return up to `size` bytes from the start of a file without consuming them; fewer if no more are available."""
    return file.peek(size)[:size] if hasattr(file, "peek") else b""


def count_buffered_lines(stdin: IO[bytes]) -> int:
    """Wait for data in standard input; return how many complete, non-blank lines have arrived, but at least 1."""
    start = stdin.peek() if hasattr(stdin, "peek") else b""
    return max(1, sum(1 for line in start.splitlines(keepends=True) if line.strip() and line.endswith(b"\n")))


def read_lines(file: IO[bytes], max_length: int = MAX_LINE_LENGTH) -> Iterator[str]:
    """Yield the lines that are not blank, decoded from UTF-8, UTF-16 or Latin-1, cut at `max_length` (-1: never)."""
    encoding = "utf-16" if _peek(file, 2) in _UTF_16_MARKS else "latin-1"
    with io.TextIOWrapper(file, encoding, errors="replace", newline=None) as text:
        for line in _truncate_long_lines(text, max_length):
            decoded = line if line.isascii() or encoding == "utf-16" else _decode_line(line.encode("latin-1"))
            if decoded and not decoded.isspace():
                yield decoded


def _truncate_long_lines(text: io.TextIOWrapper, max_length: int) -> Iterator[str]:
    while line := text.readline(max_length):
        rest = line
        while len(rest) == max_length and not rest.endswith("\n"):
            rest = text.readline(max_length)
        yield line.rstrip("\n")


def _decode_line(line: bytes) -> str:
    line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of the first line
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")
