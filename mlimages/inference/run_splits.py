"""Find which of the evaluated images the model's run had used, for training or to choose the best epoch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlimages.core import LabeledPath, is_file_or_member, is_remote, pluralize
from mlimages.inference.bundle import OnnxBundle
from mlimages.inference.tasks import MultiLabel
from mlimages.labels import LabelFile


@dataclass(frozen=True, slots=True)
class ImagesInSplits:
    """Which images are in the training set of a run, and which in its validation set.

    Attributes:
        in_train, in_val: whether each image is in the training set, and in the validation set.
        num_missing: number of images of both sets that do not exist at the paths in the run's label files, so that
            they cannot be recognized.
    """

    in_train: list[bool]
    in_val: list[bool]
    num_missing: int

    @property
    def counts(self) -> tuple[int, int] | None:
        """Number of images in the training set, and in the validation set.

        None if they are unknown: some images were found in neither set, but might be there under a path that no longer
        exists (`num_missing` is not 0).
        """
        are_all_found = all(train or val for train, val in zip(self.in_train, self.in_val, strict=True))
        return (sum(self.in_train), sum(self.in_val)) if are_all_found or not self.num_missing else None


def find_images_in_splits(items: Sequence[LabeledPath], bundle: OnnxBundle) -> ImagesInSplits | None:
    """Return which images are in the training set of the model's run, and which in its validation set.

    Return None if the model is not in a run folder. Images are recognized by their paths, so copies are not found.
    """
    folder = bundle.path.absolute().parent
    files = folder / "train.txt", folder / "val.txt"
    if not all(file.exists() for file in (folder / "config.json", *files)):
        return None
    paths = [resolve_image_path(item.path) for item in items]
    splits = [[item.path for item in LabelFile(file)] for file in files]
    resolved_splits = ({*map(resolve_image_path, split)} for split in splits)
    in_train, in_val = ([path in split for path in paths] for split in resolved_splits)
    return ImagesInSplits(in_train, in_val, sum(map(count_missing_images, splits)))


def resolve_image_path(path: Path) -> str:
    """Return the path without symbolic links. Two paths with the same result are the same image."""
    return str(path) if is_remote(path) else os.path.realpath(path)


def count_missing_images(paths: Iterable[Path]) -> int:
    """Return the number of images that do not exist; remote images are not looked up."""
    return sum(not is_remote(path) and not is_file_or_member(str(path)) for path in paths)


def describe_training_use(
    num_in_splits: tuple[int, int] | None, *, score_name: str, num_missing_images: int = 0
) -> str:
    """Return a note on how many of the evaluated images the run used, or that this is unknown; empty if it used none.

    Args:
        num_in_splits: number of the images that are in the training set, and in the validation set; None if unknown.
        score_name: name of the score that was measured on the images.
        num_missing_images: number of images of the run that do not exist where its label files list them.
    """
    if num_in_splits is None:
        reason = "the model was not in a run folder, or images were moved"
        if num_missing_images:
            reason = f"{pluralize(num_missing_images, 'image')} of its train.txt and val.txt cannot be found"
        return f"unknown whether the run used these images: {reason}"
    chosen = "epoch and thresholds" if score_name == MultiLabel.score_name else "epoch"
    purposes = ("for training", f"to choose the {chosen}")
    used = [f"{count} {purpose}" for count, purpose in zip(num_in_splits, purposes, strict=True) if count]
    expected = f"expect lower {score_name} on new images"
    return f"of these images, the run used {' and '.join(used)}: {expected}" if used else ""
