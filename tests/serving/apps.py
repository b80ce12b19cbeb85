"""Applications that run in a thread, and requests for them."""

import asyncio
import http.client
import io
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from mlimages.serving.access_log import http_logger
from tests.deploying import made_image


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        answer = self.json
        return str(answer["code"] if isinstance(answer["error"], str) else answer["error"]["code"])


@dataclass(frozen=True, slots=True)
class Client:
    """What sends requests to a server on this machine."""

    port: int

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=sent)
        answer = connection.getresponse()
        reply = Reply(answer.status, answer.headers, answer.read())
        connection.close()
        return reply

    def ask_form(self, path: str, *files: tuple[str, bytes]) -> Reply:
        body, kind = form(*files)
        return self.ask("POST", path, body, Content_Type=kind)

    def connect(self, data: bytes) -> socket.socket:
        """A connection over which these bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(data)
        return connection


@dataclass(frozen=True, slots=True)
class Served(Client):
    """An application that runs in a thread."""

    app: web.Application


@contextmanager
def run_app(app: web.Application) -> Iterator[Served]:
    loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    ports = []

    async def main() -> None:
        runner = web.AppRunner(app, logger=http_logger, auto_decompress=False, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    started.wait(120)
    yield Served(ports[0], app)
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def encoded(seed: int = 0, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    made_image(seed).save(out, form, **options)
    return out.getvalue()


def form(*files: tuple[str, bytes], field: str = "file") -> tuple[bytes, str]:
    parts = b"".join(
        b'--edge\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\n\r\n%b\r\n'
        % (field.encode(), name.encode(), data)
        for name, data in files
    )
    return parts + b"--edge--\r\n", "multipart/form-data; boundary=edge"


@dataclass(frozen=True, slots=True)
class Pieces:
    """A request's body that comes in pieces, each after so many seconds."""

    pieces: Sequence[bytes]
    every_s: float

    async def iter_any(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            await asyncio.sleep(self.every_s)
            yield piece


def upload_of(*pieces: bytes, every_s: float = 0.0, **headers: str) -> web.Request:
    """A request for /predict whose body comes in these pieces."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request("POST", "/predict", names, payload=cast(Any, Pieces(pieces, every_s)))


def bomb() -> bytes:
    """A small PNG that says it has 900 megapixels."""
    data = encoded()
    header = b"IHDR" + (30_000).to_bytes(4) * 2 + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4) + data[33:]
