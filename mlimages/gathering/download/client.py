"""HTTP sessions that identify mlimages, use proxies and refuse private addresses."""

from __future__ import annotations

import asyncio
import urllib.request

import aiohttp
from aiohttp import ClientTimeout
from yarl import URL

from mlimages.gathering.download.address_guard import (
    PRIVATE_ADDRESS_ERRNO,
    create_socket_if_public,
    is_private_host,
    is_request_proxied,
)
from mlimages.gathering.download.response_head import LenientConnector
from mlimages.gathering.options import GatherOptions, check_http_proxy

_MAX_HEADER_BYTES = 64 * 1024
"""Maximum size of a header field; aiohttp's default of 8190 bytes is below that of browsers."""


def open_session(
    options: GatherOptions, *, decompress: bool = False, timeout: ClientTimeout | None = None
) -> aiohttp.ClientSession:
    """Open an HTTP session.

    Args:
        options: options of the requests, such as the User-Agent, the proxy and the time-out.
        decompress: request compressed bodies and decompress them.
        timeout: time-outs of the requests. By default, `options.timeout_s` applies to the connection and to each wait
            for data, not to a whole transfer. In any case, all headers must arrive within twice `options.timeout_s`.
    """
    connector = LenientConnector(
        limit=0,
        ttl_dns_cache=300,
        resolver=aiohttp.ThreadedResolver(),
        socket_factory=None if options.allow_private else create_socket_if_public,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout or ClientTimeout(connect=options.timeout_s, sock_read=options.timeout_s),
        headers={"User-Agent": options.full_user_agent, "Accept": "image/*,*/*;q=0.5"}
        | ({} if decompress else {"Accept-Encoding": "identity"}),
        auto_decompress=decompress,
        max_field_size=_MAX_HEADER_BYTES,
        max_line_size=_MAX_HEADER_BYTES,
        requote_redirect_url=False,  # a signed link is valid only in its original spelling
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # it would read passwords from ~/.netrc
        middlewares=(_make_middleware(options),),
    )


def _make_middleware(options: GatherOptions) -> aiohttp.ClientMiddlewareType:
    """Return a middleware that sets the proxy of each request: that of the options, or else that of the environment.

    Since a server may send its headers byte by byte, the middleware also raises TimeoutError if they have not all
    arrived within twice `options.timeout_s`.
    """
    proxy = options.proxy
    urls = {"http": proxy, "https": proxy} if proxy else urllib.request.getproxies()
    proxies = {scheme: _parse_proxy(urls[scheme]) for scheme in ("http", "https") if urls.get(scheme)}

    async def send_through_proxy(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        host = request.url.raw_host or ""
        is_bypassed = proxy is None and bool(proxies) and bool(urllib.request.proxy_bypass(host))
        url, auth = (None, None) if is_bypassed else proxies.get(request.url.scheme, (None, None))
        if url and not options.allow_private and is_private_host(host):  # a proxy resolves host names itself
            raise OSError(PRIVATE_ADDRESS_ERRNO, f"{host} is not a public address")
        request.update_proxy(url, auth, None)
        is_request_proxied.set(url is not None)
        async with asyncio.timeout(2 * options.timeout_s):
            return await handler(request)

    return send_through_proxy


def _parse_proxy(proxy_url: str) -> tuple[URL, aiohttp.BasicAuth | None]:
    """Split the URL of a proxy into the URL without its credentials, and the credentials.

    Raises:
        InputError: the URL is not that of an HTTP proxy.
    """
    check_http_proxy(proxy_url)
    url = URL(proxy_url)
    auth = aiohttp.BasicAuth(url.user, url.password or "") if url.user else None
    return url.with_user(None), auth
