"""One URL becomes bytes in a file, or a reason: in time, in bounded memory, with manners."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from mlimages.core import GatherError, Reason
from mlimages.gathering.download.address_guard import is_private_literal
from mlimages.gathering.download.body_file import Spool
from mlimages.gathering.download.client import open_session
from mlimages.gathering.download.host_limits import Host, Hosts
from mlimages.gathering.download.opt_outs import find_opt_out
from mlimages.gathering.download.pace import Pace
from mlimages.gathering.download.reasons import CONNECTION, PASSING, reason_of_error, reason_of_status
from mlimages.gathering.download.robots import Sites, SiteUnreachableError
from mlimages.gathering.options import GatherOptions

_MAX_URL = 8192
_MAX_REDIRECTS = 10
_BACKOFF_S = 1.0
_AUTHORITY = re.compile(r"^[^:]*://[^/?#]*")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_GONE_PICTURES = ("unavailable", "notfound", "not-found", "not_found", "noimage", "no-image", "no_image", "removed")


@dataclass(frozen=True, slots=True)
class Fetched:
    """How one link ended; `reason` is None if its body lies in the file.

    Attributes:
        retry_after_s: what the server asked for. attempts: requests made. elapsed_s: pauses included.
    """

    reason: Reason | None = None
    detail: str = ""
    final_url: str | None = None
    http_status: int | None = None
    retry_after_s: float | None = None
    attempts: int = 0
    elapsed_s: float = 0.0


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
        self._hosts = Hosts(options.own_per_host)
        self._slots = asyncio.Semaphore(options.parallel)

    async def __aenter__(self) -> Fetcher:
        self._session = open_session(self._options)
        self._sites = Sites(self._session, timeout_s=self._options.timeout_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sites.close()
        await self._session.close()

    async def fetch(self, link: str, part: Path, *, asks_site: bool = True) -> Fetched:
        """Fetch `link` into the file `part`; what may succeed later is asked for again after a pause.

        Args:
            asks_site: obey the site's robots.txt and tdmrep.json; not meant for a provider's documented interface.

        Raises:
            GatherError: the file cannot be written.
        """
        try:
            url = parse_url(link)
        except _RefusalError as refusal:
            return Fetched(refusal.reason, refusal.detail)
        if not self._options.allow_private and is_private_literal(url.raw_host or ""):
            return Fetched(Reason.PRIVATE_ADDRESS, f"{url.raw_host} is not a global address")
        with self._hosts.use(f"{url.raw_host}:{url.port}") as host:
            return await self._fetch_patiently(url, host, part, asks_site=asks_site)

    async def _fetch_patiently(self, url: URL, host: Host, part: Path, *, asks_site: bool) -> Fetched:
        last = Fetched(Reason.HOST_DOWN, "other links on this host failed in a row")
        started = 0.0
        for attempt in range(1, self._options.retries + 2):
            await host.wait()
            async with host.slots, self._slots:
                if host.is_down:
                    return last
                started = started or time.monotonic()
                last = await self._request(url, part, asks_site=asks_site)
            last = replace(last, attempts=attempt, elapsed_s=round(time.monotonic() - started, 3))
            host.note(str(url), failed=last.reason in CONNECTION, retry_after_s=last.retry_after_s)
            if last.reason not in PASSING:
                break
            if last.retry_after_s is None and attempt <= self._options.retries:
                await asyncio.sleep(_BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
        return last

    async def _request(self, url: URL, part: Path, *, asks_site: bool) -> Fetched:
        answer = Fetched()
        try:
            ignored = await self._heed_site(url) if asks_site else ""
            async with self._session.get(url, max_redirects=_MAX_REDIRECTS) as response:
                answer = Fetched(final_url=str(response.url), http_status=response.status)
                self._judge(response, url)
                ignored = self._heed(find_opt_out(response.headers)) or ignored
                if response.history and asks_site:
                    ignored = await self._heed_site(response.url) or ignored
                await self._receive(response, part)
                return replace(answer, detail=ignored)
        except _RefusalError as refusal:
            return replace(answer, reason=refusal.reason, detail=refusal.detail, retry_after_s=refusal.retry_after_s)
        except GatherError:
            raise
        except Exception as error:  # whatever a server can provoke costs its own link
            return replace(answer, reason=reason_of_error(error), detail=f"{type(error).__name__}: {error}"[:200])

    async def _heed_site(self, url: URL) -> str:
        """As `_heed`, for what the site of `url` says as a whole."""
        try:
            return self._heed(await self._sites.find_opt_out(url))
        except SiteUnreachableError as error:
            if self._options.ignore_opt_out:
                return ""
            raise _RefusalError(error.reason, error.detail) from error

    def _heed(self, opt_out: str | None) -> str:
        """Refuse what somebody opted out of; where that is ignored on request, the note for the manifest."""
        if opt_out and not self._options.ignore_opt_out:
            raise _RefusalError(Reason.OPT_OUT, opt_out)
        return f"ignored: {opt_out}" if opt_out else ""

    def _judge(self, response: aiohttp.ClientResponse, asked: URL) -> None:
        reason = reason_of_status(response.status)
        if reason:
            raise _RefusalError(reason, f"HTTP {response.status}", retry_after_s(response.headers.get("Retry-After")))
        if response.history and any(word in response.url.name.lower() for word in _GONE_PICTURES):
            raise _RefusalError(Reason.PLACEHOLDER, f"redirected to {response.url}"[:200])
        if (response.content_length or 0) > self._options.max_bytes:
            raise _RefusalError(Reason.TOO_LARGE, f"{response.content_length} bytes")

    async def _receive(self, response: aiohttp.ClientResponse, part: Path) -> None:
        spool, most = Spool(part), self._options.max_bytes
        inflate = _inflater(response.headers.get("Content-Encoding", ""))
        pace, received = Pace(self._options.timeout_s, time.monotonic()), 0
        async for chunk in response.content.iter_any():
            received += len(chunk)
            if pace.is_stalled(time.monotonic(), received):
                raise TimeoutError(f"less than 1 KB/s over {self._options.timeout_s:g} s")
            spool.write(inflate.decompress(chunk, most - spool.total + 1) if inflate else chunk)
            if spool.total > most:
                raise _RefusalError(Reason.TOO_LARGE, f"more than {most} bytes")
        if inflate and not inflate.eof:
            raise _RefusalError(Reason.TRUNCATED, "the compressed body ends too early")
        spool.finish()


def parse_url(link: str) -> URL:
    """A link that can be asked for.

    Raises:
        _RefusalError: bad-url or bad-scheme.
    """
    try:
        url = URL(link) if len(link) <= _MAX_URL else URL()
        host, port = url.raw_host, url.port
    except (ValueError, TypeError, RecursionError) as error:
        raise _RefusalError(Reason.BAD_URL, str(error)[:200]) from error
    if url.scheme and url.scheme not in ("http", "https"):
        raise _RefusalError(Reason.BAD_SCHEME, url.scheme[:40])
    if not host or not port:
        raise _RefusalError(Reason.BAD_URL, "no host" if len(link) <= _MAX_URL else "too long")
    return _as_written(url, link)


def _as_written(url: URL, link: str) -> URL:
    """`url` with path and query as `link` has them, as a signed link needs; what no request may hold is quoted."""
    target = _AUTHORITY.sub("", link.strip()).partition("#")[0]
    target = _STRAY_PERCENT.sub("%25", quote(target, safe="!#$%&'()*+,/:;=?@[]~", errors="replace"))
    start = "" if target.startswith("/") else "/"
    return URL(f"{url.scheme}://{url.raw_authority}{start}{target}", encoded=True)


def _inflater(encoding: str) -> Any:
    """A decoder for a body that came compressed though we did not ask (zlib bounds what it gives)."""
    match encoding.strip().lower():
        case "" | "identity" | "none" | "utf-8":  # the last two are no encodings, but servers send them
            return None
        case "gzip" | "x-gzip" | "deflate":
            return zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
        case other:
            raise _RefusalError(Reason.BAD_HTTP, f"Content-Encoding: {other[:40]}")


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
