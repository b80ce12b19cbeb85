"""Requests to search APIs: caching, rate limits, retries and error messages."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp

from mlimages.core import GatherError, cache_dir, write_text
from mlimages.gathering.download.client import open_session
from mlimages.gathering.download.reasons import describe_error, parse_retry_after
from mlimages.gathering.links import parse_host
from mlimages.gathering.options import GatherOptions

_MAX_RETRIES = 5
_MAX_CACHE_AGE_S = 86_400.0
_REPLICA_LAG_PAUSE_S = 5.0  # of MediaWiki

WaitFunction = Callable[[float, str], Awaitable[None]]
"""A function that waits for a number of seconds, and may show the reason."""


async def sleep(seconds: float, reason: str) -> None:
    """Wait without showing the reason."""
    await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit on the number of requests in any period of a given length.

    Attributes:
        max_requests: maximum number of requests per period.
        period_s: length of the period in seconds.
        period_text: length of the period in words, for messages, such as "an hour".
    """

    max_requests: int
    period_s: float
    period_text: str

    def remaining_wait_s(self, request_times: Sequence[float], now: float) -> float:
        """Return the seconds until the next request is allowed, after requests at `request_times` (ascending)."""
        if len(request_times) < self.max_requests:
            return 0.0
        return max(0.0, request_times[-self.max_requests] + self.period_s - now)


@dataclass(repr=False)
class SearchApi:
    """Client of a provider's search API. Responses to `get` that contain results are cached for a day.

    Attributes:
        name: name of the provider, for messages and the cache folder.
        http_options: options of the HTTP session.
        refusal_advice: advice for the user in the error after HTTP 401 or 403 (with `post`, also after 400).
        headers: HTTP headers for `get`, which may contain an API key; they are never logged.
        rate_limits: rate limits of the provider.
        wait: called to wait for a rate limit or before a retry, with the seconds and the reason. None: do not wait, but
            raise an error that says when to run the command again.
        refresh: ignore cached responses.
        authorize: returns new `headers`, such as a token; called before the first request, and when the token has
            expired (HTTP 401). None: `headers` do not change.
    """

    name: str
    http_options: GatherOptions
    refusal_advice: str
    headers: Mapping[str, str] = field(default_factory=dict)
    rate_limits: Sequence[RateLimit] = ()
    wait: WaitFunction | None = sleep
    refresh: bool = False
    authorize: Callable[[], Awaitable[Mapping[str, str]]] | None = None

    def __post_init__(self) -> None:
        self._folder = cache_dir(self.name.lower())

    async def __aenter__(self) -> SearchApi:
        limits = aiohttp.ClientTimeout(total=self.http_options.timeout_s, connect=self.http_options.timeout_s)
        self._session = open_session(self.http_options, decompress=True, timeout=limits)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, url: str, params: Mapping[str, str], *, is_first_page: bool = True) -> dict[str, Any]:
        """Return the JSON object of a page of results; empty if the page does not exist.

        Args:
            is_first_page: whether this is the first page of results; if it does not exist, that is an error.

        Raises:
            GatherError: access is denied, the provider is unreachable or reports an error, its quota is used up, or
                waiting is needed but `wait` is None.
        """
        page_url = f"{url}?{urlencode(sorted(params.items()))}"
        cached = self._folder / f"{hashlib.sha256(page_url.encode()).hexdigest()}.json"
        if not self.refresh and (answer := _read_cached_response(cached)) is not None:
            return answer
        answer = await self._get_json(page_url, is_first_page=is_first_page)
        if _has_items(answer):
            write_text(cached, json.dumps({"fetched_at": time.time(), "answer": answer}))
        return answer

    async def post(self, url: str, form_fields: Mapping[str, str]) -> dict[str, Any]:
        """Send a form and return the JSON object of the response, which is not cached.

        Raises:
            GatherError: access is denied, or the provider is unreachable or returns no JSON object.
        """
        status, _, body = await self._request("POST", url, data=form_fields)
        if status == 200 and isinstance(body, dict):
            return body
        if status in (400, 401, 403):
            raise GatherError(f"{self.name} returned HTTP {status}: {self.refusal_advice}")
        raise GatherError(_add_rerun_advice(_describe_failure(url, status, body)))

    async def _get_json(self, url: str, *, is_first_page: bool) -> dict[str, Any]:
        """Request a page of results for `get`: without the cache, but with rate limits and retries."""
        problem = ""
        may_authorize = self.authorize is not None
        if self.authorize and not self.headers:
            self.headers, may_authorize = await self.authorize(), False
        for attempt in range(_MAX_RETRIES + 1):
            await self._wait_for_rate_limit()
            status, headers, body = await self._request("GET", url, headers=self.headers)
            match status:
                case 200 if isinstance(body, dict) and isinstance(body.get("error"), dict):  # MediaWiki
                    problem = f"{self.name} returned the error {str(body['error'].get('info'))[:200]!r}"
                    if body["error"].get("code") not in ("maxlag", "ratelimited"):
                        raise GatherError(problem)
                    pause_s = parse_retry_after(headers.get("Retry-After")) or _REPLICA_LAG_PAUSE_S
                case 200 if isinstance(body, dict):
                    return body
                case 401 if may_authorize and self.authorize:  # the token has expired
                    self.headers, may_authorize = await self.authorize(), False
                    continue
                case 401 | 403:
                    raise GatherError(f"{self.name} returned HTTP {status}: {self.refusal_advice}")
                case 400 | 404 | 422 if is_first_page:
                    details = "" if str(body).lstrip().startswith("<") else str(body).strip()  # no HTML
                    raise GatherError(": ".join(filter(None, [_describe_failure(url, status, body), details])))
                case 400 | 404 | 422:  # after the last page
                    return {}
                case 429:
                    problem = f"{self.name} returned HTTP 429 (too many requests)"
                    retry_s = parse_retry_after(headers.get("Retry-After"))
                    pause_s = self._seconds_until_allowed() if retry_s is None else retry_s
                case _:
                    problem = _describe_failure(url, status, body)
                    pause_s = 2.0**attempt
            if attempt < _MAX_RETRIES:
                await self._wait_or_raise(pause_s, problem, waiting_action="trying again in")
        raise GatherError(_add_rerun_advice(problem))

    async def _request(self, method: str, url: str, **options: Any) -> tuple[int, Mapping[str, str], Any]:
        """Send a request; return status, headers and body.

        The body is the JSON value (None if it is not JSON) after a 200, else the start of the text. If there is no
        response, the status is 0 and the body is the reason.
        """
        self._record_request()
        try:
            async with self._session.request(method, url, **options) as response:
                text = await response.text()
                self._record_quota(response.headers)
                body: Any = text[:200]
                if response.status == 200:
                    body = None
                    with suppress(ValueError):
                        body = json.loads(text)
                return response.status, response.headers, body
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return 0, {}, describe_error(error)

    async def _wait_for_rate_limit(self) -> None:
        """Wait until the rate limits allow a request.

        Raises:
            GatherError: waiting is needed but `wait` is None, or the provider's last response said that its monthly
                quota is used up, which would take too long to wait for.
        """
        state = self._load_rate_limit_state()
        if state.get("remaining") == 0 and state.get("reset", 0) > time.time():
            until = time.strftime("%Y-%m-%d", time.gmtime(state["reset"]))
            raise GatherError(
                f"the monthly quota of {self.name} is used up: run the same command again on {until} or later"
            )
        sent, now = self._load_request_times(), time.time()
        for rate in self.rate_limits:
            if (seconds := rate.remaining_wait_s(sent, now)) > 0:
                allowed = f"{self.name}: {rate.max_requests} requests {rate.period_text} are allowed"
                await self._wait_or_raise(seconds, allowed)

    async def _wait_or_raise(self, seconds: float, reason: str, *, waiting_action: str = "waiting") -> None:
        """Wait with the message "REASON; WAITING_ACTION 30 s" for the user; raise GatherError if `wait` is None."""
        duration = f"{math.ceil(seconds)} s" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
        if self.wait is None:
            raise GatherError(f"{reason}; run the same command again in {duration} to resume")
        await self.wait(seconds, f"{reason}; {waiting_action} {duration}")

    def _seconds_until_allowed(self) -> float:
        """Return the seconds to wait after a 429 without Retry-After, according to the rate limits."""
        sent, now = self._load_request_times(), time.time()
        periods = [rate.period_s for rate in self.rate_limits]
        return max((rate.remaining_wait_s(sent, now) for rate in self.rate_limits), default=0.0) or (
            max(1.0, sent[0] + max(periods) - now) if periods and sent else max(periods, default=60.0)
        )

    def _load_request_times(self) -> list[float]:
        """Return the times of earlier requests that count towards the rate limits, ascending."""
        oldest = time.time() - max((rate.period_s for rate in self.rate_limits), default=0.0)
        return [moment for moment in self._load_rate_limit_state().get("requests", []) if moment > oldest]

    def _load_rate_limit_state(self) -> dict[str, Any]:
        """Return the saved state of the rate limits; each key may be missing.

        - `requests`: the times of the requests sent so far.
        - `remaining`: number of requests that the provider's monthly quota still allows.
        - `reset`: the time when this quota is renewed.

        Times are in seconds since the epoch.
        """
        try:
            found: dict[str, Any] = json.loads((self._folder / "quota.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def _record_request(self) -> None:
        if self.rate_limits:
            most = max(rate.max_requests for rate in self.rate_limits)
            sent = [*self._load_request_times(), time.time()][-most:]
            write_text(self._folder / "quota.json", json.dumps(self._load_rate_limit_state() | {"requests": sent}))

    def _record_quota(self, headers: Mapping[str, str]) -> None:
        with suppress(KeyError, ValueError):  # absent or not numbers
            quota = {"remaining": int(headers["X-Ratelimit-Remaining"]), "reset": int(headers["X-Ratelimit-Reset"])}
            write_text(self._folder / "quota.json", json.dumps(self._load_rate_limit_state() | quota))


def _describe_failure(url: str, status: int, body: object) -> str:
    """Return what is wrong with a response of `_request`."""
    host = parse_host(url)
    if not status:
        return f"cannot reach {host} ({body})"
    return f"{host} returned no JSON object" if status == 200 else f"{host} returned HTTP {status}"


def _add_rerun_advice(problem: str) -> str:
    when = "once the network is up" if problem.startswith("cannot reach") else "later"
    return f"{problem}: run the same command again {when}"


def _read_cached_response(path: Path) -> dict[str, Any] | None:
    """Return the cached response if it is complete and less than a day old; None otherwise."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        is_fresh = 0 <= time.time() - entry["fetched_at"] < _MAX_CACHE_AGE_S
        answer = entry["answer"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answer if is_fresh and isinstance(answer, dict) else None


def _has_items(value: object) -> bool:
    """Return whether a JSON value contains a non-empty list. A response without one may be a temporary failure."""
    if isinstance(value, dict):
        return any(map(_has_items, value.values()))
    return isinstance(value, list) and bool(value)


def filter_json_objects(values: object) -> list[dict[str, Any]]:
    """Return the JSON objects in a list; an empty list if the value is not a list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def make_http_options(endpoint: str, default_endpoint: str, http_options: GatherOptions | None) -> GatherOptions:
    """Return `http_options` for requests to `endpoint`; if it is not the default, allow private addresses."""
    http_options = http_options or GatherOptions()
    return http_options if endpoint == default_endpoint else replace(http_options, allow_private=True)
