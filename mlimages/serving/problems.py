"""Error responses as JSON with a code: `{"error": {"code": ..., "message": ...}}`.

Under `/v2` they are `{"error": MESSAGE, "code": ...}`, since the Open Inference Protocol requires a string.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from pydantic import BaseModel

from mlimages.serving import schemas

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiError(Exception):
    """An HTTP error; programs may rely on `code`, but not on the wording of `message`."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def to_response(self, path: str) -> web.Response:
        """Return the error as JSON, in the format of the API to which the path belongs."""
        body: BaseModel = schemas.ErrorResponse(error=schemas.ErrorDetail(code=self.code, message=self.message))
        if path.startswith("/v2"):
            body = schemas.ProtocolErrorResponse(error=self.message, code=self.code)
        headers = {"Server": "mlimages", **self.headers}
        return web.json_response(text=body.model_dump_json(), status=self.status, headers=headers)


def make_internal_error() -> ApiError:
    """Return the error for a failure of the server; details are only logged."""
    return ApiError(500, "internal", "the server failed to process the request: see its log")


def make_timeout_error() -> ApiError:
    """Return the error for a result that is not ready in time."""
    return ApiError(503, "timeout", "the result was not ready in time: try again later", {"Retry-After": "5"})


def make_busy_error() -> ApiError:
    """Return the error for a full queue, or for /explain without an idle thread."""
    return ApiError(503, "busy", "too many images are waiting: try again in a second", {"Retry-After": "1"})


def make_too_large_error(max_bytes: int) -> ApiError:
    """Return the error for a body above the size limit; its response closes the connection."""
    return ApiError(413, "too-large", f"the request is larger than {max_bytes} bytes", {"Connection": "close"})


@web.middleware
async def return_errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Convert every error to a JSON response without details of the server; pass on a ConnectionError unchanged."""
    try:
        return await handler(request)
    except ApiError as problem:
        if problem.status == 422 and request.content_type == "application/x-www-form-urlencoded":
            problem.message += "; curl -d changes the bytes of a file: use -F file=@IMAGE instead"
        return problem.to_response(request.path)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        message = f"{request.method} {request.path}: {error.reason}; see /openapi.json for all routes"
        return ApiError(error.status, make_error_code(error.reason), message, headers).to_response(request.path)
    except ConnectionError:
        raise
    except Exception:  # a bug: respond with JSON here too, and log the traceback
        logger.exception("%s %s", request.method, request.path)
        return make_internal_error().to_response(request.path)


def make_error_code(reason: str) -> str:
    """Convert the reason phrase of an HTTP status to an error code: `Not Found` -> `not-found`."""
    return (reason or "error").lower().replace(" ", "-")
