"""Openly licensed pictures by search word from Openverse."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from mlimages.core import ImageRef
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.sources.queries import parse_queries
from mlimages.gathering.sources.search_api import SearchApi, Wait, network_for, objects, sleep

ENDPOINT = "https://api.openverse.org"
_PER_PAGE = 20  # the most without a key
_KEPT = ("id", "title", "creator", "creator_url", "license", "license_version", "license_url", "foreign_landing_url",
         "provider", "source")  # fmt: skip


class Openverse:
    """A source of openly licensed pictures; no key is needed.

    Args:
        queries: search words; `label=words` names the class otherwise.
        licences: such as `by,cc0`; empty takes every open one.
        wait: see `SearchApi`.
    """

    lookahead = 0

    def __init__(
        self,
        queries: Sequence[str],
        *,
        licences: str = "",
        endpoint: str = ENDPOINT,
        network: GatherOptions | None = None,
        wait: Wait | None = sleep,
    ) -> None:
        self._classes = parse_queries(queries)
        self._params = {"license": licences} if licences else {}
        self._url = f"{endpoint.rstrip('/')}/v1/images/"
        network = network_for(endpoint, ENDPOINT, network or GatherOptions())
        refusal = "it serves no more to callers without a key today; run the same command again later to go on"
        self._api = SearchApi("Openverse", network=network, headers={}, refusal=refusal, wait=wait)
        self._full: set[str] = set()

    def enough(self, label: str) -> None:
        """Ask for no more pages of this class."""
        self._full.add(label)

    async def plan(self) -> dict[str, int | None]:
        """How many pictures there are by class."""
        async with self._api:
            return {label: (await self._page(query, 1)).get("result_count") for label, query in self._classes.items()}

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        async with self._api:
            for label, query in self._classes.items():
                async for ref in self._pictures(label, query):
                    yield ref

    async def _pictures(self, label: str, query: str) -> AsyncIterator[ImageRef]:
        for number in itertools.count(1):
            if label in self._full:
                return
            page = await self._page(query, number)
            for picture in objects(page.get("results")):
                if label not in self._full:
                    yield _ref(picture, label)
            pages = page.get("page_count")
            if not isinstance(pages, int) or number >= pages:
                return

    async def _page(self, query: str, number: int) -> dict[str, Any]:
        params = {"q": query, "page": str(number), "page_size": str(_PER_PAGE), **self._params}
        return await self._api.get(self._url, params) or {}


def _ref(picture: Mapping[str, Any], label: str) -> ImageRef:
    licence = f"{picture.get('license', '')} {picture.get('license_version') or ''}".strip().upper()
    attribution = (
        f"[{picture.get('title') or 'Untitled'}]({picture.get('foreign_landing_url')}) by "
        f"{picture.get('creator') or 'unknown'}, [{licence}]({picture.get('license_url')})"
    )
    source = {**{name: picture.get(name) for name in _KEPT}, "attribution": attribution}
    return ImageRef(str(picture.get("url", "")), label, source, name=f"openverse-{picture.get('id')}")
