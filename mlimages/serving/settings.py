"""What a server allows."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from mlimages.core import InputError

TOKEN_VARIABLE = "MLIMAGES_TOKEN"
"""The environment variable that holds the token."""

MAX_PIXELS = 50_000_000
"""For the Predictor of a server: a picture of more (width x height) is refused before it is decoded (422)."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Limits of a server, and who may ask it.

    Attributes:
        token: what a request must bear (`Authorization: Bearer TOKEN`); empty for none.
        max_body_bytes: a longer request is refused (413).
        max_images: in one request.
        queue_size: pictures that may wait; more are refused (503, Retry-After).
        timeout_s: for the next 16 KB of a request's body (408), and for its answer (503).
        idle_timeout_s: for the headers of a connection's first or next request.
    """

    token: str = ""
    max_body_bytes: int = 16 << 20
    max_images: int = 64
    queue_size: int = 128
    timeout_s: float = 30.0
    idle_timeout_s: float = 20.0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, token: str) -> None:
    """Refuse to serve the network without a token.

    Raises:
        InputError: `host` is beyond loopback and there is no token.
    """
    if not is_loopback(host) and not token:
        raise InputError(
            f"serving at {host}, beyond this machine, needs a token: set {TOKEN_VARIABLE} in the environment"
        )
