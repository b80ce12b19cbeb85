"""Real HTTP servers in threads, as well-mannered or as broken as a test wants."""

from __future__ import annotations

import contextlib
import io
import itertools
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from mlimages.gathering.partition import choose_shard


@dataclass
class Request:
    """What a client asked for."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    target: str = ""
    body: bytes = b""
    method: str = "GET"


Reply = Callable[["Connection", Request], None]


@dataclass
class Connection:
    """The server's end of one connection; `send` never raises, and `pause` ends early when the server stops."""

    sock: socket.socket
    closing: threading.Event

    def send(self, data: bytes) -> bool:
        try:
            self.sock.sendall(data)
        except OSError:
            return False
        return True

    def pause(self, seconds: float | None = None) -> bool:
        return self.closing.wait(seconds)


@dataclass
class Site:
    """A running server: `routes` answer by path, `requests` holds what was asked, in order.

    Requests for a site's rules (robots.txt, tdmrep.json) are held in `rule_requests`; `fallback` does not answer them.
    """

    base: str
    routes: dict[str, Reply] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    rule_requests: list[Request] = field(default_factory=list)
    fallback: Reply | None = None

    def url(self, path: str) -> str:
        return self.base + path

    def asked(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)


def answer(body: bytes = b"", status: int = 200, **headers: object) -> Reply:
    """A complete answer; `Content_Type="text/html"` and the like give headers."""
    lines = {"Content-Length": len(body)} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"HTTP/1.1 {status} Status\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return raw(head.encode() + b"\r\n" + body)


def raw(data: bytes) -> Reply:
    """These bytes, whatever they mean, and the end of the connection if the client should see one."""
    return lambda connection, request: connection.send(data) and None


def cut(data: bytes) -> Reply:
    """These bytes, then the connection is closed."""

    def reply(connection: Connection, request: Request) -> None:
        connection.send(data)
        raise ConnectionAbortedError

    return reply


def reset() -> Reply:
    """The connection is reset before an answer."""

    def reply(connection: Connection, request: Request) -> None:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.sock.close()
        raise ConnectionAbortedError

    return reply


def silence() -> Reply:
    """No answer, ever."""

    def reply(connection: Connection, request: Request) -> None:
        connection.pause()
        raise ConnectionAbortedError

    return reply


def drip(data: bytes, every_s: float = 0.2) -> Reply:
    """A byte now and then."""

    def reply(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
        for at in range(len(data)):
            if connection.pause(every_s) or not connection.send(data[at : at + 1]):
                raise ConnectionAbortedError

    return reply


def endless(head: bytes = b"") -> Reply:
    """A body that does not stop."""
    return trickle("Content-Type: image/jpeg", b"\0" * 65536, head, every_s=0)


def trickle(header: str, data: bytes, start: bytes = b"", every_s: float = 0.2) -> Reply:
    """A body that does not stop, of these bytes now and then."""

    def reply(connection: Connection, request: Request) -> None:
        connection.send(f"HTTP/1.1 200 OK\r\n{header}\r\nConnection: close\r\n\r\n".encode() + start)
        while connection.send(data) and not connection.pause(every_s):
            pass
        raise ConnectionAbortedError

    return reply


def in_turn(*replies: Reply) -> Reply:
    """The first reply to the first request, and so on; the last goes on."""
    left = list(replies)
    return lambda connection, request: (left.pop(0) if len(left) > 1 else left[0])(connection, request)


@contextlib.contextmanager
def serve(tls: ssl.SSLContext | None = None, port: int = 0, fallback: Reply | None = None) -> Iterator[Site]:
    """A server on a loopback port, by default a free one."""
    closing = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            if tls:
                self.request.settimeout(10)
                self.request = tls.wrap_socket(self.request, server_side=True)
            super().setup()

        def handle(self) -> None:
            connection = Connection(self.request, closing)
            while not closing.is_set():
                request = _read_request(self.rfile)
                if request is None:
                    return
                is_rule = request.path in ("/robots.txt", "/.well-known/tdmrep.json")
                (site.rule_requests if is_rule else site.requests).append(request)
                reply = site.routes.get(request.path) or (not is_rule and site.fallback) or answer(b"none", 404)
                reply(connection, request)

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()
            self.request.close()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            pass  # the client went away, or the reply broke the connection: both are meant

    with Server(("127.0.0.1", port), Handler) as server:
        site = Site(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}", fallback=fallback)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            closing.set()
            server.shutdown()
            thread.join()


def _read_request(lines: io.BufferedIOBase) -> Request | None:
    try:
        first = lines.readline(65536).split()
        headers = {}
        while (line := lines.readline(65536)) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        body = lines.read(int(headers.get("content-length", 0)))
    except (OSError, ValueError):
        return None
    if len(first) < 2:
        return None
    parts = urlsplit(first[1].decode("latin-1"))
    return Request(
        parts.path,
        {name: values[0] for name, values in parse_qs(parts.query).items()},
        headers,
        first[1].decode("latin-1"),
        body,
        first[0].decode("latin-1"),
    )


def closed_port() -> int:
    """A loopback port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def photo(seed: int, size: tuple[int, int] = (96, 64), form: str = "JPEG", **options: object) -> bytes:
    """An image unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(out, form, **options)
    return out.getvalue()


def urls_in(site: Site, number: int, shards: int) -> Iterator[str]:
    """Links that fall to this one of so many shards."""
    host, _, port = site.base.rpartition(":")
    bases = (f"{host}:{'0' * zeros}{port}" for zeros in range(100))  # a host of its own to who divides them as texts
    base = next(base for base in bases if choose_shard(base, shards) == number)
    return (f"{base}/{number}/{n}/x.jpg" for n in itertools.count())


def path_of(url: str) -> str:
    """A link's path, as the routes of a site name it."""
    return urlsplit(url).path
