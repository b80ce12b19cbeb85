"""Settings of a server, from which the options of the command line and their validation are derived."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from mlimages.core import InputError, Option, check_options, document_fields

TOKEN_VARIABLE = "MLIMAGES_TOKEN"
"""Name of the environment variable with the access token."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?", re.ASCII)

LogFormat = Literal["text", "json"]


@document_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of a server: access, limits and logging.

    Example:
        >>> ServerSettings(max_images=8, allowed_hosts=("images.example.org",)).max_images
        8
    """

    token: Annotated[
        str, Option("Access token that requests must send; if empty, none is required.", is_internal=True)
    ] = field(default="", repr=False)
    allowed_hosts: Annotated[
        tuple[str, ...],
        Option(
            "Accept requests for this host name in addition to localhost and IP addresses; * accepts any; repeatable.",
            group="Access",
            flags=("--allowed-host",),
            metavar="NAME",
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Option(
            "Allow cross-origin requests (CORS) from this origin (https://example.org); * allows any; repeatable.",
            group="Access",
            flags=("--cors",),
            metavar="ORIGIN",
        ),
    ] = ()
    max_bytes: Annotated[
        int, Option("Maximum request size in bytes; larger requests are rejected with HTTP 413.", group="Limits", min=1)
    ] = 16 << 20
    max_pixels: Annotated[
        int, Option("Maximum pixels (width x height) of an image, checked before decoding.", group="Limits", min=1)
    ] = 50_000_000
    max_images: Annotated[
        int, Option("Maximum number of images in a request, at most --queue-size.", group="Limits", min=1)
    ] = 64
    queue_size: Annotated[
        int,
        Option("Maximum number of queued images; further requests are rejected with HTTP 503.", group="Limits", min=1),
    ] = 128
    explain: Annotated[
        bool,
        Option(
            "Serve /explain: 50 forward passes per image; each worker explains one image at a time.", group="Limits"
        ),
    ] = True
    timeout_s: Annotated[
        float,
        Option(
            "Time limit in seconds for receiving each 16 KB of a request (HTTP 408), and for computing the response "
            "(HTTP 503).",
            group="Limits",
            flags=("--timeout",),
            metavar="SECONDS",
            min=0.1,
        ),
    ] = 30.0
    idle_timeout_s: Annotated[
        float,
        Option(
            "Seconds after which a connection without a request is closed.",
            group="Limits",
            flags=("--idle-timeout",),
            metavar="SECONDS",
            min=0.1,
        ),
    ] = 20.0
    access_log: Annotated[bool, Option("Log each request to standard error.", group="Log")] = False
    log_format: Annotated[LogFormat, Option("Format of log lines; json: one JSON object per line.", group="Log")] = (
        "text"
    )

    def __post_init__(self) -> None:
        """Check all values.

        Raises:
            InputError: a number is out of bounds, the token cannot be sent in a header, or a host name or an origin is
                not one that a request can have.
        """
        check_options(self)
        if self.token != self.token.strip() or not self.token.isprintable():
            raise InputError(
                "the token begins or ends with white space, or has control characters, which a header cannot contain: "
                "choose another token"
            )
        for name in self.allowed_hosts:
            if name != "*" and not _is_host(name):
                raise InputError(
                    f"{name!r} is not a host name: expected one without scheme, port, path or wildcard, such as "
                    "images.example.org, or * for any"
                )
        for origin in self.cors_origins:
            if origin != "*" and origin != _normalize_origin(origin):
                raise InputError(
                    f"{origin!r} is not an origin: expected a scheme and a host in lower case, and a port if it is not "
                    "the default, such as https://example.org"
                )


def _is_host(text: str) -> bool:
    """Return whether a text can be the host in a URL, without a port: an ASCII host name or an IP address."""
    return _HOST_NAME.fullmatch(text) is not None or is_ip_address(text)


def _normalize_origin(text: str) -> str | None:
    """Return an origin as browsers send it in the Origin header; None if it is not an origin."""
    try:
        parts = urlsplit(text)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not _is_host(name):
        return None
    host = f"[{name}]" if ":" in name else name
    return f"{parts.scheme}://{host}{'' if port in (None, _DEFAULT_PORTS[parts.scheme]) else f':{port}'}"


def is_ip_address(text: str) -> bool:
    """Return whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on `host` can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_token_if_exposed(host: str, token: str) -> None:
    """Check that a server has a token if other machines can reach it.

    Raises:
        InputError: `host` is not a loopback address and there is no token.
    """
    if not is_loopback(host) and not token:
        raise InputError(
            f"serving on {host} requires a token, since other machines can reach the server: set the "
            f"environment variable {TOKEN_VARIABLE}"
        )
