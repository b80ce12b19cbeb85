"""Which network addresses a link may lead to."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

PRIVATE_ERRNO = 0x6D6C
"""The `errno` of the refusal (a number that no system uses), which survives where errors are merged into one."""

_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether a literal address is global: not private, loopback, link-local, multicast or one of these within IPv6."""
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = _embedded(ip) or ip
    return ip.is_global and not ip.is_multicast


def is_private_literal(host: str) -> bool:
    """Whether a URL's host says by itself that it is not global: all that can be known before a proxy."""
    try:
        return not is_public(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _embedded(ip: IPv6Address) -> IPv4Address | None:
    if ip in _NAT64 or int(ip) >> 32 == 0:  # RFC 6052; IPv4-compatible (RFC 4291, 2.5.5.1)
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def public_socket(addr_info: tuple[Any, ...]) -> socket.socket:
    """A socket for one resolved address, made just before it is connected.

    Checked here because a resolver is not asked about literal addresses, and may answer differently twice.

    Raises:
        OSError: with `PRIVATE_ERRNO`; the address is not global.
    """
    family, kind, protocol, _, address = addr_info
    if not is_public(address[0]):
        raise OSError(PRIVATE_ERRNO, f"{address[0]} is not a global address")
    return socket.socket(family, kind, protocol)
