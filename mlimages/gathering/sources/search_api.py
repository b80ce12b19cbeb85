"""Pages of a search interface: asked for once, paced, and waited for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import aiohttp

from mlimages.core import GatherError, cache_dir, write_text
from mlimages.gathering.download.client import open_session
from mlimages.gathering.download.fetch import retry_after_s
from mlimages.gathering.options import GatherOptions

_HOUR_S = 3600.0
_TRIES = 5

Wait = Callable[[float, str], Awaitable[None]]
"""Waits so many seconds, for the reason given."""


async def sleep(seconds: float, why: str) -> None:
    """Wait without a word."""
    await asyncio.sleep(seconds)


class SearchApi:
    """One provider's interface; answers are kept in the cache, so that a second run asks nothing again.

    Args:
        name: the provider's, for messages and the cache's folder.
        headers: sent with each request; never logged.
        refusal: what to do when it answers 401 or 403.
        per_hour: requests that the provider allows in an hour; None: it says so itself.
        wait: how to wait; None refuses to, with an error that says how long it would have been.
    """

    def __init__(
        self,
        name: str,
        *,
        network: GatherOptions,
        headers: Mapping[str, str],
        refusal: str,
        per_hour: int | None = None,
        wait: Wait | None = sleep,
    ) -> None:
        self._name = name
        self._network = network
        self._headers = headers
        self._refusal = refusal
        self._per_hour = per_hour
        self._wait = wait
        self._folder = cache_dir(name.lower())
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> SearchApi:
        limits = aiohttp.ClientTimeout(total=self._network.timeout_s, connect=self._network.timeout_s)
        self._session = open_session(self._network, decompress=True, timeout=limits)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def get(self, url: str, params: Mapping[str, str]) -> dict[str, Any] | None:
        """The answer's JSON object; None where the provider has no such page.

        Raises:
            GatherError: refused, unreachable, or a wait that is not wanted.
        """
        address = f"{url}?{urlencode(sorted(params.items()))}"
        kept = self._folder / f"{hashlib.sha256(address.encode()).hexdigest()}.json"
        if kept.exists():
            found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
            return found
        answer = await self._ask(address, is_first=params.get("page") == "1")
        if answer is not None:
            write_text(kept, json.dumps(answer))
        return answer

    async def _ask(self, address: str, *, is_first: bool) -> dict[str, Any] | None:
        detail = ""
        for attempt in range(_TRIES):
            await self._pace()
            status, headers, body = await self._request(address)
            match status:
                case 200 if isinstance(body, dict):
                    return body
                case 401 | 403:
                    raise GatherError(f"{self._name} answers HTTP {status}: {self._refusal}")
                case 400 | 404 | 422 if is_first:
                    raise GatherError(f"{self._name} answers HTTP {status}: {body}")
                case 400 | 404 | 422:  # behind its last page
                    return None
                case 429:
                    detail = "it answers 429, too many requests"
                    asked = retry_after_s(headers.get("Retry-After"))
                    await self._pause(self._until_free_s() if asked is None else asked, detail)
                case _:
                    detail = f"HTTP {status}" if status else str(body)
                    await self._pause(2.0**attempt, detail)
        raise GatherError(f"{self._name} does not answer ({detail}): run the same command again later to go on")

    async def _request(self, address: str) -> tuple[int, Mapping[str, str], Any]:
        assert self._session
        self._remember_request()
        try:
            async with self._session.get(address, headers=self._headers) as response:
                text = await response.text()
                self._remember_quota(response.headers)
                return response.status, response.headers, json.loads(text) if response.status == 200 else text[:200]
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return 0, {}, f"{type(error).__name__}: {error}"[:200]

    async def _pace(self) -> None:
        state = self._state()
        if state.get("remaining") == 0 and state.get("reset", 0) > time.time():
            until = time.strftime("%Y-%m-%d", time.gmtime(state["reset"]))
            raise GatherError(f"{self._name}'s quota of the month is spent: run the same command again from {until} on")
        if self._per_hour and len(self._lately()) >= self._per_hour:
            await self._pause(self._until_free_s(), f"{self._per_hour} requests an hour are allowed")

    async def _pause(self, seconds: float, why: str) -> None:
        long = f"{math.ceil(seconds)} s" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
        if self._wait is None:
            raise GatherError(f"{self._name}: {why}; run the same command again in {long} to go on")
        await self._wait(seconds, f"{self._name}: {why}; waiting {long}")

    def _until_free_s(self) -> float:
        """Until the oldest request of this hour is an hour old; a minute where no hour is counted."""
        if not self._per_hour:
            return 60.0
        lately = self._lately()
        return max(1.0, lately[0] + _HOUR_S - time.time()) if lately else _HOUR_S

    def _lately(self) -> list[float]:
        return [moment for moment in self._state().get("requests", []) if moment > time.time() - _HOUR_S]

    def _state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self._folder / "quota.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def _remember_request(self) -> None:
        if self._per_hour:
            write_text(
                self._folder / "quota.json",
                json.dumps(self._state() | {"requests": [*self._lately(), time.time()][-self._per_hour :]}),
            )

    def _remember_quota(self, headers: Mapping[str, str]) -> None:
        with suppress(KeyError, ValueError):  # absent, or no numbers
            quota = {"remaining": int(headers["X-Ratelimit-Remaining"]), "reset": int(headers["X-Ratelimit-Reset"])}
            write_text(self._folder / "quota.json", json.dumps(self._state() | quota))


def objects(values: object) -> list[dict[str, Any]]:
    """The JSON objects of what should be a list of them."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def network_for(endpoint: str, default: str, network: GatherOptions) -> GatherOptions:
    """An address that the user typed may be private."""
    return network if endpoint == default else replace(network, allow_private=True)
