"""Find which of the evaluated images the model's run had used, for training or to choose the best epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlimages.core import LabeledPath
from mlimages.inference.bundle import OnnxBundle
from mlimages.labels import LabelFile


def find_images_in_split(
    items: Sequence[LabeledPath], bundle: OnnxBundle, split: Literal["train", "val"]
) -> NDArray[np.bool_] | None:
    """Return whether each image is also in a split of the model's run, `(N,)`.

    Return None if the model is not in a run folder, or the run has no such split.

    The images are recognized by their paths in the run folder, so copies of them are not found.
    """
    listed = bundle.path.absolute().with_name(f"{split}.txt")
    if not (listed.exists() and listed.with_name("config.json").exists()):
        return None
    paths = {item.path.resolve() for item in LabelFile(listed)}
    return np.array([item.path.resolve() in paths for item in items], bool)


def describe_training_use(num_in_splits: tuple[int, int] | None, *, score_name: str, multi_label: bool) -> str:
    """Return a note on how many of the evaluated images the run used, or that this is unknown; empty if it used none.

    Args:
        num_in_splits: number of the images that are in the training set, and in the validation set; None if unknown.
        score_name: name of the score that was measured on the images.
        multi_label: whether the model is multi-label.
    """
    if num_in_splits is None:
        return "it is unknown whether the run used these images for training, since the model was not in a run folder"
    purposes = ("for training", f"to choose the {'epoch and thresholds' if multi_label else 'epoch'}")
    used = [f"{count} {purpose}" for count, purpose in zip(num_in_splits, purposes, strict=True) if count]
    expected = f"expect lower {score_name} on new images"
    return f"of these images, the run used {' and '.join(used)}: {expected}" if used else ""
