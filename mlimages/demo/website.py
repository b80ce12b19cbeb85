"""A local web server of handwritten digits, with links to missing, broken, duplicate and placeholder images."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

IMAGE_PX = 56
NUM_MISSING, NUM_HTML, NUM_TRUNCATED, NUM_DUPLICATES, NUM_PLACEHOLDERS = 20, 12, 12, 20, 15
"""Number of links of each kind: to a missing file, an HTML page, a truncated image, a copy of another image, and a
placeholder image."""


@dataclass(frozen=True, slots=True)
class Response:
    """The response to a request for `path`; `class_name` is the class of `path` in the demo's list of links."""

    path: str
    class_name: str
    body: bytes
    status: int = 200
    content_type: str = "image/png"


def make_digit_responses() -> list[Response]:
    """Return the 1797 digits of scikit-learn as PNG files, and responses that `gather` rejects, such as 404 pages.

    The order is random but fixed.
    """
    digits = load_digits()
    rng = np.random.default_rng(0)
    images = [
        Response(f"/digits/{label}/{number:04}.png", str(label), _encode_digit(pixels))
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True))
    ]
    samples = (images[index] for index in rng.permutation(len(images)))
    responses = list(images)
    responses += [Response(f"/missing/{n}.png", next(samples).class_name, b"", status=404) for n in range(NUM_MISSING)]
    html = b"<!doctype html><title>Sign in</title>"
    responses += [
        Response(f"/html/{n}.png", next(samples).class_name, html, content_type="text/html") for n in range(NUM_HTML)
    ]
    for n in range(NUM_TRUNCATED):
        sample = next(samples)
        responses.append(Response(f"/truncated/{n}.png", sample.class_name, sample.body[: len(sample.body) // 2]))
    for n in range(NUM_DUPLICATES):
        sample = next(samples)
        responses.append(Response(f"/duplicate/{n}.png", sample.class_name, sample.body))
    placeholder = _encode_placeholder()
    responses += [Response(f"/removed/{n}.png", next(samples).class_name, placeholder) for n in range(NUM_PLACEHOLDERS)]
    return [responses[index] for index in rng.permutation(len(responses))]


@contextmanager
def serve_responses(responses: Sequence[Response]) -> Iterator[str]:
    """Serve `responses` on a free loopback port in background threads; yield the base URL."""
    response_by_path = {response.path: response for response in responses}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open
        wbufsize = -1  # sends headers and body together

        def do_GET(self) -> None:
            response = response_by_path.get(unquote(self.path)) or Response(self.path, "", b"", status=404)
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _encode_digit(pixels: NDArray[np.float64]) -> bytes:
    """Return an 8 x 8 digit with values in 0..16 as an enlarged white-on-black PNG."""
    image = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
    return _encode_png(image.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC))


def _encode_placeholder() -> bytes:
    """Return a PNG of a placeholder for removed photos: a cross on gray."""
    pixels = np.full((IMAGE_PX, IMAGE_PX), 200, dtype=np.uint8)
    row, column = np.indices(pixels.shape)
    pixels[(abs(row - column) < 3) | (abs(row + column - IMAGE_PX) < 3)] = 90
    return _encode_png(Image.fromarray(pixels))


def _encode_png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
