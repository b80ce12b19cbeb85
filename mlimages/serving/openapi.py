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
"""Default number of classes in the response for an image; a model with fewer classes returns all."""

_ERROR_DESCRIPTIONS = {
    "400": "The request is malformed (bad-request).",
    "401": "The token is missing or wrong (unauthorized).",
    "403": "Explanations are disabled on this server (not-allowed).",
    "404": "There is no such model (not-found).",
    "408": "The request was received too slowly (timeout).",
    "413": "The request is too large or contains too many images (too-large, too-many-images).",
    "415": "The body is compressed, or is JSON instead of an image (unsupported-media-type).",
    "421": "The host name is not accepted (misdirected-request): see --allowed-host.",
    "422": f"No image could be used: {', '.join(sorted(Fault))}.",
    "500": "The server failed to process the request (internal).",
    "503": "Too many images are waiting, or no result was ready in time (busy, timeout): see Retry-After.",
}

_ACCESS_ERRORS = ("400", "401", "421")
_IMAGE_ERRORS = ("400", "401", "408", "413", "415", "421", "422", "500", "503")
_PROTOCOL_ERROR = schemas.ProtocolErrorResponse
_BINARY = {"type": "string", "format": "binary"}
_REF_TEMPLATE = "#/components/schemas/{model}"
MODEL_PATHS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")


@cache
def build_openapi_document(num_classes: int) -> dict[str, Any]:
    """Return the OpenAPI document for a model with this many classes."""
    used = [value for value in vars(schemas).values() if isinstance(value, type) and issubclass(value, schemas.Schema)]
    _, definitions = models_json_schema([(schema, "validation") for schema in used], ref_template=_REF_TEMPLATE)
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlimages", "version": __version__, "description": "Classifies images."},
        "paths": {
            **{path: {"get": operation} for path, operation in _describe_get_operations().items()},
            "/predict": {"post": _describe_predict_operation(num_classes)},
            "/explain": {"post": _describe_explain_operation()},
            **{f"{path}/infer": {"post": _describe_infer_operation(path)} for path in MODEL_PATHS},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions["$defs"],
        },
        "security": [{}, {"token": []}],
    }


def _describe_get_operations() -> dict[str, Any]:
    operations = {
        "/healthz": _describe_operation(
            "Whether the service runs, and details of its model.", schemas.Health, "400", "421"
        ),
        "/metrics": _describe_operation("Prometheus metrics.", None, *_ACCESS_ERRORS),
    }
    for path, summary, schema in (
        ("/v2", "Open Inference Protocol: metadata of the server.", schemas.ServerMetadata),
        ("/v2/health/live", "Whether the server is running.", schemas.ServerLive),
        ("/v2/health/ready", "Whether the server accepts requests.", schemas.ServerReady),
    ):
        operations[path] = _describe_operation(summary, schema, "400", "421", error_schema=_PROTOCOL_ERROR)
    for path in MODEL_PATHS:
        operations[path] = _describe_model_operation(path, schemas.ModelMetadata)
        operations[f"{path}/ready"] = _describe_model_operation(path, schemas.ModelReady)
    for path, operation in operations.items():
        if path.endswith("/ready"):
            responses = operation["responses"]
            responses["503"] = responses["200"] | {"description": "The server is stopping."}
    return operations


def _describe_predict_operation(num_classes: int) -> dict[str, Any]:
    default = min(DEFAULT_TOP, num_classes)
    top = {
        "name": "top",
        "in": "query",
        "description": "Number of classes to return.",
        "schema": {"type": "integer", "minimum": 1, "maximum": num_classes, "default": default},
    }
    summary = "Classify an image (raw body) or several images (files of a form)."
    body = _describe_image_body({"type": "array", "items": _BINARY})
    return _describe_operation(summary, schemas.Predictions, *_IMAGE_ERRORS, parameters=[top], requestBody=body)


def _describe_explain_operation() -> dict[str, Any]:
    summary = "Explain the prediction for an image (raw body or file of a form), in 50 forward passes."
    body = _describe_image_body(_BINARY)
    return _describe_operation(summary, schemas.Explanation, *_IMAGE_ERRORS, "403", requestBody=body)


def _describe_image_body(file_schema: dict[str, Any]) -> dict[str, Any]:
    form = {"type": "object", "properties": {"file": file_schema}}
    return {"required": True, "content": {"image/*": {"schema": _BINARY}, "multipart/form-data": {"schema": form}}}


def _describe_infer_operation(path: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _make_schema_reference(schemas.InferRequest)}}
    return {
        **_describe_model_operation(path, schemas.InferResponse, *_IMAGE_ERRORS),
        "summary": "Predict pixels, UINT8 (N, H, W, 3) RGB; returns the requested outputs, by default all.",
        "requestBody": {"required": True, "content": content},
    }


def _describe_model_operation(path: str, schema: type[BaseModel], *error_statuses: str) -> dict[str, Any]:
    """Return the OpenAPI operation of a path under /v2/models, whose response has this schema.

    `error_statuses` are HTTP statuses, such as "413", that the path may return besides 400, 401, 404 and 421.
    """
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    statuses = (*_ACCESS_ERRORS, *error_statuses, "404")
    return _describe_operation(schema.__doc__, schema, *statuses, error_schema=_PROTOCOL_ERROR, parameters=parameters)


def _describe_operation(
    summary: str | None,
    schema: type[BaseModel] | None,
    *error_statuses: str,
    error_schema: type[BaseModel] = schemas.ErrorResponse,
    **fields: object,
) -> dict[str, Any]:
    """Return an OpenAPI operation with further `fields`, whose response has this schema; None: plain text."""
    errors = {status: _describe_response(_ERROR_DESCRIPTIONS[status], error_schema) for status in error_statuses}
    return {"summary": summary, **fields, "responses": {"200": _describe_response("Success.", schema), **errors}}


def _describe_response(description: str, schema: type[BaseModel] | None) -> dict[str, Any]:
    if schema is None:
        return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"description": description, "content": {"application/json": {"schema": _make_schema_reference(schema)}}}


def _make_schema_reference(schema: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF_TEMPLATE.format(model=schema.__name__)}
