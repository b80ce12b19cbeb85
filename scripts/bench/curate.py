#!/usr/bin/env python
"""Check and mean beside CleanVision, imagededup and a bare decode, on images with planted faults.

    scripts/bench/curate.py [--count 2000] [--rounds 3] [--peers PYTHON] [--tiny]

Every contestant runs in a process of its own, in turn, --rounds times; medians are printed. CPU time is taken from
after the imports to the end of the work, child processes included, at one thread of BLAS. --peers names a Python in
which cleanvision and imagededup are installed; without it they are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

WIDTH, HEIGHT = 500, 375
Encoded = tuple[str, bytes]

CONTESTANTS = {
    "bare decode": """
from PIL import Image
def work():
    for path in paths:
        try: Image.open(path).load()
        except Exception: pass
""",
    "bare decode, reduced": """
from PIL import Image
def work():
    for path in paths:
        try:
            image = Image.open(path); image.draft(None, (image.width // 2, image.height // 2)); image.load()
        except Exception: pass
""",
    "mlimages check": """
from mlimages.checks import check, write_results
def work():
    write_results(check([labels]))
""",
    "mlimages check again": """
from mlimages.checks import check, write_results
check([labels])
def work():
    write_results(check([labels]))
""",
    "decode + resize to 227": """
from PIL import Image
def work():
    for path in paths:
        try: Image.open(path).convert("RGB").resize((302, 227), Image.Resampling.BILINEAR).crop((37, 0, 264, 227))
        except Exception: pass
""",
    "mlimages mean": """
from mlimages.labels import LabelFile
from mlimages.core import ImageProperty
from mlimages.dataset import compute_mean
def work():
    compute_mean(LabelFile(labels), ImageProperty(227))
""",
    "cleanvision": """
from cleanvision import Imagelab
def work():
    Imagelab(filepaths=readable).find_issues(n_jobs=1, verbose=False)
""",
    "cleanvision, duplicates": """
from cleanvision import Imagelab
def work():
    Imagelab(filepaths=readable).find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=1, verbose=False)
""",
    "imagededup PHash": """
from imagededup.methods import PHash
def work():
    PHash(verbose=False).find_duplicates(image_dir=folder, num_enc_workers=0, num_dist_workers=0)
""",
}

FRAME = """
import json, os, resource, sys, warnings
warnings.simplefilter("ignore")
folder = sys.argv[1]
labels = os.path.join(os.path.dirname(folder), "labels.txt")
paths = [os.path.join(os.path.dirname(folder), line.rsplit(" ", 1)[0]) for line in open(labels)]
readable = json.load(open(os.path.join(os.path.dirname(folder), "readable.json")))
{body}
def used():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
before = used()
sys.stdout = open(os.devnull, "w")
work()
print(json.dumps({{"cpu_s": used() - before, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}}),
      file=sys.__stdout__)
"""


def scene(rng: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Large shapes, fewer small ones, fine grain: the spectrum, and the file size, of a photograph."""
    layers = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 90), (8, 50), (30, 30), (100, 25), (230, 18)):
        cell = Image.fromarray(rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8))
        layers += strength / 127.5 * (np.asarray(cell.resize((width, height), Image.Resampling.BICUBIC)) - 127.5)
    layers += 125 + rng.normal(0, 5, layers.shape).astype(np.float32)
    return Image.fromarray(np.clip(layers, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **({"quality": 90} if form == "JPEG" else {}) | options)
    return out.getvalue()


def stretched(image: Image.Image, low: int, high: int) -> Image.Image:
    return image.point(lambda level: round(low + level / 255 * (high - low)))


def pasted(image: Image.Image) -> Image.Image:
    image.paste((128, 128, 128), (0, HEIGHT * 3 // 4, WIDTH, HEIGHT))
    return image


def sheet(_: Image.Image) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), (225, 225, 225))
    left, right = next(BARS)
    image.paste((80, 80, 80), (left, 150, right, 190))
    return image


def rotten(image: Image.Image) -> Encoded:
    data = bytearray(encoded(image))
    at = random.randrange(len(data) // 3, len(data) // 2)
    data[at : at + 512] = random.randbytes(512)
    return ".jpg", bytes(data)


def turned() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


def giant() -> bytes:
    head = encoded(Image.new("RGB", (1, 1)), "PNG")
    header = b"IHDR" + (20_000).to_bytes(4) * 2 + head[24:29]
    return head[:12] + header + zlib.crc32(header).to_bytes(4) + head[33:]


BARS = ((9 * step % 200, 250 + 53 * step % 240) for step in range(10_000))
COLOURS = ((step % 256, 90 + step // 256, 40) for step in range(0, 40_000, 7))

FAULTS: dict[str, Callable[[Image.Image], Encoded]] = {
    "empty": lambda image: (".jpg", b""),
    "not-an-image": lambda image: (".jpg", b"<!doctype html><title>404</title>" * 50),
    "truncated": lambda image: (".jpg", encoded(image)[: random.randrange(20_000, 50_000)]),
    "too-many-pixels": lambda image: (".png", giant()),
    "wrong-suffix": lambda image: (".png", encoded(image)),
    "rotated": lambda image: (".jpg", encoded(image, exif=turned())),
    "cmyk": lambda image: (".jpg", encoded(image.convert("CMYK"))),
    "16-bit": lambda image: (
        ".png",
        encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
    ),
    "palette": lambda image: (".png", encoded(image.quantize(200), "PNG")),
    "transparent": lambda image: (
        ".png",
        encoded(Image.merge("RGBA", (*image.split(), image.getchannel(0).point(lambda v: v))), "PNG"),
    ),
    "grey": lambda image: (".jpg", encoded(image.convert("L").convert("RGB"))),
    "animated": lambda image: (".webp", encoded(image, "WEBP", save_all=True, append_images=[image.rotate(90)])),
    "tiny": lambda image: (".jpg", encoded(image.resize((28, 21)))),
    "odd-shape": lambda image: (".jpg", encoded(image.crop((0, 0, WIDTH, 100)))),
    "blank": lambda image: (".jpg", encoded(Image.new("RGB", (WIDTH, HEIGHT), next(COLOURS)))),
    "dark": lambda image: (".jpg", encoded(stretched(image, 0, 55))),
    "bright": lambda image: (".jpg", encoded(stretched(image, 230, 255))),
    "low-contrast": lambda image: (".jpg", encoded(stretched(image, 110, 145))),
    "blurred": lambda image: (".jpg", encoded(image.filter(ImageFilter.GaussianBlur(random.uniform(5, 9))))),
    "grey-bottom": lambda image: (".jpg", encoded(pasted(image))),
    "placeholder": lambda image: (".jpg", encoded(sheet(image))),
}

if importlib.util.find_spec("simplejpeg"):
    FAULTS["corrupt"] = rotten  # without it a quarter passes for sound

BROKEN = ("missing", "empty", "not-an-image", "truncated", "corrupt", "too-many-pixels")
"""What the peers are spared: they stop there."""

EDITS: list[Callable[[Image.Image], Encoded]] = [
    lambda image: (".jpg", encoded(image, quality=random.randrange(30, 80))),
    lambda image: (".webp", encoded(image, "WEBP", quality=60)),
    lambda image: (".jpg", encoded(image.resize((WIDTH * 2 // 3, HEIGHT * 2 // 3)))),
    lambda image: (".jpg", encoded(image.crop((5, 4, WIDTH - 5, HEIGHT - 4)))),
    lambda image: (".jpg", encoded(ImageEnhance.Brightness(image).enhance(random.uniform(0.8, 1.2)))),
]


def plant(root: Path, count: int) -> dict[str, set[str]]:
    """Write `count` images and a label file; return the names planted under each code."""
    rng = np.random.default_rng(0)
    random.seed(0)
    folder = root / "images"
    folder.mkdir()
    each = max(1, count // 100)
    planted: dict[str, set[str]] = defaultdict(set)
    names: list[str] = []

    def write(stem: str, image: Encoded, code: str = "") -> None:
        name = stem + image[0]
        (folder / name).write_bytes(image[1])
        names.append(name)
        if code:
            planted[code].add(name)

    for code, fault in FAULTS.items():
        for number in range(each):
            write(f"{code}-{number}", fault(scene(rng)), code)
    for number in range(5 * each):
        image = scene(rng)
        write(f"first-{number}", (".jpg", encoded(image)))
        write(f"near-{number}", EDITS[number % len(EDITS)](image), "near-duplicate")
    for number in range(each):
        same = (".jpg", encoded(scene(rng)))
        write(f"once-{number}", same)
        write(f"twice-{number}", same, "duplicate")
        names.append(f"none-{number}.jpg")
        planted["missing"].add(names[-1])
    for number in range(count - len(names)):
        write(f"sound-{number}", (".jpg", encoded(scene(rng))))
    random.shuffle(names)
    (root / "labels.txt").write_text("".join(f"images/{name} 0\n" for name in names))
    broken = set().union(*(planted[code] for code in BROKEN))
    readable = [str(folder / name) for name in names if name not in broken]
    (root / "readable.json").write_text(json.dumps(readable))
    return planted


def run(name: str, root: Path, python: str) -> dict[str, float] | None:
    with tempfile.TemporaryDirectory() as cache:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        done = subprocess.run(
            [python, "-c", FRAME.format(body=CONTESTANTS[name]), root / "images"],
            env={**os.environ, **threads, "MLIMAGES_CACHE": cache},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        print(f"{name}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}", file=sys.stderr)
        return None
    return dict(json.loads(done.stdout.splitlines()[-1]))


def tell_recall(root: Path, planted: dict[str, set[str]]) -> bool:
    """Print what was planted and found; true where all was found, and no pair that was not planted."""
    os.environ["MLIMAGES_CACHE"] = str(root / "cache")
    from mlimages.checks import check

    report = check([root / "labels.txt"])
    found: dict[str, set[str]] = defaultdict(set)
    for one in report.findings:
        found[one.code].add(one.path.name)
    pairs = {"near-duplicate": ("first", "near"), "duplicate": ("once", "twice")}
    print(f"\n{'code':<16}{'planted':>8}{'found':>8}{'others':>8}")
    for code in sorted(planted.keys() - pairs):
        hit, other = planted[code] & found[code], found[code] - planted[code]
        print(f"{code:<16}{len(planted[code]):>8}{len(hit):>8}{len(other):>8}")
    groups = {frozenset(path.stem for path in group) for group in report.duplicate_groups}
    wanted = {
        code: {frozenset((f"{a}-{n}", f"{b}-{n}")) for n in range(len(planted[code]))} for code, (a, b) in pairs.items()
    }
    for code, twins in wanted.items():
        print(f"{code:<16}{len(twins):>8}{len(twins & groups):>8}")
    strange = groups - set().union(*wanted.values())
    print(f"groups that were not planted: {len(strange)} {[sorted(group) for group in strange][:5]}")
    return all(planted[code] <= found[code] for code in planted.keys() - pairs) and groups == set().union(
        *wanted.values()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="", help="a Python with cleanvision and imagededup")
    parser.add_argument("--tiny", action="store_true", help="40 images, one round")
    options = parser.parse_args()
    count, rounds = (40, 1) if options.tiny else (options.count, options.rounds)
    names = [name for name in CONTESTANTS if options.peers or not name.startswith(("cleanvision", "imagededup"))]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        planted = plant(root, count)
        sizes = [path.stat().st_size for path in (root / "images").glob("sound*")]
        print(f"{count} images, sound ones {WIDTH} x {HEIGHT}, {statistics.median(sizes) / 1000:.0f} kB (median)")
        results: dict[str, list[dict[str, float]]] = defaultdict(list)
        for _ in range(rounds):
            for name in names:
                python = options.peers if name.startswith(("cleanvision", "imagededup")) else sys.executable
                if result := run(name, root, python):
                    results[name].append(result)
        print(f"{'':<26}{'CPU ms an image':>18}{'peak MB':>10}")
        for name in names:
            if rows := results[name]:
                cpu, memory = (statistics.median(row[key] for row in rows) for key in ("cpu_s", "rss_mb"))
                print(f"{name:<26}{1000 * cpu / count:>18.3f}{memory:>10.0f}")
        return 0 if tell_recall(root, planted) else 1


if __name__ == "__main__":
    sys.exit(main())
