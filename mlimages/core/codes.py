"""Closed sets of codes: why an image cannot be used, and why a link yields no image."""

from __future__ import annotations

from enum import StrEnum

MAX_PIXELS = 89_478_485
"""Maximum width x height of an image that is decoded; Pillow's default limit."""


class Fault(StrEnum):
    """Reasons why an image cannot be used; `check`, `predict`, `serve` and training use the same codes."""

    MISSING = "missing"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not-an-image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_PIXELS = "too-many-pixels"
    UNREADABLE = "unreadable"
    UNAVAILABLE = "unavailable"


class Reason(StrEnum):
    """Reasons why a link yields no image; `gather` records the reason in the manifest."""

    BAD_URL = "bad-url"
    BAD_SCHEME = "bad-scheme"
    PRIVATE_ADDRESS = "private-address"
    UNKNOWN_HOST = "unknown-host"
    NAME_SERVER = "name-server"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    RESET = "reset"
    TLS = "tls"
    TIMEOUT = "timeout"
    HOST_DOWN = "host-down"
    PROXY = "proxy"
    BAD_HTTP = "bad-http"
    REDIRECTS = "too-many-redirects"
    BAD_REDIRECT = "bad-redirect"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    GONE = "gone"
    THROTTLED = "throttled"
    SERVER_ERROR = "server-error"
    OTHER_STATUS = "other-status"
    OPT_OUT = "opt-out"
    EMPTY = "empty"
    HTML = "html"
    TEXT = "text"
    NOT_AN_IMAGE = "not-an-image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too-large"
    TOO_MANY_PIXELS = "too-many-pixels"
    TOO_SMALL = "too-small"
    DECODER = "decoder"
    PLACEHOLDER = "placeholder"


RETRYABLE_REASONS = frozenset({
    Reason.PRIVATE_ADDRESS, Reason.UNKNOWN_HOST, Reason.NAME_SERVER, Reason.REFUSED, Reason.UNREACHABLE, Reason.RESET,
    Reason.TLS, Reason.TIMEOUT, Reason.HOST_DOWN, Reason.PROXY, Reason.THROTTLED, Reason.SERVER_ERROR,
})  # fmt: skip
"""Reasons caused by the network, the host or this machine; the next run of the same command retries the link."""
