#!/usr/bin/env python
"""Predict a folder beside the bare loop of decoding and ONNX Runtime on the same threads; and one image from cold.

    .venv/bin/python scripts/bench/predict.py MODEL.onnx FOLDER [--rounds 7] [--tiny]

MODEL.onnx is a file that `mlimages export` made. The contestants take turns in one process; medians of processor time
and of wall time are printed per image. "First answer" is a whole `mlimages predict MODEL.onnx IMAGE`.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlimages import images
from mlimages.images import find_images
from mlimages.inference import BundleSession, OnnxBundle, Predictor

BATCH = 16
Times = tuple[float, float]
"""Processor and wall seconds."""


def timed(work: Callable[[], object]) -> Times:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def first_answer(model: Path, image: Path) -> Times:
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "mlimages", "predict", model, image], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    paths = list(find_images([asked.folder]))
    bundle, workers = OnnxBundle.read(asked.model), os.cpu_count() or 1
    predictor, session, prop = Predictor(bundle), BundleSession(bundle), bundle.preprocessing.image

    def bare(batch: int) -> Callable[[], object]:
        chunks = [paths[n : n + batch] for n in range(0, len(paths), batch)]

        def answer(chunk: list[Path]) -> object:
            return session.run([images.load_pixels(path, prop) for path in chunk])

        def work() -> object:
            with ThreadPoolExecutor(workers) as pool:
                return list(pool.map(answer, chunks))

        return work

    contestants = {
        f"bare loop, batch {BATCH}": bare(BATCH),
        "bare loop, batch 1": bare(1),
        "Predictor.stream": lambda: list(predictor.stream(paths, batch_size=BATCH)),
    }
    found: dict[str, list[Times]] = defaultdict(list)
    for _ in range(1 if asked.tiny else asked.rounds):
        for name, work in contestants.items():
            cpu, wall = timed(work)
            found[name].append((cpu / len(paths), wall / len(paths)))
        found["first answer"].append(first_answer(asked.model, paths[0]))
    print(f"{len(paths)} images, {workers} threads")
    print(f"{'contestant':20}  CPU ms  wall ms")
    for name, rounds in found.items():
        cpu, wall = (statistics.median(each) * 1e3 for each in zip(*rounds, strict=True))
        print(f"{name:20}  {cpu:6.1f}  {wall:7.1f}")


if __name__ == "__main__":
    main()
