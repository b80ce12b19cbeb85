"""Write label files from a folder or another label file, as the command `mlimages label` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Annotated, Literal, Protocol

from mlimages.core import (
    MAX_SEED,
    InputError,
    Option,
    as_path,
    check_options,
    document_fields,
    format_examples,
    pluralize,
    record_settings,
    refresh_remote_listings,
)
from mlimages.labels.appending import (
    append_labels,
    append_to_split,
    find_missing_images,
    require_writable_labels,
    write_label_files,
)
from mlimages.labels.class_names import MAX_CLASSES, check_class_names, class_definition_path, read_class_names
from mlimages.labels.folders import check_table_options, label_dir, label_dir_auto, label_dir_by_pattern, require_images
from mlimages.labels.formats import get_supported_suffix
from mlimages.labels.grouping import find_dataset_folder, find_groups, format_grouping, require_recorded_grouping
from mlimages.labels.identical_images import merge_identical_images
from mlimages.labels.label_file import LabelFile
from mlimages.labels.label_summary import LabelFileSummary, summarize_label_file
from mlimages.labels.layout import (
    describe_renamed_folders,
    make_folder_names,
    require_outside_dataset,
    write_class_folders,
)
from mlimages.labels.scanning import MISSING_IMAGES_ADVICE, describe_skipped_entries, make_path_resolver
from mlimages.labels.split_files import SPLIT_NAMES_BY_COUNT, describe_stale_split_files, find_split_files
from mlimages.labels.splitting import check_fractions
from mlimages.labels.table_options import TableOptions
from mlimages.labels.table_paths import read_paths


def parse_fractions(text: str) -> tuple[float, ...]:
    """Parse the fractions of a split, such as `0.8,0.2`.

    Raises:
        InputError: the text does not consist of two or three positive numbers that add up to 1.

    >>> parse_fractions("0.8,0.1,0.1")
    (0.8, 0.1, 0.1)
    """
    try:
        fractions = tuple(map(float, text.split(",")))
    except ValueError:
        fractions = ()
    if len(fractions) not in SPLIT_NAMES_BY_COUNT:
        raise InputError(f"--split {text}: expected two or three fractions that add up to 1, such as 0.8,0.2")
    check_fractions(fractions)
    return fractions


@document_fields
@dataclass(frozen=True, slots=True)
class LabelOptions(TableOptions):
    """Options of `mlimages label`."""

    source: Annotated[Path, Option("A folder with one subfolder per class, or a label file.", metavar="FOLDER|LABELS")]
    out: Annotated[
        Path | None,
        Option("Label file to write: .txt, .csv, .tsv, .jsonl.", "Output", ("-o", "--out"),
               default_text="FOLDER/labels.txt, or LABELS with --split"),
    ] = None  # fmt: skip
    leaf: Annotated[bool, Option("Treat every folder that contains images as a class, at any depth.", "Classes")] = (
        False
    )
    classes: Annotated[
        Path | None,
        Option("File with the class names to use: lines such as `0 cats`, or one name per line.", "Classes"),
    ] = None
    class_index: Annotated[
        int | None,
        Option(
            "Assign class index N to all images in FOLDER.", "Classes", ("--label",), "N", min=0, max=MAX_CLASSES - 1
        ),
    ] = None
    limit_per_class: Annotated[
        int | None,
        Option("Keep at most N images of each class, selected at random with --seed.", "Images", metavar="N", min=1),
    ] = None
    drop: Annotated[Path | None, Option("Exclude the images that this label file or table lists.", "Images")] = None
    split: Annotated[
        tuple[float, ...], Option("Fractions of the train, val and optional test split.", is_internal=True)
    ] = ()
    group: Annotated[
        str,
        Option(
            "Regular expression; images stay in one split if it has the same match in their paths, relative to FOLDER "
            "or to the label file; if it has a group, the match of the first group.",
            "Split",
            metavar="REGEX",
            default_text="near-duplicates stay together",
        ),
    ] = ""
    group_by: Annotated[
        Literal["hashes", "features"],
        Option(
            "Find near-duplicates by image hashes, or also by features of a network (requires the extra `train`).",
            "Split",
        ),
    ] = "hashes"
    seed: Annotated[int, Option("Random seed for --split and --limit-per-class.", "Split", min=0, max=MAX_SEED)] = 0
    append: Annotated[bool, Option("Append to the label file instead of replacing it.", "Output")] = False
    as_folders: Annotated[
        Path | None, Option("Also link the images into class folders in DIR.", "Output", metavar="DIR")
    ] = None
    copy: Annotated[bool, Option("Copy images for --as-folders instead of linking them.", "Output")] = False
    force: Annotated[
        bool, Option("Replace files that mlimages did not write, or that were edited since.", "Output")
    ] = False


class Splitter(Protocol):
    """Callable that splits a label file, such as `mlimages.checks.split_labels`."""

    def __call__(
        self, labels: LabelFile, fractions: Sequence[float], seed: int, *, assigned: Mapping[Path, int]
    ) -> tuple[LabelFile, ...]:
        """Return one LabelFile per fraction; `assigned` gives the split of images that are already split."""


def make_label_files(
    options: LabelOptions, *, split: Splitter, print_note: Callable[[str], None] = lambda _: None
) -> tuple[LabelFileSummary, ...]:
    """Write label files from a folder or another label file, and class folders if `options.as_folders` is set.

    Without `options.out` and `options.split`, the labels of a folder are written to `FOLDER/labels.txt`; if the source
    is a label file, only class folders are written.

    Args:
        options: the options of `mlimages label`.
        split: function that splits the images. It is not used if `options.group` is set: a regular expression then
            defines which images stay together.
        print_note: called before files are written, with each line about detected columns or classes, or about images
            that are left out.

    Returns:
        Statistics of the label file, or of the label file of each split; empty if none is written.

    Raises:
        InputError: an option is out of range, the source cannot be read, or a file to replace was edited, or not
            written by mlimages, and `options.force` is false.
    """
    check_options(options)
    source, out = as_path(options.source), options.out and as_path(options.out)
    with refresh_remote_listings(source):
        target = out or (source / "labels.txt" if source.is_dir() else source)
        _check_option_combinations(options, source, target)
        labels, splits = _read_source(options, source, print_note)
    if splits and (options.split or options.append):
        hint = "" if source.is_dir() else ", or remove the column of splits"
        raise InputError(f"{source} is already split ({', '.join(splits)}): omit --split and --append{hint}")
    labels, *parts = _select_images([labels, *splits.values()], options, print_note)
    splits = dict(zip(splits, parts, strict=True))
    force, by_class_index = options.force, options.class_index is not None
    adds_to_target = options.append and target.exists() and not _is_same_file(source, target)
    is_split = options.split or (options.append and not adds_to_target)
    earlier = find_split_files(target, multi_label=options.multi_label) if is_split else {}
    if earlier and not options.split:
        found = ", ".join(path.name for path in earlier)
        raise InputError(f"no label file at {target} to append to, but {found}: append to these with --split 0.8,0.2")
    grouping = format_grouping(options.group, options.group_by)
    if options.append:
        require_recorded_grouping(earlier, grouping, folder=find_dataset_folder(source, options.images))
    appended_to = dict(earlier) if options.append else {}
    if adds_to_target:
        existing = LabelFile(target, options=TableOptions(multi_label=options.multi_label))
        labels = append_labels(existing, labels, by_class_index=by_class_index)
        appended_to[target] = existing
        for line in labels.notes:
            print_note(line)
    if options.as_folders:
        require_outside_dataset(options.as_folders, source, labels)
    names = SPLIT_NAMES_BY_COUNT[len(options.split)] if options.split else tuple(splits) or ("",)
    paths = [target.with_name(f"{target.stem}_{name}{target.suffix}") if name else target for name in names]
    label_source = None if source.is_dir() else source
    require_writable = partial(require_writable_labels, appended_to=appended_to, source=label_source, overwrite=force)
    if has_output := bool(out or options.split or source.is_dir()):
        require_writable({path: appended_to.get(path, labels) for path in paths})
    files = tuple(splits.values()) or (labels,)
    if options.append and earlier:
        split_new = partial(_split_labels, options=options, split=split, print_note=print_note)
        files = append_to_split(earlier, labels, paths, split_new, by_class_index=by_class_index, print_note=print_note)
    elif options.split:
        for line in describe_stale_split_files(earlier, labels, paths):
            print_note(line)
        files = _split_labels(labels, {}, options, split, print_note)
    outputs = dict(zip(paths, files, strict=True))
    if has_output:
        for path, file in outputs.items():
            _check_output_can_be_read(path, file)
        require_writable(outputs)
    if options.as_folders:
        for line in describe_renamed_folders(labels.class_names, make_folder_names(labels.class_names)):
            print_note(line)
        write_class_folders(dict(zip(names, files, strict=True)), options.as_folders, copy=options.copy)
    if not has_output:
        return ()
    written = write_label_files(outputs, appended_to, overwrite=force)
    if options.split:
        for path in paths:
            record_settings(path, f"--split {','.join(map(str, options.split))} --seed {options.seed} {grouping}")
    return tuple(map(summarize_label_file, written))


def _is_same_file(path: Path, other: Path) -> bool:
    resolve = make_path_resolver()
    return resolve(str(path)) == resolve(str(other))


def _check_option_combinations(options: LabelOptions, source: Path, target: Path) -> None:
    if not source.exists():
        raise InputError(f"no folder or label file at {source}: check the path")
    if options.group and options.group_by != "hashes":
        raise InputError("--group and --group-by are mutually exclusive")
    if (options.group or options.group_by != "hashes") and not options.split:
        raise InputError("--group and --group-by require --split")
    if options.copy and not options.as_folders:
        raise InputError("--copy requires --as-folders")
    are_given = (bool(options.class_from), options.class_index is not None, options.leaf, options.classes is not None)
    given = list(compress(("--class-from", "--label", "--leaf", "--classes"), are_given))
    if source.is_dir() and len(given) > 1 and given != ["--leaf", "--classes"]:
        raise InputError(f"{', '.join(given)} cannot be combined for a folder: choose one of them")
    if not source.is_dir():
        get_supported_suffix(source)
        if {"--label", "--leaf"} & set(given):
            raise InputError(f"{source} is a label file: --label and --leaf apply only to folders: omit them")
    if target.is_dir():
        raise InputError(f"{target} is a folder: expected the name of a label file, such as {target / 'labels.txt'}")
    if not (options.out or options.split or options.as_folders or source.is_dir()):
        raise InputError(f"{source} is already a label file: convert it with -o FILE, or split it with --split 0.8,0.2")
    if options.append and not options.split and _is_same_file(source, target):
        raise InputError(f"{source} cannot be appended to itself: omit --append, or give another file with -o FILE")


def _read_source(
    options: LabelOptions, source: Path, print_note: Callable[[str], None]
) -> tuple[LabelFile, Mapping[str, LabelFile]]:
    """Return all images, and the images of each split if the source is already split."""
    class_names = read_class_names(options.classes) if options.classes else None
    if class_names == ():
        raise InputError(f"{options.classes} contains no class names: expected lines such as `0 cats`")

    def merge_images_and_print_notes(labels: LabelFile) -> LabelFile:
        """Merge identical images if --multi-label is set; print the notes of the result, and return it."""
        merged = merge_identical_images(labels) if options.multi_label else labels
        for line in merged.notes:
            print_note(line)
        return merged

    if not source.is_dir():
        labels = LabelFile(source, class_names=class_names, options=TableOptions.from_options(options))
        require_images(labels)
        if labels.table is None and (missing := find_missing_images(labels)):  # a table has a note on missing images
            print_note(
                f"{labels.path}: {len(missing)} of {labels.count_images()[0]} images are missing "
                f"({format_examples(missing, 3)}): {MISSING_IMAGES_ADVICE}"
            )
        splits = labels.splits
        if not splits or (len(splits) == 1 and (options.split or options.append)):  # no image changes its split
            return merge_images_and_print_notes(labels), {}
        for line in labels.notes:
            print_note(line)
        return labels, {name: merge_images_and_print_notes(part) for name, part in splits.items()}
    check_table_options(source, options)
    if options.class_from:
        return merge_images_and_print_notes(label_dir_by_pattern(source, options.class_from)), {}
    if options.class_index is not None:
        skipped_notes = [f"left out: {text}" for text in describe_skipped_entries(source, is_class_folder=True)]
        return merge_images_and_print_notes(label_dir(source, options.class_index).with_notes(skipped_notes)), {}
    folder = label_dir_auto(source, leaf=options.leaf, class_names=class_names)
    for line in folder.notes:
        print_note(line)
    if not folder.splits:
        return merge_images_and_print_notes(folder.labels), {}
    return folder.labels, {name: merge_images_and_print_notes(part) for name, part in folder.splits.items()}


def _check_output_can_be_read(path: Path, labels: LabelFile) -> None:
    """Check, before `labels` are written to `path`, that mlimages will be able to read the file.

    Class names must be valid. A table without class names cannot be read if more than half of its images are missing.
    """
    check_class_names(class_definition_path(path), labels.defined_class_names)
    if path.suffix.lower() == ".txt" or labels.defined_class_names:
        return
    missing, count = len(find_missing_images(labels)), labels.count_images()[0]
    if 2 * missing > count:
        raise InputError(
            f"{path} could not be read again: {missing} of {count} images are missing, and a {path.suffix} label file "
            "without class names can be read only if at least half of its images exist: use --images DIR for the "
            "folder of the images, --classes FILE for class names, or -o NAME.txt"
        )


def _select_images(
    files: Sequence[LabelFile], options: LabelOptions, print_note: Callable[[str], None]
) -> Sequence[LabelFile]:
    """Exclude the images that --drop lists, and keep at most --limit-per-class images of each class in each file.

    `files` are the label file of all images and then, if the source is split, one label file per split.
    """
    if options.drop:
        drop_list, before = as_path(options.drop), files[0]
        paths = list(read_paths(drop_list))
        files = [file.without(paths) for file in files]
        count = before.count_images()[0] - files[0].count_images()[0]
        if paths and not count:
            raise InputError(f"no image of {drop_list} ({len(paths)} listed) is in {before.path}: check the paths")
        print_note(f"dropped: {pluralize(count, 'image')} ({drop_list} lists {len(paths)})")
    if options.limit_per_class:
        files = [file.limit_per_class(options.limit_per_class, seed=options.seed) for file in files]
    return files


def _split_labels(
    labels: LabelFile,
    assigned: Mapping[Path, int],
    options: LabelOptions,
    split: Splitter,
    print_note: Callable[[str], None],
) -> tuple[LabelFile, ...]:
    """Return one label file per fraction of --split.

    The function `split` is called, except with --group. `assigned` is the split index of already split images, by path.
    """
    if not options.group:
        return split(labels, options.split, options.seed, assigned=assigned)
    folder = find_dataset_folder(as_path(options.source), options.images)
    groups = find_groups(labels, options.group, folder=folder, assigned=assigned, print_note=print_note)
    return labels.split(options.split, seed=options.seed, groups=groups, contents=groups, assigned=assigned)
