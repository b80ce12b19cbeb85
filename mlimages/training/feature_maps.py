"""Draw the filters of a layer and its feature maps for an image."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlimages.core import ModelError, Preprocessing, as_path, require_writable
from mlimages.images import load_pixels, to_uint8
from mlimages.networks import Normalize, build_model, find_layer_aliases
from mlimages.reports import SheetRow, Tile, write_sheet
from mlimages.training.checkpoints import load_run

MAX_FEATURE_MAPS = 256
"""Maximum number of filters and of feature maps that are drawn."""

SHEET_COLUMNS = 16
"""Number of tiles in a row of the contact sheet."""


def draw_layer(
    source: str | os.PathLike[str],
    image: str | os.PathLike[str],
    *,
    layer: str,
    out: str | os.PathLike[str],
    overwrite: bool = False,
) -> tuple[SheetRow, ...]:
    """Draw the feature maps of a layer for an image and, if its filters have one or three channels, the filters.

    Filters of a depthwise convolution have one channel. At most MAX_FEATURE_MAPS feature maps and as many filters are
    drawn.

    Args:
        source: run folder, or name of a network with pretrained weights.
        image: image file.
        layer: module path, or a name such as conv1.
        out: .png or .html file to write.
        overwrite: also replace a file that mlimages did not write, or that was edited after mlimages wrote it.

    Returns:
        The rows of the contact sheet; each tile is scaled separately to 0..255.

    Raises:
        ImageError: the image cannot be read or decoded.
        InputError: `out` ends in neither .png nor .html. If `overwrite` is false, also: `out` exists and was not
            written by mlimages, or was edited after mlimages wrote it.
        ModelError: the network or layer is unknown, or the output of the layer is not a feature map.
        RunError: the folder is not a run folder, or has no checkpoint yet.

    >>> rows = draw_layer("alexnet", "cat.jpg", layer="conv1", out="maps.png")  # doctest: +SKIP
    """
    out = as_path(os.fspath(out))
    require_writable([out], overwrite=overwrite)
    network, preprocessing, mean = _load_network(source)
    module = _find_layer(network, layer)
    pixels = load_pixels(as_path(os.fspath(image)), preprocessing.image)  # (H, W, C)
    normalize = Normalize(preprocessing.normalization, mean)
    maps = _compute_feature_maps(network, module, normalize(torch.tensor(pixels)[None]))  # (1, C, H, W)
    rows = [SheetRow("image", 0, (Tile(Path(image).name, pixels),))]
    if isinstance(module, nn.Conv2d) and module.weight.shape[1] in (1, 3):
        filters = module.weight.detach().permute(0, 2, 3, 1).numpy()  # (filters, H, W, C)
        rows += _make_sheet_rows(
            f"filters of {layer}", filters[..., ::-1] if preprocessing.normalization.bgr else filters
        )
    rows += _make_sheet_rows(f"feature maps of {layer}", maps.permute(1, 2, 3, 0).numpy())
    count = f"the first {MAX_FEATURE_MAPS} of " if maps.shape[1] > MAX_FEATURE_MAPS else ""
    note = (
        f"{count}{maps.shape[1]} maps of {maps.shape[3]} x {maps.shape[2]}, each scaled from its minimum to its maximum"
    )
    write_sheet(rows, out, title=f"{source}: {layer}", note=note, overwrite=overwrite)
    return tuple(rows)


def _find_layer(network: nn.Module, layer: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(network.named_modules())
    known = find_layer_aliases(network)
    path = known.get(layer, layer)
    if path in modules and path:
        return modules[path]
    similar = difflib.get_close_matches(layer, [*known, *modules], n=3)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
    raise ModelError(f"this network has no layer {layer!r}{hint}; `mlimages summary NETWORK` lists its layers")


def _load_network(source: str | os.PathLike[str]) -> tuple[nn.Module, Preprocessing, NDArray[np.float32] | None]:
    """Return a network, given its name or a run folder, with its preprocessing and mean image (None without one)."""
    if Path(source).is_dir():
        run = load_run(source)
        return run.network, run.preprocessing, run.mean_image
    model = build_model(os.fspath(source), num_classes=1000)
    return model.network, model.preprocessing, None


def _compute_feature_maps(network: nn.Module, module: nn.Module, x: Tensor) -> Tensor:
    """Return the output `(1, C, H, W)` of a module in the forward pass of `x`."""
    outputs: list[object] = []
    hook = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.inference_mode():
        network(x)
    hook.remove()
    output = outputs[0] if outputs else None
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else "no tensor"
        raise ModelError(
            f"the output of this layer is not a feature map (C, H, W) but {shape}: choose an earlier layer"
        )
    return output


def _make_sheet_rows(title: str, images: NDArray[np.float32]) -> Iterator[SheetRow]:
    """Yield the rows of a contact sheet of images `(N, H, W, C)`."""
    tiles = [Tile(str(number), _rescale_to_uint8(image)) for number, image in enumerate(images[:MAX_FEATURE_MAPS])]
    for start in range(0, len(tiles), SHEET_COLUMNS):
        part: Sequence[Tile] = tiles[start : start + SHEET_COLUMNS]
        yield SheetRow(f"{title}, {start} to {start + len(part) - 1}", 0, tuple(part))


def _rescale_to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(image.min()), float(image.max())
    return to_uint8(255 * (image - low) / (high - low or 1))
