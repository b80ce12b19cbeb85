"""HTTP sessions: honest headers, proxies, and no way to private addresses (aiohttp's one TLS context serves all)."""

from __future__ import annotations

import urllib.request

import aiohttp

from mlimages.gathering.address import public_socket
from mlimages.gathering.options import GatherOptions


def open_session(
    options: GatherOptions, *, decompress: bool = False, timeout: aiohttp.ClientTimeout | None = None
) -> aiohttp.ClientSession:
    """A session as `options` say; bodies come as sent unless `decompress`."""
    from_environment = options.proxy is None and any(urllib.request.getproxies().get(s) for s in ("http", "https"))
    guarded = not (options.allow_private or options.proxy or from_environment)  # a proxy looks names up itself
    connector = aiohttp.TCPConnector(
        limit=0,
        ttl_dns_cache=300,
        resolver=aiohttp.ThreadedResolver(),
        socket_factory=public_socket if guarded else None,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout or aiohttp.ClientTimeout(total=options.timeout_s, connect=options.connect_timeout_s),
        headers={"User-Agent": options.user_agent, "Accept": "image/*,*/*;q=0.5"}
        | ({} if decompress else {"Accept-Encoding": "identity"}),
        auto_decompress=decompress,
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=options.proxy,
        trust_env=from_environment,
    )
