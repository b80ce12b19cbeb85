"""Limit the number of open connections, and close idle ones."""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web

from mlimages.serving.access_log import MIN_LOG_INTERVAL_S, http_logger
from mlimages.serving.problems import ApiError, make_error_code
from mlimages.serving.service import Service

logger = logging.getLogger(__name__)

BACKLOG = 32
"""Argument `backlog` of asyncio's `create_server`: maximum number of connections that wait to be accepted, and maximum
number that asyncio accepts in one iteration of its event loop."""

_NUM_RESERVED_FILE_DESCRIPTORS = 5 * BACKLOG
"""Number of file descriptors reserved for open files and for rejected connections, which are closed with a delay."""

MIN_IDLE_S = 1.0
"""Idle time in seconds after which a connection may be closed so that a new one can be accepted."""


def compute_max_connections() -> int:
    """Return the number of connections that the limit on file descriptors allows, but at least 16 and at most 1,000."""
    import resource  # missing on Windows, where `serve` does not run

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(1000, soft - _NUM_RESERVED_FILE_DESCRIPTORS)) if soft != resource.RLIM_INFINITY else 1000


class ConnectionLimiter:
    """Factory of asyncio protocols that limits the number of open connections.

    At the limit, the connection that has been idle longest is closed for a new one; if none has been idle for
    `MIN_IDLE_S`, the new one is rejected.

    Args:
        server: aiohttp's server, whose connections are counted.
        service: state of the server, which lists the connections with a request in flight.
        max_connections: maximum number of connections.
    """

    def __init__(self, server: web.Server, service: Service, *, max_connections: int) -> None:
        self._server, self._service, self._limit = server, service, max_connections
        self._last_active_s: dict[object, float] = {}
        self._logged = -MIN_LOG_INTERVAL_S

    def __call__(self) -> asyncio.Protocol:
        if len(self._server.connections) >= self._limit and not self._close_longest_idle_connection():
            self._log_rejection()
            return _RejectingProtocol()
        protocol = _Connection(
            self._server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # None logs nothing
            logger=http_logger,
            auto_decompress=False,
        )
        self.mark_active(protocol)
        return protocol

    def mark_active(self, connection: object) -> None:
        """Record activity on a connection, which restarts its idle time."""
        self._last_active_s[connection] = time.monotonic()

    def close_idle_connections(self) -> None:
        """Close connections that have been idle for `idle_timeout_s`."""
        now = time.monotonic()
        self._last_active_s = {each: self._last_active_s.get(each, now) for each in self._server.connections}
        for connection in self._server.connections:
            waited_s = now - self._last_active_s[connection]
            if connection not in self._service.in_flight and waited_s > self._service.settings.idle_timeout_s:
                connection.force_close()

    def _close_longest_idle_connection(self) -> bool:
        """Close the connection that has been idle longest; return False if none has been idle for `MIN_IDLE_S`."""
        now = time.monotonic()
        idle = [each for each in self._server.connections if each not in self._service.in_flight]
        longest = min(idle, key=lambda each: self._last_active_s.get(each, now), default=None)
        if longest is None or now - self._last_active_s.get(longest, now) < MIN_IDLE_S:
            return False
        longest.force_close()
        self.mark_active(longest)  # the server lists it until the next loop iteration
        return True

    def _log_rejection(self) -> None:
        """Log that new connections are rejected, at most once per `MIN_LOG_INTERVAL_S`."""
        now = time.monotonic()
        if now - self._logged >= MIN_LOG_INTERVAL_S:
            self._logged = now
            logger.warning("all %d connections are in use: rejecting new ones", self._limit)


class _Connection(web.RequestHandler):
    """aiohttp's protocol for one connection; errors of aiohttp itself are sent as JSON too."""

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response; convert aiohttp's own error responses, which bypass the middlewares, to JSON.

        Return the response, and whether the client disconnected before the whole response was sent.
        """
        if isinstance(resp, web.Response) and resp.status >= 400 and resp.content_type == "text/plain":
            message = f"the request is not valid HTTP: {(resp.text or '').strip()}"
            resp = ApiError(resp.status, make_error_code(resp.reason), message).to_response(request.path)
            resp.force_close()
        return await super().finish_response(request, resp, start_time)


class _RejectingProtocol(asyncio.Protocol):
    """Protocol of a connection above the limit, to which only an error is sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Respond with 503, and close the connection."""
        assert isinstance(transport, asyncio.Transport)
        body = b'{"error":{"code":"busy","message":"all connections are in use: try again later"}}'
        transport.write(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))  # fmt: skip
        transport.close()
