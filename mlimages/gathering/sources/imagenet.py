"""Images of ImageNet, by WordNet id or word, from a local archive or from the website."""

from __future__ import annotations

import asyncio
import json
import logging
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path

import aiohttp

from mlimages.core import FetchResult, GatherError, ImageRef, InputError, cache_dir, format_examples, write_text
from mlimages.gathering.download.client import open_session
from mlimages.gathering.download.reasons import CONNECTION_REASONS, classify_error, describe_error
from mlimages.gathering.links import parse_host
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.sources.archived_lists import read_list
from mlimages.gathering.sources.archives import RemoteTar, TarMember, iter_entries, return_data
from mlimages.gathering.sources.columns import is_http_url
from mlimages.gathering.sources.lists import require_parquet_extra
from mlimages.gathering.sources.search_api import make_http_options
from mlimages.gathering.sources.wordnet import assign_folders, find_synset

logger = logging.getLogger(__name__)

ENDPOINT = "https://image-net.org"
PROVIDER = "ImageNet"
_TERMS_OF_USE = "ImageNet's images are for non-commercial research and education: https://image-net.org/download"
_MAX_LIST_BYTES = 64 * 2**20
_ENTRIES_PER_BLOCK = 64
_MAX_LISTED_SYNSETS = 3
_READ_ERRORS = (aiohttp.ClientError, TimeoutError, tarfile.TarError, InputError, ValueError)


class ImageNet:
    """Source of ImageNet's images.

    For each synset, these are tried in turn, until one has images of it; the others are not used for this synset:

    1. the local archive (`archive`),
    2. the website's archive of the synset,
    3. the website's list of links,
    4. the local list of links (`url_list`).

    Args:
        words: WordNet ids or words.
        with_subtree: include all synsets below those of `words`, each in a folder inside that of its parent.
        archive: a folder, zip or tar (`.tar`, `.tar.gz`, `.tgz`) with images, with a folder per synset (as
            imagenette2 has), or with a tar per synset. The WordNet id of an image is read from its file name
            (`n02121808_123.JPEG`), or else from the name of a folder or tar that contains it.
        url_list: a file of lines `n02121808_123<TAB>url`, such as fall11_urls.txt.
        endpoint: URL of the website; by default ImageNet's.
        http_options: options of the HTTP session.
        tell: called with the terms of use, the classes whose name has the WordNet id appended because another synset
            has the same name, and the reason if an archive or list cannot be used.

    Raises:
        InputError: a synset is unknown or ambiguous, or the archive or list does not exist.
        MissingExtraError: the list is Parquet, and pyarrow is not installed.
        GatherError (while iterating): no image was found, and requests to the website failed (404 is no failure).
    """

    lookahead = 0

    def __init__(
        self,
        words: Sequence[str],
        *,
        with_subtree: bool = False,
        archive: Path | None = None,
        url_list: Path | None = None,
        endpoint: str = ENDPOINT,
        http_options: GatherOptions | None = None,
        tell: Callable[[str], None] = logger.info,
    ) -> None:
        self._folders = assign_folders(list(map(find_synset, words)), with_subtree=with_subtree)
        self._wnids = {folder: wnid for wnid, folder in self._folders.items()}
        for path in (archive, url_list):
            if path and not path.exists():
                raise InputError(f"no file or folder at {path}: check the path")
        if url_list:
            require_parquet_extra(url_list)
        self._archive = archive
        self._url_list = url_list
        self._endpoint = endpoint.rstrip("/")
        self._http_options = make_http_options(endpoint, ENDPOINT, http_options)
        self._tell = tell
        self._full_classes: set[str] = set()
        self._is_site_down = False
        if appended := [folder for wnid, folder in self._folders.items() if folder.endswith(f"_{wnid}")]:
            names = format_examples(appended)
            tell(f"synsets that have the same name as another one get their id appended to it: {names}")

    def check_earlier_row(self, row: FetchResult) -> None:
        """Check that an image in the output folder is of the synset that this run stores in the same class folder.

        Raises:
            InputError: it is an image of another synset with the same name.
        """
        if row.status != "ok" or row.removed or row.source.get("provider") != PROVIDER:
            return
        earlier, wnid = row.source.get("wnid"), self._wnids.get(row.label)
        if earlier and wnid and earlier != wnid:
            raise InputError(
                f"the class {row.label} already has images of {earlier}, another synset than {wnid}: use another "
                f"folder, or gather both synsets in one command, {earlier} before {wnid}, so that each is its own class"
            )

    def skip_class(self, label: str) -> None:
        """Read no further images of this class."""
        self._full_classes.add(label)

    async def count_links_by_class(self) -> dict[str, int | None]:
        """Return None for each class, which means unknown: images can only be counted by reading them all."""
        return dict.fromkeys(self._folders.values())

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        self._tell(_TERMS_OF_USE)
        self._errors: dict[str, None] = {}  # ordered
        found: set[str] = set()
        if self._archive:
            async for wnid, image_ref in self._read_local_archive(self._archive):
                found.add(wnid)
                yield image_ref
        failures: dict[str, list[str]] = {}
        stream = aiohttp.ClientTimeout(
            sock_connect=self._http_options.timeout_s, sock_read=self._http_options.timeout_s
        )
        async with open_session(self._http_options, timeout=stream) as self._session:
            for wnid, folder in self._folders.items():
                if wnid not in found and folder not in self._full_classes:
                    async for image_ref in self._find_images(wnid, failures):
                        found.add(wnid)
                        yield self._add_label(wnid, image_ref)
                        if folder in self._full_classes:
                            break
        if self._errors and not found:
            raise GatherError(
                f"no images from {parse_host(self._endpoint)} ({'; '.join(self._errors)}): run the same command again "
                "later, or use --archive or --url-list"
            )
        self._report_failures(failures)

    def _add_label(self, wnid: str, image_ref: ImageRef) -> ImageRef:
        return replace(image_ref, label=self._folders[wnid], source={"provider": PROVIDER, "wnid": wnid})

    async def _find_images(self, wnid: str, failures: dict[str, list[str]]) -> AsyncIterator[ImageRef]:
        """Yield the images of a synset from the website's archive, the website's list or the local list.

        The first of these that has images is used. For each one before it, `wnid` is added to `failures`, a dict of
        WordNet ids by reason, such as "the website's list has no images".
        """
        origins = {
            "the website's archive": self._read_website_archive,
            "the website's list": self._read_website_list,
            "the local list": self._read_local_list if self._url_list else None,
        }
        for name, read in origins.items():
            if not read or (self._is_site_down and read != self._read_local_list):
                continue
            has_images, reason = False, f"{name} has no images"
            try:
                async for image_ref in read(wnid):
                    has_images = True
                    yield image_ref
            except _READ_ERRORS as error:
                reason = _explain_failure(name, error)
                self._is_site_down |= isinstance(error, aiohttp.ClientConnectorError)
                if getattr(error, "status", None) != 404:  # the website does not offer every synset
                    self._errors[reason] = None
                if has_images:
                    self._tell(f"{wnid}: {reason}")
            if has_images:
                return
            failures.setdefault(reason, []).append(wnid)

    def _report_failures(self, failures: Mapping[str, list[str]]) -> None:
        """Tell the user each reason once, with the synsets that it concerns."""
        for reason, wnids in failures.items():
            more = f" and {len(wnids) - _MAX_LISTED_SYNSETS} more synsets" if len(wnids) > _MAX_LISTED_SYNSETS else ""
            self._tell(f"{', '.join(wnids[:_MAX_LISTED_SYNSETS])}{more}: {reason}")

    async def _read_local_archive(self, archive: Path) -> AsyncIterator[tuple[str, ImageRef]]:
        """Yield WordNet id and image for each image of the requested synsets in the local archive, in one pass."""
        walk = iter_entries(archive)
        try:
            while self._full_classes < set(self._folders.values()):
                block = await asyncio.to_thread(lambda: list(islice(walk, _ENTRIES_PER_BLOCK)))
                if not block:
                    return
                for entry in block:
                    wnid = next((wnid for wnid in _find_possible_wnids(entry.path) if wnid in self._folders), None)
                    if wnid and self._folders[wnid] not in self._full_classes:
                        name = entry.path.rpartition("/")[2]
                        yield wnid, self._add_label(wnid, _make_image_ref(entry.url, name, entry.load))
        except InputError as error:
            self._tell(str(error))

    async def _read_website_archive(self, wnid: str) -> AsyncIterator[ImageRef]:
        url = f"{self._endpoint}/data/winter21_whole/{wnid}.tar"
        listing = cache_dir("imagenet") / f"{sha256(url.encode()).hexdigest()}.json"
        if members := _read_cached_members(listing):  # an earlier run read it to its end: request only missing members
            for member in members:
                yield _make_image_ref(f"{url}#{member.name}", member.name, partial(self._read_member, url, member))
            return
        async for member, data in RemoteTar(self._session, url).members():
            members.append(member)
            yield _make_image_ref(f"{url}#{member.name}", member.name, partial(return_data, data))
        write_text(listing, json.dumps([asdict(member) for member in members]))

    async def _read_member(self, url: str, member: TarMember) -> bytes:
        async with open_session(self._http_options) as session:  # the session of the source may be closed already
            return await RemoteTar(session, url).read(member)

    async def _read_website_list(self, wnid: str) -> AsyncIterator[ImageRef]:
        url = f"{self._endpoint}/api/imagenet.synset.geturls"
        async with self._session.get(url, params={"wnid": wnid}) as response:
            response.raise_for_status()
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > _MAX_LIST_BYTES:
                    raise InputError(f"more than {_MAX_LIST_BYTES // 2**20} MiB; use --url-list")
            text = data.decode("utf-8", "replace")
        for line in text.splitlines():
            if is_http_url(line):
                yield ImageRef(line.strip(), wnid)

    async def _read_local_list(self, wnid: str) -> AsyncIterator[ImageRef]:
        for image_ref in await asyncio.to_thread(lambda: self._links_by_wnid[wnid]):
            yield image_ref

    @cached_property
    def _links_by_wnid(self) -> dict[str, list[ImageRef]]:
        """Links of each requested synset in the local list, which is read only once: it may have millions of lines."""
        assert self._url_list
        listed: dict[str, list[ImageRef]] = {wnid: [] for wnid in self._folders}
        for image_ref in read_list(self._url_list):
            if image_ref.label in listed:
                listed[image_ref.label].append(image_ref)
        return listed


def _find_possible_wnids(path: str) -> Iterator[str]:
    """Yield the possible WordNet ids in a path: the file name up to `_`, then the folders, the innermost first."""
    *folders, name = path.split("/")
    if not name.startswith("."):  # files that macOS adds
        yield name.partition("_")[0]
        yield from reversed(folders)


def _read_cached_members(path: Path) -> list[TarMember]:
    """Return the cached list of members of an archive of the website; empty if there is none."""
    try:
        return [TarMember(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def _make_image_ref(url: str, file_name: str, load: Callable[[], Awaitable[bytes]]) -> ImageRef:
    return ImageRef(url, "", name=Path(file_name).stem, load=load)


def _explain_failure(origin: str, error: Exception) -> str:
    """Return a reason for the user; `origin` is what could not be read, such as "the website's list"."""
    if isinstance(error, InputError):
        return f"cannot read {origin}: {error}"
    if isinstance(error, tarfile.TarError):
        return f"cannot read {origin}: damaged, or not a tar archive"
    if classify_error(error) in CONNECTION_REASONS:
        return f"cannot reach the website ({describe_error(error)})"
    hint = " (the website does not offer every synset)" if getattr(error, "status", None) == 404 else ""
    return f"cannot read {origin}: {describe_error(error)}{hint}"
