"""Photos from Pexels, by search query."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from mlimages.core import GatherError, ImageRef
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.sources.search_api import (
    RateLimit,
    SearchApi,
    WaitFunction,
    filter_json_objects,
    make_http_options,
    sleep,
)
from mlimages.gathering.sources.search_source import SearchSource, require_allowed

ENDPOINT = "https://api.pexels.com/v1"
PHOTO_SIZES = ("original", "large2x", "large", "medium", "small", "portrait", "landscape", "tiny")
_RESULTS_PER_PAGE = 80
_RATE_LIMIT = RateLimit(200, 3600.0, "an hour")
_PERMISSION_ADVICE = (
    "the terms of Pexels forbid building machine learning datasets through its API without permission "
    "(https://www.pexels.com/api/documentation/#guidelines): ask Pexels for permission, then add --i-have-permission"
)
_MISSING_KEY_MESSAGE = "no Pexels API key: get one at https://www.pexels.com/api/ and set PEXELS_API_KEY"


class Pexels(SearchSource):
    """Source of photos from Pexels; the API key is read from the environment variable PEXELS_API_KEY.

    Args:
        queries: search queries; `CLASS=QUERY` sets the class.
        photo_size: size in which photos are downloaded, one of `PHOTO_SIZES`.
        filters: further parameters of the search: `orientation`, `size` (minimum size of the original: `large`,
            `medium` or `small`), `color`, `locale`.
        i_have_permission: confirms that Pexels permits you to build a dataset; required, and recorded with every photo.
        endpoint: URL of the search API; by default the provider's.
        http_options, wait, refresh: see `SearchApi`.

    Raises:
        GatherError: the API key or the permission is missing.
        InputError: `photo_size` is not one of `PHOTO_SIZES`.
    """

    def __init__(
        self,
        queries: Sequence[str],
        *,
        photo_size: str = "medium",
        filters: Mapping[str, str] | None = None,
        i_have_permission: bool = False,
        endpoint: str = ENDPOINT,
        http_options: GatherOptions | None = None,
        wait: WaitFunction | None = sleep,
        refresh: bool = False,
    ) -> None:
        key = os.environ.get("PEXELS_API_KEY", "").strip()
        if not i_have_permission:
            raise GatherError(_PERMISSION_ADVICE)
        if not key:
            raise GatherError(_MISSING_KEY_MESSAGE)
        require_allowed("photo size", [photo_size], PHOTO_SIZES)
        self._size = photo_size
        self._filters = filters or {}
        self._url = f"{endpoint.rstrip('/')}/search"
        api = SearchApi(
            "Pexels",
            http_options=make_http_options(endpoint, ENDPOINT, http_options),
            headers={"Authorization": key},
            refusal_advice="the key in PEXELS_API_KEY is wrong; get one at https://www.pexels.com/api/",
            rate_limits=(_RATE_LIMIT,),
            wait=wait,
            refresh=refresh,
        )
        super().__init__(queries, api)

    async def _count_results(self, query: str) -> int | None:
        return (await self._get_page(query, 1)).get("total_results")

    async def _read_pages(self, label: str, query: str) -> AsyncIterator[list[ImageRef]]:
        for number in itertools.count(1):
            page = await self._get_page(query, number)
            yield [self._make_image_ref(photo, label) for photo in filter_json_objects(page.get("photos"))]
            if not page.get("next_page"):
                return

    async def _get_page(self, query: str, page_number: int) -> dict[str, Any]:
        params = {"query": query, "page": str(page_number), "per_page": str(_RESULTS_PER_PAGE), **self._filters}
        return await self._api.get(self._url, params, is_first_page=page_number == 1)

    def _make_image_ref(self, photo: Mapping[str, Any], label: str) -> ImageRef:
        name, page = str(photo.get("photographer") or "unknown"), str(photo.get("url") or "https://www.pexels.com")
        source = {
            "provider": "Pexels",
            **{name: photo.get(name) for name in ("id", "photographer", "photographer_url", "url", "alt")},
            "attribution": f"Photo by [{name}]({photo.get('photographer_url')}) on [Pexels]({page})",
            "permission": "stated by the user",
        }
        sizes = photo.get("src")
        link = sizes.get(self._size) if isinstance(sizes, dict) else None
        return ImageRef(str(link or ""), label, source, name=f"pexels-{photo.get('id')}")
