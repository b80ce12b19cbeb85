"""The Open Inference Protocol, version 2, JSON over HTTP, with its binary tensor extension.

Source: https://github.com/kserve/open-inference-protocol and, for binary data, Triton's
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from mlimages import __version__
from mlimages.core import Prediction
from mlimages.inference import INPUT, PROBABILITIES
from mlimages.serving.bodies import read_body
from mlimages.serving.problems import ProblemError
from mlimages.serving.service import SERVICE, Service

_HEADER_LENGTH = "Inference-Header-Content-Length"


def routes() -> Iterable[web.RouteDef]:
    """What this module answers."""
    return [
        web.get("/v2", server),
        web.get("/v2/health/live", live),
        web.get("/v2/health/ready", ready),
        web.get("/v2/models/{name}", model),
        web.get("/v2/models/{name}/ready", model_ready),
        web.post("/v2/models/{name}/infer", infer),
    ]


async def server(request: web.Request) -> web.Response:
    """Name, version, extensions."""
    return web.json_response({"name": "mlimages", "version": __version__, "extensions": ["binary_tensor_data"]})


async def live(request: web.Request) -> web.Response:
    """That the server runs."""
    return web.json_response({"live": True})


async def ready(request: web.Request) -> web.Response:
    """That it takes requests."""
    is_ready = not request.app[SERVICE].stopping
    return web.json_response({"ready": is_ready}, status=200 if is_ready else 503)


async def model(request: web.Request) -> web.Response:
    """What the model takes and gives."""
    service = _service(request)
    return web.json_response({
        "name": service.name,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [{"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(service.bundle.class_names)]}],
    })  # fmt: skip


async def model_ready(request: web.Request) -> web.Response:
    """That this model takes requests."""
    return web.json_response({"name": _service(request).name, "ready": True})


async def infer(request: web.Request) -> web.Response:
    """Pixels, uint8 RGB `(N, H, W, 3)`, to probabilities `(N, classes)`."""
    service = _service(request)
    body = await read_body(request, service.settings.max_body_bytes)
    try:
        asked, images = await asyncio.to_thread(_parse, body, request.headers.get(_HEADER_LENGTH))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ProblemError(400, "bad-request", f"not an inference request: {error}") from error
    if len(images) > service.settings.max_images:
        raise ProblemError(413, "too-many-images", f"send at most {service.settings.max_images} pictures at a time")
    classes = len(service.bundle.class_names)
    rows = [_row(result, classes) for result in await service.answer(list(images), top=classes)]
    return _response(service, asked, np.stack(rows))


def _service(request: web.Request) -> Service:
    service = request.app[SERVICE]
    if request.match_info["name"] != service.name:
        raise ProblemError(404, "not-found", f"no such model: this server has {service.name!r}")
    return service


def _parse(body: bytes, header_length: str | None) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The request's JSON and its pictures `(N, H, W, 3)`."""
    length = int(header_length) if header_length is not None else len(body)
    asked = json.loads(body[:length])
    (tensor,) = asked["inputs"]
    shape = tuple(tensor["shape"])
    if tensor["name"] != INPUT or tensor["datatype"] != "UINT8":
        raise ValueError(f"the input is {INPUT!r} of datatype UINT8")
    if any(output["name"] != PROBABILITIES for output in asked.get("outputs") or ()):
        raise ValueError(f"the output is {PROBABILITIES!r}")
    if len(shape) != 4 or shape[3] != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError("the shape is (N, H, W, 3)")
    size = tensor.get("parameters", {}).get("binary_data_size")
    values = np.frombuffer(body[length : length + size], np.uint8) if size is not None else _levels(tensor["data"])
    if values.size != math.prod(shape):
        raise ValueError(f"the shape wants {math.prod(shape)} values, the data has {values.size}")
    return asked, values.reshape(shape)


def _levels(data: object) -> NDArray[np.uint8]:
    values = np.asarray(data)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise ValueError("the data are whole numbers from 0 to 255")
    return values.astype(np.uint8)


def _row(result: Prediction | ProblemError, classes: int) -> NDArray[np.float32]:
    if isinstance(result, ProblemError):
        raise result
    row = np.zeros(classes, np.float32)
    for score in result.top:
        row[score.label] = score.probability
    return row


def _response(service: Service, asked: dict[str, Any], probabilities: NDArray[np.float32]) -> web.Response:
    output: dict[str, Any] = {"name": PROBABILITIES, "datatype": "FP32", "shape": list(probabilities.shape)}
    answer = {"model_name": service.name, "model_version": "1", "outputs": [output]}
    if "id" in asked:
        answer["id"] = str(asked["id"])
    if not _wants_binary(asked):
        output["data"] = probabilities.ravel().tolist()
        return web.json_response(answer)
    data = probabilities.astype("<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(data)}
    header = json.dumps(answer).encode()
    return web.Response(
        body=header + data,
        content_type="application/octet-stream",
        headers={_HEADER_LENGTH: str(len(header))},
    )


def _wants_binary(asked: dict[str, Any]) -> bool:
    outputs = asked.get("outputs") or [{}]
    for_all = asked.get("parameters", {}).get("binary_data_output", False)
    return bool(outputs[0].get("parameters", {}).get("binary_data", for_all))
