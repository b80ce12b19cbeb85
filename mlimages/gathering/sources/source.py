"""Sources of links: the protocol, and lists in files or at URLs."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp

from mlimages.core import ImageRef, InputError, require_local_path
from mlimages.gathering.download.client import open_session
from mlimages.gathering.download.reasons import describe_error
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.partition import LinkCountsByHost
from mlimages.gathering.sources.archived_lists import open_lists
from mlimages.gathering.sources.columns import LinkListOptions, is_http_url
from mlimages.gathering.sources.list_files import STDIN
from mlimages.gathering.sources.lists import LinkFile, require_parquet_extra
from mlimages.labels import normalize_class_name

logger = logging.getLogger(__name__)

_LINKS_PER_BLOCK = 1000
_T = TypeVar("_T")


class Source(Protocol):
    """Yields the links to gather, in a deterministic order.

    Optional members:

    - `skip_class(label)`: called once a class has enough images; the source should yield no more of them.
    - `check_earlier_row(row)`: called with each row that the output folder has before the run, a `FetchResult`. Raises
      InputError if the source cannot be gathered into this folder.
    - `record_result(row)`: called with each new row of the manifest, a `FetchResult`.
    - `lookahead`: maximum number of links to read in advance: they are requested only if links in progress fail.
      0 also means that only one process may read the source, such as a search API with a rate limit.
    - `async count_links()`: returns the number of links, or an upper bound, for the progress bar; None if unknown.
    - `async count_shards_by_host(num_shards)`: called if the links are divided into `num_shards` shards. Usually a
      shard gets all links of a host; returns the hosts with too many links for that, and among how many shards the
      links of each are divided.
    - `is_read_once`: True if the source can be read only once, and thus by only one process, such as standard input.
    - `is_list`: True for a list of links. If the class of a link was corrected in the list since the last run, the
      stored image is moved to the new class.
    """

    def __aiter__(self) -> AsyncIterator[ImageRef]: ...


AnySource = Source | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A source, or one or more lists of links as paths."""


def as_source(source: AnySource, http_options: GatherOptions) -> Source:
    """Return a source unchanged; convert paths to a `UrlList` whose lists are downloaded with `http_options`.

    Raises:
        TypeError: the value is neither a source nor a path.
        InputError: there is no list of links at a path.
    """
    if isinstance(source, str | os.PathLike):
        return UrlList(source, http_options=http_options)
    if isinstance(source, Sequence) and all(isinstance(path, str | os.PathLike) for path in source):
        return UrlList(*source, http_options=http_options)
    if hasattr(source, "__aiter__") and not isinstance(source, type):
        return source
    raise TypeError(
        f"source is a {type(source).__name__}: expected a path to a list of URLs, or a source object such as UrlList"
    )


class UrlList:
    """Lists of links in files or at http(s) URLs, plain, compressed (.gz .bz2 .xz .zip) or in a tar (also .tgz).
    An archive may contain several lists; files in it that are no lists, such as a README, are left out.

    A text file has a link per line, a class and a link separated by a tab, or ImageNet's `n00004475_6590<TAB>link`. A
    table (CSV, TSV, JSON, JSON lines, Parquet, COCO) has a column (or key) of links and optionally one of classes; the
    other columns are copied to the manifest. A link without a class gets the name of the list as its class
    (`images` for standard input).

    Args:
        paths: paths or URLs of lists; `-` is standard input.
        url_col, label_col: columns of links and classes, by name or by number from 1; by default they are detected.
        class_name: one class for all links, instead of the classes in the lists.
        http_options: options for downloading lists.
        tell: called with a description of the detected columns, and with warnings, before the first link is used.

    Raises:
        InputError: a file does not exist, or is a folder, or `class_name` is empty.
        MissingExtraError: a file is Parquet, and pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pets.csv"
        >>> _ = path.write_text("image_url,category\\nhttp://example.com/1.jpg,cat\\n")
        >>> asyncio.run(UrlList(path, tell=print).count_links_by_class())
        pets.csv: column image_url as link, category as class; first link http://example.com/1.jpg
        {'cat': 1}
    """

    is_list = True

    def __init__(
        self,
        *paths: str | os.PathLike[str],
        url_col: str | None = None,
        label_col: str | None = None,
        class_name: str | None = None,
        http_options: GatherOptions | None = None,
        tell: Callable[[str], None] = logger.info,
    ) -> None:
        self._paths: list[str | Path] = [
            str(path) if is_http_url(str(path)) else require_local_path(path) for path in paths
        ]
        if class_name is not None and not (class_name := normalize_class_name(class_name)):
            raise InputError("the name of the class is empty: enter a name, or leave out --class")
        self._options = LinkListOptions(url_col, label_col, class_name)
        self._http_options = http_options
        self._tell = tell
        self._files: list[LinkFile] | None = None
        self._length: int | None = None
        for path in self._paths:
            if isinstance(path, Path):
                if path != STDIN and not path.exists():
                    raise InputError(f"no list of links at {path}: check the path")
                if path.is_dir():
                    raise InputError(f"{path} is a folder: pass the lists of links in it, such as {path}/*.csv")
                require_parquet_extra(path)

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        files = await self._open_lists()
        self._files = None  # they can be read only once
        for file in files:
            # Standard input link by link: the program that writes to it may wait for each line to be read.
            is_stdin = file.origin == STDIN
            read = partial(next, _split_into_blocks(file, 1 if is_stdin else _LINKS_PER_BLOCK), [])
            while block := await _run_in_thread(read, is_daemon=is_stdin):
                for image_ref in block:
                    yield image_ref
            for text in file.find_late_warnings():
                self._tell(f"{file.name}: {text}")

    @property
    def is_read_once(self) -> bool:
        """Whether the lists can be read only once, because one of them is standard input."""
        return STDIN in self._paths

    async def count_links(self) -> int | None:
        """Return an upper bound on the number of links; None if it is unknown (see `LinkFile.count_max_links`)."""
        await self._open_lists()
        return self._length

    async def count_shards_by_host(self, num_shards: int) -> dict[str, int]:
        """Read the lists; return the hosts that have too many links for one shard, with a number of shards for each."""
        if self.is_read_once:
            return {}
        counts, again = LinkCountsByHost(), copy.copy(self)
        again._files, again._tell = None, lambda text: None
        await again._open_lists()  # a list that cannot be opened is an error, else shards would differ in their hosts
        with suppress(Exception):  # it is raised again where the links before it are gathered
            async for image_ref in again:
                counts.add(image_ref.url)
        return counts.count_shards_by_host(num_shards)

    async def count_links_by_class(self) -> dict[str, int | None]:
        """Return the number of links by class."""
        counts: Counter[str] = Counter()
        async for image_ref in self:
            counts[image_ref.label] += 1
        return dict(counts)

    async def _open_lists(self) -> list[LinkFile]:
        """Open all lists, detect their formats, and call `tell` with descriptions and warnings; return the open lists.

        If an earlier call has opened the lists and they have not been read since, it only returns them.
        """
        if self._files is None:
            files: list[LinkFile] = []
            lengths: list[int | None] = []
            with tempfile.TemporaryDirectory(prefix="mlimages-lists-") as folder:
                for number, path in enumerate(self._paths):
                    local = path if isinstance(path, Path) else await self._download(path, Path(folder) / str(number))
                    for file in await self._open_lists_at(local, path if isinstance(path, str) else ""):
                        for text in filter(None, (file.description, *file.warnings)):
                            self._tell(f"{file.name}: {text}")
                        _reject_duplicate_class(file, files)
                        files.append(file)
                        lengths.append(await asyncio.to_thread(file.count_max_links))
            self._files = files
            self._length = None if None in lengths else sum(filter(None, lengths))
        return self._files

    async def _open_lists_at(self, path: Path, name: str) -> list[LinkFile]:
        """Open the list at `path`, or those in an archive (see `open_lists`)."""
        opened = partial(open_lists, path, self._options, name=name)
        files, note = await _run_in_thread(opened, is_daemon=path == STDIN)
        if note:
            self._tell(f"{name or path.name}: {note}")
        return files

    async def _download(self, url: str, folder: Path) -> Path:
        """Create `folder` and download a list into it, with the file name in the URL; return the path of the file."""
        folder.mkdir()
        name = PurePosixPath(urlsplit(url).path).name or "links.txt"
        try:
            async with (
                open_session(self._http_options or GatherOptions(), decompress=True) as session,
                session.get(url) as response,
            ):
                response.raise_for_status()
                with (folder / name).open("wb") as file:
                    async for chunk in response.content.iter_any():
                        file.write(chunk)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise InputError(f"cannot download the list at {url}: {describe_error(error)}") from error
        return folder / name


def _reject_duplicate_class(last: LinkFile, earlier: Sequence[LinkFile]) -> None:
    """Raise InputError if `last` and an earlier list get the same class from their file names: `a/cats`, `b/cats`."""
    for file in earlier:
        if last.file_class and file.file_class == last.file_class and file.origin != last.origin:
            raise InputError(
                f"{file.origin} and {last.origin} list no classes, so that both would be the class "
                f"{last.file_class!r}, after their file names: rename one of them, or use --class {last.file_class}"
            )


async def _run_in_thread(function: Callable[[], _T], *, is_daemon: bool) -> _T:
    """Call `function` in a thread and return its result. If it is a daemon thread, Ctrl-C does not wait for it."""
    if not is_daemon:
        return await asyncio.to_thread(function)
    future: Future[_T] = Future()

    def call_and_set_result() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised to the caller that awaits the result
            future.set_exception(error)

    threading.Thread(target=call_and_set_result, daemon=True).start()
    return await asyncio.wrap_future(future)


def _split_into_blocks(image_refs: Iterable[ImageRef], block_size: int) -> Iterator[list[ImageRef]]:
    """Yield the links in lists of `block_size`. If an error occurs, the links before it are yielded first."""
    block: list[ImageRef] = []
    try:
        for image_ref in image_refs:
            block.append(image_ref)
            if len(block) == block_size:
                yield block
                block = []
    except Exception:
        if block:
            yield block
        raise
    if block:
        yield block
