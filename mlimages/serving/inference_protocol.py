"""The Open Inference Protocol, version 2, JSON over HTTP, with binary tensors and classification (see `schemas`)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable

import numpy as np
from aiohttp import web
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from mlimages import __version__
from mlimages.core import Prediction
from mlimages.inference import INPUT, PROBABILITIES
from mlimages.serving import schemas
from mlimages.serving.bodies import read_body
from mlimages.serving.problems import ProblemError
from mlimages.serving.service import SERVICE, Service

VERSION = "1"
"""Of the one model that a server has."""

_HEADER_LENGTH = "Inference-Header-Content-Length"


def routes() -> Iterable[web.RouteDef]:
    """What this module answers."""
    one, versioned = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    return [
        web.get("/v2", server),
        web.get("/v2/health/live", live),
        web.get("/v2/health/ready", ready),
        *(web.get(path, model) for path in (one, versioned)),
        *(web.get(f"{path}/ready", model_ready) for path in (one, versioned)),
        *(web.post(f"{path}/infer", infer) for path in (one, versioned)),
    ]


async def server(request: web.Request) -> web.Response:
    """Name, version and extensions of the server."""
    extensions = ["binary_tensor_data", "classification"]
    return _json(schemas.ServerMetadata(name="mlimages", version=__version__, extensions=extensions))


async def live(request: web.Request) -> web.Response:
    """Whether the server runs."""
    return _json(schemas.Live(live=True))


async def ready(request: web.Request) -> web.Response:
    """Whether the server takes requests."""
    is_ready = not request.app[SERVICE].stopping
    return _json(schemas.Ready(ready=is_ready), status=200 if is_ready else 503)


async def model(request: web.Request) -> web.Response:
    """What the model takes and gives."""
    service = _service(request)
    classes = len(service.bundle.class_names)
    pixels = schemas.TensorMetadata(name=INPUT, datatype="UINT8", shape=[-1, -1, -1, 3])
    probabilities = schemas.TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=[-1, classes])
    return _json(schemas.ModelMetadata(
        name=service.name,
        versions=[VERSION],
        platform="onnxruntime_onnx",
        inputs=[pixels],
        outputs=[probabilities],
    ))  # fmt: skip


async def model_ready(request: web.Request) -> web.Response:
    """Whether the model takes requests."""
    return _json(schemas.ModelReady(name=_service(request).name, ready=True))


async def infer(request: web.Request) -> web.Response:
    """Pixels, uint8 RGB `(N, H, W, 3)`, to probabilities `(N, classes)`."""
    service = _service(request)
    body = await read_body(request, service.settings)
    try:
        asked, images = await asyncio.to_thread(_parse, body, request.headers.get(_HEADER_LENGTH))
    except ValidationError as error:
        raise ProblemError(400, "bad-request", f"not an inference request: {_first(error)}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise ProblemError(400, "bad-request", f"not an inference request: {error}") from error
    if len(images) > service.settings.max_images:
        raise ProblemError(413, "too-many-images", f"send at most {service.settings.max_images} images at a time")
    bundle = service.bundle
    classes = len(bundle.class_names)
    rows = [_row(result, classes) for result in await service.answer(list(images), top=classes)]
    return _response(service.name, bundle.class_names, asked, np.stack(rows))


def _service(request: web.Request) -> Service:
    service = request.app[SERVICE]
    if request.match_info["name"] != service.name or request.match_info.get("version", VERSION) != VERSION:
        raise ProblemError(404, "not-found", f"no such model: this server has {service.name!r}, version {VERSION}")
    return service


def _parse(body: bytes, header_length: str | None) -> tuple[schemas.InferRequest, NDArray[np.uint8]]:
    """The request's JSON and its images `(N, H, W, 3)`."""
    length = int(header_length) if header_length is not None else len(body)
    asked = schemas.InferRequest.model_validate_json(body[:length])
    (tensor,) = asked.inputs
    size = tensor.parameters.binary_data_size
    values = np.frombuffer(body[length : length + size], np.uint8) if size is not None else _levels(tensor.data)
    if values.size != math.prod(tensor.shape):
        raise ValueError(f"the shape wants {math.prod(tensor.shape)} values, the data has {values.size}")
    return asked, values.reshape(tensor.shape)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


def _levels(data: object) -> NDArray[np.uint8]:
    values = np.asarray(data)
    if values.dtype.kind not in "iu" or not values.size or values.min() < 0 or values.max() > 255:
        raise ValueError("the data are whole numbers from 0 to 255")
    return values.astype(np.uint8)


def _row(result: Prediction | ProblemError, classes: int) -> NDArray[np.float32]:
    if isinstance(result, ProblemError):
        raise result
    row = np.zeros(classes, np.float32)
    for score in result.top:
        row[score.label] = score.probability
    return row


def _response(
    name: str, class_names: tuple[str, ...], asked: schemas.InferRequest, rows: NDArray[np.float32]
) -> web.Response:
    wanted = asked.outputs[0].parameters if asked.outputs else schemas.OutputParameters()
    count = min(wanted.classification, rows.shape[1])
    texts = [_classes(row, class_names, count) for row in rows] if count else []
    output = schemas.ResponseOutput(datatype="BYTES" if count else "FP32", shape=[len(rows), count or rows.shape[1]])
    answer = schemas.InferResponse(id=asked.id, model_name=name, model_version=VERSION, outputs=[output])
    is_binary = asked.parameters.binary_data_output if wanted.binary_data is None else wanted.binary_data
    if not is_binary:
        output.data = [text for row in texts for text in row] if count else rows.ravel().tolist()
        return _json(answer)
    data = b"".join(_bytes(text) for row in texts for text in row) if count else rows.astype("<f4").tobytes()
    output.parameters = {"binary_data_size": len(data)}
    header = answer.model_dump_json(exclude_none=True).encode()
    return web.Response(
        body=header + data,
        content_type="application/octet-stream",
        headers={_HEADER_LENGTH: str(len(header))},
    )


def _classes(row: NDArray[np.float32], names: tuple[str, ...], count: int) -> list[str]:
    """The most probable classes as Triton's classification extension writes them."""
    return [f"{row[label]:f}:{label}:{names[label]}" for label in (-row).argsort(kind="stable")[:count].tolist()]


def _bytes(text: str) -> bytes:
    """An element of a BYTES tensor: its length in four bytes, little-endian, then itself."""
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def _json(answer: BaseModel, *, status: int = 200) -> web.Response:
    return web.Response(text=answer.model_dump_json(exclude_none=True), status=status, content_type="application/json")
