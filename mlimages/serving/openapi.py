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
    "408": "The request was received too slowly (timeout).",
    "413": "The request is too large or contains too many images (too-large, too-many-images).",
    "415": "The body is compressed, or is JSON instead of an image (unsupported-media-type).",
    "421": "The host name is not accepted (misdirected-request): see --allowed-host.",
    "422": f"No image could be used: {', '.join(sorted(Fault))}.",
    "500": "The server failed to process the request (internal).",
    "503": "Too many images are waiting, or no result was ready in time (busy, timeout): see Retry-After.",
}

_ACCESS_ERRORS = ("400", "401", "421")
_PROTOCOL_ERROR = schemas.ProtocolErrorResponse
_BINARY = {"type": "string", "format": "binary"}
_REF_TEMPLATE = "#/components/schemas/{model}"
_MODEL_PATHS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")


@cache
def build_openapi_document(num_classes: int) -> dict[str, Any]:
    """Return the OpenAPI document for a model with this many classes."""
    used = [value for value in vars(schemas).values() if isinstance(value, type) and issubclass(value, schemas.Schema)]
    _, definitions = models_json_schema([(schema, "validation") for schema in used], ref_template=_REF_TEMPLATE)
    get_operations = {
        "/healthz": _describe_get_operation("Whether the service runs, and details of its model.", schemas.Health),
        "/metrics": _describe_metrics_operation(),
        "/v2": _describe_get_operation(
            "Open Inference Protocol: metadata of the server.", schemas.ServerMetadata, _PROTOCOL_ERROR
        ),
        "/v2/health/live": _describe_get_operation(
            "Whether the server is running.", schemas.ServerLive, _PROTOCOL_ERROR
        ),
        "/v2/health/ready": _add_stopping_response(
            _describe_get_operation("Whether the server accepts requests.", schemas.ServerReady, _PROTOCOL_ERROR),
            schemas.ServerReady,
        ),
        **{path: _describe_model_operation(path, schemas.ModelMetadata) for path in _MODEL_PATHS},
        **{
            f"{path}/ready": _add_stopping_response(
                _describe_model_operation(path, schemas.ModelReady), schemas.ModelReady
            )
            for path in _MODEL_PATHS
        },
    }
    post_operations = {
        "/predict": _describe_predict_operation(num_classes),
        "/explain": _describe_explain_operation(),
        **{f"{path}/infer": _describe_infer_operation(path) for path in _MODEL_PATHS},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlimages", "version": __version__, "description": "Classifies images."},
        "paths": {
            **{path: {"get": operation} for path, operation in get_operations.items()},
            **{path: {"post": operation} for path, operation in post_operations.items()},
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
        "summary": "Classify an image (raw body) or several images (files of a form).",
        "parameters": [top],
        "requestBody": _describe_image_body({"type": "array", "items": _BINARY}),
        "responses": _describe_responses(schemas.Predictions, *_ERROR_DESCRIPTIONS),
    }


def _describe_explain_operation() -> dict[str, Any]:
    message = "Explanations are disabled on this server (not-allowed)."
    return {
        "summary": "Explain the prediction for an image (raw body or file of a form), in 50 forward passes.",
        "requestBody": _describe_image_body(_BINARY),
        "responses": {
            **_describe_responses(schemas.Explanation, *_ERROR_DESCRIPTIONS),
            "403": _describe_json_response(message, schemas.ErrorResponse),
        },
    }


def _describe_image_body(file_schema: dict[str, Any]) -> dict[str, Any]:
    form = {"type": "object", "properties": {"file": file_schema}}
    return {"required": True, "content": {"image/*": {"schema": _BINARY}, "multipart/form-data": {"schema": form}}}


def _describe_infer_operation(path: str) -> dict[str, Any]:
    operation = _describe_model_operation(path, schemas.InferResponse, *_ERROR_DESCRIPTIONS)
    content = {"application/json": {"schema": _make_schema_reference(schemas.InferRequest)}}
    return {
        **operation,
        "summary": "Predict pixels, UINT8 (N, H, W, 3) RGB; returns the requested outputs, by default all.",
        "requestBody": {"required": True, "content": content},
    }


def _describe_model_operation(path: str, schema: type[BaseModel], *error_statuses: str) -> dict[str, Any]:
    """Return the OpenAPI operation of a path under /v2/models, whose response has this schema.

    `error_statuses` are HTTP statuses, such as "413", that the path may return besides 400, 401, 404 and 421.
    """
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    return {
        "summary": schema.__doc__,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        "responses": {
            **_describe_responses(schema, *_ACCESS_ERRORS, *error_statuses, error_schema=_PROTOCOL_ERROR),
            "404": _describe_json_response("There is no such model (not-found).", _PROTOCOL_ERROR),
        },
    }


def _add_stopping_response(operation: dict[str, Any], schema: type[BaseModel]) -> dict[str, Any]:
    """Add the response of a server that is stopping (503) to an operation, and return the operation."""
    operation["responses"]["503"] = _describe_json_response("The server is stopping.", schema)
    return operation


def _describe_get_operation(
    summary: str, schema: type[BaseModel], error_schema: type[BaseModel] = schemas.ErrorResponse
) -> dict[str, Any]:
    return {"summary": summary, "responses": _describe_responses(schema, "400", "421", error_schema=error_schema)}


def _describe_metrics_operation() -> dict[str, Any]:
    text = {"description": "Success.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"summary": "Prometheus metrics.", "responses": {"200": text, **_describe_error_responses(*_ACCESS_ERRORS)}}


def _describe_responses(
    schema: type[BaseModel], *error_statuses: str, error_schema: type[BaseModel] = schemas.ErrorResponse
) -> dict[str, Any]:
    return {
        "200": _describe_json_response("Success.", schema),
        **_describe_error_responses(*error_statuses, error_schema=error_schema),
    }


def _describe_error_responses(*statuses: str, error_schema: type[BaseModel] = schemas.ErrorResponse) -> dict[str, Any]:
    return {status: _describe_json_response(_ERROR_DESCRIPTIONS[status], error_schema) for status in statuses}


def _describe_json_response(description: str, schema: type[BaseModel]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _make_schema_reference(schema)}}}


def _make_schema_reference(schema: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF_TEMPLATE.format(model=schema.__name__)}
