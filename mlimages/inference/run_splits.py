"""Find which of the evaluated images the model's run had used, for training or to choose the best epoch."""

from __future__ import annotations

from collections.abc import Sequence

from mlimages.core import LabeledPath
from mlimages.inference.bundle import OnnxBundle
from mlimages.inference.tasks import MultiLabel
from mlimages.labels import LabelFile


def find_images_in_splits(items: Sequence[LabeledPath], bundle: OnnxBundle) -> tuple[list[bool], list[bool]] | None:
    """Return whether each image is in the training set of the model's run, and whether it is in its validation set.

    Return None if the model is not in a run folder. Images are recognized by their paths, so copies are not found.
    """
    folder = bundle.path.absolute().parent
    files = folder / "train.txt", folder / "val.txt"
    if not all(file.exists() for file in (folder / "config.json", *files)):
        return None
    paths = [item.path.resolve() for item in items]
    splits = ({item.path.resolve() for item in LabelFile(file)} for file in files)
    in_train, in_val = ([path in split for path in paths] for split in splits)
    return in_train, in_val


def describe_training_use(num_in_splits: tuple[int, int] | None, *, score_name: str) -> str:
    """Return a note on how many of the evaluated images the run used, or that this is unknown; empty if it used none.

    Args:
        num_in_splits: number of the images that are in the training set, and in the validation set; None if unknown.
        score_name: name of the score that was measured on the images.
    """
    if num_in_splits is None:
        return "it is unknown whether the run used these images for training, since the model was not in a run folder"
    chosen = "epoch and thresholds" if score_name == MultiLabel.score_name else "epoch"
    purposes = ("for training", f"to choose the {chosen}")
    used = [f"{count} {purpose}" for count, purpose in zip(num_in_splits, purposes, strict=True) if count]
    expected = f"expect lower {score_name} on new images"
    return f"of these images, the run used {' and '.join(used)}: {expected}" if used else ""
