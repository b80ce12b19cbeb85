"""Read images from a request body, with limits on their size and number."""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import dataclass
from typing import cast

from aiohttp import BodyPartReader, MultipartReader, StreamReader, web

from mlimages.serving.problems import ApiError, make_too_large_error
from mlimages.serving.settings import ServerSettings

_MAX_PART_HEADER_BYTES = 2048
"""Maximum size of one header of a part: a file name takes at most 765 bytes, percent-encoded."""

_MAX_PART_HEADERS = 16
"""Maximum number of headers of a part: browsers and HTTP libraries send at most four."""

_BYTES_PER_TIMEOUT = 1 << 14
"""Number of bytes that must arrive within each `timeout_s`, so that a slow client cannot hold a connection forever."""

_IDENTITY_ENCODINGS = ("binary", "8bit", "7bit")


@dataclass(frozen=True, slots=True)
class Upload:
    """An encoded image.

    Attributes:
        name: file name in the form; empty for a raw body.
        data: content of the image file.
    """

    name: str
    data: bytes


async def read_body(request: web.Request, settings: ServerSettings) -> bytes:
    """Return the whole body of a request.

    Raises:
        ApiError: the body is too large, arrives too slowly, or is compressed.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(
            415, "unsupported-media-type", "compressed bodies are not supported: send the body without Content-Encoding"
        )
    if (request.content_length or 0) > settings.max_bytes:
        raise make_too_large_error(settings.max_bytes)
    loop, body, step = asyncio.get_running_loop(), bytearray(), _BYTES_PER_TIMEOUT
    try:
        async with asyncio.timeout(settings.timeout_s) as time_out:
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > settings.max_bytes:
                    raise make_too_large_error(settings.max_bytes)
                if len(body) >= step:
                    step = len(body) + _BYTES_PER_TIMEOUT
                    time_out.reschedule(loop.time() + settings.timeout_s)
    except TimeoutError as error:
        raise ApiError(408, "timeout", "the request was received too slowly", {"Connection": "close"}) from error
    return bytes(body)


async def read_uploads(request: web.Request, settings: ServerSettings) -> list[Upload]:
    """Return the image of a raw body, or the images of a multipart form (all parts with a file name).

    Raises:
        ApiError: as in `read_body`; or the body is JSON, or a form that is invalid, has no image or too many images.
    """
    content_type = request.headers.get("Content-Type", "").lower()
    if content_type.startswith("application/json"):
        message = "send the image as the request body or as a file field of a form; only /v2 accepts JSON"
        raise ApiError(415, "unsupported-media-type", message)
    body = await read_body(request, settings)
    if not content_type.startswith("multipart/"):
        return [Upload("", body)]
    try:
        with warnings.catch_warnings(action="ignore"):  # aiohttp's warnings about invalid headers quote the client
            uploads = await _read_form(request, body, settings.max_images)
    except ApiError:
        raise
    except Exception as error:  # aiohttp's reader raises errors of many kinds on invalid forms
        raise _make_form_error("a boundary or a part header is missing or invalid") from error
    if not uploads:
        raise _make_form_error("it contains no files: send each image as a file field")
    return uploads


async def _read_form(request: web.Request, body: bytes, max_files: int) -> list[Upload]:
    """Return the parts that have a file name, and skip the others.

    Raises:
        ApiError: more than `max_files` parts have a file name, the form has more than `2 * max_files` parts, or a part
            is itself a multipart form or has a Content-Transfer-Encoding such as base64.
    """
    content = cast(StreamReader, _BodyStream(body, lines_left=2 * max_files * _MAX_PART_HEADERS))
    reader = MultipartReader(
        request.headers, content, max_field_size=_MAX_PART_HEADER_BYTES, max_headers=_MAX_PART_HEADERS
    )
    reader.part_reader_cls = _FormPart
    uploads: list[Upload] = []
    for _ in range(2 * max_files + 1):
        part = await reader.next()
        if part is None:
            return uploads
        if (
            not isinstance(part, _FormPart)
            or part.headers.get("Content-Transfer-Encoding", "binary").lower() not in _IDENTITY_ENCODINGS
        ):
            raise _make_form_error(
                "a part is encoded or is itself a multipart form: send each image as a file field without encoding"
            )
        if part.filename is None and part.name == "top":
            raise _make_form_error("pass top in the query string: POST /predict?top=1")
        if part.filename is None:
            continue
        if len(uploads) == max_files:
            break
        uploads.append(Upload(part.filename, bytes(await part.read())))
    raise ApiError(413, "too-many-images", f"at most {max_files} images per request")


class _FormPart(BodyPartReader):
    """A part of a form, read in larger chunks than aiohttp's default."""

    chunk_size = 1 << 16
    """Number of bytes that are searched for the boundary at a time."""


@dataclass(slots=True)
class _BodyStream:
    """A body in memory with the stream interface that `MultipartReader` needs, and a limit on the number of lines."""

    body: bytes
    lines_left: int
    offset: int = 0

    async def read(self, max_bytes: int) -> bytes:
        chunk = self.body[self.offset : self.offset + max_bytes]
        self.offset += len(chunk)
        return chunk

    async def readline(self, *, max_line_length: int = _MAX_PART_HEADER_BYTES) -> bytes:
        end = self.body.find(b"\n", self.offset, self.offset + max_line_length) + 1
        self.lines_left -= 1
        if self.lines_left < 0 or (not end and len(self.body) - self.offset > max_line_length):
            raise ValueError("a part has too many header lines, or a header line is too long")
        return await self.read((end or len(self.body)) - self.offset)

    def unread_data(self, data: bytes) -> None:
        self.offset -= len(data)

    def at_eof(self) -> bool:
        return self.offset >= len(self.body)


def _make_form_error(reason: str) -> ApiError:
    return ApiError(400, "bad-request", f"the multipart form cannot be read: {reason}")
