"""Every status and every error of a request as a reason."""

import errno
import socket
import ssl
import zlib
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from mlimages.core import Reason
from mlimages.gathering.download.address_guard import PRIVATE_ADDRESS_ERRNO
from mlimages.gathering.download.reasons import classify_error, classify_status, describe_error, parse_retry_after

STATUSES = {
    Reason.FORBIDDEN: [401, 403, 451],
    Reason.NOT_FOUND: [404],
    Reason.GONE: [410],
    Reason.PROXY: [407],
    Reason.TIMEOUT: [408],
    Reason.THROTTLED: [420, 429],
    Reason.SERVER_ERROR: [409, 421, 423, 425, 440, 444, 499, 500, 501, 502, 503, 504, 520, 599],
    Reason.BAD_REDIRECT: [300, 301, 302, 304, 399],
    Reason.OTHER_STATUS: [100, 199, 201, 202, 204, 205, 207, 299, 400, 402, 405, 406, 411, 416, 418, 450, 498],
    None: [200, 203, 206],
}


def test_every_status_is_a_reason() -> None:
    assert {status: classify_status(status) for group in STATUSES.values() for status in group} == {
        status: reason for reason, group in STATUSES.items() for status in group
    }


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("Thu, 01 Jan 2015 00:00:00 GMT", 0.0), ("", None),
     ("soon", None), ("inf", None), ("-inf", None), ("nan", None), ("1e999", None)],
)  # fmt: skip
def test_retry_after_is_a_finite_number_of_seconds_or_none(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


KEY = ConnectionKey("a.org", 443, True, True, None, None, None)
REQUEST: Any = aiohttp.RequestInfo(URL("https://a.org"), "GET", {}, URL("https://a.org"))  # type: ignore[arg-type]


def connector(kind: type[aiohttp.ClientConnectorError], number: int) -> aiohttp.ClientConnectorError:
    return kind(KEY, OSError(number, "no"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (connector(aiohttp.ClientProxyConnectionError, errno.ECONNREFUSED), Reason.PROXY),
        (aiohttp.ClientHttpProxyError(REQUEST, ()), Reason.PROXY),
        (connector(aiohttp.ClientConnectorDNSError, socket.EAI_NONAME), Reason.UNKNOWN_HOST),
        (connector(aiohttp.ClientConnectorDNSError, socket.EAI_NODATA), Reason.UNKNOWN_HOST),
        (connector(aiohttp.ClientConnectorDNSError, socket.EAI_AGAIN), Reason.NAME_SERVER),
        (connector(aiohttp.ClientConnectorError, PRIVATE_ADDRESS_ERRNO), Reason.PRIVATE_ADDRESS),
        (connector(aiohttp.ClientConnectorError, errno.ECONNREFUSED), Reason.REFUSED),
        (connector(aiohttp.ClientConnectorError, errno.ECONNRESET), Reason.RESET),
        (connector(aiohttp.ClientConnectorError, errno.ECONNABORTED), Reason.RESET),
        (connector(aiohttp.ClientConnectorError, errno.EPIPE), Reason.RESET),
        (connector(aiohttp.ClientConnectorError, errno.ETIMEDOUT), Reason.TIMEOUT),
        (connector(aiohttp.ClientConnectorError, errno.EHOSTUNREACH), Reason.UNREACHABLE),
        (OSError(errno.EPIPE, "no"), Reason.RESET),
        (aiohttp.InvalidURL("x"), Reason.BAD_URL),
        (UnicodeError("x"), Reason.BAD_URL),
        (aiohttp.NonHttpUrlClientError("x"), Reason.BAD_SCHEME),
        (connector(aiohttp.ClientConnectorSSLError, 1), Reason.TLS),
        (ssl.SSLError(1, "x"), Reason.TLS),
        (TimeoutError(), Reason.TIMEOUT),
        (aiohttp.ServerTimeoutError(), Reason.TIMEOUT),
        (aiohttp.ServerDisconnectedError(), Reason.RESET),
        (aiohttp.ClientPayloadError(), Reason.TRUNCATED),
        (aiohttp.ClientOSError(9999, "x"), Reason.RESET),
        (zlib.error(), Reason.CORRUPT),
        (aiohttp.ClientResponseError(REQUEST, ()), Reason.BAD_HTTP),
        (ValueError(), Reason.BAD_HTTP),
    ],
)
def test_every_error_is_a_reason(error: Exception, reason: Reason) -> None:
    assert classify_error(error) is reason


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (connector(aiohttp.ClientConnectorDNSError, socket.EAI_NONAME), "the host name does not resolve"),
        (
            aiohttp.ClientHttpProxyError(REQUEST, (), status=407),
            "the HTTP proxy does not respond, or refuses the connection: see --proxy",
        ),
        (aiohttp.ClientResponseError(REQUEST, (), status=503), "HTTP 503"),
        (aiohttp.ClientResponseError(REQUEST, ()), "invalid response"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (ValueError("x"), "invalid response"),
    ],
)
def test_an_error_is_described_without_the_text_of_a_library(error: Exception, text: str) -> None:
    assert describe_error(error) == text
