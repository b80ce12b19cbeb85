"""Append to label files, and to the files NAME_train, NAME_val and NAME_test of an earlier split."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

from mlimages.core import (
    InputError,
    LabeledPath,
    format_examples,
    is_file_or_member,
    is_remote,
    pluralize,
    require_writable,
)
from mlimages.labels.class_names import (
    ClassNames,
    add_class_name,
    class_definition_path,
    format_added_class_names,
    renumber_items,
    write_class_names,
)
from mlimages.labels.formats import Label
from mlimages.labels.label_file import LabelFile, merge_classes
from mlimages.labels.label_output import append_text, write_items, write_label_output
from mlimages.labels.scanning import make_path_resolver
from mlimages.labels.shared_definitions import require_unchanged_classes

_format_examples = partial(format_examples, max_count=3, separator="; ")


def append_labels(existing_labels: LabelFile, new_labels: LabelFile, *, by_class_index: bool) -> LabelFile:
    """Append the images of `new_labels` that `existing_labels` does not list; the listed images keep their classes.

    Classes are merged by name. With `by_class_index`, they are merged by class index instead; a class then keeps its
    name in `existing_labels`, if it has one. A class of which all images are already listed is not added. The `notes`
    name the listed images that no longer exist, or have other classes in `new_labels`.

    Raises:
        InputError: with `by_class_index`, `existing_labels` has another class of the same name.
    """
    merged = _merge_new_images(existing_labels, new_labels, by_class_index=by_class_index)
    return merged.with_notes(_describe_listed_images([existing_labels], new_labels, by_class_index=by_class_index))


def _merge_new_images(existing_labels: LabelFile, new_labels: LabelFile, *, by_class_index: bool) -> LabelFile:
    """Return the label file that `append_labels` returns, without its `notes` about images that are already listed."""
    new = new_labels.without(item.path for item in existing_labels)
    merged, new_names, new_classes = existing_labels.merge(new), new_labels.class_names, new.count_images()[1]
    if not by_class_index:
        listed = new_labels.count_images()[1].keys() - new_classes.keys()
        candidates = {new_names[label] for label in listed} - {*existing_labels.defined_class_names}
        return _remove_empty_classes(merged, candidates)
    defined = existing_labels.defined_class_names
    normalized = [unicodedata.normalize("NFC", name) for name in defined]  # as the names of folders
    names = existing_labels.class_names if new_classes else defined
    for label in sorted(new_classes):
        name = new_names[label]
        if name in normalized and (other := normalized.index(name)) != label:
            raise InputError(
                f"{existing_labels.path}: the class {name} already has the label {other}, not {label}: append "
                f"{new_labels.img_root} with --label {other}, or rename the folder"
            )
        names = add_class_name(names, label, name)
    return LabelFile(
        existing_labels.path, existing_labels.img_root, items=lambda: chain(existing_labels, new), class_names=names
    )


def append_to_split(
    split_files: Mapping[Path, LabelFile],
    new_labels: LabelFile,
    split_paths: Sequence[Path],
    split: Callable[[LabelFile, Mapping[Path, int]], tuple[LabelFile, ...]],
    *,
    by_class_index: bool,
    print_note: Callable[[str], None],
) -> tuple[LabelFile, ...]:
    """Split the new images of `new_labels`, and append them to an earlier split; return the resulting label files.

    Images that are already in one of `split_files` are not new. Classes are merged as by `append_labels`.

    Args:
        split_files: the label files of the earlier split, by path.
        split_paths: paths of the label files to return, one per split. An earlier label file whose path is not among
            them, such as that of the test set, is neither changed nor returned. If a new image belongs to the group of
            an image in that file, for example as a near-duplicate, the new image is not appended to any file.
        split: function that splits a label file into one label file per path. Its second argument contains, by image
            path, the split of each image of the earlier split: the index in `split_paths`, or `len(split_paths)` if the
            label file is not returned.
        by_class_index: see `append_labels`.
        print_note: called with each line that `append_labels` returns as a note, and with one about the new images that
            are not appended.
    """
    first, *others = split_files.values()
    merged = _merge_new_images(first.merge(*others), new_labels, by_class_index=by_class_index)
    names, images = merged.defined_class_names, iter(list(merged))
    for line in _describe_listed_images(split_files.values(), new_labels, by_class_index=by_class_index):
        print_note(line)

    def make_label_file(items: Iterable[LabeledPath]) -> LabelFile:
        listed = list(items)
        return LabelFile(merged.path, merged.img_root, items=lambda: listed, class_names=names)

    existing = {path: list(islice(images, file.count_images()[0])) for path, file in split_files.items()}
    new_paths = {item.path for item in images}
    numbers = {path: number for number, path in enumerate(split_paths)}
    assigned = {item.path: numbers.get(path, len(split_paths)) for path, items in existing.items() for item in items}
    splits: Sequence[Iterable[LabeledPath]] = [()] * len(split_paths)
    if new_paths:
        splits = split(make_label_file(merged), assigned)
    new = [[item for item in items if item.path in new_paths] for items in splits]
    if left_out := new_paths - {item.path for item in chain.from_iterable(new)}:
        kept = " and ".join(path.name for path in existing.keys() - numbers.keys())
        print_note(
            f"left out: {pluralize(len(left_out), 'image')} that must stay in one split with images in {kept} "
            f"({_format_examples(sorted(map(str, left_out)))}): to append them too, use three fractions in --split"
        )
    return tuple(
        make_label_file(chain(existing.get(path, ()), items)) for path, items in zip(split_paths, new, strict=True)
    )


def require_writable_labels(
    files: Mapping[Path, LabelFile],
    appended_to: Mapping[Path, LabelFile],
    *,
    source: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Check that `write_label_files` can write these files.

    `source` is the label file that the images come from; None if they come from a folder.

    Raises:
        InputError: a file is read-only, or would have to be replaced although it was not written by mlimages or was
            edited since, and `overwrite` is false; or a file to append to is a link to a file in another folder; or
            another label file has the same class definition and other classes.
    """
    for path, labels in files.items():
        require_unchanged_classes(path, labels.defined_class_names, source=source)
        definition, existing = class_definition_path(path), appended_to.get(path)
        if existing is None:
            require_writable([path, definition], overwrite=overwrite)
            continue
        if not is_remote(path) and path.resolve().parent != path.parent.resolve():
            raise InputError(
                f"{path} is a link to a file in another folder, and its paths start there: append to {path.resolve()}"
            )
        require_writable([path], overwrite=overwrite, appends=_can_append_lines(existing, labels))
        if names := labels.defined_class_names:
            is_kept = format_added_class_names(definition, names) is not None
            require_writable([definition], overwrite=overwrite, appends=is_kept)


def write_label_files(
    files: Mapping[Path, LabelFile], appended_to: Mapping[Path, LabelFile], *, overwrite: bool = False
) -> list[LabelFile]:
    """Write label files by path, or append to those in `appended_to`; return the written label files.

    `require_writable_labels` checks beforehand that this is possible.

    Args:
        files: all images by path of the label file; those of the existing file come first.
        appended_to: the existing label files by path. Their lines, which a user may have written, are not changed.
            Only tables, and files whose class indices change, are written again.
        overwrite: write files again that mlimages did not write, or that were edited since.
    """
    for path, labels in files.items():
        if path in appended_to:
            _append(appended_to[path], labels, overwrite=overwrite)
        else:
            labels.write(path, overwrite=overwrite)
    return list(map(LabelFile, files))


def _append(existing: LabelFile, labels: LabelFile, *, overwrite: bool) -> None:
    """Append to the file of `existing` those images of `labels` that it does not list.

    The first images of `labels` are those of `existing`. If their lines have to change, the file is written again.
    """
    path, definition, names = existing.path, class_definition_path(existing.path), labels.defined_class_names
    items, can_append, count = list(labels), _can_append_lines(existing, labels), existing.count_images()[0]
    added = format_added_class_names(definition, names)
    if names and added is None:  # first, since each class index in the label file must have a name
        write_class_names(definition, names, overwrite=overwrite)
    elif names and added:
        with append_text(definition) as out:
            out.write(added)
    if not can_append:
        write_label_output(path, items, overwrite=overwrite)
    elif new_items := items[count:]:
        with append_text(path) as out:
            write_items(out, path, new_items)


def _can_append_lines(existing: LabelFile, labels: LabelFile) -> bool:
    """Whether the file is not a table, and its lines have the same class indices as in `labels`, so they can stay."""
    labels_by_line = zip(existing.text_items(), labels.text_items(), strict=False)
    return existing.table is None and all(before[1] == after[1] for before, after in labels_by_line)


def _describe_listed_images(
    existing_files: Collection[LabelFile], new_labels: LabelFile, *, by_class_index: bool
) -> Iterator[str]:
    """Yield lines about images in the existing files that no longer exist, or have other classes in `new_labels`."""
    files = (*existing_files, new_labels)
    *names_by_file, new_names = merge_classes(files)[1] if not by_class_index else [()] * len(files)
    resolve = make_path_resolver()
    new: dict[str, list[str]] = {}  # an image may be listed twice
    for name, label in new_labels.text_items():
        new.setdefault(resolve(name), []).append(_format_classes(label, new_names))
    for file, names in zip(existing_files, names_by_file, strict=True):
        others = [
            f"{Path(name)} is {listed}, not {new[path][0]}"
            for name, label in file.text_items()
            if (path := resolve(name)) in new and (listed := _format_classes(label, names)) not in new[path]
        ]
        if others:
            yield (
                f"{file.path}: not changed: {pluralize(len(others), 'image')} listed with another class "
                f"({_format_examples(others)}): to change the class, remove these lines and append again"
            )
        if missing := find_missing_images(file):
            yield (
                f"{file.path}: {len(missing)} of {file.count_images()[0]} listed images are missing "
                f"({_format_examples(missing)}): if they were moved or renamed, remove these lines, or create "
                f"{file.path.name} again without --append"
            )


def find_missing_images(labels: LabelFile) -> list[str]:
    """Return the paths of the listed images that do not exist; remote images are not checked."""
    names = (name for name, _ in labels.text_items())
    return [str(Path(name)) for name in names if not is_remote(name) and not is_file_or_member(name)]


def _format_classes(label: Label, names: ClassNames) -> str:
    """Return the class names of a label in order, or its class indices if `names` is empty."""
    indices = label if isinstance(label, tuple) else (label,)
    return ";".join(sorted(names[index] if names else f"class {index}" for index in indices)) or "no class"


def _remove_empty_classes(labels: LabelFile, candidates: Collection[str]) -> LabelFile:
    """Remove the classes in `candidates` that have no images; the other classes are renumbered in order."""
    names, counts = labels.defined_class_names, labels.count_images()[1]
    kept = [index for index, name in enumerate(names) if name not in candidates or counts[index]]
    if len(kept) == len(names):
        return labels
    kept_names = tuple(names[index] for index in kept)
    items = partial(renumber_items, [labels], kept_names, [names])
    return LabelFile(labels.path, labels.img_root, items=items, class_names=kept_names)
