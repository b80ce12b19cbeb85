"""The function of the command `label`: read a folder or a label file, select images, and write label files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, Protocol

from mlimages.core import (
    InputError,
    Option,
    as_path,
    check_options,
    counted,
    documented,
    is_file,
    is_remote,
    path_from_name,
    record_settings,
    refreshing_listings,
    require_writable,
)
from mlimages.labels.class_names import MAX_CLASSES, class_definition_path, read_class_names
from mlimages.labels.copies import join_copies
from mlimages.labels.folders import check_table_options, label_dir, label_dir_auto, label_dir_by_pattern, require_items
from mlimages.labels.formats import check_suffix, is_table, read_text_rows
from mlimages.labels.label_file import LabelFile
from mlimages.labels.layout import describe_renamed, folder_names, write_class_folders
from mlimages.labels.parts import PART_NAMES, append, append_to_parts, describe_stale_parts, find_parts
from mlimages.labels.scanning import MISSING_ADVICE, describe_skipped_entries
from mlimages.labels.splitting import check_shares, groups_by_pattern
from mlimages.labels.table_options import TableOptions
from mlimages.labels.tables import read_path_cells


def parse_shares(text: str) -> tuple[float, ...]:
    """Parse the shares of a split such as `0.8,0.2`.

    Raises:
        InputError: the text is not two or three positive numbers that add up to 1.

    >>> parse_shares("0.8,0.1,0.1")
    (0.8, 0.1, 0.1)
    """
    try:
        shares = tuple(map(float, text.split(",")))
    except ValueError:
        shares = ()
    if len(shares) not in PART_NAMES:
        raise InputError(f"--split {text}: expected two or three fractions that add up to 1, such as 0.8,0.2")
    check_shares(shares)
    return shares


@documented
@dataclass(frozen=True, slots=True)
class LabelOptions(TableOptions):
    """Options of `make_label_files`."""

    source: Annotated[Path, Option("A folder with one subfolder per class, or a label file.", metavar="FOLDER|LABELS")]
    out: Annotated[
        Path | None,
        Option("Label file to write: .txt, .csv, .tsv, .jsonl.", "Output", ("-o", "--out"),
               default_text="FOLDER/labels.txt"),
    ] = None  # fmt: skip
    leaf: Annotated[bool, Option("Treat every folder that contains images as a class, at any depth.", "Classes")] = (
        False
    )
    classes: Annotated[
        Path | None, Option("Class numbers to use: a file of lines such as `0 cats`, or of names in order.", "Classes")
    ] = None
    number: Annotated[
        int | None,
        Option(
            "Assign class number N to all images of FOLDER.", "Classes", ("--label",), "N", min=0, max=MAX_CLASSES - 1
        ),
    ] = None
    limit_per_class: Annotated[
        int | None,
        Option("Keep at most N images of each class, chosen at random with --seed.", "Images", metavar="N", min=1),
    ] = None
    drop: Annotated[Path | None, Option("Exclude the images listed in the first column of this .tsv.", "Images")] = None
    split: Annotated[tuple[float, ...], Option("Fractions of train, val (and test).", is_internal=True)] = ()
    group: Annotated[
        str,
        Option(
            "Regular expression; images with the same match in their path stay in one split.",
            "Split",
            metavar="REGEX",
            default_text="near-duplicates",
        ),
    ] = ""
    group_by: Annotated[
        Literal["hashes", "features"],
        Option(
            "Find near-duplicates by hashes, or also by features of a network (requires the extra `train`).",
            "Split",
        ),
    ] = "hashes"
    seed: Annotated[int, Option("Random seed for --split and --limit-per-class.", "Split")] = 0
    append: Annotated[bool, Option("Append to the label file; keep existing lines.", "Output")] = False
    as_folders: Annotated[
        Path | None, Option("Also link the images as DIR/[train/]CLASS/.", "Output", metavar="DIR")
    ] = None
    copy: Annotated[bool, Option("With --as-folders: copy instead of linking.", "Output")] = False
    force: Annotated[
        bool, Option("Replace files that mlimages did not write, or that were edited since.", "Output")
    ] = False


class Splitter(Protocol):
    """Splits a label file; `mlimages.checks.split_labels` does so without separating near-duplicates."""

    def __call__(self, labels: LabelFile, shares: Sequence[float], seed: int) -> tuple[LabelFile, ...]:
        """Return one LabelFile per share."""


@dataclass(frozen=True, slots=True)
class WrittenLabels:
    """A label file that has been written.

    Attributes:
        path: path of the file.
        count: number of images.
        classes: number of images by class name.
        is_multi_label: whether an image may have any number of classes.
    """

    path: Path
    count: int
    classes: Mapping[str, int]
    is_multi_label: bool = False

    @property
    def rare_classes(self) -> tuple[str, ...]:
        """Classes with fewer than two images."""
        return tuple(name for name, count in self.classes.items() if count < 2)


def make_label_files(
    options: LabelOptions, *, split: Splitter, note: Callable[[str], None] = lambda _: None
) -> tuple[WrittenLabels, ...]:
    """Write the label files of `mlimages label`; write none if the images are only linked as folders.

    Args:
        options: the options of the command.
        split: splits the images, unless `options.group` is given.
        note: is called with a line on each column, class or image that was detected or left out, before anything is
            written.

    Returns:
        The label files: one, or one per part.

    Raises:
        InputError: an option is out of range, the source cannot be read, or an output file exists that mlimages did not
            write.
    """
    check_options(options)
    source, out = as_path(options.source), options.out and as_path(options.out)
    with refreshing_listings(source):
        target = out or (source / "labels.txt" if source.is_dir() else source)
        _check_consistent(options, source)
        listed, parts = _read_source(options, source, note)
    if parts and (options.split or options.append):
        raise InputError(f"{source} is already split ({', '.join(parts)}): omit --split and --append")
    listed, *changed = [_select_images(labels, options, note) for labels in (listed, *parts.values())]
    parts = dict(zip(parts, changed, strict=True))
    force, by_number = options.force, options.number is not None
    earlier = find_parts(target, multi_label=options.multi_label) if options.split else {}
    if options.append and target.exists():
        existing = LabelFile(target, options=TableOptions(multi_label=options.multi_label))
        listed = append(existing, listed, by_number=by_number)
    if options.append and (target.exists() or earlier):
        force = force or target.suffix == ".txt"  # its lines are kept
    names = PART_NAMES[len(options.split)] if options.split else tuple(parts) or ("",)
    paths = [target.with_name(f"{target.stem}_{name}{target.suffix}") if name else target for name in names]
    if is_written := bool(out or options.split or source.is_dir()):
        require_writable(chain.from_iterable((path, class_definition_path(path)) for path in paths), overwrite=force)
    files = tuple(parts.values()) or (listed,)
    if options.append and earlier:
        split_new = partial(_split_labels, options=options, split=split, note=note)
        files = append_to_parts(earlier, listed, paths, split_new, by_number=by_number)
    elif options.split:
        for line in describe_stale_parts(earlier, listed, paths):
            note(line)
        files = _split_labels(listed, options, split, note)
    if is_written:
        for path, file in zip(paths, files, strict=True):
            _require_readable(path, file)
    if options.as_folders:
        for line in describe_renamed(listed.class_names, folder_names(listed.class_names)):
            note(line)
        write_class_folders(dict(zip(names, files, strict=True)), options.as_folders, copy=options.copy)
    written = [file.write(path, overwrite=force) for path, file in zip(paths, files, strict=True)] if is_written else []
    if options.split:
        for file in written:
            record_settings(file.path, _describe_split_settings(options))
    return tuple(map(_count_classes, written))


def _describe_split_settings(options: LabelOptions) -> str:
    group = f"--group {options.group}" if options.group else f"--group-by {options.group_by}"
    return f"--split {','.join(map(str, options.split))} --seed {options.seed} {group}"


def read_paths(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Return an iterator over the path column of a label file or a table (rejected.tsv, suspects.tsv)."""
    path = as_path(path)
    names = read_path_cells(path) if is_table(path) else (row.path for row in read_text_rows(path))
    return (path_from_name(name.replace("\\", "/"), path.parent) for name in names)


def _check_consistent(options: LabelOptions, source: Path) -> None:
    if not source.exists():
        raise InputError(f"no folder or label file at {source}: check the path")
    if options.group and options.group_by != "hashes":
        raise InputError("--group and --group-by are mutually exclusive")
    if (options.group or options.group_by != "hashes") and not options.split:
        raise InputError("--group and --group-by require --split")
    if options.copy and not options.as_folders:
        raise InputError("--copy requires --as-folders")
    if not source.is_dir():
        check_suffix(source)
    if not (options.out or options.split or options.as_folders or source.is_dir()):
        raise InputError(f"{source} is already a label file: use -o FILE to convert it, or --split 0.8,0.2 to split it")


def _read_source(
    options: LabelOptions, source: Path, note: Callable[[str], None]
) -> tuple[LabelFile, Mapping[str, LabelFile]]:
    """Return all images, and those of each part if the folder is already split."""
    class_names = read_class_names(options.classes) if options.classes else None

    def join(labels: LabelFile) -> LabelFile:
        joined = join_copies(labels) if options.multi_label else labels
        for line in joined.notes:
            note(line)
        return joined

    if not source.is_dir():
        labels = LabelFile(source, class_names=class_names, options=TableOptions.from_subclass(options))
        require_items(labels)
        for line in _missing_note(labels):
            note(line)
        parts = {} if options.split or options.append else labels.parts
        if not parts:
            return join(labels), {}
        for line in labels.notes:
            note(line)
        return labels, {name: join(part) for name, part in parts.items()}
    check_table_options(source, options)
    if options.class_from:
        return join(label_dir_by_pattern(source, options.class_from)), {}
    if options.number is not None:
        left_out = [f"left out: {text}" for text in describe_skipped_entries(source, is_class_folder=True)]
        return join(label_dir(source, options.number).with_notes(left_out)), {}
    found = label_dir_auto(source, leaf=options.leaf, class_names=class_names)
    for text in found.notes:
        note(text)
    if not found.parts:
        return join(found.labels), {}
    return found.labels, {name: join(part) for name, part in found.parts.items()}


def _missing_note(labels: LabelFile) -> Iterator[str]:
    """Yield a line on the images of `path label` lines that do not exist; a table notes its own."""
    if labels.table is None and (missing := _find_missing_images(labels)):
        shown = ", ".join(str(Path(name)) for name in missing[:3]) + " ..." * (len(missing) > 3)
        count = labels.count_images()[0]
        yield f"{labels.path}: {len(missing)} of {count} images are missing ({shown}): {MISSING_ADVICE}"


def _find_missing_images(labels: LabelFile) -> list[str]:
    return [name for name, _ in labels.text_items() if not is_remote(name) and not is_file(name)]


def _require_readable(path: Path, labels: LabelFile) -> None:
    """Raise an error if the label file would be refused when it is read: a table without class names beside it is
    recognized by its images."""
    if path.suffix.lower() == ".txt" or labels.defined_class_names:
        return
    missing, count = len(_find_missing_images(labels)), labels.count_images()[0]
    if 2 * missing > count:
        raise InputError(
            f"{path}: {missing} of {count} images are missing; a table without class names is recognized as a label "
            "file by its images: use --images DIR for the folder of the images, --classes FILE for class names, or -o "
            "NAME.txt"
        )


def _select_images(labels: LabelFile, options: LabelOptions, note: Callable[[str], None]) -> LabelFile:
    """Leave out the images that --drop lists, and keep at most --limit-per-class images of each class."""
    if options.drop:
        labels = _drop_listed_images(labels, options.drop, note)
    if options.limit_per_class:
        labels = labels.limit_per_class(options.limit_per_class, seed=options.seed)
    return labels


def _drop_listed_images(labels: LabelFile, drop_list: Path, note: Callable[[str], None]) -> LabelFile:
    drop_list = as_path(drop_list)
    paths = list(read_paths(drop_list))
    left = labels.without(paths)
    count = sum(1 for _ in labels.text_items()) - sum(1 for _ in left.text_items())
    if paths and not count:
        raise InputError(
            f"{drop_list}: none of the {len(paths)} images that it lists is in {labels.path}: check the paths"
        )
    note(f"dropped: {counted(count, 'image')} ({drop_list} lists {len(paths)})")
    return left


def _split_labels(
    labels: LabelFile, options: LabelOptions, split: Splitter, note: Callable[[str], None]
) -> tuple[LabelFile, ...]:
    if not options.group:
        return split(labels, options.split, options.seed)
    paths = [item.path for item in labels]
    groups = groups_by_pattern(paths, options.group)
    if not groups:
        raise InputError(
            f"--group {options.group} matches none of the {len(paths)} paths ({paths[0]} ...): correct the expression"
        )
    found = counted(len(set(groups.values())), "group")
    note(f"--group: {found}; {options.group} matches {len(groups)} of {len(paths)} paths")
    return labels.split(options.split, seed=options.seed, groups=groups, contents=groups)


def _count_classes(labels: LabelFile) -> WrittenLabels:
    """Count the images of each class; a number that no line has is a class only if the class definition names it."""
    (count, counts), defined = labels.count_images(), len(labels.defined_class_names)
    names = enumerate(labels.class_names)
    classes = {name: counts[number] for number, name in names if counts[number] or number < defined}
    return WrittenLabels(labels.path, count, classes, labels.is_multi_label)
