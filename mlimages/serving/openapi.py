"""The interface as an OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

from typing import Any

from mlimages import __version__
from mlimages.core import Fault

_ERROR_CODES = {
    "400": "Not a request that can be understood (bad-request).",
    "401": "The token is missing or wrong (unauthorized).",
    "408": "The request came too slowly (timeout).",
    "413": "The request is too long or holds too many pictures (too-large, too-many-images).",
    "422": f"No picture could be used: {', '.join(sorted(Fault))}.",
    "503": "Too many pictures are waiting, or no answer came in time (busy, timeout): see Retry-After.",
}
_BINARY = {"type": "string", "format": "binary"}


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlimages", "version": __version__, "description": "Names the class of pictures."},
        "paths": {
            "/predict": {"post": _predict()},
            "/healthz": {"get": _get("Whether the server runs.", {"type": "object"})},
            "/metrics": {"get": _get("Prometheus metrics.", {"type": "string"}, media="text/plain")},
            "/v2": {"get": _get("Open Inference Protocol: the server.", {"type": "object"})},
            "/v2/health/live": {"get": _get("Whether the server runs.", {"type": "object"})},
            "/v2/health/ready": {"get": _get("Whether it takes requests.", {"type": "object"})},
            "/v2/models/{name}": {"get": _model("What the model takes and gives.")},
            "/v2/models/{name}/ready": {"get": _model("Whether the model takes requests.")},
            "/v2/models/{name}/infer": {"post": _infer()},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR, "Prediction": _PREDICTION},
        },
        "security": [{}, {"token": []}],
    }


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_SCORE = {
    "type": "object",
    "properties": {
        "class_name": {"type": "string"},
        "label": {"type": "integer"},
        "probability": {"type": "number", "minimum": 0, "maximum": 1},
    },
}
_PREDICTION = {
    "type": "object",
    "description": "Either the classes, or the error of this one picture.",
    "properties": {
        "name": {"type": "string", "description": "The file name in the form; empty for a raw body."},
        "class_name": {"type": ["string", "null"], "description": "The best class; null where it is not known."},
        "probability": {"type": "number"},
        "known": {"type": "boolean", "description": "Whether the best class reaches the stored threshold."},
        "top": {"type": "array", "items": _SCORE},
        "error": _ERROR["properties"]["error"],  # type: ignore[index]  # a plain dictionary
    },
}


def _predict() -> dict[str, Any]:
    top = {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 5}}
    predictions = {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
    form = {"type": "object", "properties": {"file": {"type": "array", "items": _BINARY}}}
    return {
        "summary": "Name the class of one picture (raw body) or of several (a form with files).",
        "parameters": [top],
        "requestBody": {
            "required": True,
            "content": {"image/*": {"schema": _BINARY}, "multipart/form-data": {"schema": form}},
        },
        "responses": {
            "200": _answer({"type": "object", "properties": {"predictions": predictions}}),
            **_errors(),
        },
    }


def _infer() -> dict[str, Any]:
    return {
        **_model("Pixels, UINT8 (N, H, W, 3) RGB, to probabilities, FP32 (N, classes)."),
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
    }


def _model(summary: str) -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    not_found = {"404": _answer({"$ref": "#/components/schemas/Error"}, "There is no such model (not-found).")}
    found = _get(summary, {"type": "object"})
    return {**found, "parameters": [name], "responses": {**found["responses"], **not_found, **_errors()}}


def _get(summary: str, schema: dict[str, Any], *, media: str = "application/json") -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": _answer(schema, media=media)}}


def _answer(schema: dict[str, Any], description: str = "Done.", *, media: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": schema}}}


def _errors() -> dict[str, Any]:
    return {status: _answer({"$ref": "#/components/schemas/Error"}, text) for status, text in _ERROR_CODES.items()}
