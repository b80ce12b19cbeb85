"""Handlers of the page, `/predict`, `/explain`, `/healthz`, `/metrics` and `/openapi.json`."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from dataclasses import asdict

from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel

from mlimages.core import Prediction
from mlimages.inference import Explanation
from mlimages.serving import schemas
from mlimages.serving.access import has_valid_token
from mlimages.serving.bodies import read_uploads
from mlimages.serving.openapi import DEFAULT_TOP, build_openapi_document
from mlimages.serving.page import build_server_page
from mlimages.serving.problems import ApiError
from mlimages.serving.service import SERVICE_KEY

routes = web.RouteTableDef()


@routes.get("/")
async def get_page(request: web.Request) -> web.Response:
    """Return the HTML page of the server."""
    page, policy = build_server_page()
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return web.Response(text=page, content_type="text/html", headers=headers)


@routes.post("/predict")
async def predict(request: web.Request) -> web.Response:
    """Return the predictions for the images of a raw body or a form.

    If no image can be used, respond with the error of the first one.
    """
    service, begin = request.app[SERVICE_KEY], time.perf_counter()
    _check_query_parameters(request, "top")
    uploads = await read_uploads(request, service.settings)
    bundle = service.bundle
    top = _parse_top(request, len(bundle.class_names))
    service.metrics.stages["read"].observe(time.perf_counter() - begin)
    results = await service.predict([upload.data for upload in uploads], top=top)
    first = results[0]
    if isinstance(first, ApiError) and all(isinstance(result, ApiError) for result in results):
        raise first
    predictions = [
        _make_image_result(upload.name, result, top) for upload, result in zip(uploads, results, strict=True)
    ]
    return _make_json_response(schemas.Predictions(model=bundle.model, predictions=predictions))


@routes.post("/explain")
async def explain(request: web.Request) -> web.Response:
    """Return the explanation of the prediction for one image."""
    service = request.app[SERVICE_KEY]
    if not service.settings.explain:
        raise ApiError(403, "not-allowed", "explanations are disabled on this server (--no-explain)")
    _check_query_parameters(request)
    uploads = await read_uploads(request, service.settings)
    if len(uploads) > 1:
        raise ApiError(413, "too-many-images", "/explain accepts one image per request")
    model = service.bundle.model
    explanation = await service.explain(uploads[0].data)
    response = schemas.Explanation(
        model=model,
        class_name=explanation.class_name,
        probability=explanation.probability,
        known=explanation.known,
        lowest=explanation.min_probability,
        place=explanation.most_influential_region,
        hidden=explanation.masked_probabilities.tolist(),
        overlay=await asyncio.to_thread(_encode_overlay, explanation),
    )
    return _make_json_response(response)


def _encode_overlay(explanation: Explanation) -> str:
    out = io.BytesIO()
    explanation.draw_overlay().save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@routes.get("/healthz")
async def get_health(request: web.Request) -> web.Response:
    """Return the state of the service; also details of the model if the request has the token or none is required."""
    service = request.app[SERVICE_KEY]
    health = schemas.Health(status="stopping" if service.is_stopping else "ok")
    if has_valid_token(request, service.settings.token):
        bundle = service.bundle
        health.model, health.classes, health.explain = bundle.model, list(bundle.class_names), service.settings.explain
        if bundle.multi_label:
            health.thresholds = list(bundle.thresholds)
        else:
            health.threshold = bundle.unknown_below
    return _make_json_response(health)


@routes.get("/metrics")
async def get_metrics(request: web.Request) -> web.Response:
    """Return the metrics in Prometheus' text format."""
    text = request.app[SERVICE_KEY].metrics.to_text()
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@routes.get("/openapi.json")
async def get_openapi_document(request: web.Request) -> web.Response:
    """Return the OpenAPI document."""
    return web.json_response(build_openapi_document(len(request.app[SERVICE_KEY].bundle.class_names)))


def _check_query_parameters(request: web.Request, *accepted_names: str) -> None:
    """Raise ApiError if the request has a query parameter that is not in `accepted_names`."""
    unknown = [name for name in request.query if name not in accepted_names]
    if unknown:
        accepts = f"accepts only {', '.join(accepted_names)}" if accepted_names else "accepts no query parameters"
        raise ApiError(400, "bad-request", f"unknown query parameter {unknown[0][:40]!r}: {request.path} {accepts}")


def _parse_top(request: web.Request, num_classes: int) -> int:
    """Return the query parameter `top`, or its default; raise ApiError unless it is 1 to `num_classes`."""
    text = request.query.get("top", str(min(DEFAULT_TOP, num_classes)))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= num_classes):
        raise ApiError(400, "bad-request", f"the query parameter top must be an integer from 1 to {num_classes}")
    return int(text)


def _make_image_result(name: str, result: Prediction | ApiError, top: int) -> schemas.ImageResult:
    """Return the part of the response for one image: the prediction with its `top` most probable classes, or an error.

    `name` is the image's file name in the form.
    """
    if isinstance(result, ApiError):
        return schemas.ImageResult(name=name, error=schemas.ErrorDetail(code=result.code, message=result.message))
    top_scores = [schemas.Score(**asdict(score)) for score in result.top[:top]]
    if result.labels is not None:
        labels = [schemas.Score(**asdict(score)) for score in result.labels]
        return schemas.ImageResult(name=name, labels=labels, top=top_scores)
    return schemas.ImageResult(
        name=name,
        class_name=None if result.known is False else result.class_name,
        probability=result.probability,
        known=result.known,
        known_score=result.known_score,
        prediction_set=None if result.prediction_set is None else list(result.prediction_set),
        top=top_scores,
    )


def _make_json_response(body: BaseModel) -> web.Response:
    return web.json_response(text=body.model_dump_json(exclude_unset=True))
