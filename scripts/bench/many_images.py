"""Files, bytes, time and memory of a large dataset of small images: gather, then label, check and mean.

    .venv/bin/python scripts/bench/many_images.py 1_000_000 --layout tar

The images are distinct JPEGs of 64 x 64 pixels and about 2 KB, made by the source itself, so that no server takes part
of the cores; they are decoded, verified and stored as those of any source. The CPU time of gather is that without its
decoding processes; its memory is that of the largest process.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mlimages.core import ImageRef
from mlimages.gathering import gather

CLASSES = 100


@dataclass(frozen=True, slots=True)
class MadeUpImages:
    """Random blocks of 8 x 8 pixels, with some noise."""

    count: int

    async def __aiter__(self) -> AsyncIterator[ImageRef]:
        for number in range(self.count):
            url = f"https://host{number % 10_007}.example.org/images/{number}.jpg"
            yield ImageRef(url, f"class{number % CLASSES:03}", load=lambda number=number: _jpeg(number))


async def _jpeg(number: int) -> bytes:
    rng, out = np.random.default_rng(number), io.BytesIO()
    blocks = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(blocks + rng.integers(0, 55, blocks.shape, dtype=np.uint8)).save(out, "JPEG", quality=75)
    return out.getvalue()


def _run(step: str, command: list[str], cache: Path) -> None:
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, stderr=subprocess.DEVNULL)
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    seconds, cpu, memory = time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(
        f"{step}: exit code {process.returncode}, {seconds:.0f} s, CPU {cpu:.0f} s, at most {memory:.0f} MB", flush=True
    )


def _gather(count: int, layout: str, folder: Path) -> None:
    summary = gather(MadeUpImages(count), folder, layout=layout)
    print(f"{summary.ok:,} images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--layout", default="tar", choices=["tar", "folders"])
    parser.add_argument("--out", type=Path, help="Keep the images in this folder.")
    parser.add_argument("--only-gather", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_gather:
        _gather(options.count, options.layout, options.out)
        return
    work = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder = options.out or work / "images"
    labels, mlimages = str(work / "all.txt"), str(Path(sys.executable).with_name("mlimages"))
    again = [sys.executable, __file__, str(options.count), "--layout", options.layout, "--out", str(folder)]
    _run("gather", [*again, "--only-gather"], work)
    files = [path for path in folder.rglob("*") if path.is_file()]
    print(
        f"{len(files):,} files, {sum(path.stat().st_blocks for path in files) * 512 / 1e6:.0f} MB on the disk",
        flush=True,
    )
    _run("label", [mlimages, "label", str(folder), "-o", labels], work)
    _run("check", [mlimages, "check", labels], work)
    _run("mean", [mlimages, "mean", labels, "--size", "64", "-o", str(work / "mean.png")], work)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
