"""Every error is JSON with a code: `{"error": {"code": ..., "message": ...}}`.

Under `/v2` it is `{"error": MESSAGE, "code": ...}`: the Open Inference Protocol wants a string there.
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
    """A request that cannot be answered; `code` is stable, `message` for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def response(self, path: str) -> web.Response:
        """As JSON, in the form that the path's interface wants."""
        body: BaseModel = schemas.Error(error=schemas.Problem(code=self.code, message=self.message))
        if path.startswith("/v2"):
            body = schemas.ProtocolError(error=self.message, code=self.code)
        headers = {"Server": "mlimages", **self.headers}
        return web.Response(
            text=body.model_dump_json(), status=self.status, headers=headers, content_type="application/json"
        )


def internal() -> ProblemError:
    """The server failed; only its log says why."""
    return ProblemError(500, "internal", "the server failed at this request; its log says why")


def busy() -> ProblemError:
    """The queue is full."""
    return ProblemError(503, "busy", "too many images are waiting: try again in a second", {"Retry-After": "1"})


def too_large(limit: int) -> ProblemError:
    """The body is longer than allowed; what is left of it is not read."""
    return ProblemError(413, "too-large", f"the request is longer than {limit} bytes", {"Connection": "close"})


@web.middleware
async def as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as JSON; nothing of this machine is told."""
    try:
        return await handler(request)
    except ProblemError as problem:
        return problem.response(request.path)
    except web.HTTPException as error:
        code = (error.reason or "error").lower().replace(" ", "-")
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        message = f"{request.method} {request.path}: {error.reason}; /openapi.json lists what there is"
        return ProblemError(error.status, code, message, headers).response(request.path)
    except ConnectionError:
        raise
    except Exception:  # a fault of the server itself: the client gets JSON too, the log says what happened
        logger.exception("%s %s", request.method, request.path)
        return internal().response(request.path)
