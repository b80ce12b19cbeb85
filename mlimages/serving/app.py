"""The application: routes, what stands before every one of them, and how it starts and ends."""

from __future__ import annotations

import asyncio
import hmac
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from aiohttp import web

from mlimages.core import InputError
from mlimages.inference import Predictor
from mlimages.serving import handlers, inference_protocol
from mlimages.serving.connections import BACKLOG, Connections, max_connections
from mlimages.serving.problems import Handler, ProblemError, as_json
from mlimages.serving.service import SERVICE, Service
from mlimages.serving.settings import ServerSettings, check_exposure

OPEN_ROUTES = frozenset({"/", "/healthz", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"})
"""Answered without a token: they tell nothing of the model's classes or use."""


def make_app(predictor: Predictor, settings: ServerSettings | None = None) -> web.Application:
    """An application that answers for one bundle, to run by itself or as a part of another."""
    app = web.Application(middlewares=[as_json, _guard])
    app[SERVICE] = Service(predictor, settings or ServerSettings())
    app.cleanup_ctx.append(_closing)
    app.add_routes(handlers.routes())
    app.add_routes(inference_protocol.routes())
    return app


def serve(
    predictor: Predictor,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServerSettings | None = None,
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is in flight.

    Args:
        port: 0 for any that is free.
        started: called with the address once requests are taken.

    Raises:
        InputError: `host` is beyond loopback and the settings hold no token, or the port is taken.
    """
    settings = settings or ServerSettings()
    check_exposure(host, settings.token)
    asyncio.run(_serve(make_app(predictor, settings), host, port, started))


async def _serve(app: web.Application, host: str, port: int, started: Callable[[str], None]) -> None:
    service, stop = app[SERVICE], asyncio.Event()
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, handler_cancellation=True)
    await runner.setup()
    assert runner.server is not None
    loop = asyncio.get_running_loop()
    connections = Connections(runner.server, service, limit=max_connections())
    service.request_ended = connections.touch
    try:
        listening = await loop.create_server(connections, host, port, backlog=BACKLOG)
    except OSError as error:
        await runner.cleanup()
        raise InputError(f"cannot listen at {host} port {port} ({error.strerror}): take another --port") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    started(f"http://{f'[{host}]' if ':' in host else host}:{listening.sockets[0].getsockname()[1]}/")
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        connections.close_idle()
    service.stopping = True
    listening.close()
    ends = time.monotonic() + service.settings.timeout_s
    while service.in_flight and time.monotonic() < ends:
        await asyncio.sleep(0.01)
    await runner.cleanup()


async def _closing(app: web.Application) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(app[SERVICE].engine.close)


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Token, time limit and counting of every request."""
    service, begin = request.app[SERVICE], time.perf_counter()
    resource = request.match_info.route.resource
    status = 499  # nginx's: the client has gone
    service.in_flight.add(request.protocol)
    try:
        response = await _answer(request, handler, service)
        status = response.status
        return response
    except ProblemError as problem:
        status = problem.status
        raise
    except web.HTTPException as error:
        status = error.status
        raise
    finally:
        service.in_flight.discard(request.protocol)
        service.request_ended(request.protocol)
        service.metrics.request(resource.canonical if resource else "unknown", status)
        service.metrics.stage("total", time.perf_counter() - begin)


async def _answer(request: web.Request, handler: Handler, service: Service) -> web.StreamResponse:
    if request.path not in OPEN_ROUTES:
        _check_token(request, service.settings.token)
    response = await handler(request)
    response.headers.update({"X-Content-Type-Options": "nosniff", "Server": "mlimages"})
    if service.stopping:
        response.force_close()
    return response


def _check_token(request: web.Request, token: str) -> None:
    try:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    except UnicodeEncodeError as error:
        raise ProblemError(400, "bad-request", "the Authorization header is not UTF-8") from error
    if token and not hmac.compare_digest(given, token.encode()):
        headers = {"WWW-Authenticate": "Bearer"}
        raise ProblemError(401, "unauthorized", "this server asks for its token: Authorization: Bearer TOKEN", headers)
