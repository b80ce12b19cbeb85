"""A network's last layer learns two classes: PyTorch's transfer-learning tutorial and fastai beside mlimages.

Each is a process of its own on the same random weights, images and split. Printed: CPU seconds of whole processes and
their workers and the peak memory of the process, medians over interleaved rounds. The ONNX file is left out of all but
its own row. Ours has the environment that the command sets, the others as published. `--peers PYTHON` names
the interpreter of an environment that holds fastai; without it, or with another network than AlexNet, that row is left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch


def build_network(name: str) -> torch.nn.Module:
    """A network with random weights: the default one of mlimages, or one of torchvision."""
    import timm
    from torchvision import models

    default = name == "efficientnet_lite0"
    return timm.create_model("tf_efficientnet_lite0") if default else models.get_model(name, weights=None)


def start_up(root: Path, model: str, epochs: int) -> None:
    """What every run of mlimages imports."""
    from mlimages.training import fine_tune  # noqa: F401


def tutorial(
    root: Path, model: str, epochs: int, *, frozen: bool = True, batch_size: int = 4, workers: int = 4
) -> None:
    """The tutorial's loop, as published, with the last layer replaced and all else frozen (or not).

    https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html takes batches of 4 from 4 worker processes.
    """
    import torch
    from torch import nn
    from torchvision import datasets, transforms

    norm = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    chains = {
        "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), norm],
        "val": [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), norm],
    }
    sets = {part: datasets.ImageFolder(root / part, transforms.Compose(chain)) for part, chain in chains.items()}
    loaders = {
        part: torch.utils.data.DataLoader(data, batch_size, shuffle=True, num_workers=workers)
        for part, data in sets.items()
    }
    network = build_network(model)
    network.load_state_dict(torch.load(root / "weights.pth", weights_only=True))
    for parameter in network.parameters():
        parameter.requires_grad = not frozen
    name, last = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    head = nn.Linear(last.in_features, 2)
    network.set_submodule(name, head)
    trained = head if frozen else network
    optimizer = torch.optim.SGD(trained.parameters(), 0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best = -1
    for _ in range(epochs):
        for part, loader in loaders.items():
            network.train(part == "train")
            right = 0
            for inputs, labels in loader:
                optimizer.zero_grad()
                with torch.set_grad_enabled(part == "train"):
                    outputs = network(inputs)
                    loss = nn.functional.cross_entropy(outputs, labels)
                    if part == "train":
                        loss.backward()
                        optimizer.step()
                right += int((outputs.argmax(1) == labels).sum())
        scheduler.step()
        if right > best:
            best = right
            torch.save(network.state_dict(), root / "best.pth")


def fastai(root: Path, model: str, epochs: int) -> None:
    """fastai's `vision_learner` as its documentation says, on these weights, its body frozen."""
    import torch
    from fastai.vision import all as vision
    from torchvision.models import alexnet

    block = vision.DataBlock(
        blocks=(vision.ImageBlock, vision.CategoryBlock),
        get_items=vision.get_image_files,
        splitter=vision.GrandparentSplitter("train", "val"),
        get_y=vision.parent_label,
        item_tfms=vision.Resize(256),
        batch_tfms=[*vision.aug_transforms(size=224), vision.Normalize.from_stats(*vision.imagenet_stats)],
    )
    data = block.dataloaders(root, bs=32, num_workers=0)
    learner = vision.vision_learner(data, alexnet, pretrained=False, normalize=False)
    state = torch.load(root / "weights.pth", weights_only=True)
    body = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
    learner.model[0][0].load_state_dict(body)
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(epochs)


def ours(root: Path, model: str, epochs: int, *, freeze: str = "head", export: bool = False) -> None:
    """The same by `fine_tune`."""
    from mlimages.labels import label_dir_auto
    from mlimages.training import FineTuneConfig, fine_tune

    for part in ("train", "val"):
        label_dir_auto(root / part).labels.write(root / f"{part}.txt")
    fine_tune(
        FineTuneConfig(
            labels=root / "train.txt",
            val=root / "val.txt",
            out=root / "run",
            model=model,
            weights=str(root / "weights.pth"),
            freeze=freeze,
            epochs=epochs,
        ),
        export=export,
    )


AS_THE_COMMAND = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}

ROWS = {
    "mlimages, start-up alone": start_up,
    "tutorial, as published": tutorial,
    "tutorial, batches of 32": partial(tutorial, batch_size=32, workers=0),
    "fastai, frozen body": fastai,
    "mlimages, cold": ours,
    "mlimages, warm cache": ours,
    "mlimages, warm, ONNX file": partial(ours, export=True),
    "nothing frozen, tutorial, batches of 32": partial(tutorial, frozen=False, batch_size=32, workers=0),
    "nothing frozen, mlimages": partial(ours, freeze="none"),
}


def make_data(root: Path, model: str, count: int) -> None:
    """JPEGs of 500 x 375, four fifths to train on, and a network with random weights."""
    import torch

    rng = np.random.default_rng(0)
    for number in range(count):
        part = "val" if number % 5 == 4 else "train"
        path = root / part / "ab"[number % 2] / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (38, 50, 3), np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=92)
    torch.save(build_network(model).state_dict(), root / "weights.pth")


def measure(row: str, root: Path, model: str, epochs: int, *, python: str, cache: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of one row's process."""
    command = [python, __file__, "--row", row, "--root", str(root), "--model", model, "--epochs", str(epochs)]
    env = {**os.environ, "MLIMAGES_CACHE": str(cache)} | (AS_THE_COMMAND if "mlimages" in row else {})
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    shutil.rmtree(root / "run", ignore_errors=True)  # not by the process that is measured
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def run_row(row: str, root: Path, model: str, epochs: int) -> None:
    """Do one row in this process and print what it cost."""
    ROWS[row](root, model, epochs)
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps([sum((*own[:2], *workers[:2])), own.ru_maxrss / 1024]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="6 images, 1 epoch, 1 round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", default="alexnet", help="a network of torchvision, or efficientnet_lite0")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows with this in their names")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with fastai")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        run_row(asked.row, asked.root, asked.model, asked.epochs)
        return
    rounds, count, epochs = (1, 6, 1) if asked.tiny else (asked.rounds, asked.count, asked.epochs)
    has_fastai = asked.peers and asked.model == "alexnet"
    rows = [row for row in ROWS if asked.only in row and (has_fastai or "fastai" not in row)]
    costs: dict[str, list[tuple[float, float]]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_data(root, asked.model, count)
        for number in range(rounds):
            for row, seen in costs.items():
                python = asked.peers if "fastai" in row else sys.executable
                seen.append(measure(row, root, asked.model, epochs, python=python, cache=root / f"cache{number}"))
    print(f"{asked.model}, {count} images of 500 x 375, {epochs} epochs, medians of {rounds}\n")
    print(f"{'':<40}{'CPU s':>8}{'peak MiB':>10}")
    for row, seen in costs.items():
        seconds, peak = (statistics.median(values) for values in zip(*seen, strict=True))
        print(f"{row:<40}{seconds:>8.1f}{peak:>10.0f}")


if __name__ == "__main__":
    main()
