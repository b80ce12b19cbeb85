"""Download links to files: retries, redirects, opt-outs, and limits on time and size."""

from __future__ import annotations

import asyncio
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
from mlimages.gathering.download.address_guard import is_private_host
from mlimages.gathering.download.body_file import BufferedFile, StallDetector, make_decompressor
from mlimages.gathering.download.client import open_session
from mlimages.gathering.download.host_limits import Host, Hosts
from mlimages.gathering.download.host_state import (
    REFUSALS_UNTIL_PAUSED,
    HostState,
    record_failure,
    record_refusal,
    record_response,
    record_throttling,
)
from mlimages.gathering.download.image_info import is_html
from mlimages.gathering.download.opt_outs import find_opt_out
from mlimages.gathering.download.reasons import (
    CONNECTION_REASONS,
    REFUSAL_REASONS,
    TRANSIENT_REASONS,
    DownloadError,
    classify_error,
    classify_status,
    parse_retry_after,
)
from mlimages.gathering.download.robots import SiteRulesCache
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.partition import LinkPartition

_MAX_URL_LENGTH = 8192
_MAX_REDIRECTS = 10
_BACKOFF_S = 1.0
"""Maximum pause before the first retry; doubled for each further retry."""
_SCHEME_AND_AUTHORITY = re.compile(r"^[^:]*://[^/?#]*")
_URL_WITH_PATH = re.compile(r"[^:]*://[^/?#]+/[^#]*")
_UNENCODED_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_THROTTLING_STATUSES = (420, 429, 503)
_NON_ERROR_STATUSES = (None, 200, 203, 206)
"""HTTP statuses of requests that fail although the server reports no error: for example, the connection breaks before
the response (None) or within the body (200, 203, 206)."""
_MAX_503_RESPONSES = 10
"""Maximum number of 503 responses to a link that count as throttling by its host; after one more, the link fails."""


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """The result of downloading a link.

    Attributes:
        reason: why the download failed; None if the body was saved.
        detail: further information, in words.
        final_url, http_status: URL and status of the response to the last request; None if there was none.
        retry_after_s: seconds to wait according to Retry-After.
        redirect_location: target of a redirect; None for other responses.
        attempts: number of requests. If the rules of the site forbid a request, it counts although it is not sent.
        elapsed_s: duration in seconds, including retries and waiting for the host.
        is_web_page: whether the body is a web page.
        has_known_length: whether the headers state where the body ends; otherwise it may be truncated unnoticed.
        cookies: cookies that the response sets, as values by name.
        fetched_at: time of the last response, or of the request if there was none, in seconds since the epoch.
    """

    reason: Reason | None = None
    detail: str = ""
    final_url: str | None = None
    http_status: int | None = None
    retry_after_s: float | None = None
    redirect_location: str | None = None
    attempts: int = 0
    elapsed_s: float = 0.0
    is_web_page: bool = False
    has_known_length: bool = True
    cookies: Mapping[str, str] = field(default_factory=dict)
    fetched_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, repr=False)  # header fields and cookies may be secret
class _Request:
    """A request for a link, or for a URL to which it redirects.

    Attributes:
        path, label, obeys_site_rules: see `Fetcher.fetch`.
        cookies: cookies of earlier responses to requests for the link.
    """

    url: URL
    headers: Mapping[str, str]
    path: Path
    label: str
    obeys_site_rules: bool
    cookies: Mapping[str, str] = field(default_factory=dict)


class Fetcher:
    """Downloads links in one HTTP session; use as an async context manager.

    Attributes:
        hosts: the hosts in use and those used recently.
    """

    def __init__(self, options: GatherOptions, partition: LinkPartition) -> None:
        self._options = options
        self._headers = options.header_fields
        self.hosts = Hosts(partition, options.max_wait_s)
        self._slots = asyncio.Semaphore(options.parallel)

    async def __aenter__(self) -> Fetcher:
        self._session = open_session(self._options)
        self._site_rules = SiteRulesCache(self._session, timeout_s=self._options.timeout_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._site_rules.close()
        await self._session.close()

    async def fetch(self, link: str, path: Path, *, label: str = "", obeys_site_rules: bool = True) -> DownloadResult:
        """Download `link` to the file `path`; transient failures are retried after a pause.

        Args:
            label: class of the link.
            obeys_site_rules: whether to obey robots.txt and tdmrep.json of the site; False for the API of a provider.
                The headers of the response are checked for opt-outs in both cases.

        Raises:
            GatherError: the file cannot be written.
        """
        started, attempts, note = time.monotonic(), 0, ""
        try:
            request = _Request(parse_url(link), self._headers, path, label, obeys_site_rules)
            origin = request.url.origin()
            for _ in range(_MAX_REDIRECTS + 1):
                result = await self._fetch_with_retries(request)
                attempts += result.attempts
                note = result.detail or note
                if result.redirect_location is None:
                    break
                url = _resolve_redirect(request.url, result.redirect_location)
                may_send_headers = url.origin() in (origin, origin.with_scheme("https"))  # they may contain credentials
                headers = self._headers if may_send_headers else {}
                cookies = {**request.cookies, **result.cookies} if url.raw_host == request.url.raw_host else {}
                request = replace(request, url=url, headers=headers, cookies=cookies)
            else:
                result = replace(result, reason=Reason.REDIRECTS, detail=f"more than {_MAX_REDIRECTS} redirects")
        except DownloadError as error:
            result = DownloadResult(**error.values)
        detail = result.detail or note
        return replace(result, detail=detail, attempts=attempts, elapsed_s=round(time.monotonic() - started, 3))

    async def _fetch_with_retries(self, request: _Request) -> DownloadResult:
        """Send a request until the result is final, the retries are used up or the host is given up.

        Returns:
            The last result, which may be a redirect.
        """
        url = request.url
        if not self._options.allow_private and is_private_host(url.raw_host or ""):
            return DownloadResult(Reason.PRIVATE_ADDRESS, f"{url.raw_host} is not a public address")
        result = DownloadResult(Reason.HOST_DOWN)
        attempts = own_failures = unavailable = 0
        with self.hosts.use_host(f"{url.raw_host}:{url.port}", str(url), request.label) as host:
            while True:
                async with host.request_slots:
                    if not await host.wait_for_turn():
                        if result.reason is Reason.HOST_DOWN or host.state.num_refusals >= REFUSALS_UNTIL_PAUSED:
                            result = DownloadResult(Reason.HOST_DOWN, _describe_unavailable_host(host.state))
                        break
                    async with self._slots:
                        requested_at = time.monotonic()
                        result = await self._request(request, host)
                        if result.cookies:
                            request = replace(request, cookies={**request.cookies, **result.cookies})
                attempts += 1
                _update_host(host, str(url), result, requested_at)
                unavailable += result.http_status == 503
                if result.reason not in TRANSIENT_REASONS or unavailable > _MAX_503_RESPONSES:
                    break
                if host.state.is_paused and result.http_status in (*_NON_ERROR_STATUSES, *_THROTTLING_STATUSES):
                    continue  # a failure of the host, not of the link
                own_failures += 1
                if own_failures > self._options.retries:
                    break
                await asyncio.sleep(_BACKOFF_S * 2 ** (own_failures - 1) * random.uniform(0.5, 1.0))
        return replace(result, attempts=attempts)

    async def _request(self, request: _Request, host: Host) -> DownloadResult:
        """Check the rules of the site, then send one request; return its result, even if it fails."""
        result = DownloadResult()
        try:
            note = await self._check_site_rules(request.url, host) if request.obeys_site_rules else ""
            async with self._session.get(
                request.url, allow_redirects=False, headers=request.headers, cookies=request.cookies or None
            ) as response:
                result = DownloadResult(
                    final_url=str(response.url),
                    http_status=response.status,
                    cookies={name: morsel.value for name, morsel in response.cookies.items()},
                    has_known_length="Content-Length" in response.headers or "Transfer-Encoding" in response.headers,
                )
                if response.status in _REDIRECT_STATUSES and (location := response.headers.get("Location")):
                    return replace(result, detail=note, redirect_location=location)
                self._check_response(response)
                note = self._enforce_opt_out(find_opt_out(response.headers)) or note
                is_web_page = await self._save_body(response, request.path)
                return replace(result, detail=note, is_web_page=is_web_page)
        except DownloadError as error:
            return replace(result, **error.values)
        except GatherError:
            raise
        except Exception as error:  # an error that a server provokes fails only its link
            return replace(result, reason=classify_error(error), detail=f"{type(error).__name__}: {error}"[:200])

    async def _check_site_rules(self, url: URL, host: Host) -> str:
        """Check robots.txt and tdmrep.json; return a note for the manifest if an opt-out is ignored, otherwise "".

        Raises:
            DownloadError: the site forbids the request, or its rules cannot be read. With the option `ignore_opt_out`,
                neither raises this error.
        """
        try:
            return self._enforce_opt_out(await self._site_rules.find_opt_out(url, host.record_site_rules_request))
        except DownloadError:
            if self._options.ignore_opt_out:
                return ""
            raise

    def _enforce_opt_out(self, opt_out: str | None) -> str:
        """Raise DownloadError if there is an opt-out, or return a note on it if it is ignored; "" if there is none."""
        if opt_out and not self._options.ignore_opt_out:
            raise DownloadError(Reason.OPT_OUT, opt_out)
        return f"ignored opt-out: {opt_out}" if opt_out else ""

    def _check_response(self, response: aiohttp.ClientResponse) -> None:
        """Raise DownloadError if the status is an error, the content is multipart, or it exceeds the maximum size."""
        reason = classify_status(response.status)
        if reason:
            retry_after = response.headers.get("Retry-After")
            detail = f"HTTP {response.status}{f', Retry-After: {retry_after[:40]}' if retry_after else ''}"
            raise DownloadError(reason, detail, parse_retry_after(retry_after))
        if response.content_type.startswith("multipart/"):  # several parts, or the endless stream of a camera
            raise DownloadError(Reason.NOT_AN_IMAGE, f"Content-Type: {response.content_type}"[:200])
        if (response.content_length or 0) > self._options.max_bytes:
            raise DownloadError(
                Reason.TOO_LARGE, f"{response.content_length} bytes, at most {self._options.max_bytes} allowed"
            )

    async def _save_body(self, response: aiohttp.ClientResponse, path: Path) -> bool:
        """Write the body to the file `path`; return whether it is a web page."""
        file, max_bytes, is_web_page = BufferedFile(path), self._options.max_bytes, False
        encoding = response.headers.get("Content-Encoding", "")
        try:
            decompressor = make_decompressor(encoding)
        except ValueError as error:
            raise DownloadError(Reason.BAD_HTTP, f"unsupported Content-Encoding: {encoding[:40]}") from error
        stall_detector, num_received = StallDetector(self._options.timeout_s, max_bytes, time.monotonic()), 0
        async for chunk in response.content.iter_any():
            num_received += len(chunk)
            if problem := stall_detector.describe_stall(time.monotonic(), num_received):
                raise TimeoutError(problem)
            data = decompressor.decompress(chunk, max_bytes - file.total + 1) if decompressor else chunk
            is_web_page |= not file.total and is_html(data)
            file.write(data)
            if max(file.total, num_received) > max_bytes:  # compressed data may contain nothing, without end
                raise DownloadError(Reason.TOO_LARGE, f"more than {max_bytes} bytes")
        if decompressor and not decompressor.eof:
            raise DownloadError(Reason.TRUNCATED, "the compressed body is truncated")
        if not file.total:
            raise DownloadError(Reason.EMPTY, "the response body is empty")
        file.flush()
        return is_web_page


def _describe_unavailable_host(state: HostState) -> str:
    """Return why no request is sent to a host that is given up, or paused for longer than the run waits."""
    if state.num_refusals >= REFUSALS_UNTIL_PAUSED:
        return "the host has refused several links in a row"
    if state.is_paused and not state.failed_links:  # it responded last, with 429 or 503
        return "the host throttles requests (HTTP 429 or 503)"
    return "earlier requests could not reach the host"


def _update_host(host: Host, link: str, result: DownloadResult, requested_at: float) -> None:
    state, now = host.state, time.monotonic()
    if result.http_status in _THROTTLING_STATUSES:
        state = record_throttling(state, now, requested_at=requested_at, retry_after_s=result.retry_after_s)
    elif result.reason in REFUSAL_REASONS or result.is_web_page:
        state = record_refusal(state, now, requested_at=requested_at)
    elif result.reason in CONNECTION_REASONS and result.http_status in _NON_ERROR_STATUSES:
        state = record_failure(state, now, requested_at=requested_at, link=link, reason=result.reason)
    elif result.reason is Reason.SERVER_ERROR and result.http_status is None:  # the status of its robots.txt
        state = record_failure(state, now, requested_at=requested_at, link=link, reason=Reason.UNREACHABLE)
    elif result.reason and result.http_status is None:
        host.record_unsent_request()
        return
    else:
        is_redirect = result.redirect_location is not None
        state = record_response(state, now, requested_at=requested_at, is_redirect=is_redirect)
    host.set_state(state)


def _resolve_redirect(url: URL, location: str) -> URL:
    """Return the URL of a Location header, which may be relative to `url`."""
    try:
        return parse_url(urljoin(str(url), location))
    except (DownloadError, ValueError) as error:
        raise DownloadError(Reason.BAD_REDIRECT, f"redirected to {location}"[:200]) from error


def parse_url(link: str) -> URL:
    """Parse a link into a URL with a normalized host (lower case, IDNA) and without fragment.

    Path and query keep their spelling, since they may be signed; only invalid characters are percent-encoded.

    Raises:
        DownloadError: the link cannot be requested; the reason is `bad-url` or `bad-scheme`.
    """
    try:
        url = URL(link) if len(link) <= _MAX_URL_LENGTH else URL()
        host, port = url.raw_host, url.port
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise DownloadError(Reason.BAD_URL, str(error)[:200]) from error
    if url.scheme and url.scheme not in ("http", "https"):
        raise DownloadError(Reason.BAD_SCHEME, url.scheme[:40])
    if not (url.scheme and host and port):
        raise DownloadError(Reason.BAD_URL, "no host" if len(link) <= _MAX_URL_LENGTH else "too long")
    return url if str(url) == link and _URL_WITH_PATH.fullmatch(link) else _restore_path_and_query(url, link)


def _restore_path_and_query(url: URL, link: str) -> URL:
    """Return `url` with path and query spelled as in `link`; only invalid characters are percent-encoded."""
    target = _SCHEME_AND_AUTHORITY.sub("", link.strip()).partition("#")[0]
    target = _UNENCODED_PERCENT.sub("%25", quote(target, safe="!#$%&'()*+,/:;=?@[]~", errors="replace"))
    start = "" if target.startswith("/") else "/"
    return URL(f"{url.scheme}://{url.raw_authority}{start}{target}", encoded=True)
