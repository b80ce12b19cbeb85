"""Classify failures of requests, and read when to retry them."""

from __future__ import annotations

import email.utils
import errno
import math
import socket
import ssl
import time
import zlib
from contextlib import suppress
from typing import Any

import aiohttp

from mlimages.core import RETRYABLE_REASONS, Reason
from mlimages.gathering.download.address_guard import PRIVATE_ADDRESS_ERRNO

CONNECTION_REASONS = {
    Reason.REFUSED, Reason.UNREACHABLE, Reason.UNKNOWN_HOST, Reason.NAME_SERVER, Reason.TLS, Reason.RESET,
    Reason.TIMEOUT, Reason.PROXY,
}  # fmt: skip
"""Reasons why there was no complete response: they concern the host rather than the link."""

TRANSIENT_REASONS = {
    Reason.TIMEOUT, Reason.RESET, Reason.TRUNCATED, Reason.THROTTLED, Reason.SERVER_ERROR, Reason.REFUSED,
    Reason.UNREACHABLE, Reason.NAME_SERVER, Reason.PROXY, Reason.EMPTY,
}  # fmt: skip
"""Reasons that may be temporary: the run itself retries the request."""

REFUSAL_REASONS = {Reason.FORBIDDEN, Reason.HTML}
"""Reasons that concern the host if they occur on consecutive links: it blocks this client, or shows a login page."""

NON_FINAL_REASONS = RETRYABLE_REASONS | {Reason.TRUNCATED}
"""Reasons that do not depend on the link itself, so that the same command requests the link again."""

_REASON_BY_STATUS = {
    401: Reason.FORBIDDEN, 403: Reason.FORBIDDEN, 404: Reason.NOT_FOUND, 407: Reason.PROXY,
    408: Reason.TIMEOUT, 409: Reason.SERVER_ERROR, 410: Reason.GONE, 420: Reason.THROTTLED, 421: Reason.SERVER_ERROR,
    423: Reason.SERVER_ERROR, 425: Reason.SERVER_ERROR, 429: Reason.THROTTLED, 440: Reason.SERVER_ERROR,
    444: Reason.SERVER_ERROR, 451: Reason.FORBIDDEN, 499: Reason.SERVER_ERROR,
}  # fmt: skip
_REASON_BY_ERRNO = {
    PRIVATE_ADDRESS_ERRNO: Reason.PRIVATE_ADDRESS,
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.RESET,
    errno.ECONNABORTED: Reason.RESET,
    errno.EPIPE: Reason.RESET,
    errno.ETIMEDOUT: Reason.TIMEOUT,
}
_DESCRIPTION_BY_REASON = {
    Reason.UNKNOWN_HOST: "the host name does not resolve",
    Reason.NAME_SERVER: "no name server responds",
    Reason.PRIVATE_ADDRESS: "private address: --allow-private permits it (allow_private=True in Python)",
    Reason.REFUSED: "connection refused",
    Reason.UNREACHABLE: "no route to the host",
    Reason.RESET: "connection closed",
    Reason.TIMEOUT: "no response in time",
    Reason.TLS: "TLS certificate or protocol not accepted",
    Reason.PROXY: "the HTTP proxy does not respond, or refuses the connection: see --proxy",
    Reason.TRUNCATED: "truncated response",
    Reason.BAD_URL: "invalid URL",
    Reason.BAD_SCHEME: "not an http(s) URL",
}
_UNKNOWN_HOST_ERRNOS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_REASON_BY_EXCEPTION: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Reason], ...] = (
    (aiohttp.ClientHttpProxyError, Reason.PROXY),
    ((aiohttp.InvalidURL, UnicodeError), Reason.BAD_URL),
    (aiohttp.NonHttpUrlClientError, Reason.BAD_SCHEME),
    ((aiohttp.ClientSSLError, ssl.SSLError), Reason.TLS),
    (TimeoutError, Reason.TIMEOUT),
    (aiohttp.ServerDisconnectedError, Reason.RESET),
    (aiohttp.ClientPayloadError, Reason.TRUNCATED),
    (aiohttp.ClientConnectorError, Reason.UNREACHABLE),
    (aiohttp.ClientOSError, Reason.RESET),
    (zlib.error, Reason.CORRUPT),
)


class DownloadError(Exception):
    """Raised if a link is not downloaded.

    Attributes:
        values: fields of the link's `DownloadResult`, by name.
    """

    def __init__(self, reason: Reason, detail: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.values: dict[str, Any] = {"reason": reason, "detail": detail, "retry_after_s": retry_after_s}


def classify_status(status: int) -> Reason | None:
    """Return why a response with this status is a failure; None if it is a success."""
    if status in (200, 203, 206):  # 203: changed by a proxy; 206: a part, which is checked like a whole body
        return None
    if 300 <= status < 400:  # redirects with a target are followed before
        return Reason.BAD_REDIRECT
    return Reason.SERVER_ERROR if status >= 500 else _REASON_BY_STATUS.get(status, Reason.OTHER_STATUS)


def describe_error(error: Exception) -> str:
    """Return a short description of why a request failed, for messages."""
    status = getattr(error, "status", 0)
    other = f"HTTP {status}" if status >= 300 else getattr(error, "strerror", None)  # of a full disk, for example
    return _DESCRIPTION_BY_REASON.get(classify_error(error)) or other or "invalid response"


def classify_error(error: Exception) -> Reason:
    """Return the reason why a request failed; `bad-http` for other errors, such as those of invalid responses."""
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return Reason.PROXY
    os_error = getattr(error, "os_error", error)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Reason.UNKNOWN_HOST if error.errno in _UNKNOWN_HOST_ERRNOS else Reason.NAME_SERVER
    if isinstance(os_error, OSError) and os_error.errno in _REASON_BY_ERRNO:
        return _REASON_BY_ERRNO[os_error.errno]
    return next((reason for kind, reason in _REASON_BY_EXCEPTION if isinstance(error, kind)), Reason.BAD_HTTP)


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds to wait according to a Retry-After header (RFC 9110, 10.2.3); None if absent or invalid."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value)) if math.isfinite(float(value)) else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
