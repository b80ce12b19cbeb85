#!/usr/bin/env python
"""Put thousands of requests to a server, a fifth of them hostile, and see that every good one is answered rightly.

    .venv/bin/python scripts/bench/soak.py MODEL.onnx IMAGES [--requests 20000] [--tiny]

Hostile: cut and damaged images, AVIF, DDS and other formats among them, no images, bombs (900 megapixels in a small
PNG), bodies too long, gzip bombs, wrong forms and types, explanations, connections dropped in mid-request, bodies that
drip. Prints the counts of answers and the server's memory as it goes; exits 1 if the server died, a good request was
not answered as the file itself answers, or memory grew by more than 10 % after the first fifth of 1,000 or more
requests.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import io
import random
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from PIL import Image

from mlimages.core import Prediction
from mlimages.images import find_images
from mlimages.inference import Predictor

CLIENTS = 16
GROWTH = 1.10
WARM_UP = 1000  # requests; a server's memory still grows in them


@dataclass(slots=True)
class Soak:
    """What is sent, what is right, and what has come back."""

    host: str
    port: int
    pid: int
    model: str
    good: list[bytes]
    right: list[tuple[str, float]]
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    async def one(self, session: aiohttp.ClientSession) -> None:
        if self.dice.random() < 0.8:
            await self.ask_well(session)
        else:
            name, attack = self.dice.choice(list(ATTACKS.items()))
            self.answers[f"hostile {name}: {await attack(self, session)}"] += 1

    async def ask_well(self, session: aiohttp.ClientSession) -> None:
        n = self.dice.randrange(len(self.good))
        while True:
            async with session.post("/predict", data=self.dice.choice((bytes, as_form))(self.good[n])) as answer:
                told = await answer.json()
            if answer.status != 503:  # told to come again, so it does
                break
            self.answers["good: 503"] += 1
            await asyncio.sleep(float(answer.headers["Retry-After"]))
        self.answers[f"good: {answer.status}"] += 1
        name, probability = self.right[n]
        one = told.get("predictions", [{}])[0]
        if answer.status != 200 or one["class_name"] != name or abs(one["probability"] - probability) > 1e-4:
            self.wrong.append(f"{answer.status} {told}")

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


def as_form(image: bytes) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("file", image, filename="image.jpg")
    return form


async def post(session: aiohttp.ClientSession, data: bytes, **headers: str) -> str:
    try:
        async with session.post("/predict", data=data, headers=headers) as answer:
            return str(answer.status)
    except aiohttp.ClientError as error:
        return type(error).__name__


async def cut(soak: Soak, session: aiohttp.ClientSession) -> str:
    data = soak.dice.choice(soak.good)
    return await post(session, data[: soak.dice.randrange(len(data))])


async def damaged(soak: Soak, session: aiohttp.ClientSession) -> str:
    data = bytearray(soak.dice.choice(soak.good))
    for _ in range(20):
        data[soak.dice.randrange(len(data))] = soak.dice.randrange(256)
    return await post(session, bytes(data))


async def damaged_format(soak: Soak, session: aiohttp.ClientSession) -> str:
    data = bytearray(soak.dice.choice(FORMATS))
    for _ in range(soak.dice.randrange(1, 30)):
        data[soak.dice.randrange(len(data))] = soak.dice.randrange(256)
    return await post(session, bytes(data[: soak.dice.choice((len(data), soak.dice.randrange(len(data))))]))


def in_formats() -> list[bytes]:
    """A small image in formats whose decoders have crashed or hung on damage elsewhere."""
    image = Image.radial_gradient("L").resize((96, 80)).convert("RGB")
    options = [("AVIF", {}), ("DDS", {}), ("DDS", {"pixel_format": "DXT5"}), ("WEBP", {}), ("TIFF", {}), ("GIF", {}),
               ("JPEG2000", {}), ("ICO", {}), ("BMP", {}), ("TGA", {})]  # fmt: skip
    found = []
    for form, chosen in options:
        out = io.BytesIO()
        image.convert("RGBA" if chosen else "RGB").save(out, form, **chosen)
        found.append(out.getvalue())
    return found


FORMATS = in_formats()


async def explained(soak: Soak, session: aiohttp.ClientSession) -> str:
    async with session.post("/explain", data=soak.dice.choice(soak.good)) as answer:
        return str(answer.status)


async def noise(soak: Soak, session: aiohttp.ClientSession) -> str:
    return await post(session, soak.dice.randbytes(soak.dice.randrange(5000)))


async def bomb(soak: Soak, session: aiohttp.ClientSession) -> str:
    header = b"IHDR" + (30_000).to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
    chunks = b"\x00\x00\x00\x0d" + header + zlib.crc32(header).to_bytes(4)
    return await post(session, b"\x89PNG\r\n\x1a\n" + chunks)


async def gzip_bomb(soak: Soak, session: aiohttp.ClientSession) -> str:
    return await post(session, GZIPPED, **{"Content-Encoding": "gzip"})


GZIPPED = gzip.compress(bytes(50_000_000), 9)


async def too_long(soak: Soak, session: aiohttp.ClientSession) -> str:
    return await post(session, bytes((16 << 20) + 1))


async def wrong_form(soak: Soak, session: aiohttp.ClientSession) -> str:
    line, disposition = b"\r\n--x", b'\r\nContent-Disposition: form-data; filename="'
    pieces = [line, disposition, b'"\r\n\r\n', soak.dice.randbytes(99), line + b"--", line * 99, soak.good[0]]
    body = b"".join(soak.dice.choices(pieces, k=9))
    return await post(session, body, **{"Content-Type": "multipart/form-data; boundary=x"})


async def wrong_inference(soak: Soak, session: aiohttp.ClientSession) -> str:
    body = soak.dice.choice([b"[" * 9999, b"{}", b'{"inputs":[{"shape":[1,99999,99999,3]}]}', soak.dice.randbytes(99)])
    async with session.post(f"/v2/models/{soak.model}/infer", data=body) as answer:
        return str(answer.status)


async def dropped(soak: Soak, session: aiohttp.ClientSession) -> str:
    data = soak.dice.choice(soak.good)
    _, writer = await asyncio.open_connection(soak.host, soak.port)
    writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data))
    writer.write(data[: soak.dice.randrange(len(data) + 1)])
    writer.close()
    return "gone"


async def dripping(soak: Soak, session: aiohttp.ClientSession) -> str:
    _, writer = await asyncio.open_connection(soak.host, soak.port)
    writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
    for _ in range(5):
        writer.write(b"x")
        await asyncio.sleep(0.1)
    writer.close()
    return "gone"


ATTACKS: dict[str, Callable[[Soak, aiohttp.ClientSession], Awaitable[str]]] = {
    each.__name__: each
    for each in (
        cut,
        damaged,
        damaged_format,
        noise,
        bomb,
        gzip_bomb,
        too_long,
        wrong_form,
        wrong_inference,
        explained,
        dropped,
        dripping,
    )
}


async def run(soak: Soak, requests: int) -> bool:
    numbers = iter(range(requests))
    memory: list[float] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for n in numbers:
            await soak.one(session)
            if n % max(1, requests // 10) == 0:
                memory.append(soak.rss_mb())
                print(f"{n:6} requests, {memory[-1]:.0f} MB", flush=True)

    async with aiohttp.ClientSession(f"http://{soak.host}:{soak.port}") as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    memory.append(soak.rss_mb())
    for name, count in sorted(soak.answers.items()):
        print(f"{count:6}  {name}")
    grown = memory[-1] / max(memory[: max(1, len(memory) // 5) + 1])
    print(f"memory {memory[0]:.0f} -> {memory[-1]:.0f} MB; wrong answers {len(soak.wrong)} {soak.wrong[:3]}")
    return not soak.wrong and (grown <= GROWTH or requests < WARM_UP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    paths = list(find_images([asked.images]))[:64]
    said = [(one, path) for one, path in zip(Predictor(asked.model)(paths), paths, strict=True)]
    named = [(one, path) for one, path in said if isinstance(one, Prediction) and one.known is not False]
    command = [sys.executable, "-m", "mlimages", "serve", str(asked.model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline().rsplit(":", 1)[1].strip("/\n"))
            good = [path.read_bytes() for _, path in named]
            right = [(one.class_name, one.probability) for one, _ in named]
            soak = Soak("127.0.0.1", port, process.pid, asked.model.stem, good, right)
            well = asyncio.run(run(soak, 100 if asked.tiny else asked.requests))
            alive = process.poll() is None
        finally:
            process.terminate()
    print("sound" if well and alive and process.returncode == 0 else f"FAILED (server exit {process.returncode})")
    sys.exit(not (well and alive and process.returncode == 0))


if __name__ == "__main__":
    main()
