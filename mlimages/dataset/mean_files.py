"""Read mean images, and list how the preprocessing of a mean image differs from that of the network."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mlimages.core import ImageError, ImageProperty, InputError, as_path, format_command, format_size, summarize_error
from mlimages.images import LabeledImage, identify

logger = logging.getLogger(__name__)


def load_mean_image(
    path: str | os.PathLike[str] | NDArray[Any], image_property: ImageProperty | None = None
) -> NDArray[np.float32]:
    """Load a mean image from a `.npy` or an image file, or check an array; return float32 `(C, H, W)` in 0..255.

    Args:
        path: a file that `mlimages mean` wrote, or an array. A grayscale image file has one channel (C = 1).
        image_property: input of the network; the mean image must have the same size and number of channels.

    Raises:
        InputError: the file cannot be read, or the array has another shape, or values outside 0..255.

    Examples:
        >>> from mlimages import ImageProperty, TrainingData
        >>> from mlimages.dataset import load_mean_image
        >>> result = TrainingData("labels.txt", ImageProperty(32)).make_mean_image("mean.png")
        >>> load_mean_image("mean.npy").shape
        (3, 32, 32)
    """
    if isinstance(path, str | os.PathLike) or hasattr(path, "open"):
        path = as_path(cast(Path, path))
        name = str(path)
        mean = _read_array(path, image_property)
    else:
        name, mean = "mean_image", np.asarray(path)
    if mean.ndim != 3 or mean.shape[0] not in (1, 3) or mean.dtype.kind not in "fiu" or not mean.size:
        raise InputError(
            f"{name}: expected a mean image of shape (C, H, W), float32, but found {mean.dtype} of shape {mean.shape}"
        )
    if image_property is not None and mean.shape != image_property.shape:
        size = format_size(image_property.width, image_property.height)
        resize = ["--resize", image_property.resize] * (image_property.resize != "shorter")
        gray = ["--gray"] * image_property.gray_scale
        raise InputError(
            f"{name} has shape {mean.shape}, but the network expects {image_property.shape} (C, H, W): compute it with "
            f"{format_command('mean', 'LABELS', '--size', size, *resize, *gray)}"
        )
    if not np.isfinite(mean).all():
        raise InputError(f"{name} contains NaN or infinite values: compute it again with `mlimages mean`")
    if not 0 <= mean.min() <= mean.max() <= 255:
        raise InputError(f"{name} has values from {mean.min():g} to {mean.max():g}: a mean image has values in 0..255")
    if 0 < mean.max() <= 1:
        logger.warning("%s has no value above 1, but is subtracted from pixels in 0..255: is it in 0..1?", name)
    return np.ascontiguousarray(mean, np.float32)


def describe_preprocessing_differences(mean_image_path: str | os.PathLike[str], image_property: ImageProperty) -> str:
    """Compare how `image_property` resizes and crops with what is recorded in the .json file of a mean image.

    Returns:
        The differences in one line, such as `shorter_px: 256 for the mean image, 227 for the network`; "" if there are
        none, or no .json file.
    """
    try:
        recorded = json.loads(as_path(mean_image_path).with_suffix(".json").read_text(encoding="utf-8"))["image"]
        before = asdict(ImageProperty(**recorded))
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return ""
    now = asdict(image_property)
    used = ["resize", "interpolation", *{"shorter": ["shorter_px"], "position": ["position"]}.get(now["resize"], [])]
    different = [name for name in used if before[name] != now[name]]
    return "; ".join(f"{name}: {before[name]} for the mean image, {now[name]} for the network" for name in different)


def _read_array(path: Path, image_property: ImageProperty | None) -> NDArray[Any]:
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        is_gray = identify(path).mode == "L" or (image_property is not None and image_property.gray_scale)
        return LabeledImage(path).to_array(color=not is_gray)
    except (ImageError, OSError, ValueError, EOFError, MemoryError) as error:
        raise InputError(f"{path} cannot be read as a mean image: {summarize_error(error)}") from error
