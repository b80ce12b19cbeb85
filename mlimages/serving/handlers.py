"""The page, `/predict` and what tells how the server is."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterable
from functools import cache
from importlib import resources

from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from mlimages.core import Prediction
from mlimages.serving.bodies import read_uploads
from mlimages.serving.openapi import document
from mlimages.serving.problems import ProblemError
from mlimages.serving.service import SERVICE


def routes() -> Iterable[web.RouteDef]:
    """What this module answers."""
    return [
        web.get("/", index),
        web.post("/predict", predict),
        web.get("/healthz", healthz),
        web.get("/metrics", metrics),
        web.get("/openapi.json", openapi),
    ]


async def index(request: web.Request) -> web.Response:
    """The page."""
    page, policy = _page()
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return web.Response(text=page, content_type="text/html", headers=headers)


async def predict(request: web.Request) -> web.Response:
    """Pictures, raw or in a form, to their classes."""
    service, begin = request.app[SERVICE], time.perf_counter()
    top = _top(request, len(service.bundle.class_names))
    uploads = await read_uploads(request, service.settings)
    service.metrics.stage("read", time.perf_counter() - begin)
    results = await service.answer([upload.data for upload in uploads], top=top)
    predictions = [
        {"name": upload.name, **_values(result, top)} for upload, result in zip(uploads, results, strict=True)
    ]
    first = results[0]
    if isinstance(first, ProblemError) and all(isinstance(result, ProblemError) for result in results):
        raise first
    return web.json_response({"model": service.bundle.model, "predictions": predictions})


async def healthz(request: web.Request) -> web.Response:
    """That the server runs."""
    return web.json_response({"status": "stopping" if request.app[SERVICE].stopping else "ok"})


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text."""
    text = request.app[SERVICE].metrics.text()
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def openapi(request: web.Request) -> web.Response:
    """This interface, for programs."""
    return web.json_response(document())


def _top(request: web.Request, classes: int) -> int:
    text = request.query.get("top", "5")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= classes) and "top" in request.query:
        raise ProblemError(400, "bad-request", f"top must be a number from 1 to {classes}")
    return int(text)


def _values(result: Prediction | ProblemError, top: int) -> dict[str, object]:
    if isinstance(result, ProblemError):
        return {"error": {"code": result.code, "message": result.message}}
    return {
        "class_name": result.class_name if result.known else None,
        "probability": result.probability,
        "known": result.known,
        "top": [
            {"class_name": score.class_name, "label": score.label, "probability": score.probability}
            for score in result.top[:top]
        ],
    }


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy that lets its own script and style run and nothing else."""
    page = resources.files("mlimages.serving").joinpath("page.html").read_text(encoding="utf-8")

    def digest(tag: str) -> str:
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
