"""Errors as JSON with a code: `{"error": {"code": ..., "message": ...}}`.

Under `/v2` it is `{"error": MESSAGE, "code": ...}`: the Open Inference Protocol requires a string there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from pydantic import BaseModel

from mlimages.serving import schemas

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ProblemError(Exception):
    """An HTTP error; `code` is stable, `message` is for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def response(self, path: str) -> web.Response:
        """Return the error as JSON, in the format of the API that the path belongs to."""
        body: BaseModel = schemas.ErrorResponse(error=schemas.Problem(code=self.code, message=self.message))
        if path.startswith("/v2"):
            body = schemas.ProtocolErrorResponse(error=self.message, code=self.code)
        headers = {"Server": "mlimages", **self.headers}
        return web.Response(
            text=body.model_dump_json(), status=self.status, headers=headers, content_type="application/json"
        )


def internal_error() -> ProblemError:
    """Return a 500 problem response; details are only logged."""
    return ProblemError(500, "internal", "the server failed to process the request; see its log")


def timeout_error() -> ProblemError:
    """Return the error for a result that was not ready in time."""
    return ProblemError(503, "timeout", "the result was not ready in time: try again later", {"Retry-After": "5"})


def busy_error() -> ProblemError:
    """Return the error for a full queue."""
    return ProblemError(503, "busy", "too many images are waiting: try again in a second", {"Retry-After": "1"})


def too_large_error(max_bytes: int) -> ProblemError:
    """Return the error for a body beyond the limit; close the connection without reading the rest."""
    return ProblemError(413, "too-large", f"the request is larger than {max_bytes} bytes", {"Connection": "close"})


def protocol_error(status: int, reason: str, message: str) -> ProblemError:
    """Return the error for a request that aiohttp refuses before it reaches the application."""
    return ProblemError(status, _code(reason), f"the request is not valid HTTP: {message.strip()}")


@web.middleware
async def return_errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Convert every error to a JSON response without details of this machine."""
    try:
        return await handler(request)
    except ProblemError as problem:
        if problem.status == 422 and request.content_type == "application/x-www-form-urlencoded":
            problem.message += "; curl -d changes the bytes of a file: send it with -F file=@IMAGE"
        return problem.response(request.path)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        message = f"{request.method} {request.path}: {error.reason}; /openapi.json lists all routes"
        return ProblemError(error.status, _code(error.reason), message, headers).response(request.path)
    except ConnectionError:
        raise
    except Exception:  # a bug of the server: the client gets JSON as well, the traceback is logged
        logger.exception("%s %s", request.method, request.path)
        return internal_error().response(request.path)


def _code(reason: str) -> str:
    return (reason or "error").lower().replace(" ", "-")
