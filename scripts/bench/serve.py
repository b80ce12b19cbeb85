#!/usr/bin/env python
"""Serve one file with mlimages and with LitServe, under 1, 8 and 32 clients, beside the bare loop as the limit.

    .venv/bin/python scripts/bench/serve.py MODEL.onnx IMAGES [--peers PYTHON] [--requests 400] [--rounds 3]
    .venv/bin/python scripts/bench/serve.py --tiny MODEL.onnx IMAGES

MODEL.onnx is a file that `mlimages export` made, IMAGES a folder. --peers names a Python in which litserve,
python-multipart, onnxruntime and pillow are installed; without it LitServe is left out. All contestants decode with
Pillow and compute in two threads or processes, one thread an image; they take turns, and medians are printed. The
limit is a loop of decoding and ONNX Runtime without a server: one thread for one client, two for more. The clients
send requests made beforehand over plain sockets, so that they take little of the processors they share with the server:
0.1 to 0.2 ms a request. CPU is user and system time per image of the server and its children, start-up left out;
memory is the peak resident set, summed over processes (shared pages counted for each).
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gather import free_port
from PIL import Image

from mlimages import images
from mlimages.images import find_images
from mlimages.inference import BundleSession, OnnxBundle

WORKERS = 2

HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"

LITSERVE = """
import io, sys
import litserve, numpy, onnxruntime
from PIL import Image
class Api(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    def decode_request(self, request):
        image = Image.open(request["file"].file).convert("RGB")
        width, height = image.size
        short = SHORTER / min(width, height)
        image = image.resize((int(width * short), int(height * short)), Image.BILINEAR)
        return numpy.asarray(image)
    def predict(self, pixels):
        return self.session.run(["probabilities"], {"image": pixels[None]})[0][0]
    def encode_response(self, output):
        return {"probabilities": output.tolist()}
if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=WORKERS)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", log_level="error", generate_client_file=False)
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """One contestant under one load; latencies in ms."""

    per_s: float
    p50: float
    p99: float
    cpu_ms: float
    peak_mb: float


def bare_loop(bundle: OnnxBundle, files: list[bytes], *, threads: int, requests: int) -> Figures:
    session, prop = BundleSession(bundle), bundle.preprocessing.image

    def one(n: int) -> float:
        begin = time.perf_counter()
        session.run([images.load_pixels(files[n % len(files)], prop)])
        return time.perf_counter() - begin

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(threads * 4)))
        begin, cpu = time.perf_counter(), time.process_time()
        seconds = list(pool.map(one, range(requests)))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - begin
    return figures(seconds, wall, cpu, 0.0)


def figures(seconds: list[float], wall: float, cpu: float, peak_mb: float) -> Figures:
    p50, p99 = np.percentile(np.array(seconds) * 1e3, (50, 99))
    return Figures(len(seconds) / wall, float(p50), float(p99), cpu / len(seconds) * 1e3, peak_mb)


def as_raw(image: bytes) -> bytes:
    return HEAD % (b"image/jpeg", len(image)) + image


def as_form(image: bytes) -> bytes:
    part = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="image.jpg"\r\n\r\n'
    body = part + image + b"\r\n--edge--\r\n"
    return HEAD % (b"multipart/form-data; boundary=edge", len(body)) + body


def load(port: int, messages: list[bytes], *, clients: int, requests: int) -> list[float]:
    """Latencies of `requests` posts by `clients` at once; any other answer than 200 ends the run."""
    numbers = iter(range(requests))

    def client(_: int) -> list[float]:
        seconds = []
        with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as answer:
            for n in numbers:
                begin = time.perf_counter()
                connection.sendall(messages[n % len(messages)])
                read_answer(answer)
                seconds.append(time.perf_counter() - begin)
        return seconds

    with ThreadPoolExecutor(clients) as pool:
        return [one for seconds in pool.map(client, range(clients)) for one in seconds]


def read_answer(answer: BinaryIO) -> None:
    status, length = answer.readline(), 0
    assert b" 200 " in status, status
    while (line := answer.readline().strip().lower()) != b"":
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    answer.read(length)


def family(pid: int) -> Iterator[int]:
    """A process and all its children."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def cpu_s(pid: int) -> float:
    ticks = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    texts = (Path(f"/proc/{one}/status").read_text() for one in family(pid))
    return sum(int(text.split("VmHWM:")[1].split()[0]) for text in texts if "VmHWM:" in text) / 1024


@contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """A server in a process of its own, once it listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def served(command: list[str], messages: list[bytes], *, clients: int, requests: int) -> Figures:
    port = free_port()
    with running([str(port) if word == "PORT" else word for word in command], port) as pid:
        load(port, messages, clients=WORKERS, requests=WORKERS * 4)
        begin, cpu = time.perf_counter(), cpu_s(pid)
        seconds = load(port, messages, clients=clients, requests=requests)
        wall, cpu = time.perf_counter() - begin, cpu_s(pid) - cpu
        return figures(seconds, wall, cpu, peak_mb(pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--peers", default="")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    requests, rounds, loads = (8, 1, (2,)) if asked.tiny else (asked.requests, asked.rounds, (1, 8, 32))
    bundle = OnnxBundle.read(asked.model)
    files = [jpeg(path) for path in list(find_images([asked.images]))[:64]]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "peer.py")
        shorter = str(bundle.preprocessing.image.shorter_px)
        script.write_text(LITSERVE.replace("SHORTER", shorter).replace("WORKERS", str(WORKERS)))
        found: dict[tuple[str, int], list[Figures]] = defaultdict(list)
        for _ in range(rounds):
            for clients in loads:
                limit = bare_loop(bundle, files, threads=min(clients, WORKERS), requests=requests)
                found["the limit", clients].append(limit)
                for name, command, form in contestants(asked.model, script, asked.peers):
                    messages = [form(file) for file in files]
                    found[name, clients].append(served(command, messages, clients=clients, requests=requests))
    show(found)


def contestants(model: Path, script: Path, peers: str) -> Iterator[tuple[str, list[str], Callable[[bytes], bytes]]]:
    ours = [sys.executable, "-m", "mlimages", "serve", str(model), "--port", "PORT", "--workers", str(WORKERS)]
    yield "mlimages, raw", ours, as_raw
    yield "mlimages, form", ours, as_form
    if peers:
        yield "LitServe, form", [peers, str(script), str(model.resolve()), "PORT"], as_form


def jpeg(path: Path) -> bytes:
    out = io.BytesIO()
    Image.open(path).convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


def show(found: dict[tuple[str, int], list[Figures]]) -> None:
    print(f"{'contestant':14} clients  requests/s  of limit  p50 ms  p99 ms  CPU ms/image  peak MB")
    for (name, clients), rounds in found.items():
        values = [statistics.median(getattr(one, field) for one in rounds) for field in Figures.__slots__]
        per_s, p50, p99, cpu_ms, peak = values
        share = statistics.median(
            one.per_s / limit.per_s for one, limit in zip(rounds, found["the limit", clients], strict=True)
        )
        print(
            f"{name:14} {clients:7}  {per_s:10.1f}  {share:8.1%}  {p50:6.1f}  {p99:6.1f}  {cpu_ms:14.2f}  {peak:7.0f}"
        )


if __name__ == "__main__":
    main()
