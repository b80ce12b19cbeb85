"""Repair response heads that browsers tolerate but aiohttp's parser rejects."""

from __future__ import annotations

import functools
import re
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

_MAX_HEAD_BYTES = 256 * 1024
_HEAD_END = b"\r\n\r\n"
_WELL_FORMED_HEAD = re.compile(rb"[^\r\n]*\r\n(?:[^\s:]+:[^\r\n]*\r\n)*\r\n")
_LENGTH_FIELD = re.compile(rb"\n(?:content-length|transfer-encoding):", re.IGNORECASE)
_LENIENT_HEAD_END = re.compile(rb"\n\r?\n")


def repair_head(head: bytes) -> bytes:
    """Return a response head without invalid lines and redundant Content-Length fields.

    - Lines without a colon, without a field name, or with a space in it are removed.
    - A Content-Length with the value of an earlier one is removed (RFC 9110, 8.6). One with another value is kept, so
      the parser rejects the response.
    - If there is a Transfer-Encoding, every Content-Length is removed (RFC 9112, 6.3).

    >>> repair_head(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\ncontent-length: 5\\r\\n\\r\\n")
    b'HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\n'
    """
    if _WELL_FORMED_HEAD.fullmatch(head) and len(_LENGTH_FIELD.findall(head)) < 2:  # the usual case
        return head
    status, *lines = head.removesuffix(_HEAD_END).split(b"\r\n")
    names = [line.partition(b":")[0].lower() for line in lines]
    has_coding, lengths = b"transfer-encoding" in names, set()
    kept = [status]
    for name, line in zip(names, lines, strict=True):
        if line[:1] not in (b" ", b"\t"):  # otherwise it continues the previous field
            if b":" not in line or not name or b" " in name:
                continue
            if name == b"content-length":
                length = line.partition(b":")[2].strip()
                if has_coding or length in lengths:
                    continue
                lengths.add(length)
        kept.append(line)
    return b"\r\n".join(kept) + _HEAD_END


class LenientResponseHandler(ResponseHandler):
    """Response handler of aiohttp that repairs each response head before it is parsed."""

    _head: bytes | None = None

    def set_response_params(self, **params: Any) -> None:
        """Start to collect the next response head; aiohttp calls this method before each response."""
        self._head = b""
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Pass data to the parser; a response head is repaired and passed once it is complete."""
        if self._head is None:
            super().data_received(data)
            return
        self._head += data
        end = _LENIENT_HEAD_END.search(self._head)
        if not end and len(self._head) < _MAX_HEAD_BYTES and self._head.startswith(b"HTTP/"[: len(self._head)]):
            return
        received, self._head = self._head, None
        if end and received.endswith(_HEAD_END, 0, end.end()):
            received = repair_head(received[: end.end()]) + received[end.end() :]
        super().data_received(received)

    def eof_received(self) -> None:
        """Pass a truncated response head to the parser."""
        if self._head:
            received, self._head = self._head, None
            super().data_received(received)
        super().eof_received()


class LenientConnector(aiohttp.TCPConnector):
    """Connector whose responses are parsed by a `LenientResponseHandler`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(LenientResponseHandler, loop=self._loop)  # type: ignore[assignment]
