"""HTTP sessions: honest headers, proxies, and no way to private addresses (aiohttp's one TLS context serves all)."""

from __future__ import annotations

import asyncio
import urllib.request

import aiohttp
from aiohttp import ClientTimeout

from mlimages.gathering.download.address_guard import PRIVATE_ERRNO, is_private_literal, public_socket
from mlimages.gathering.options import GatherOptions

_MAX_HEADER = 64 * 1024
"""Bytes of one header; aiohttp's own bound of 8190 is below what browsers take."""


def open_session(
    options: GatherOptions, *, decompress: bool = False, timeout: ClientTimeout | None = None
) -> aiohttp.ClientSession:
    """A session as `options` say; bodies come as sent unless `decompress`.

    By default a time-out means no progress: it limits connecting, each answer's headers, and the silence between two
    pieces of a body, not a whole transfer.
    """
    from_environment = options.proxy is None and any(urllib.request.getproxies().get(s) for s in ("http", "https"))
    proxied = options.proxy is not None or from_environment  # it looks names up itself: only literals can be judged
    guarded = not options.allow_private
    connector = aiohttp.TCPConnector(
        limit=0,
        ttl_dns_cache=300,
        resolver=aiohttp.ThreadedResolver(),
        socket_factory=public_socket if guarded and not proxied else None,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout or ClientTimeout(connect=options.timeout_s, sock_read=options.timeout_s),
        headers={"User-Agent": options.user_agent, "Accept": "image/*,*/*;q=0.5"}
        | ({} if decompress else {"Accept-Encoding": "identity"}),
        auto_decompress=decompress,
        max_field_size=_MAX_HEADER,
        max_line_size=_MAX_HEADER,
        requote_redirect_url=False,  # a signed link is valid only as it was written
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=options.proxy,
        trust_env=from_environment,
        middlewares=(
            _answering_within(2 * options.timeout_s),
            *((_refuse_private_literals,) if guarded and proxied else ()),
        ),
    )


def _answering_within(seconds: float) -> aiohttp.ClientMiddlewareType:
    """Limits the time until an answer's headers are there: a server may send these byte by byte."""

    async def limited(request: aiohttp.ClientRequest, go_on: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        async with asyncio.timeout(seconds):
            return await go_on(request)

    return limited


async def _refuse_private_literals(
    request: aiohttp.ClientRequest, go_on: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Asked before each request, those that follow a redirect too."""
    if is_private_literal(request.url.raw_host or ""):
        raise OSError(PRIVATE_ERRNO, f"{request.url.raw_host} is not a global address")
    return await go_on(request)
