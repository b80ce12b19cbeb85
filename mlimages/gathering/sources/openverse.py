"""Openly licensed images from Openverse, by search query."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from mlimages.core import ImageRef, InputError
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.sources.search_api import SearchApi, WaitFunction, filter_json_objects, make_http_options, sleep
from mlimages.gathering.sources.search_source import SearchSource, require_allowed

ENDPOINT = "https://api.openverse.org"
LICENSE_TYPES = ("commercial", "modification", "all", "all-cc")
_RESULTS_PER_PAGE, _RESULTS_PER_PAGE_REGISTERED = 20, 50  # maximum without and with a client id
_REGISTRATION_URL = "https://api.openverse.org/v1/#tag/auth/operation/register"
_LIMITS_NOTE = (
    "Openverse returns at most 240 results per query, in pages of 20, and allows 200 requests a day without a client "
    f"id. For more, register ({_REGISTRATION_URL}) and set OPENVERSE_CLIENT_ID and OPENVERSE_CLIENT_SECRET"
)
_REFUSAL_ADVICE = "the daily limit without a client id is reached; run the same command again tomorrow to resume"
_REFUSAL_ADVICE_REGISTERED = (
    "OPENVERSE_CLIENT_ID or OPENVERSE_CLIENT_SECRET is wrong, or the e-mail address is not yet verified"
)
_METADATA_KEYS = (
    "id", "title", "creator", "creator_url", "license", "license_version", "license_url", "foreign_landing_url",
    "provider", "source",
)  # fmt: skip
"""Keys of an image in a response that are copied to the manifest."""


class Openverse(SearchSource):
    """Source of openly licensed images from Openverse.

    With the environment variables OPENVERSE_CLIENT_ID and OPENVERSE_CLIENT_SECRET, Openverse allows more requests
    per day and more results per query.

    Args:
        queries: search queries; `CLASS=QUERY` sets the class.
        licences: licences such as `by,cc0`; empty for every open licence.
        filters: further parameters of the search: `license_type` (one of `LICENSE_TYPES`), `source`, `extension`.
        thumbnails: download the thumbnails of Openverse (up to 600 pixels wide) instead of the originals.
        tell: called with notes for the user before the first request.
        endpoint: URL of the search API; by default the provider's.
        http_options, wait, refresh: see `SearchApi`.

    Raises:
        InputError: the filter `license_type` is unknown, or only one of the two environment variables is set.
    """

    def __init__(
        self,
        queries: Sequence[str],
        *,
        licences: str = "",
        filters: Mapping[str, str] | None = None,
        thumbnails: bool = False,
        endpoint: str = ENDPOINT,
        http_options: GatherOptions | None = None,
        tell: Callable[[str], None] = lambda text: None,
        wait: WaitFunction | None = sleep,
        refresh: bool = False,
    ) -> None:
        self._params = {"license": licences, **(filters or {})}
        self._thumbnails = thumbnails
        self._endpoint = endpoint.rstrip("/")
        self._client_credentials = _read_client_credentials()
        self._tell = tell
        require_allowed("license_type", (self._params.get("license_type") or "all").split(","), LICENSE_TYPES)
        api = SearchApi(
            "Openverse",
            http_options=make_http_options(endpoint, ENDPOINT, http_options),
            refusal_advice=_REFUSAL_ADVICE_REGISTERED if self._client_credentials else _REFUSAL_ADVICE,
            wait=wait,
            refresh=refresh,
            authorize=self._authorize if self._client_credentials else None,
        )
        super().__init__(queries, api)

    async def _prepare_search(self) -> None:
        if not self._client_credentials:
            self._tell(_LIMITS_NOTE)

    async def _count_results(self, query: str) -> int | None:
        return (await self._get_page(query, 1)).get("result_count")

    async def _read_pages(self, label: str, query: str) -> AsyncIterator[list[ImageRef]]:
        for number in itertools.count(1):
            page = await self._get_page(query, number)
            yield [self._make_image_ref(image, label) for image in filter_json_objects(page.get("results"))]
            pages = page.get("page_count")
            if not isinstance(pages, int) or number >= pages:
                return

    async def _get_page(self, query: str, page_number: int) -> dict[str, Any]:
        size = _RESULTS_PER_PAGE_REGISTERED if self._client_credentials else _RESULTS_PER_PAGE
        params = {"q": query, "page": str(page_number), "page_size": str(size), **self._params}
        params = {name: value for name, value in params.items() if value}
        return await self._api.get(f"{self._endpoint}/v1/images/", params, is_first_page=page_number == 1)

    async def _authorize(self) -> Mapping[str, str]:
        """Exchange the client's id and secret for a token (RFC 6749, 4.4); return the headers that contain it."""
        assert self._client_credentials
        client_id, client_secret = self._client_credentials
        form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret}
        answer = await self._api.post(f"{self._endpoint}/v1/auth_tokens/token/", form)
        return {"Authorization": f"Bearer {answer.get('access_token')}"}

    def _make_image_ref(self, image_info: Mapping[str, Any], label: str) -> ImageRef:
        licence = f"{image_info.get('license', '')} {image_info.get('license_version') or ''}".strip().upper()
        attribution = (
            f"[{image_info.get('title') or 'Untitled'}]({image_info.get('foreign_landing_url')}) by "
            f"{image_info.get('creator') or 'unknown'}, [{licence}]({image_info.get('license_url')})"
        )
        source = {**{name: image_info.get(name) for name in _METADATA_KEYS}, "attribution": attribution}
        link = str(image_info.get("thumbnail" if self._thumbnails else "url") or "")
        name = f"openverse-{image_info.get('id')}"
        return ImageRef(link, label, source, name=name, is_api=self._thumbnails)


def _read_client_credentials() -> tuple[str, str] | None:
    names = ("OPENVERSE_CLIENT_ID", "OPENVERSE_CLIENT_SECRET")
    client_id, client_secret = (os.environ.get(name, "").strip() for name in names)
    if bool(client_id) != bool(client_secret):
        raise InputError(f"only one of {' and '.join(names)} is set: set both or neither")
    return (client_id, client_secret) if client_id else None
