"""A web site of handwritten digits on loopback, as broken as the real web is."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from aiohttp import web
from PIL import Image
from sklearn.datasets import load_digits

PICTURE_PX = 56
DEAD, DRESSED_HTML, CUT, REPEATED, GONE = 20, 12, 12, 20, 15
"""How many links are dead, HTML named .png, cut short, a picture seen before, "no longer available"."""


@dataclass(frozen=True, slots=True)
class Page:
    """What the site answers under one path, and the class that its link promises."""

    path: str
    label: str
    body: bytes
    status: int = 200


def digit_pages(*, seed: int) -> list[Page]:
    """The 1797 digits of scikit-learn as PNG files, with broken links strewn among them by `seed`."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    good = [
        Page(f"/digits/{label}/{number:04}.png", str(label), _png(pixels))
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True))
    ]
    chosen = iter(rng.permutation(len(good)))
    pages = list(good)
    pages += [Page(f"/lost/{n}.png", good[next(chosen)].label, b"", status=404) for n in range(DEAD)]
    pages += [
        Page(f"/moved/{n}.png", good[next(chosen)].label, b"<!doctype html><title>Sign in</title>")
        for n in range(DRESSED_HTML)
    ]
    for n in range(CUT):
        whole = good[next(chosen)]
        pages.append(Page(f"/cut/{n}.png", whole.label, whole.body[: len(whole.body) // 2]))
    for n in range(REPEATED):
        first = good[next(chosen)]
        pages.append(Page(f"/again/{n}.png", first.label, first.body))
    pages += [Page(f"/gone/{n}.png", good[next(chosen)].label, _gone_picture()) for n in range(GONE)]
    return [pages[index] for index in rng.permutation(len(pages))]


@contextmanager
def serving(pages: list[Page]) -> Iterator[str]:
    """Serve `pages` on a free loopback port from a thread of its own; yield the site's address."""
    by_path = {page.path: page for page in pages}

    async def answer(request: web.Request) -> web.Response:
        page = by_path.get(request.path)
        if page is None:
            return web.Response(status=404)
        kind = "text/html" if page.path.startswith("/moved/") else "image/png"
        return web.Response(body=page.body, status=page.status, content_type=kind)

    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, access_log=None)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bytes:
    """An 8 x 8 digit of values 0..16 as a white-on-black PNG."""
    grey = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
    return _encoded(grey.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC))


def _gone_picture() -> bytes:
    """The one picture that a host serves for every photograph taken down: a grey sheet with a cross."""
    sheet = np.full((PICTURE_PX, PICTURE_PX), 200, dtype=np.uint8)
    row, column = np.indices(sheet.shape)
    sheet[(abs(row - column) < 3) | (abs(row + column - PICTURE_PX) < 3)] = 90
    return _encoded(Image.fromarray(sheet))


def _encoded(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
