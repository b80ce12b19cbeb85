"""The OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.0), generated from the models in `schemas`."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mlimages import __version__
from mlimages.core import Fault
from mlimages.serving import schemas

DEFAULT_TOP = 5
"""Number of classes returned for each image if the request does not state it; a model with fewer returns all."""

_ERRORS = {
    "400": "The request is malformed (bad-request).",
    "401": "The token is missing or wrong (unauthorized).",
    "408": "The request was received too slowly (timeout).",
    "413": "The request is too large or contains too many images (too-large, too-many-images).",
    "415": "The body is compressed, or JSON in place of an image (unsupported-media-type).",
    "421": "The Host header is not accepted (misdirected-request): see --allowed-host.",
    "422": f"No image could be used: {', '.join(sorted(Fault))}.",
    "500": "The server failed to process the request (internal).",
    "503": "Too many images are waiting, or no result was ready in time (busy, timeout): see Retry-After.",
}
_REFUSED = ("400", "401", "421")
_PROTOCOL = schemas.ProtocolErrorResponse
_BINARY = {"type": "string", "format": "binary"}
_PATH = "#/components/schemas/{model}"
_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"


@cache
def build_document(num_classes: int) -> dict[str, Any]:
    """Return the OpenAPI document for a model with this many classes."""
    used = [value for value in vars(schemas).values() if isinstance(value, type) and issubclass(value, schemas.Model)]
    _, definitions = models_json_schema([(model, "validation") for model in used], ref_template=_PATH)
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlimages", "version": __version__, "description": "Classifies images."},
        "paths": {
            "/predict": {"post": _describe_predict_operation(num_classes)},
            "/explain": {"post": _describe_explain_operation()},
            "/healthz": {"get": _describe_get_operation("Whether the service accepts requests.", schemas.Health)},
            "/metrics": {
                "get": {
                    "summary": "Prometheus metrics.",
                    "responses": {"200": _describe_metrics_operation(), **_describe_error_responses(*_REFUSED)},
                }
            },
            "/v2": {
                "get": _describe_get_operation(
                    "Open Inference Protocol: the server.", schemas.ServerMetadata, _PROTOCOL
                )
            },
            "/v2/health/live": {
                "get": _describe_get_operation("Whether the server is running.", schemas.Live, _PROTOCOL)
            },
            "/v2/health/ready": {"get": _describe_ready_operation()},
            **{path: {"get": _describe_model_operation(path, schemas.ModelMetadata)} for path in (_MODEL, _VERSION)},
            **{
                f"{path}/ready": {"get": _describe_model_operation(path, schemas.ModelReady)}
                for path in (_MODEL, _VERSION)
            },
            **{f"{path}/infer": {"post": _describe_infer_operation(path)} for path in (_MODEL, _VERSION)},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions["$defs"],
        },
        "security": [{}, {"token": []}],
    }


def _describe_predict_operation(num_classes: int) -> dict[str, Any]:
    default = min(DEFAULT_TOP, num_classes)
    top = {
        "name": "top",
        "in": "query",
        "description": "Number of classes to return.",
        "schema": {"type": "integer", "minimum": 1, "maximum": num_classes, "default": default},
    }
    return {
        "summary": "Classify one image (raw body) or several (a form with files).",
        "parameters": [top],
        "requestBody": _describe_image_body({"type": "array", "items": _BINARY}),
        "responses": {"200": _json_response("Done.", schemas.Predictions), **_describe_error_responses(*_ERRORS)},
    }


def _describe_explain_operation() -> dict[str, Any]:
    refused = _json_response("Explanations are disabled on this server (not-allowed).", schemas.ErrorResponse)
    return {
        "summary": "Explain the prediction of one image (raw body or a form with a file) in 50 forward passes.",
        "requestBody": _describe_image_body(_BINARY),
        "responses": {
            "200": _json_response("Done.", schemas.Explanation),
            "403": refused,
            **_describe_error_responses(*_ERRORS),
        },
    }


def _describe_image_body(files: dict[str, Any]) -> dict[str, Any]:
    form = {"type": "object", "properties": {"file": files}}
    return {"required": True, "content": {"image/*": {"schema": _BINARY}, "multipart/form-data": {"schema": form}}}


def _describe_infer_operation(path: str) -> dict[str, Any]:
    responses = {
        "200": _json_response("Done.", schemas.InferResponse),
        **_describe_error_responses(*_ERRORS, error=_PROTOCOL),
    }
    return {
        **_describe_model_operation(path, schemas.InferResponse),
        "summary": "Predict pixels, UINT8 (N, H, W, 3) RGB; returns probabilities, FP32 (N, classes).",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _schema_ref(schemas.InferRequest)}},
        },
        "responses": {**responses, "404": _describe_model_not_found()},
    }


def _describe_model_operation(path: str, model: type[BaseModel]) -> dict[str, Any]:
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    described = _describe_get_operation(str(model.__doc__), model, _PROTOCOL)
    return {
        **described,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        "responses": {
            **described["responses"],
            **_describe_error_responses(*_REFUSED, error=_PROTOCOL),
            "404": _describe_model_not_found(),
        },
    }


def _describe_ready_operation() -> dict[str, Any]:
    found = _describe_get_operation("Whether the server accepts requests.", schemas.Ready, _PROTOCOL)
    return {
        **found,
        "responses": {**found["responses"], "503": _json_response("The server is stopping.", schemas.Ready)},
    }


def _describe_get_operation(
    summary: str, model: type[BaseModel], error: type[BaseModel] = schemas.ErrorResponse
) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": _json_response("Done.", model), **_describe_error_responses("400", "421", error=error)},
    }


def _describe_metrics_operation() -> dict[str, Any]:
    text = {"description": "Done.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"summary": "Prometheus metrics.", "responses": {"200": text, **_describe_error_responses(*_REFUSED)}}


def _describe_model_not_found() -> dict[str, Any]:
    return _json_response("There is no such model (not-found).", schemas.ProtocolErrorResponse)


def _describe_error_responses(*statuses: str, error: type[BaseModel] = schemas.ErrorResponse) -> dict[str, Any]:
    return {status: _json_response(_ERRORS[status], error) for status in statuses}


def _json_response(description: str, model: type[BaseModel]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _schema_ref(model)}}}


def _schema_ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _PATH.format(model=model.__name__)}
