"""ImageNet's pictures by WordNet id or word, from an archive at hand or from the site."""

from __future__ import annotations

import asyncio
import json
import logging
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import aiohttp

from mlimages.core import ImageRef, InputError, cache_dir, write_text
from mlimages.gathering.download.client import open_session
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.sources.archives import Member, RemoteTar, read_member, tar_members
from mlimages.gathering.sources.lists import read_list, require_reader
from mlimages.gathering.sources.search_api import network_for
from mlimages.gathering.sources.wordnet import find_synset, subtree

logger = logging.getLogger(__name__)

ENDPOINT = "https://image-net.org"
_TERMS = "ImageNet's pictures are for non-commercial research and education: https://image-net.org/download"
_MOST_LIST_BYTES = 64 * 2**20
_TROUBLE = (aiohttp.ClientError, TimeoutError, tarfile.TarError, InputError, ValueError)


class ImageNet:
    """A source of ImageNet's pictures. Each synset's come by the first way that works: the archive, the site's tar,
    the site's list of links, the list at hand.

    Args:
        words: WordNet ids or words.
        with_subtree: every synset beneath them too, each in a folder in its parent's.
        archive: a tar of one synset's pictures or of such tars, or a folder of either or of pictures by id.
        url_list: lines `n02121808_123<TAB>url`, such as fall11_urls.txt.
        tell: is told why a way fails.

    Raises:
        InputError: no such synset, or several; no such archive or list.
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
        network: GatherOptions | None = None,
        tell: Callable[[str], None] = logger.info,
    ) -> None:
        self._folders: dict[str, str] = {}
        for word in words:
            root = find_synset(word)
            for wnid, folder in (subtree(root) if with_subtree else {root.wnid: root.folder}).items():
                self._folders.setdefault(wnid, folder)
        for path in (archive, url_list):
            if path and not path.exists():
                raise InputError(f"nothing at {path}")
        if url_list:
            require_reader(url_list)
        self._archive = archive
        self._url_list = url_list
        self._endpoint = endpoint.rstrip("/")
        self._network = network_for(endpoint, ENDPOINT, network or GatherOptions())
        self._tell = tell
        self._full: set[str] = set()
        self._site_down = False
        self._listed: dict[str, list[ImageRef]] | None = None

    def enough(self, label: str) -> None:
        """Read no further for this class."""
        self._full.add(label)

    async def plan(self) -> dict[str, int | None]:
        """The classes; how many pictures each has is not known beforehand."""
        return dict.fromkeys(self._folders.values())

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        self._tell(_TERMS)
        stream = aiohttp.ClientTimeout(sock_connect=self._network.timeout_s, sock_read=self._network.timeout_s)
        async with open_session(self._network, timeout=stream) as self._session:
            for wnid, folder in self._folders.items():
                if folder not in self._full:
                    async for ref in self._pictures(wnid):
                        yield replace(ref, label=folder, source={"provider": "ImageNet", "wnid": wnid})
                        if folder in self._full:
                            break

    async def _pictures(self, wnid: str) -> AsyncIterator[ImageRef]:
        ways = {
            "the archive": self._archive and self._from_archive,
            "the site's archive": None if self._site_down else self._from_site,
            "the site's list": None if self._site_down else self._from_site_list,
            "the list": self._url_list and self._from_list,
        }
        for name, way in ways.items():
            if not way:
                continue
            try:
                found = False
                async for ref in way(wnid):
                    found = True
                    yield ref
                if found:
                    return
                self._tell(f"{wnid}: {name} has no pictures")
            except _TROUBLE as error:
                self._tell(f"{wnid}: {name} fails: {_short(error)}")
                self._site_down |= isinstance(error, aiohttp.ClientConnectorError)
                if found:
                    return

    async def _from_archive(self, wnid: str) -> AsyncIterator[ImageRef]:
        assert self._archive
        if self._archive.is_file():
            for ref in _in_tar(self._archive, wnid):
                yield ref
            return
        for path in sorted(self._archive.rglob("*")):
            if path.is_file() and path.suffix == ".tar" and path.stem == wnid:
                for ref in _in_tar(path, wnid):
                    yield ref
            elif path.is_file() and path.suffix != ".tar" and wnid in (path.parent.name, path.name.partition("_")[0]):
                whole = Member(path.name, 0, path.stat().st_size)
                yield _ref(path.absolute().as_uri(), path.name, partial(read_member, path, whole))

    async def _from_site(self, wnid: str) -> AsyncIterator[ImageRef]:
        url = f"{self._endpoint}/data/winter21_whole/{wnid}.tar"
        listing = cache_dir("imagenet") / f"{sha256(url.encode()).hexdigest()}.json"
        if listing.exists():  # read to its end before: only what is missing is asked for
            for values in json.loads(listing.read_text(encoding="utf-8")):
                member = Member(**values)
                yield _ref(f"{url}#{member.name}", member.name, partial(self._read_part, url, member))
            return
        members = []
        async for member, data in RemoteTar(self._session, url).members():
            members.append(asdict(member))
            yield _ref(f"{url}#{member.name}", member.name, partial(_given, data))
        write_text(listing, json.dumps(members))

    async def _read_part(self, url: str, member: Member) -> bytes:
        async with open_session(self._network) as session:  # the source may have ended, and its session with it
            return await RemoteTar(session, url).read(member)

    async def _from_site_list(self, wnid: str) -> AsyncIterator[ImageRef]:
        url = f"{self._endpoint}/api/imagenet.synset.geturls"
        async with self._session.get(url, params={"wnid": wnid}) as response:
            response.raise_for_status()
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > _MOST_LIST_BYTES:
                    raise InputError(f"more than {_MOST_LIST_BYTES} bytes")
            text = data.decode("utf-8", "replace")
        for line in text.splitlines():
            if line.startswith(("http://", "https://")):
                yield ImageRef(line.strip(), wnid)

    async def _from_list(self, wnid: str) -> AsyncIterator[ImageRef]:
        if self._listed is None:
            self._listed = await asyncio.to_thread(self._read_list)
        for ref in self._listed[wnid]:
            yield ref

    def _read_list(self) -> dict[str, list[ImageRef]]:
        """The wanted synsets' links, in one pass over what may be many millions."""
        assert self._url_list
        listed: dict[str, list[ImageRef]] = {wnid: [] for wnid in self._folders}
        for ref in read_list(self._url_list):
            if ref.label in listed:
                listed[ref.label].append(ref)
        return listed


def _in_tar(path: Path, wnid: str) -> Iterator[ImageRef]:
    """The synset's pictures in a tar of pictures, or in a tar of tars (fall11_whole.tar, ILSVRC's)."""
    for member in tar_members(path):
        base = path.absolute().as_uri()
        if member.name == f"{wnid}.tar":
            for inner in tar_members(path, at=member.offset):
                yield _ref(f"{base}#{wnid}/{inner.name}", inner.name, partial(read_member, path, inner))
        elif path.stem == wnid or member.name.startswith(f"{wnid}_"):
            yield _ref(f"{base}#{member.name}", member.name, partial(read_member, path, member))


def _ref(url: str, file_name: str, load: Callable[[], Awaitable[bytes]]) -> ImageRef:
    return ImageRef(url, "", name=Path(file_name).stem, load=load)


async def _given(data: bytes) -> bytes:
    return data


def _short(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status}" + (" (not in that release)" if error.status == 404 else "")
    return str(error)[:200] or type(error).__name__
