"""HTTP sessions: honest headers, proxies, and no way to private addresses (aiohttp's one TLS context serves all)."""

from __future__ import annotations

import asyncio
import urllib.request

import aiohttp
from aiohttp import ClientTimeout
from yarl import URL

from mlimages.gathering.download.address_guard import PRIVATE_ERRNO, is_private_literal, is_proxied, public_socket
from mlimages.gathering.download.response_head import MendingConnector
from mlimages.gathering.options import GatherOptions, demand_http_proxy

_Proxy = tuple[URL, aiohttp.BasicAuth | None]

_MAX_HEADER = 64 * 1024
"""Bytes of one header; aiohttp's own bound of 8190 is below what browsers take."""


def open_session(
    options: GatherOptions, *, decompress: bool = False, timeout: ClientTimeout | None = None
) -> aiohttp.ClientSession:
    """A session as `options` say; bodies come as sent unless `decompress`.

    By default a time-out means no progress: it limits connecting, each answer's headers, and the silence between two
    pieces of a body, not a whole transfer.
    """
    guarded = not options.allow_private
    connector = MendingConnector(
        limit=0,
        ttl_dns_cache=300,
        resolver=aiohttp.ThreadedResolver(),
        socket_factory=public_socket if guarded else None,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout or ClientTimeout(connect=options.timeout_s, sock_read=options.timeout_s),
        headers={"User-Agent": options.agent, "Accept": "image/*,*/*;q=0.5"}
        | ({} if decompress else {"Accept-Encoding": "identity"}),
        auto_decompress=decompress,
        max_field_size=_MAX_HEADER,
        max_line_size=_MAX_HEADER,
        requote_redirect_url=False,  # a signed link is valid only as it was written
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # it would read passwords from ~/.netrc
        middlewares=(_answering_within(2 * options.timeout_s), _choosing_proxy(options.proxy, guarded=guarded)),
    )


def _answering_within(seconds: float) -> aiohttp.ClientMiddlewareType:
    """Limits the time until an answer's headers are there: a server may send these byte by byte."""

    async def limited(request: aiohttp.ClientRequest, go_on: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        async with asyncio.timeout(seconds):
            return await go_on(request)

    return limited


def _choosing_proxy(proxy: str | None, *, guarded: bool) -> aiohttp.ClientMiddlewareType:
    """Chooses the way of each request, those that follow a redirect too: by `proxy`, the environment's, or none.

    A proxy looks names up itself: only what the URL says can be judged before.
    """
    proxies = {scheme: _parsed_proxy(proxy) for scheme in ("http", "https")} if proxy else _environment_proxies()

    async def choose(request: aiohttp.ClientRequest, go_on: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        host = request.url.raw_host or ""
        found = (
            None if proxy is None and proxies and urllib.request.proxy_bypass(host) else proxies.get(request.url.scheme)
        )
        if found and guarded and is_private_literal(host):
            raise OSError(PRIVATE_ERRNO, f"{host} is not a global address")
        url, auth = found or (None, None)
        request.update_proxy(url, auth, None)
        is_proxied.set(found is not None)
        return await go_on(request)

    return choose


def _environment_proxies() -> dict[str, _Proxy]:
    found = urllib.request.getproxies()
    return {scheme: _parsed_proxy(found[scheme]) for scheme in ("http", "https") if found.get(scheme)}


def _parsed_proxy(text: str) -> _Proxy:
    """The proxy's URL and what it wants to know of us.

    Raises:
        InputError: it is no HTTP proxy.
    """
    demand_http_proxy(text)
    url = URL(text)
    auth = aiohttp.BasicAuth(url.user, url.password or "") if url.user else None
    return url.with_user(None), auth
