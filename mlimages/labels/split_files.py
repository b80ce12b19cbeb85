"""Append to label files, and to the files NAME_train, NAME_val and NAME_test of an earlier split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

from mlimages.core import InputError, LabeledPath
from mlimages.labels.class_names import add_class_name
from mlimages.labels.label_file import LabelFile
from mlimages.labels.table_options import TableOptions

SPLIT_NAMES_BY_COUNT = {2: ("train", "val"), 3: ("train", "val", "test")}
"""Names of the splits, by the number of splits."""


def append_labels(existing_labels: LabelFile, new_labels: LabelFile, *, by_class_index: bool) -> LabelFile:
    """Append the images of `new_labels` that `existing_labels` does not list.

    Classes are merged by name or, with `by_class_index`, by class index. In the latter case, a class name of
    `new_labels` is used only if the class has no name in `existing_labels`.
    """
    new = new_labels.without(item.path for item in existing_labels)
    merged = existing_labels.merge(new)
    if not by_class_index:
        return merged
    names = existing_labels.defined_class_names
    for label, name in enumerate(new_labels.class_names):
        names = add_class_name(names, label, name)
    return LabelFile(
        existing_labels.path, existing_labels.img_root, items=lambda: chain(existing_labels, new), class_names=names
    )


def find_split_files(target: Path, *, multi_label: bool) -> dict[Path, LabelFile]:
    """Return the label files of an earlier split of `target`, by path."""
    paths = (target.with_name(f"{target.stem}_{name}{target.suffix}") for name in SPLIT_NAMES_BY_COUNT[3])
    return {path: LabelFile(path, options=TableOptions(multi_label=multi_label)) for path in paths if path.exists()}


def append_to_split(
    split_files: Mapping[Path, LabelFile],
    new_labels: LabelFile,
    split_paths: Sequence[Path],
    split: Callable[[LabelFile, Mapping[Path, int]], tuple[LabelFile, ...]],
    *,
    by_class_index: bool,
) -> tuple[LabelFile, ...]:
    """Append the images of `new_labels` that no split lists; return a label file per path.

    Classes are merged as by `append_labels`.

    Args:
        split_files: the existing label files, by path; a file that is not in `split_paths` keeps its images, which are
            not in the result.
        split_paths: the label files to create.
        split: function that splits a label file, given the splits of the images that are already split; returns one
            label file per path.
        by_class_index: see `append_labels`.
    """
    first, *others = split_files.values()
    merged = append_labels(first.merge(*others), new_labels, by_class_index=by_class_index)
    names, images = merged.defined_class_names, iter(list(merged))

    def make_label_file(items: Iterable[LabeledPath]) -> LabelFile:
        listed = list(items)
        return LabelFile(merged.path, merged.img_root, items=lambda: listed, class_names=names)

    existing = {path: list(islice(images, file.count_images()[0])) for path, file in split_files.items()}
    new_paths = {item.path for item in images}
    assigned = {item.path: number for number, path in enumerate(split_paths) for item in existing.get(path, ())}
    splits: Sequence[Iterable[LabeledPath]] = [()] * len(split_paths)
    if new_paths:
        splits = split(make_label_file(merged), assigned)
    return tuple(
        make_label_file(chain(existing.get(path, ()), (item for item in items if item.path in new_paths)))
        for path, items in zip(split_paths, splits, strict=True)
    )


def describe_stale_split_files(
    split_files: Mapping[Path, LabelFile], labels: LabelFile, paths: Sequence[Path]
) -> Iterator[str]:
    """Yield a line about each label file of an earlier split whose images are now split into `paths` instead."""
    names = " and ".join(path.name for path in paths)
    for path in split_files.keys() - set(paths):
        with suppress(InputError):  # an unreadable file lists no images
            others = labels.without(item.path for item in split_files[path])
            if others.count_images()[0] < labels.count_images()[0]:
                yield f"{path} belongs to an earlier split, and its images are also in {names}: delete {path.name}"
