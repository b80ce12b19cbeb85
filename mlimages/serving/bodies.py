"""Pictures out of a request's body, bounded in bytes and in number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from aiohttp import web

from mlimages.serving.problems import ProblemError, too_large
from mlimages.serving.settings import ServerSettings

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s";]{1,70}))', re.IGNORECASE)
_MAX_HEADERS = 2048
"""Of one part: a file name takes at most 765 bytes, and reading a hostile header takes the square of its length."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One encoded picture; `name` is its file name, empty for a raw body."""

    name: str
    data: bytes


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        ProblemError: it is longer than `limit` bytes.
    """
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


async def read_uploads(request: web.Request, settings: ServerSettings) -> list[Upload]:
    """The pictures of a raw body (one) or of a multipart form (each part with a file name).

    Raises:
        ProblemError: too long, too many, or not a form.
    """
    # Neither request.content_type nor request.multipart(): those parse each form's boundary as an e-mail header and its
    # parts line by line, together 0.4 ms a request.
    content_type = request.headers.get("Content-Type", "")
    body = await read_body(request, settings.max_body_bytes)
    if not content_type.lower().startswith("multipart/"):
        return [Upload("", body)]
    boundary = _BOUNDARY.search(content_type)
    if not boundary:
        raise _bad_form("its Content-Type names no boundary")
    try:
        delimiter = b"\r\n--" + (boundary[1] or boundary[2]).encode()
        uploads = list(_files(body, delimiter, settings.max_pictures))
    except (ValueError, TypeError) as error:  # TypeError: Message's, of a name that is written in two ways at once
        raise _bad_form("a boundary or a part's headers are missing") from error
    if not uploads:
        raise _bad_form("it holds no file: send each picture as a file field")
    return uploads


def _files(body: bytes, delimiter: bytes, most: int) -> Iterator[Upload]:
    """The parts that bear a file name; every delimiter begins a line (RFC 2046, 5.1.1)."""
    end = -2 if body.startswith(delimiter[2:]) else body.index(delimiter)
    for _ in range(most + 1):
        begin = end + len(delimiter)
        if body.startswith(b"--", begin):
            return
        end = body.index(delimiter, begin)
        headers_end = body.index(b"\r\n\r\n", begin, min(end + 2, begin + _MAX_HEADERS))
        name = _file_name(body[begin:headers_end])
        if name is not None:
            yield Upload(name, body[headers_end + 4 : end])
    raise ProblemError(413, "too-many-pictures", f"send at most {most} pictures at a time")


def _file_name(headers: bytes) -> str | None:
    part = Message()
    for line in headers.decode("utf-8", "replace").split("\r\n"):
        field, _, value = line.partition(":")
        part[field] = value
    return part.get_filename()


def _bad_form(why: str) -> ProblemError:
    return ProblemError(400, "bad-request", f"the multipart form cannot be read: {why}")
