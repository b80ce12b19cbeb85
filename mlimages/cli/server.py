"""Command `serve`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import typer

from mlimages import inference, serving
from mlimages.cli.hints import print_to_stderr
from mlimages.cli.options import MODEL, PARALLEL_IMAGES, takes_options
from mlimages.cli.process import configure_server_logging
from mlimages.core import InputError


@takes_options(serving.ServerSettings)
def serve(
    server_options: dict[str, Any],
    model: Path = MODEL,
    host: str = typer.Option(
        "127.0.0.1",
        metavar="HOST",
        help="Address to listen on; any but a loopback address requires a token in the environment variable "
        "MLIMAGES_TOKEN.",
    ),
    port: int = typer.Option(8000, min=0, max=65535, metavar="N", help="Port; 0: any free port."),
    token: bool = typer.Option(
        False, "--token", help="Require a token on a loopback address, too.", rich_help_panel="Access"
    ),
    workers: int = PARALLEL_IMAGES,
) -> None:
    """Serve a model over HTTP, with a page to try it.

    POST an image to /predict; /openapi.json describes all routes, /metrics serves Prometheus metrics, /v2 implements
    the Open Inference Protocol. If other machines can reach the server, the environment variable MLIMAGES_TOKEN must
    contain a token, which requests must then send; the page, /openapi.json and health checks need none.
    SIGHUP reloads the model; SIGTERM or Ctrl-C stops the server after the requests in flight.

    Example: mlimages serve runs/cats --port 8080
    """
    secret = os.environ.get(serving.TOKEN_VARIABLE, "").strip()
    if secret and not token and serving.is_loopback(host):
        secret = ""
        print_to_stderr(f"requests need no token; behind a proxy, add --token to require {serving.TOKEN_VARIABLE}")
    if token and not secret:
        raise InputError(f"--token requires the environment variable {serving.TOKEN_VARIABLE}: set it to a secret")
    settings = serving.ServerSettings(**{**server_options, "token": secret})
    configure_server_logging(settings.log_format)
    predictor = inference.Predictor(model, workers=workers, max_pixels=settings.max_pixels)
    print_url = partial(_print_url, needs_token=bool(secret))
    serving.serve(predictor, host=host, port=port, settings=settings, on_started=print_url)


def _print_url(url: str, *, needs_token: bool) -> None:
    print(url, flush=True)
    header = '-H "Authorization: Bearer $MLIMAGES_TOKEN" ' if needs_token else ""
    print_to_stderr(
        f"next: open {url} in a browser, or run curl {header}-F file=@IMAGE {url}predict; Ctrl-C stops the server"
    )
