"""Exported networks that the tests of deployment share."""

from pathlib import Path

import numpy as np
from PIL import Image

from mlimages.core import LabeledPath
from mlimages.export import ExportOptions, TrainedNetwork, export_network
from mlimages.inference import OnnxBundle
from mlimages.networks import build_model


def made_image(seed: int, width: int = 90, height: int = 70) -> Image.Image:
    """An image with large and small shapes, another one for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 7, width // 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def made_images(folder: Path, count: int) -> list[LabeledPath]:
    """PNG files of different sizes, with labels 0, 1, 2, 0, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for n in range(count):
        items.append(LabeledPath(folder / f"{n:02}.png", n % 3))
        made_image(n, width=60 + 13 * n % 70, height=50 + 31 * n % 90).save(items[-1].path)
    return items


def trained(name: str, *, classes: int = 3, seed: int = 0, **options: object) -> TrainedNetwork:
    """A network with random weights."""
    model = build_model(name, num_classes=classes, weights="none", seed=seed, **options)
    names = tuple(f"class{n}" for n in range(classes))
    return TrainedNetwork(model.network, model.preprocessing, names, name)


def exported(name: str, folder: Path, *, count: int = 6, options: ExportOptions | None = None) -> OnnxBundle:
    """`trained(name)` in `folder / model.onnx`, checked on `count` images."""
    items = made_images(folder / "images", count)
    return export_network(trained(name), folder / "model.onnx", validation=items, options=options)
