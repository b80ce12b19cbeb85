"""Photos of organisms from iNaturalist, by taxon."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from mlimages.core import FetchResult, ImageRef, InputError, pluralize
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

ENDPOINT = "https://api.inaturalist.org/v1"
PHOTO_SIZES = ("square", "small", "medium", "large", "original")
TAXON_RANKS = ("species", "genus")
LICENCES = ("cc0", "by", "by-sa", "by-nc", "by-nc-sa", "by-nd", "by-nc-nd")
_RESULTS_PER_PAGE = 200
_RATE_LIMITS = (RateLimit(60, 60.0, "a minute"), RateLimit(10_000, 86_400.0, "a day"))
_MAX_BYTES_PER_HOUR = 4_500_000_000
_RANKS_NAMED_BY_BINOMIALS = {"species", "subspecies", "variety", "form"}
"""Ranks of taxa whose scientific names begin with the genus and the species, as in "Canis lupus familiaris"."""
_REFUSAL_ADVICE = "it blocks clients that send too many requests; run the same command again in an hour"


class INaturalist(SearchSource):
    """Source of photos of taxa and their subtaxa, with Creative Commons licences; no key is needed.

    Args:
        queries: names or ids of taxa; `CLASS=TAXON` sets the class.
        licences: licences such as `cc0,by,by-nc`; empty for every Creative Commons licence.
        by: `species` or `genus`: make a class for each species or genus that is found. None: one class per query.
        quality: quality grade `research`, `needs_id` or `casual`; empty for every grade.
        place: iNaturalist's id of a place.
        size: size of the photos, one of `PHOTO_SIZES`.
        endpoint: URL of the search API; by default the provider's.
        bytes_per_hour: maximum number of bytes to download per hour; iNaturalist blocks clients above 5 GB.
        http_options, wait, refresh: see `SearchApi`.

    Raises:
        InputError: a licence, rank or size is unknown.
    """

    def __init__(
        self,
        queries: Sequence[str],
        *,
        licences: str = "",
        by: str | None = None,
        quality: str = "research",
        place: str | None = None,
        size: str = "medium",
        endpoint: str = ENDPOINT,
        http_options: GatherOptions | None = None,
        wait: WaitFunction = sleep,
        refresh: bool = False,
        bytes_per_hour: int = _MAX_BYTES_PER_HOUR,
    ) -> None:
        names = [name.strip().lower().removeprefix("cc-") for name in licences.split(",") if name.strip()]
        require_allowed("licence", names, LICENCES)
        require_allowed("by", [by] if by else [], TAXON_RANKS)
        require_allowed("size", [size], PHOTO_SIZES)
        self._licences = {name if name == "cc0" else f"cc-{name}" for name in names or LICENCES}
        self._by, self._size = by, size
        self._filters = {"quality_grade": quality, "place_id": place, "hrank": by}
        self._endpoint = endpoint.rstrip("/")
        self._wait = wait
        self._byte_limit = _HourlyByteLimit(bytes_per_hour)
        api = SearchApi(
            "iNaturalist",
            http_options=make_http_options(endpoint, ENDPOINT, http_options),
            refusal_advice=_REFUSAL_ADVICE,
            rate_limits=_RATE_LIMITS,
            wait=wait,
            refresh=refresh,
        )
        super().__init__(queries, api)

    def record_result(self, row: FetchResult) -> None:
        """Count the bytes of the photo in a new manifest row towards the limit `bytes_per_hour`."""
        self._byte_limit.add(row.bytes or 0)

    async def __aiter__(self) -> AsyncGenerator[ImageRef]:
        async with aclosing(super().__aiter__()) as image_refs:  # it closes the session of the API
            async for image_ref in image_refs:
                if pause_s := self._byte_limit.remaining_wait_s():
                    duration = pluralize(math.ceil(pause_s / 60), "minute")
                    reason = f"iNaturalist: 5 GB an hour are allowed; waiting {duration}"
                    await self._wait(pause_s, reason)
                yield image_ref

    async def _prepare_search(self) -> None:
        self._taxon_ids = {query: await self._find_taxon_id(query) for query in self._queries.values()}

    async def _count_results(self, query: str) -> int | None:
        return (await self._get_observations(await self._find_taxon_id(query), above_id=0)).get("total_results")

    async def _find_taxon_id(self, query: str) -> int:
        """Return the query if it is an id, or the id of the active taxon whose scientific or common name it is.

        Raises:
            InputError: no taxon or several taxa have this name.
        """
        if query.isdigit():
            return int(query)
        page = await self._api.get(f"{self._endpoint}/taxa", {"q": query, "is_active": "true", "per_page": "30"})
        taxa = filter_json_objects(page.get("results"))
        name = query.casefold()
        exact = [taxon for taxon in taxa if str(taxon.get("name")).casefold() == name] or [
            taxon for taxon in taxa if str(taxon.get("preferred_common_name")).casefold() == name
        ]
        if len(exact) == 1:
            return int(exact[0]["id"])
        similar = ", ".join(
            f"{taxon.get('name')} ({taxon.get('rank')} {taxon.get('id')})" for taxon in exact or taxa[:5]
        )
        if exact:
            raise InputError(f"{query!r} matches several taxa ({similar}): use the id of one of them")
        hint = f" (similar: {similar})" if similar else ""
        raise InputError(f"iNaturalist has no taxon {query!r}{hint}: use another name, or the id of a taxon")

    async def _get_observations(self, taxon_id: int, *, above_id: int) -> dict[str, Any]:
        """Return a page (JSON) of a taxon's observations: those with the lowest observation ids above `above_id`."""
        params = {
            "taxon_id": str(taxon_id),
            "photos": "true",
            "photo_license": ",".join(sorted(self._licences)),
            "per_page": str(_RESULTS_PER_PAGE),
            "order_by": "id",
            "order": "asc",
            "id_above": str(above_id),
        }
        params |= {name: value for name, value in self._filters.items() if value}
        return await self._api.get(f"{self._endpoint}/observations", params)

    async def _read_pages(self, label: str, query: str) -> AsyncIterator[list[ImageRef]]:
        last_id = 0
        while True:
            page = await self._get_observations(self._taxon_ids[query], above_id=last_id)
            observations = filter_json_objects(page.get("results"))
            yield [
                self._make_image_ref(observation, photo, name)
                for observation in observations
                if (name := self._choose_class(observation, label))
                for photo in filter_json_objects(observation.get("photos"))
                if photo.get("license_code") in self._licences
            ]
            if len(observations) < _RESULTS_PER_PAGE:
                return
            last_id = max(int(observation["id"]) for observation in observations)

    def _choose_class(self, observation: Mapping[str, Any], label: str) -> str | None:
        """Return the class of an observation: its species or genus if the argument `by` is set; otherwise `label`.

        Return None if the taxon does not determine the class: for `by="species"`, if only the genus is known.
        """
        taxon = observation.get("taxon")
        if self._by is None or not isinstance(taxon, dict):
            return label if self._by is None else None
        name, rank = str(taxon.get("name") or ""), taxon.get("rank")
        if rank in _RANKS_NAMED_BY_BINOMIALS:  # a binomial or trinomial name
            return " ".join(name.split()[: 1 if self._by == "genus" else 2])
        return name if rank == self._by else None

    def _make_image_ref(self, observation: Mapping[str, Any], photo: Mapping[str, Any], label: str) -> ImageRef:
        taxon, user = (observation.get(name) or {} for name in ("taxon", "user"))
        page = observation.get("uri") or f"https://www.inaturalist.org/observations/{observation.get('id')}"
        source = {
            "provider": "iNaturalist",
            "id": photo.get("id"),
            "observation": observation.get("id"),
            "taxon_id": taxon.get("id"),
            "taxon": taxon.get("name"),
            "creator": user.get("name") or user.get("login"),
            "license": photo.get("license_code"),
            "foreign_landing_url": page,
            "attribution": f"[{taxon.get('name')}]({page}): {photo.get('attribution') or photo.get('license_code')}",
        }
        link = str(photo.get("url") or "").replace("/square.", f"/{self._size}.")
        return ImageRef(link, label, source, name=f"inaturalist-{photo.get('id')}")


class _HourlyByteLimit:
    def __init__(self, per_hour: int) -> None:
        self._per_hour = per_hour
        self._received: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, num_bytes: int) -> None:
        self._received.append((time.monotonic(), num_bytes))
        self._sum += num_bytes

    def remaining_wait_s(self) -> float:
        now = time.monotonic()
        while self._received and self._received[0][0] <= now - 3600.0:
            self._sum -= self._received.popleft()[1]
        return self._received[0][0] + 3600.0 - now if self._sum >= self._per_hour else 0.0
