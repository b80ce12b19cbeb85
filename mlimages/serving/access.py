"""Access control: the Host header, the token, and CORS."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from mlimages.serving.problems import ApiError, Handler
from mlimages.serving.service import SERVICE_KEY
from mlimages.serving.settings import is_ip_address

PUBLIC_ROUTES = frozenset({"/", "/healthz", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"})
"""Routes that need no token; without a token, they reveal neither the names of the classes nor how much the model is
used."""

_CORS_EXPOSED_HEADERS = "Inference-Header-Content-Length, Retry-After"
_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Inference-Header-Content-Length",
    "Access-Control-Max-Age": "600",
}


@web.middleware
async def check_access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Raise ApiError unless the Host header is allowed and the request has the token, if one is required."""
    settings = request.app[SERVICE_KEY].settings
    _check_host(request, settings.allowed_hosts)
    if request.path not in PUBLIC_ROUTES and not has_valid_token(request, settings.token):
        headers = {"WWW-Authenticate": "Bearer"}
        raise ApiError(
            401, "unauthorized", "this server requires a token: send the header 'Authorization: Bearer TOKEN'", headers
        )
    return await handler(request)


def has_valid_token(request: web.Request, token: str) -> bool:
    """Return whether the request has the server's token; True if the server requires none.

    Raises:
        ApiError: the Authorization header is not UTF-8.
    """
    try:
        credentials = request.headers.get(hdrs.AUTHORIZATION, "").encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, "bad-request", "the Authorization header is not UTF-8") from error
    scheme, _, request_token = credentials.partition(b" ")
    is_bearer = scheme.lower() == b"bearer"  # RFC 9110: the scheme is case-insensitive, and any number of spaces
    return not token or (is_bearer and hmac.compare_digest(request_token.strip(b" "), token.encode()))


def _check_host(request: web.Request, allowed_hosts: tuple[str, ...]) -> None:
    """Reject host names that are not allowed, to prevent DNS rebinding.

    IP addresses and localhost are always allowed, since they cannot be rebound to another address.
    """
    header = request.headers.get(hdrs.HOST, "")
    try:
        name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        name = header
    names = {"", "localhost", *(host.lower().rstrip(".") for host in allowed_hosts)}
    if "*" in names or name in names or name.endswith(".localhost") or is_ip_address(name):
        return
    raise ApiError(
        421, "misdirected-request", f"this server does not accept the host name {name!r}: add it with --allowed-host"
    )


@web.middleware
async def add_cors_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Respond to preflight requests of allowed origins, and add CORS headers to other responses, errors included."""
    origins = request.app[SERVICE_KEY].settings.cors_origins
    if not origins:
        return await handler(request)
    origin = request.headers.get(hdrs.ORIGIN, "")
    is_allowed = bool(origin) and ("*" in origins or origin in origins)
    if is_allowed and request.method == hdrs.METH_OPTIONS and "Access-Control-Request-Method" in request.headers:
        response: web.StreamResponse = web.Response(status=204, headers=_PREFLIGHT_HEADERS)
    else:
        response = await handler(request)
    response.headers[hdrs.VARY] = "Origin"
    if is_allowed:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _CORS_EXPOSED_HEADERS
    return response
