#!/usr/bin/env python
"""Gather, check and average the same images in one process and by one and two Ray workers on this machine; learn from
them in one process and in two of torchrun's.

    .venv/bin/python scripts/bench/scale.py [--count 2000] [--rounds 3] [--jobs gather,check,mean,head,whole] [--tiny]

The links lead to a local nginx. Seconds are those of the work, without the start of Python, of Ray and of torchrun; the
median of the rounds, then their range. Needs nginx and openssl, as gather.py does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gather import free_port, make_images, start_nginx

GATHER = """
from mlimages import UrlList, gather
from mlimages.gathering import gather_on
options = dict(allow_private=True, per_host=64)
source = UrlList(sys.argv[2])
done = gather_on(cluster, source, out, **options) if cluster else gather(source, out, decoders=2, **options)
count = done.ok
"""
CHECK = """
from mlimages import check
count = check([sys.argv[2]], workers=1, pool=cluster).num_images
"""
MEAN = """
from mlimages import ImageProperty, LabelFile
from mlimages.dataset import compute_mean
count = compute_mean(LabelFile(sys.argv[2]), ImageProperty(224), workers=1, pool=cluster).num_images
"""
LEARN = """
import json, os, sys, time
from mlimages.training import FineTuneConfig, fine_tune
labels, out, freeze = sys.argv[1:]
config = FineTuneConfig(labels, out, model="mobilenet_v3_small", weights="none", freeze=freeze, epochs=1, seed=1)
began = time.perf_counter()
done = fine_tune(config, export=False)
if os.environ.get("RANK", "0") == "0":
    print(json.dumps([time.perf_counter() - began, done.train_images + done.val_images]))
"""
AROUND = """
import contextlib, json, sys, time
workers, out = int(sys.argv[1]), sys.argv[3]
cluster = None
if workers:
    import ray
    from mlimages.core import RayCluster
    ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=40)
    cluster = RayCluster(workers)
    list(cluster.map(abs, range(20 * workers)))  # its processes have started
began = time.perf_counter()
{body}
print(json.dumps([time.perf_counter() - began, count]))
"""

WORK = {"gather": GATHER, "check": CHECK, "mean": MEAN}
LEARNING = {"head": "head", "whole": "none"}
"""What is frozen: all but the head, whose features are computed once; nothing."""


def measure(job: str, workers: int, source: Path) -> tuple[float, int]:
    """Seconds of the work, and bytes of manifest an image."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "MLIMAGES_CACHE": f"{folder}/cache", "RAY_USAGE_STATS_ENABLED": "0"}
        if job in LEARNING:
            script = Path(folder, "learn.py")
            script.write_text(LEARN)
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
            words = [*(torchrun if workers else []), str(script), str(source), f"{folder}/out", LEARNING[job]]
        else:
            words = ["-c", AROUND.format(body=WORK[job]), str(workers), str(source), f"{folder}/out"]
        done = subprocess.run([sys.executable, *words], env=env, stdout=subprocess.PIPE, text=True, check=True)
        seconds, count = json.loads(done.stdout.splitlines()[-1])
        manifest = Path(folder, "out", "manifest.jsonl")
        return seconds, manifest.stat().st_size // count if manifest.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a few images, one round: does it run?")
    parser.add_argument("--jobs", default="gather,check,mean,head,whole")
    arguments = parser.parse_args()
    count, rounds = (40, 1) if arguments.tiny else (arguments.count, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)  # nginx gives up its rights
        make_images(home / "www", count)
        port = free_port()
        nginx = start_nginx(home, port, free_port())
        links, labels = home / "links.txt", home / "www" / "labels.txt"
        links.write_text("".join(f"http://127.0.0.1:{port}/{n:05}.jpg\n" for n in range(count)))
        labels.write_text("".join(f"{n:05}.jpg {n % 2}\n" for n in range(count)))
        labels.with_name("labels_class_def.txt").write_text("0 even\n1 odd\n")
        try:
            for name in arguments.jobs.split(","):
                for workers in (0, 2) if name in LEARNING else (0, 1, 2):
                    runs = [measure(name, workers, links if name == "gather" else labels) for _ in range(rounds)]
                    seconds = [run[0] for run in runs]
                    rate = count / statistics.median(seconds)
                    row = f", {runs[0][1]} bytes of manifest an image" if runs[0][1] else ""
                    kind = "ranks" if name in LEARNING else "Ray workers"
                    who = f"{workers} {kind}" if workers else "one process"
                    print(f"{name:<7}{who:<15}{rate:8.1f} images/s ({min(seconds):.2f} to {max(seconds):.2f} s){row}",
                          flush=True)  # fmt: skip
        finally:
            nginx.terminate()
            nginx.wait()


if __name__ == "__main__":
    main()
