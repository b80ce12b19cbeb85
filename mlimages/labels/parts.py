"""The label files of a split, NAME_train, NAME_val and NAME_test: append to them, and find those of an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

from mlimages.core import InputError, LabeledPath
from mlimages.labels.class_names import add_class_name
from mlimages.labels.label_file import LabelFile
from mlimages.labels.table_options import TableOptions

PART_NAMES = {2: ("train", "val"), 3: ("train", "val", "test")}


def append(existing: LabelFile, added: LabelFile, *, by_number: bool) -> LabelFile:
    """Append the images of `added` that `existing` does not list.

    Classes are merged by name or, with `by_number`, by class number: then class names are taken from `added` only for
    numbers that have no name in `existing`.
    """
    new = added.without(item.path for item in existing)
    merged = existing.merge(new)
    if not by_number:
        return merged
    names = existing.defined_class_names
    for number, name in enumerate(added.class_names):
        names = add_class_name(names, number, name)
    return LabelFile(existing.path, existing.img_root, items=lambda: chain(existing, new), class_names=names)


def find_parts(target: Path, *, multi_label: bool) -> dict[Path, LabelFile]:
    """Return the existing label files of a split of `target`, by path."""
    paths = (target.with_name(f"{target.stem}_{name}{target.suffix}") for name in PART_NAMES[3])
    return {path: LabelFile(path, options=TableOptions(multi_label=multi_label)) for path in paths if path.exists()}


def append_to_parts(
    existing: Mapping[Path, LabelFile],
    added: LabelFile,
    paths: Sequence[Path],
    split: Callable[[LabelFile], tuple[LabelFile, ...]],
    *,
    by_number: bool,
) -> tuple[LabelFile, ...]:
    """Split the images of `added` that no part lists, and append them to the parts at `paths`; classes as in `append`.

    Args:
        existing: the parts that exist; the images of one that is not in `paths` stay in that one alone.
    """
    first, *others = existing.values()
    merged = append(first.merge(*others), added, by_number=by_number)
    names, images = merged.defined_class_names, iter(list(merged))

    def label_file(items: Iterable[LabeledPath]) -> LabelFile:
        listed = list(items)
        return LabelFile(merged.path, merged.img_root, items=lambda: listed, class_names=names)

    kept = {path: list(islice(images, file.count_images()[0])) for path, file in existing.items()}
    new = label_file(images)
    parts = split(new) if any(True for _ in new) else [new] * len(paths)
    return tuple(label_file(chain(kept.get(path, ()), part)) for path, part in zip(paths, parts, strict=True))


def describe_stale_parts(existing: Mapping[Path, LabelFile], listed: LabelFile, paths: Sequence[Path]) -> Iterator[str]:
    """Yield a line on each part of an earlier split whose images are split again, into the parts at `paths`."""
    names = " and ".join(path.name for path in paths)
    for path in existing.keys() - set(paths):
        with suppress(InputError):  # an unreadable file is no part
            left = listed.without(item.path for item in existing[path])
            if left.count_images()[0] < listed.count_images()[0]:
                yield f"{path} is of an earlier split: its images are in {names} too; delete it"
