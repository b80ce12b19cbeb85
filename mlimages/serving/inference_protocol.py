"""The Open Inference Protocol, version 2, JSON over HTTP, with binary tensors and classification (see `schemas`)."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any, Literal

import numpy as np
from aiohttp import web
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from mlimages import __version__
from mlimages.core import Prediction
from mlimages.inference import INPUT, KNOWN, KNOWN_THRESHOLD, PREDICTION_SET_LEVEL, PROBABILITIES, OnnxBundle
from mlimages.serving import schemas
from mlimages.serving.bodies import read_body
from mlimages.serving.openapi import MODEL_PATHS
from mlimages.serving.problems import ApiError
from mlimages.serving.service import SERVICE_KEY, Service

VERSION = "1"
"""Version that the server reports for its model; it stays the same when the model is reloaded."""

_LENGTH_HEADER = "Inference-Header-Content-Length"

_MODEL, _MODEL_VERSION = MODEL_PATHS

routes = web.RouteTableDef()


@routes.get("/v2")
async def get_server_metadata(request: web.Request) -> web.Response:
    """Return the name, version and extensions of the server."""
    extensions = ["binary_tensor_data", "classification"]
    return _make_json_response(schemas.ServerMetadata(name="mlimages", version=__version__, extensions=extensions))


@routes.get("/v2/health/live")
async def get_liveness(request: web.Request) -> web.Response:
    """Return whether the server is running."""
    return _make_json_response(schemas.ServerLive(live=True))


@routes.get("/v2/health/ready")
async def get_readiness(request: web.Request) -> web.Response:
    """Return whether the server accepts requests."""
    is_ready = not request.app[SERVICE_KEY].is_stopping
    return _make_json_response(schemas.ServerReady(ready=is_ready), status=200 if is_ready else 503)


@routes.get(_MODEL)
@routes.get(_MODEL_VERSION)
async def get_model_metadata(request: web.Request) -> web.Response:
    """Return the inputs and outputs of the model."""
    service = _get_service(request)
    pixels = schemas.TensorMetadata(name=INPUT, datatype="UINT8", shape=[-1, -1, -1, 3])
    return _make_json_response(schemas.ModelMetadata(
        name=service.model_name,
        versions=[VERSION],
        platform="onnxruntime_onnx",
        inputs=[pixels],
        outputs=_describe_outputs(service.bundle),
    ))  # fmt: skip


@routes.get(f"{_MODEL}/ready")
@routes.get(f"{_MODEL_VERSION}/ready")
async def get_model_readiness(request: web.Request) -> web.Response:
    """Return whether the model accepts requests."""
    service = _get_service(request)
    answer = schemas.ModelReady(name=service.model_name, ready=not service.is_stopping)
    return _make_json_response(answer, status=200 if answer.ready else 503)


@routes.post(f"{_MODEL}/infer")
@routes.post(f"{_MODEL_VERSION}/infer")
async def infer(request: web.Request) -> web.Response:
    """Return the requested outputs, by default all, for images given as pixels, uint8 RGB `(N, H, W, 3)`."""
    service = _get_service(request)
    body = await read_body(request, service.settings)
    try:
        inference_request, images = await asyncio.to_thread(_parse_request, body, request.headers.get(_LENGTH_HEADER))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        if "trailing characters" in message and _LENGTH_HEADER not in request.headers:
            message += (
                f"; if binary data follows the JSON, send the header {_LENGTH_HEADER} with the length of the JSON"
            )
        raise ApiError(400, "bad-request", f"not an inference request: {message}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise ApiError(400, "bad-request", f"not an inference request: {error}") from error
    if len(images) > service.settings.max_images:
        raise ApiError(413, "too-many-images", f"at most {service.settings.max_images} images per request")
    bundle = service.bundle
    names = [output.name for output in _describe_outputs(bundle)]
    if missing := [output.name for output in inference_request.outputs if output.name not in names]:
        raise ApiError(
            400, "bad-request", f"this model has no output {missing[0]!r}; its outputs are {', '.join(names)}"
        )
    results = await service.predict(list(images), top=len(bundle.class_names))
    tensors = {name: array for name, array in _make_output_arrays(results, bundle).items() if name in names}
    return _make_infer_response(service.model_name, bundle.class_names, inference_request, tensors)


def _describe_outputs(bundle: OnnxBundle) -> list[schemas.TensorMetadata]:
    """Return name, datatype and shape of each output that requests to the model can ask for.

    The output `known`, which detects out-of-distribution images, is included if the model has it. The output
    `prediction_set` is included if the model has a threshold for prediction sets.
    """
    classes = len(bundle.class_names)
    outputs = [schemas.TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=[-1, classes])]
    if bundle.known:
        parameters = {"threshold": KNOWN_THRESHOLD}
        outputs.append(schemas.TensorMetadata(name=KNOWN, datatype="FP32", shape=[-1], parameters=parameters))
    if bundle.prediction_sets and PREDICTION_SET_LEVEL in bundle.prediction_sets.thresholds:
        parameters = {"level": float(PREDICTION_SET_LEVEL)}
        outputs.append(schemas.TensorMetadata(
            name=schemas.PREDICTION_SET, datatype="BOOL", shape=[-1, classes], parameters=parameters
        ))  # fmt: skip
    return outputs


def _get_service(request: web.Request) -> Service:
    """Return the service; raise ApiError if the request names another model or version."""
    service = request.app[SERVICE_KEY]
    if request.match_info["name"] != service.model_name or request.match_info.get("version", VERSION) != VERSION:
        raise ApiError(404, "not-found", f"model not found: this server has {service.model_name!r}, version {VERSION}")
    return service


def _parse_request(body: bytes, header_length: str | None) -> tuple[schemas.InferRequest, NDArray[np.uint8]]:
    """Return the JSON part of a request body, and its images `(N, H, W, 3)`.

    Args:
        body: the whole request body.
        header_length: value of the header `Inference-Header-Content-Length`; None if absent: all of `body` is JSON.
    """
    if header_length is not None and not re.fullmatch("[0-9]{1,18}", header_length):
        raise ValueError(f"the header {_LENGTH_HEADER} is {header_length!r}: expected the number of bytes of the JSON")
    length = len(body) if header_length is None else int(header_length)
    if length > len(body):
        raise ValueError(f"the header {_LENGTH_HEADER} is {length}, but the body has {len(body)} bytes")
    inference_request = schemas.InferRequest.model_validate_json(body[:length])
    (tensor,) = inference_request.inputs
    size = tensor.parameters.binary_data_size
    if len(body) - length != (size or 0):
        raise ValueError(f"binary_data_size is {size or 0}, but {len(body) - length} bytes follow the JSON")
    values = np.frombuffer(body[length : length + size], np.uint8) if size is not None else _parse_pixels(tensor.data)
    if values.size != math.prod(tensor.shape):
        raise ValueError(f"the shape requires {math.prod(tensor.shape)} values, but the data has {values.size} values")
    return inference_request, values.reshape(tensor.shape)


def _parse_pixels(data: object) -> NDArray[np.uint8]:
    """Return the pixels from the JSON value `data`; raise ValueError if they are not integers from 0 to 255."""
    try:
        values = np.asarray(data)
    except ValueError as error:  # NumPy's message is about its own arguments
        raise ValueError("the data must be a flat list of integers, or nested lists of equal lengths") from error
    if values.dtype.kind not in "iu" or not values.size or values.min() < 0 or values.max() > 255:
        raise ValueError("the data must be integers from 0 to 255")
    return values.astype(np.uint8)


def _make_output_arrays(results: list[Prediction | ApiError], bundle: OnnxBundle) -> dict[str, NDArray[Any]]:
    """Return the outputs by name, one row per image.

    Raises:
        ApiError: the first error in `results`.
    """
    shape = len(results), len(bundle.class_names)
    probabilities, known, sets = np.zeros(shape, "<f4"), np.zeros(shape[0], "<f4"), np.zeros(shape, bool)
    for n, result in enumerate(results):
        if isinstance(result, ApiError):
            raise result
        known[n] = result.known_score or 0.0
        for score in result.top:
            probabilities[n, score.label] = score.probability
            sets[n, score.label] = score.class_name in (result.prediction_set or ())
    return {PROBABILITIES: probabilities, KNOWN: known, schemas.PREDICTION_SET: sets}


def _make_infer_response(
    name: str, class_names: tuple[str, ...], inference_request: schemas.InferRequest, tensors: dict[str, NDArray[Any]]
) -> web.Response:
    """Return the response with the requested outputs.

    The values of an output are in the JSON or, if the request asks for bytes, follow the JSON.
    """
    outputs, binary = [], b""
    for requested in inference_request.outputs or [schemas.RequestOutput(name=each) for each in tensors]:
        output, data = _encode_output(requested, tensors[requested.name], class_names)
        is_binary = requested.parameters.binary_data
        if inference_request.parameters.binary_data_output if is_binary is None else is_binary:
            output.data, output.parameters = None, {"binary_data_size": len(data)}
            binary += data
        outputs.append(output)
    response = schemas.InferResponse(id=inference_request.id, model_name=name, model_version=VERSION, outputs=outputs)
    if not any(output.parameters for output in outputs):
        return _make_json_response(response)
    header = response.model_dump_json(exclude_none=True).encode()
    headers = {_LENGTH_HEADER: str(len(header))}
    return web.Response(body=header + binary, content_type="application/octet-stream", headers=headers)


def _encode_output(
    requested_output: schemas.RequestOutput, values: NDArray[Any], class_names: tuple[str, ...]
) -> tuple[schemas.ResponseOutput, bytes]:
    """Return an output with its values as JSON, and these values as bytes; the caller sends one of the two."""
    name, count = requested_output.name, min(requested_output.parameters.classification, len(class_names))
    if count and name == PROBABILITIES:
        tops = [(row, label) for row in values for label in (-row).argsort(kind="stable")[:count].tolist()]
        texts = [f"{row[label]:f}:{label}:{class_names[label]}" for row, label in tops]  # as Triton formats classes
        output = schemas.ResponseOutput(name=name, datatype="BYTES", shape=[len(values), count], data=texts)
        # each element of a BYTES tensor follows its length in four bytes
        return output, b"".join(len(data).to_bytes(4, "little") + data for data in map(str.encode, texts))
    datatype: Literal["BOOL", "FP32"] = "BOOL" if values.dtype == bool else "FP32"
    flat = values.ravel().tolist()
    return schemas.ResponseOutput(name=name, datatype=datatype, shape=list(values.shape), data=flat), values.tobytes()


def _make_json_response(body: BaseModel, *, status: int = 200) -> web.Response:
    return web.json_response(text=body.model_dump_json(exclude_none=True), status=status)
