"""Which addresses links may lead to, with the first and last of each range and its neighbours."""

import errno
import socket

import pytest

from mlimages.gathering.download.address_guard import (
    PRIVATE_ADDRESS_ERRNO,
    create_socket_if_public,
    is_private_host,
    is_public,
    is_request_proxied,
)

PRIVATE = """
0.0.0.0 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1 169.254.169.254 172.16.0.0 172.31.255.255
192.168.0.0 192.168.255.255 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fdff::1 ff02::1 2001:db8::1 fec0:: feff:ffff::1 3fff::
3fff:fff:ffff::1 5f00:: 5f00:ffff::1 64:ff9b:1:: 64:ff9b:1:ffff::1 ::127.0.0.1 ::192.168.0.1 ::ffff:127.0.0.1
::ffff:0:127.0.0.1 ::ffff:0:10.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 2002:7f00:1:: 2002:a9fe:a9fe::
2001:0:4136:e378:8000:63bf:3fff:fdd2 10.1.2.3 fec0::1 3fff::1 5f00::1 64:ff9b::7f00:1 64:ff9b:1::1
64:ff9b:1::808:808 ::ffff:0:7f00:1 100.64.0.1
""".split()  # noqa: SIM905
PUBLIC = """
1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 172.15.255.255 172.32.0.0
192.167.255.255 192.169.0.0 223.255.255.255 2606:4700::1 64:ff9b::8.8.8.8 ::ffff:8.8.8.8 ::8.8.8.8 ::ffff:0:8.8.8.8
2002:808:808:: 4000::1 2a00::1 ::1:7f00:1 93.184.216.34 2606:4700::1111 64:ff9b::5db8:d822
""".split()  # noqa: SIM905


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_global_is_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_private_host(f"[{address}]" if ":" in address else address)
    with pytest.raises(OSError, match="is not a public address") as error:
        create_socket_if_public((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))
    assert error.value.errno == PRIVATE_ADDRESS_ERRNO
    assert PRIVATE_ADDRESS_ERRNO not in errno.errorcode


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_global_is_public(address: str) -> None:
    assert is_public(address)
    assert not is_private_host(address)


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("localhost", True), ("LOCALHOST", True), ("LOCALHOST.", True), ("localhost.", True), ("a.localhost", True),
        ("a.localhost.", True), ("notlocalhost", False), ("mylocalhost", False), ("localhost.org", False),
        ("127.1", True), ("0x7f.1", True), ("0x7f000001", True), ("017700000001", True), ("2130706433", True),
        ("169.254.169.254.", True), ("134744072", False), ("1.1", False), ("example.org", False),
        ("127.0.0.1.example.org", False), ("[::1]", True), ("::ffff:0:7f00:1", True), ("", False),
    ],
)  # fmt: skip
def test_names_and_other_notations_of_addresses(host: str, private: bool) -> None:
    assert is_private_host(host) is private


def test_the_socket_has_the_family_and_kind_of_the_address_and_a_proxy_may_be_private() -> None:
    with create_socket_if_public((socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("2606:4700::1", 53, 0, 0))) as made:
        assert (made.family, made.type, made.proto) == (socket.AF_INET6, socket.SOCK_DGRAM, 17)
    token = is_request_proxied.set(True)
    try:
        create_socket_if_public((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))).close()
    finally:
        is_request_proxied.reset(token)
