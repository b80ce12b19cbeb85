"""The application: routes, middlewares, start, reload and shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from mlimages.core import InputError
from mlimages.inference import OnnxBundle, Predictor
from mlimages.serving import handlers, inference_protocol
from mlimages.serving.access import add_cors_headers, check_access
from mlimages.serving.access_log import log_request
from mlimages.serving.connections import BACKLOG, ConnectionLimiter, compute_max_connections
from mlimages.serving.problems import Handler, return_errors_as_json
from mlimages.serving.service import SERVICE_KEY, Service
from mlimages.serving.settings import ServerSettings, require_token_if_exposed

ModelSource = Predictor | OnnxBundle | str | os.PathLike[str]
"""A model to serve: a predictor, or an .onnx file or run folder."""


def make_app(model: ModelSource, settings: ServerSettings | None = None) -> web.Application:
    """Create an application that serves one model, to run alone or as part of another application.

    Args:
        model: an .onnx file, a run folder, or a Predictor, whose own `max_pixels` applies instead of the settings'.

    Returns:
        An aiohttp application with the page `/` and the routes that `/openapi.json` describes.

    Raises:
        BundleError: the file cannot be loaded.

    Example:
        >>> app = make_app("runs/first/model.onnx")
        >>> aiohttp.web.run_app(app, port=8000)  # doctest: +SKIP
    """
    settings = settings or ServerSettings()
    predictor = model if isinstance(model, Predictor) else Predictor(model, max_pixels=settings.max_pixels)
    app = web.Application(middlewares=[_record_request, add_cors_headers, return_errors_as_json, check_access])
    app[SERVICE_KEY] = Service(predictor, settings)
    app.on_cleanup.append(lambda app: asyncio.to_thread(app[SERVICE_KEY].engine.close))
    app.on_response_prepare.append(_add_default_headers)
    app.add_routes(handlers.routes)
    app.add_routes(inference_protocol.routes)
    return app


def serve(
    model: ModelSource,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServerSettings | None = None,
    on_started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; SIGHUP reloads the model's file.

    At the end, requests in flight have `settings.timeout_s` to finish.

    Args:
        model: an .onnx file, a run folder, or a Predictor, as in `make_app`.
        port: TCP port; 0 picks a free port.
        on_started: called with the server's URL once it accepts requests.

    Raises:
        BundleError: the file cannot be loaded.
        InputError: `host` is not a loopback address and the settings have no token, the server cannot listen on this
            host and port, or the operating system is Windows.
    """
    if not hasattr(signal, "SIGHUP"):
        raise InputError("serve does not run on Windows: use Linux, macOS or WSL")
    settings = settings or ServerSettings()
    require_token_if_exposed(host, settings.token)
    asyncio.run(_serve(make_app(model, settings), host, port, on_started))


async def _serve(app: web.Application, host: str, port: int, on_started: Callable[[str], None]) -> None:
    service, stop = app[SERVICE_KEY], asyncio.Event()
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    assert runner.server is not None
    loop = asyncio.get_running_loop()
    connections = ConnectionLimiter(runner.server, service, max_connections=compute_max_connections())
    service.on_request_end = connections.mark_active
    try:
        listening = await loop.create_server(connections, host, port, backlog=BACKLOG)
    except OSError as error:
        await runner.cleanup()
        raise InputError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another --host or --port"
        ) from error
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, service.request_reload)
    on_started(f"http://{f'[{host}]' if ':' in host else host}:{listening.sockets[0].getsockname()[1]}/")
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        connections.close_idle_connections()
    service.is_stopping = True
    listening.close()
    deadline = time.monotonic() + service.settings.timeout_s
    while service.in_flight and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    await runner.cleanup()


@web.middleware
async def _record_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count every request, including rejected ones, and log it if the settings say so.

    If the server is stopping, the response closes the connection.
    """
    service, begin = request.app[SERVICE_KEY], time.perf_counter()
    resource = request.match_info.route.resource
    status, size_bytes = 499, 0  # nginx's status for a client that disconnected
    service.in_flight.add(request.protocol)
    try:
        response = await handler(request)
        status, size_bytes = response.status, response.content_length or 0
        if service.is_stopping:
            response.force_close()
        return response
    finally:
        service.in_flight.discard(request.protocol)
        service.on_request_end(request.protocol)
        duration_s = time.perf_counter() - begin
        service.metrics.requests.labels(resource.canonical if resource else "unknown", status).inc()
        service.metrics.stages["total"].observe(duration_s)
        if service.settings.access_log:
            log_request(request, status=status, size_bytes=size_bytes, duration_s=duration_s)


async def _add_default_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add headers to every response of the application, including errors and responses to preflight requests."""
    response.headers.update({"X-Content-Type-Options": "nosniff", "Server": "mlimages"})
