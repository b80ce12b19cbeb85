#!/usr/bin/env python
"""Download the same images from a local nginx with mlimages and its peers, in turn, over HTTP and HTTPS.

    .venv/bin/python scripts/bench/gather.py --peers PEERS_VENV/bin/python
    .venv/bin/python scripts/bench/gather.py --peers PEERS_VENV/bin/python --only decode,http:
    .venv/bin/python scripts/bench/gather.py --tiny

Needs nginx and openssl (Debian: apt-get install nginx-light openssl). The peers' interpreter has img2dataset and
icrawler; without it only mlimages and the two floors (bytes unchecked, images decoded from disk) are measured.
CPU is user and system time of all processes of a contender, start-up included; "steady" is the rate of nginx's log
between its 20th and 80th percentile; memory is the peak of the summed resident sets (shared pages counted twice).
All trust the machine's own authorities and the test's: a bundle of one would make a TLS context nearly free.
On ext4 a new file costs 0.15 ms more where others were deleted just before: TMPDIR=/dev/shm leaves the disk out.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

BARE = """
import asyncio, sys, aiohttp, ssl
async def main(urls, out):
    connector = aiohttp.TCPConnector(limit=64, ssl=ssl.create_default_context())
    async with aiohttp.ClientSession(connector=connector) as session:
        queue = list(enumerate(urls))
        async def work():
            while queue:
                number, url = queue.pop()
                async with session.get(url) as response:
                    data = await response.read()
                with open(f"{out}/{number}.jpg", "wb") as file:
                    file.write(data)
        await asyncio.gather(*(work() for _ in range(64)))
asyncio.run(main(open(sys.argv[1]).read().split(), sys.argv[2]))
"""
DECODE = """
import io, pathlib, sys
from PIL import Image
for path in pathlib.Path(sys.argv[1]).iterdir():
    image = Image.open(io.BytesIO(path.read_bytes()))
    if {reduced}:
        image.draft("L", (image.width // 8, image.height // 8))
    image.load()
"""
IMG2DATASET = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(url_list=sys.argv[1], output_folder=sys.argv[2], output_format="files", processes_count=2, thread_count=64,
             enable_wandb=False, number_sample_per_shard=1500, {options})
"""
ICRAWLER = """
import logging, sys
from icrawler.builtin import UrlListCrawler
crawler = UrlListCrawler(downloader_threads=16, storage={"root_dir": sys.argv[2]}, log_level=logging.ERROR)
crawler.crawl(sys.argv[1], max_num=10**9)
"""
NGINX = """
daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 1024; }}
http {{
  log_format bench '$msec'; access_log {home}/access.log bench; types {{ image/jpeg jpg; }}
  client_body_temp_path {home}/a; proxy_temp_path {home}/b; fastcgi_temp_path {home}/c; uwsgi_temp_path {home}/d;
  scgi_temp_path {home}/e; sendfile on; keepalive_requests 100000;
  server {{ listen 127.0.0.1:{http}; root {home}/www; }}
  server {{ listen 127.0.0.1:{https} ssl; ssl_certificate {home}/cert.pem; ssl_certificate_key {home}/key.pem;
            root {home}/www; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One contender's run: per image in ms of CPU, images per second, MiB, and files left."""

    cpu_ms: float
    rate: float
    steady: float
    memory_mib: float
    files: int


def make_images(folder: Path, count: int) -> None:
    """JPEGs of 500 x 375, about 52 KB each, all different."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + rng.integers(-13, 14, (375, 500, 1), dtype=np.int16)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=80)


def start_nginx(home: Path, http: int, https: int) -> subprocess.Popen[bytes]:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-out", home / "cert.pem", "-keyout", home / "key.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    (home / "nginx.conf").write_text(NGINX.format(home=home, http=http, https=https))
    process = subprocess.Popen([shutil.which("nginx") or "/usr/sbin/nginx", "-c", home / "nginx.conf", "-p", home])
    while not (home / "pid").exists() and process.poll() is None:
        time.sleep(0.05)
    return process


def trusted(home: Path) -> Path:
    """The machine's authorities and the test's certificate, in one file."""
    own = ssl.get_default_verify_paths().cafile
    bundle = home / "trusted.pem"
    bundle.write_bytes((Path(own).read_bytes() if own else b"") + (home / "cert.pem").read_bytes())
    return bundle


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and its descendants."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() + sum(map(tree_memory, children_of(pid)))
    except (OSError, ValueError):
        return 0


def adopt_orphans() -> None:
    """Become the parent of what outlives a contender, such as multiprocessing's fork server: its CPU counts, too."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def reap_orphans(nginx: int) -> None:
    while orphans := set(children_of(os.getpid())) - {nginx}:
        os.waitpid(orphans.pop(), 0)


def measure(command: list[str], home: Path, out: Path, count: int, env: dict[str, str], *, nginx: int) -> Outcome:
    log = home / "access.log"
    log.write_text("")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, tree_memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    reap_orphans(nginx)
    done.set()
    watcher.join()
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    moments = sorted(map(float, log.read_text().split()))
    low, high = len(moments) // 5, len(moments) * 4 // 5
    steady = (high - low) / max(moments[high] - moments[low], 0.001) if len(moments) > 10 else 0.0
    files = sum(path.suffix == ".jpg" for path in out.rglob("*")) if out.exists() else 0
    return Outcome(1000 * cpu / count, count / seconds, steady, peak / 2**20, files)


def contenders(peers: str | None, www: Path, lists: dict[str, Path], out: Path) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "mlimages", "gather", "urls"]
    manner = ["-o", str(out), "--allow-private", "--per-host", "64", "--quiet"]
    found = {
        "decode, full": [sys.executable, "-c", DECODE.format(reduced=False), str(www)],
        "decode, reduced": [sys.executable, "-c", DECODE.format(reduced=True), str(www)],
    }
    for scheme, path in lists.items():
        found |= {
            f"{scheme}: aiohttp, unchecked": [sys.executable, "-c", BARE, str(path), str(out)],
            f"{scheme}: mlimages": [*ours, str(path), *manner],
            f"{scheme}: mlimages --resize 256": [*ours, str(path), *manner, "--resize", "256"],
        }
        if peers:
            at_256 = IMG2DATASET.format(options="image_size=256, resize_mode='keep_ratio'")
            as_is = IMG2DATASET.format(options="resize_mode='no', skip_reencode=True")
            found |= {
                f"{scheme}: img2dataset, 256": [peers, "-c", at_256, str(path), str(out)],
                f"{scheme}: img2dataset, as is": [peers, "-c", as_is, str(path), str(out)],
                f"{scheme}: icrawler": [peers, "-c", ICRAWLER, str(path), str(out)],
            }
    return found


def ratios(cpu_ms: dict[str, float]) -> Iterator[str]:
    """What the goals speak of, where its parts were measured."""
    for scheme in ("http", "https"):
        ours, theirs = f"{scheme}: mlimages", f"{scheme}: img2dataset, 256"
        floors = "decode, reduced", f"{scheme}: aiohttp, unchecked"
        if {ours, *floors} <= cpu_ms.keys():
            least = sum(cpu_ms[name] for name in floors)
            yield f"{' + '.join(floors)}: {least:.3f} ms; mlimages {cpu_ms[ours] / least:.2f} times that"
        if {resized := f"{ours} --resize 256", theirs} <= cpu_ms.keys():
            yield f"{resized}: {cpu_ms[resized] / cpu_ms[theirs]:.2f} times {theirs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="a Python with img2dataset and icrawler")
    parser.add_argument("--tiny", action="store_true", help="few images, one round, no peers")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="contenders whose name has one of these: reduced,http: mlimages")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nginx is stopped
    adopt_orphans()
    count, rounds = (40, 1) if options.tiny else (options.count, options.rounds)
    http, https = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        www, out = home / "www", home / "out"
        make_images(www, count)
        size = sum(path.stat().st_size for path in www.iterdir()) / count
        lists = {"http": home / "http.txt", "https": home / "https.txt"}
        for (scheme, path), port in zip(lists.items(), (http, https), strict=True):
            path.write_text("".join(f"{scheme}://localhost:{port}/{name.name}\n" for name in sorted(www.iterdir())))
        nginx = start_nginx(home, http, https)
        bundle = str(trusted(home))
        env = os.environ | {
            "SSL_CERT_FILE": bundle,
            "REQUESTS_CA_BUNDLE": bundle,
            "NO_ALBUMENTATIONS_UPDATE": "1",
        }
        for name in ("MLIMAGES_CACHE", "PYTHONDONTWRITEBYTECODE"):  # our modules compiled once, as pip does the peers'
            env.pop(name, None)
        found: dict[str, list[Outcome]] = {}
        try:
            for _ in range(rounds):
                for name, command in contenders(None if options.tiny else options.peers, www, lists, out).items():
                    if not any(word in name for word in options.only.split(",")):
                        continue
                    shutil.rmtree(out, ignore_errors=True)
                    out.mkdir()
                    outcome = measure(command, home, out, count, env, nginx=nginx.pid)
                    found.setdefault(name, []).append(outcome)
                    print(f"{name}: {outcome}", file=sys.stderr)
        finally:
            nginx.terminate()
            nginx.wait()
    print(f"{count} JPEGs of 500 x 375, {size / 1000:.1f} kB each; medians of {rounds}")
    print(f"{'':32}{'CPU ms each':>12}{'each/s':>9}{'steady/s':>10}{'MiB':>7}{'files':>7}")
    medians = {name: Outcome(*(statistics.median(getattr(run, field) for run in runs) for field in Outcome.__slots__))
               for name, runs in found.items()}  # fmt: skip
    for name, run in medians.items():
        print(f"{name:32}{run.cpu_ms:12.2f}{run.rate:9.0f}{run.steady:10.0f}{run.memory_mib:7.0f}{run.files:7.0f}")
    print("\n".join(ratios({name: run.cpu_ms for name, run in medians.items()})))


if __name__ == "__main__":
    main()
