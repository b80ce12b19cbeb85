"""One URL becomes bytes in a file, or a reason: in time, in bounded memory, with manners."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urljoin

import aiohttp
from yarl import URL

from mlimages.core import GatherError, Reason
from mlimages.gathering.download.address_guard import is_private_literal
from mlimages.gathering.download.body_file import Pace, Spool, inflater
from mlimages.gathering.download.client import open_session
from mlimages.gathering.download.host_limits import Host, Hosts
from mlimages.gathering.download.image_facts import begins_as_html
from mlimages.gathering.download.opt_outs import find_opt_out
from mlimages.gathering.download.reasons import CONNECTION, PASSING, REFUSING, reason_of_error, reason_of_status
from mlimages.gathering.download.robots import Sites, SiteUnreachableError
from mlimages.gathering.options import GatherOptions

_MAX_URL = 8192
_MAX_REDIRECTS = 10
_BACKOFF_S = 1.0
_AUTHORITY = re.compile(r"^[^:]*://[^/?#]*")
_WITH_PATH = re.compile(r"[^:]*://[^/?#]+/[^#]*")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_REDIRECTS = (301, 302, 303, 307, 308)
_THROTTLED = (420, 429, 503)
_WITH_BODY = (None, 200, 203, 206)
_MOST_UNAVAILABLE = 10
"""Answers 503 to one link, after which they are not the throttling of its host."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """How one link ended; `reason` is None if its body lies in the file.

    Attributes:
        retry_after_s: what the server asked for. location: where it redirects to. attempts: requests made.
        elapsed_s: pauses included. is_page: the body is a web page.
        asked_at: when, in seconds since the epoch.
        is_whole: False where only the end of the connection ended the body, so that it may have been cut.
    """

    reason: Reason | None = None
    detail: str = ""
    final_url: str | None = None
    http_status: int | None = None
    retry_after_s: float | None = None
    location: str | None = None
    attempts: int = 0
    elapsed_s: float = 0.0
    is_page: bool = False
    is_whole: bool = True
    cookies: Mapping[str, str] = field(default_factory=dict)
    asked_at: float = field(default_factory=time.time)


class _RefusalError(Exception):
    """An answer that is not taken."""

    def __init__(self, reason: Reason, detail: str = "", retry_after_s: float | None = None) -> None:
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s


class Fetcher:
    """Fetches links with one session; use as an async context manager."""

    def __init__(self, options: GatherOptions) -> None:
        self._options = options
        self._headers = options.header_fields
        self._hosts = Hosts(options.per_host, options.max_wait_s)
        self._slots = asyncio.Semaphore(options.parallel)

    async def __aenter__(self) -> Fetcher:
        self._session = open_session(self._options)
        self._sites = Sites(self._session, timeout_s=self._options.timeout_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sites.close()
        await self._session.close()

    @property
    def waiting(self) -> int:
        """Links that wait for a host which does not answer at present."""
        return self._hosts.waiting

    @property
    def blocking_hosts(self) -> list[str]:
        """Hosts that do not answer at present, where no other is left."""
        return self._hosts.blocking_hosts

    def waiting_count(self, label: str) -> int:
        """Links of one class that wait for a host which does not answer at present."""
        return self._hosts.waiting_labels[label]

    async def fetch(self, link: str, part: Path, *, label: str = "", asks_site: bool = True) -> Fetched:
        """Fetch `link` into the file `part`; what may succeed later is asked for again after a pause.

        Args:
            label: class that the link counts for while it waits.
            asks_site: obey the site's robots.txt and tdmrep.json; not meant for a provider's documented interface.

        Raises:
            GatherError: the file cannot be written.
        """
        started, attempts, ignored = time.monotonic(), 0, ""
        cookies: dict[str, str] = {}  # of this chain of redirects alone
        try:
            url = parse_url(link)
            for _ in range(_MAX_REDIRECTS + 1):
                answer = await self._fetch_patiently(url, part, label, asks_site=asks_site, cookies=cookies)
                attempts += answer.attempts
                ignored = answer.detail or ignored
                if answer.location is None:
                    break
                target = _redirected(url, answer.location)
                cookies = {**cookies, **answer.cookies} if target.raw_host == url.raw_host else {}
                url = target
            else:
                answer = replace(answer, reason=Reason.REDIRECTS, detail=f"more than {_MAX_REDIRECTS} redirects")
        except _RefusalError as refusal:
            answer = Fetched(refusal.reason, refusal.detail)
        detail = answer.detail or ignored
        return replace(answer, detail=detail, attempts=attempts, elapsed_s=round(time.monotonic() - started, 3))

    async def _fetch_patiently(
        self, url: URL, part: Path, label: str, *, asks_site: bool, cookies: dict[str, str]
    ) -> Fetched:
        """One answer that is not expected to be better a little later, or the last of several."""
        if not self._options.allow_private and is_private_literal(url.raw_host or ""):
            return Fetched(Reason.PRIVATE_ADDRESS, f"{url.raw_host} is not a global address")
        answer = Fetched(Reason.HOST_DOWN, "the host of this link does not answer")
        attempts = own_failures = unavailable = 0
        with self._hosts.use(f"{url.raw_host}:{url.port}", label) as host:
            while True:
                async with host.slots:
                    if not await host.has_turn():
                        if host.state.refusals:
                            answer = Fetched(Reason.HOST_DOWN, "the host refuses one link after the other")
                        break
                    async with self._slots:
                        asked_at = time.monotonic()
                        answer = await self._request(url, part, host if asks_site else None, cookies)
                        cookies = {**cookies, **answer.cookies}
                attempts += 1
                _note(host, str(url), answer, asked_at)
                unavailable += answer.http_status == 503
                if answer.reason not in PASSING or unavailable > _MOST_UNAVAILABLE:
                    break
                if host.state.is_parked and answer.http_status in (*_WITH_BODY, *_THROTTLED):
                    continue  # the host's fault, not the link's
                own_failures += 1
                if own_failures > self._options.retries:
                    break
                await asyncio.sleep(_BACKOFF_S * 2 ** (own_failures - 1) * random.uniform(0.5, 1.0))
        return replace(answer, attempts=attempts)

    async def _request(self, url: URL, part: Path, site: Host | None, cookies: dict[str, str]) -> Fetched:
        """One answer; where `site` is given, its rules are asked for first."""
        answer = Fetched()
        try:
            ignored = await self._heed_site(url, site) if site else ""
            async with self._session.get(
                url, allow_redirects=False, headers=self._headers, cookies=cookies or None
            ) as response:
                answer = Fetched(
                    final_url=str(response.url),
                    http_status=response.status,
                    cookies={name: morsel.value for name, morsel in response.cookies.items()},
                    is_whole="Content-Length" in response.headers or "Transfer-Encoding" in response.headers,
                )
                if response.status in _REDIRECTS and (location := response.headers.get("Location")):
                    return replace(answer, detail=ignored, location=location)
                self._judge(response)
                ignored = self._heed(find_opt_out(response.headers)) or ignored
                is_page = await self._receive(response, part)
                return replace(answer, detail=ignored, is_page=is_page)
        except _RefusalError as refusal:
            return replace(answer, reason=refusal.reason, detail=refusal.detail, retry_after_s=refusal.retry_after_s)
        except GatherError:
            raise
        except Exception as error:  # whatever a server can provoke costs its own link
            return replace(answer, reason=reason_of_error(error), detail=f"{type(error).__name__}: {error}"[:200])

    async def _heed_site(self, url: URL, site: Host) -> str:
        """As `_heed`, for what the site of `url` says as a whole."""
        try:
            return self._heed(await self._sites.find_opt_out(url, site.note_further_request))
        except SiteUnreachableError as error:
            if self._options.ignore_opt_out:
                return ""
            raise _RefusalError(error.reason, error.detail) from error

    def _heed(self, opt_out: str | None) -> str:
        """Refuse what somebody opted out of; where that is ignored on request, the note for the manifest."""
        if opt_out and not self._options.ignore_opt_out:
            raise _RefusalError(Reason.OPT_OUT, opt_out)
        return f"ignored: {opt_out}" if opt_out else ""

    def _judge(self, response: aiohttp.ClientResponse) -> None:
        reason = reason_of_status(response.status)
        if reason:
            asked = response.headers.get("Retry-After")
            detail = f"HTTP {response.status}{f', Retry-After: {asked[:40]}' if asked else ''}"
            raise _RefusalError(reason, detail, retry_after_s(asked))
        if (response.content_length or 0) > self._options.max_bytes:
            raise _RefusalError(Reason.TOO_LARGE, f"{response.content_length} bytes")

    async def _receive(self, response: aiohttp.ClientResponse, part: Path) -> bool:
        """Put the body into the file `part`; whether it is a web page."""
        spool, most, is_page = Spool(part), self._options.max_bytes, False
        encoding = response.headers.get("Content-Encoding", "")
        try:
            inflate = inflater(encoding)
        except ValueError as error:
            raise _RefusalError(Reason.BAD_HTTP, f"Content-Encoding: {encoding[:40]}") from error
        pace, received = Pace(self._options.timeout_s, time.monotonic()), 0
        async for chunk in response.content.iter_any():
            received += len(chunk)
            if pace.is_stalled(time.monotonic(), received):
                raise TimeoutError(f"less than 1 KB/s over {self._options.timeout_s:g} s")
            data = inflate.decompress(chunk, most - spool.total + 1) if inflate else chunk
            is_page |= not spool.total and begins_as_html(data)
            spool.write(data)
            if spool.total > most:
                raise _RefusalError(Reason.TOO_LARGE, f"more than {most} bytes")
        if inflate and not inflate.eof:
            raise _RefusalError(Reason.TRUNCATED, "the compressed body ends too early")
        if not spool.total:
            raise _RefusalError(Reason.EMPTY, "the answer has no byte")
        spool.finish()
        return is_page


def _note(host: Host, link: str, answer: Fetched, asked_at: float) -> None:
    """Tell the host's state how one request to it ended."""
    if answer.http_status in _THROTTLED:
        host.note_throttling(asked_at, answer.retry_after_s)
    elif answer.reason in REFUSING or answer.is_page:
        host.note_refusal(asked_at)
    elif answer.reason in CONNECTION and answer.http_status in _WITH_BODY:
        host.note_failure(asked_at, link, answer.reason)
    elif answer.reason is Reason.SERVER_ERROR and answer.http_status is None:  # its robots.txt
        host.note_failure(asked_at, link, Reason.UNREACHABLE)
    elif answer.reason and answer.http_status is None:  # it was not asked
        host.note_nothing()
    else:
        host.note_answer(asked_at, is_redirect=answer.location is not None)


def _redirected(url: URL, location: str) -> URL:
    """Where a redirect leads.

    Raises:
        _RefusalError: bad-redirect.
    """
    try:
        return parse_url(urljoin(str(url), location))
    except (_RefusalError, ValueError) as error:
        raise _RefusalError(Reason.BAD_REDIRECT, f"redirected to {location}"[:200]) from error


def parse_url(link: str) -> URL:
    """A link that can be asked for.

    Raises:
        _RefusalError: bad-url or bad-scheme.
    """
    try:
        url = URL(link) if len(link) <= _MAX_URL else URL()
        host, port = url.raw_host, url.port
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise _RefusalError(Reason.BAD_URL, str(error)[:200]) from error
    if url.scheme and url.scheme not in ("http", "https"):
        raise _RefusalError(Reason.BAD_SCHEME, url.scheme[:40])
    if not (url.scheme and host and port):
        raise _RefusalError(Reason.BAD_URL, "no host" if len(link) <= _MAX_URL else "too long")
    return url if str(url) == link and _WITH_PATH.fullmatch(link) else _as_written(url, link)


def _as_written(url: URL, link: str) -> URL:
    """`url` with path and query as `link` has them, as a signed link needs; what no request may hold is quoted."""
    target = _AUTHORITY.sub("", link.strip()).partition("#")[0]
    target = _STRAY_PERCENT.sub("%25", quote(target, safe="!#$%&'()*+,/:;=?@[]~", errors="replace"))
    start = "" if target.startswith("/") else "/"
    return URL(f"{url.scheme}://{url.raw_authority}{start}{target}", encoded=True)


def retry_after_s(value: str | None) -> float | None:
    """Seconds from now, of a Retry-After that is a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
