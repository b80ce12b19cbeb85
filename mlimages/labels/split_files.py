"""Find the files NAME_train, NAME_val and NAME_test of an earlier split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mlimages.core import InputError
from mlimages.labels.label_file import LabelFile
from mlimages.labels.table_options import TableOptions

SPLIT_NAMES_BY_COUNT = {2: ("train", "val"), 3: ("train", "val", "test")}
"""Names of the splits, by the number of splits."""


def find_split_files(target: Path, *, multi_label: bool) -> dict[Path, LabelFile]:
    """Return, by path, the label files NAME_train, NAME_val and NAME_test that exist beside the label file `target`."""
    paths = (target.with_name(f"{target.stem}_{name}{target.suffix}") for name in SPLIT_NAMES_BY_COUNT[3])
    return {path: LabelFile(path, options=TableOptions(multi_label=multi_label)) for path in paths if path.exists()}


def describe_stale_split_files(
    split_files: Mapping[Path, LabelFile], labels: LabelFile, paths: Sequence[Path]
) -> Iterator[str]:
    """Yield a line about each leftover label file of an earlier split, if images in it are also in the new split.

    This happens to NAME_test if a split in three is followed by a split in two.

    Args:
        split_files: label files of the earlier split, by path.
        labels: the images of the new split.
        paths: paths of the label files of the new split.
    """
    names = " and ".join(path.name for path in paths)
    for path in split_files.keys() - set(paths):
        with suppress(InputError):  # an unreadable file lists no images
            others = labels.without(item.path for item in split_files[path])
            if others.count_images()[0] < labels.count_images()[0]:
                yield f"{path} belongs to an earlier split, and its images are also in {names}: delete {path.name}"
