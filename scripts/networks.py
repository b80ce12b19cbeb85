"""Walk every family of networks through the whole toolkit, and print a table for docs/networks.md.

For the smallest network of each of timm's modules and for every classifier of torchvision: summary, probe, one epoch of
fine-tuning on 20 images, export, predict; with random weights, in a process of its own with a time limit.

    scripts/networks.py                      all of them (hours)
    scripts/networks.py timm:resnet18 vgg11  these
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

IMAGES_PER_CLASS = 10
STEPS = ("summary", "probe", "finetune", "export", "predict")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks; by default every family")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each network")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(walk(options.names[0])))
        return 0
    print(f"| network | parameters | cut points | {' | '.join(STEPS)} | seconds |")
    print(f"|---|--:|--:|{'---|' * len(STEPS)}--:|")
    failed = [name for name in options.names or every_family() if not report(name, options.timeout)]
    print(f"\n{len(failed)} failed: {', '.join(failed) or 'none'}", file=sys.stderr)
    return bool(failed)


def every_family() -> Iterator[str]:
    """The network with the fewest parameters of each of timm's modules, then torchvision's classifiers."""
    import timm
    import torch
    from torchvision import models

    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            try:
                with torch.device("meta"):
                    network = timm.create_model(name, num_classes=2)
            except (NotImplementedError, RuntimeError):  # it computes with values while it is built
                network = timm.create_model(name, num_classes=2)
            sizes[name] = sum(parameter.numel() for parameter in network.parameters())
        if sizes:
            yield f"timm:{min(sizes, key=lambda name: sizes[name])}"
    yield from models.list_models(module=models)


def report(name: str, timeout_s: float) -> bool:
    """Print one network's row; return whether every step was done."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"error": done.stderr[-200:]}
    except subprocess.TimeoutExpired:
        found = {"error": f"more than {timeout_s:.0f} s"}
    steps = ["yes" if step in found.get("done", ()) else "no" for step in STEPS]
    cells = [f"`{name}`", f"{found.get('parameters', 0):,}", str(found.get("cuts", "")), *steps]
    print("|", " | ".join([*cells, f"{time.monotonic() - started:.0f}"]), "|", flush=True)
    if "error" in found:
        print(f"{name}: {found['error']}", file=sys.stderr, flush=True)
    return "error" not in found


def walk(name: str) -> dict[str, object]:
    """The steps that a network takes, until one fails."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found: dict[str, object] = {"done": []}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for step, result in _steps(name, Path(folder)):
                found["done"].append(step)  # type: ignore[attr-defined]
                found.update(result)
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return found


def _steps(name: str, folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    from mlimages import FineTuneConfig, Predictor, export_run, fine_tune, label_dir_auto, probe_layers, summarize_model

    labels = label_dir_auto(_draw_images(folder / "images")).labels.write(folder / "labels.txt")
    yield "summary", {"parameters": summarize_model(name, num_classes=2).parameters}
    yield "probe", {"cuts": len(probe_layers(labels, model=name, weights="none").layer_scores)}
    run = folder / "run"
    fine_tune(FineTuneConfig(labels.path, run, model=name, weights="none", freeze="head", epochs=1), export=False)
    yield "finetune", {}
    bundle = export_run(run, run / "model.onnx")
    yield "export", {}
    images = sorted((folder / "images").rglob("*.png"))[:3]
    for _ in Predictor(bundle).stream(images):
        pass
    yield "predict", {}


def _draw_images(folder: Path) -> Path:
    """Noisy images of two colours, in class folders."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, color in (("blue", (40, 60, 200)), ("red", (210, 50, 40))):
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            pixels = np.clip(rng.normal(0, 60, (96, 96, 3)) + color, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
