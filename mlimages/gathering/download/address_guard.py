"""Refuse connections to private network addresses."""

from __future__ import annotations

import socket
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

PRIVATE_ADDRESS_ERRNO = 0x6D6C
"""The `errno` of the OSError that is raised for a private address; no system uses this number for another error.

If all addresses of a host are private, aiohttp raises a single OSError, which has this `errno` too.
"""

_IPV4_TRANSLATION_NETWORKS = (IPv6Network("64:ff9b::/96"), IPv6Network("::ffff:0:0:0/96"))
"""Networks in whose addresses the last 32 bits are an IPv4 address (RFC 6052; RFC 2765, 2.1)."""

_NON_PUBLIC_NETWORKS = tuple(map(IPv6Network, ("64:ff9b:1::/48", "fec0::/10", "3fff::/20", "5f00::/16")))
"""Networks that are not public although `ipaddress` calls them global: local-use translation (RFC 8215), site-local
addresses, documentation (RFC 9637) and segment routing."""

is_request_proxied: ContextVar[bool] = ContextVar("is_request_proxied", default=False)
"""Context variable: whether the current request goes through a proxy. The middleware in `client` sets it.

The user has chosen the proxy, so its address may be private.
"""


def is_public(address: str) -> bool:
    """Return whether an IP address is public: not private, loopback, link-local or multicast.

    An IPv6 address with an embedded IPv4 address is public if the IPv4 address is.
    """
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = _find_embedded_ipv4(ip) or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NON_PUBLIC_NETWORKS)


def is_private_host(host: str) -> bool:
    """Return whether `host` is localhost or an IP address, in any notation, that is not public.

    A proxy resolves host names itself, so for requests through a proxy this is the only check.

    >>> [is_private_host(host) for host in ("127.1", "2130706433", "localhost.", "example.org")]
    [True, True, True, False]
    """
    host = host.lower().rstrip(".").strip("[]")
    try:
        # The notations that resolvers accept: 127.1, 0x7f000001, 017700000001.
        return not is_public(str(IPv4Address(socket.inet_aton(host))))
    except (OSError, ValueError):
        pass
    try:
        return not is_public(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _find_embedded_ipv4(ip: IPv6Address) -> IPv4Address | None:
    is_compatible = int(ip) >> 32 == 0  # RFC 4291, 2.5.5.1
    if is_compatible or any(ip in network for network in _IPV4_TRANSLATION_NETWORKS):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def create_socket_if_public(addr_info: tuple[Any, ...]) -> socket.socket:
    """Create the socket for a connection if its address is public; `addr_info` is an entry of `socket.getaddrinfo`.

    The address is checked here because IP addresses in links bypass the resolver, and a host name may resolve to
    another address at the next lookup.

    Raises:
        OSError: the address is not public; errno is `PRIVATE_ADDRESS_ERRNO`.
    """
    family, kind, protocol, _, address = addr_info
    if not (is_request_proxied.get() or is_public(address[0])):
        raise OSError(PRIVATE_ADDRESS_ERRNO, f"{address[0]} is not a public address")
    return socket.socket(family, kind, protocol)
