"""Commands of the step "curate": `label`, `check` and `mean`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import typer

from mlimages import checks, core, dataset, images, training
from mlimages.cli.engines import ADDRESS, ENGINE, Engine, open_cluster, require_engine_installed
from mlimages.cli.hints import (
    find_validation_option,
    print_as_json,
    print_next_command,
    print_notes,
    print_to_stderr,
    read_labels,
    to_cli_args,
)
from mlimages.cli.options import (
    FORCE,
    GRAY,
    IMAGE_SIZE_HELP,
    LABELS,
    SKIP_UNAVAILABLE,
    make_image_property,
    takes_options,
)
from mlimages.core import Resize, as_path, format_size, parse_size, pluralize, require_writable
from mlimages.labels import (
    SPLIT_NAMES_BY_ALIAS,
    LabelFile,
    LabelFileSummary,
    LabelOptions,
    TableOptions,
    make_label_files,
    open_splits,
    parse_fractions,
)

MAX_SHOWN_CLASSES = 20


@takes_options(LabelOptions, positional_field="source", shown_groups=("Table",))
def label(
    settings: dict[str, Any],
    split: str = typer.Option(
        "",
        metavar="FRACTIONS",
        help="Write train, val (and test) files with these fractions of the images, such as 0.8,0.2 or 0.8,0.1,0.1.",
        rich_help_panel="Split",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print a summary as JSON.", rich_help_panel="Output"),
) -> None:
    """Create, split or convert a label file.

    Each folder inside FOLDER is a class. The label file lists one image per line, `path label`; NAME_class_def.txt
    beside it names the classes. If a label file is given instead of FOLDER (.txt, .csv, .tsv, .jsonl, or an export of
    COCO, Label Studio or CVAT), it is split, or converted to the format of --out. Its columns are detected and printed.
    With --split, NAME_train, NAME_val (and NAME_test) are written instead of NAME.

    Example: mlimages label data/cats -o cats.txt --split 0.8,0.2 --seed 1
    """
    options = LabelOptions(**settings, split=parse_fractions(split) if split else ())

    def split_without_leaks(
        labels: LabelFile, fractions: Sequence[float], seed: int, *, assigned: Mapping[Path, int]
    ) -> tuple[LabelFile, ...]:
        """Split a label file; near-duplicates stay in the same split. See `split_labels` for `assigned`."""
        embed = _load_embedder([labels]) if options.group_by == "features" else None
        return checks.split_labels(
            labels, fractions, seed, assigned=assigned, embed=embed, progress=core.TqdmProgress()
        )

    written = make_label_files(options, split=split_without_leaks, print_note=print_to_stderr)
    for file in written:
        for line in _make_class_warnings(file, is_split=bool(options.split)):
            print_to_stderr(line)
    if as_json:
        files = [
            {"path": str(file.path), "count": file.num_images, "classes": dict(file.class_counts)} for file in written
        ]
        print_as_json({"files": files, "folder": str(options.as_folders) if options.as_folders else None})
        return
    for file in written:
        print(_summarize_label_file(file))
    if options.as_folders:
        print(f"{options.as_folders}: the images of the label file in one folder per class")
    if written:
        print_next_command("check", *(file.path for file in written))


def _summarize_label_file(file: LabelFileSummary) -> str:
    counts = [f"{name} {count}" for name, count in file.class_counts.items()]
    num_more = len(counts) - MAX_SHOWN_CLASSES
    class_counts = ", ".join(counts[:MAX_SHOWN_CLASSES]) + (f" and {num_more} more" if num_more > 0 else "")
    classes = pluralize(len(counts), "class")
    return f"{file.path}: {pluralize(file.num_images, 'image')}, {classes}: {class_counts}"


def _make_class_warnings(file: LabelFileSummary, *, is_split: bool) -> list[str]:
    """Return warnings about classes with no or one image, and about a file with no image or only one class."""
    advice = (
        ": its fraction is less than one image, or the images stay together as near-duplicates or as one --group. "
        "Add other images, or split near-duplicates, too, with --group='[^/]+$'"
    )
    if not file.num_images:
        return [f"{file.path}: no images{advice * is_split}"]
    absent = [name for name in file.rare_classes if is_split and not file.class_counts[name]]
    few = [name for name in file.rare_classes if name not in absent]
    rare = [f"{file.path}: fewer than two images of {'each of ' * (len(few) > 1)}{', '.join(few)}"] * bool(few)
    rare += [f"{file.path}: no images of {', '.join(absent)}{advice}"] * bool(absent)
    has_one_class = len(file.class_counts) == 1 and not file.is_multi_label
    return rare + [f"{file.path}: only one class: a classifier needs at least two"] * has_one_class


@takes_options(TableOptions)
def check(
    table_options: dict[str, Any],
    sources: list[Path] = typer.Argument(
        ...,
        metavar="LABELS|FOLDER...",
        help="Label files, or folders with one subfolder per class; an image in more than one of them, or in several "
        "splits of a folder, is reported as a leak.",
    ),
    report_path: Path = typer.Option(
        None, "--report", metavar="FILE.html", help="Write an HTML report of the findings."
    ),
    fix: bool = typer.Option(False, "--fix", help="List files to move or rename; change them only with --yes."),
    yes: bool = typer.Option(
        False, "--yes", help="With --fix, move broken files to NAME_quarantine and correct wrong suffixes."
    ),
    strict: bool = typer.Option(False, "--strict", help="Exit with code 1 if images have errors."),
    threshold: list[str] = typer.Option(
        [], "--threshold", metavar="NAME=VALUE", help="Override a threshold (see --help-all); may be repeated."
    ),
    features: bool = typer.Option(
        False,
        "--features",
        help="Also compare the features of a network, to find near-duplicates such as small crops of an image "
        "(requires the extra `train`).",
    ),
    skip_unavailable: bool = SKIP_UNAVAILABLE,
    engine: Engine = ENGINE,
    address: str = ADDRESS,
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Find corrupt, duplicate, leaked and unusual images.

    Every image is decoded once and its measurements are cached, so that a second run decodes only new and changed
    images. Three files are written beside each label file, or in each folder: NAME_checked.txt (the images without
    errors), NAME_rejected.tsv (path, label, code and detail of each error) and NAME_warnings.tsv (the same for
    warnings). If an image or near-duplicate is in several label files (a leak), only the smallest file keeps it.

    Example: mlimages check train.txt val.txt --report check.html
    """
    require_engine_installed(engine)
    if yes and not fix:
        raise typer.BadParameter("--yes requires --fix")
    if report_path:  # before the images are decoded, since the extra `train` may be missing
        from mlimages.reports import write_check_report
    thresholds = checks.Thresholds.parse(threshold)
    report_paths = [as_path(report_path)] if report_path else []
    _undo_interrupted_moves(sources, undo=yes)
    files = [labels for source in sources for labels in open_splits(source, TableOptions(**table_options)).values()]
    result_paths = checks.list_result_paths(files)
    require_writable([*report_paths, *chain.from_iterable(result_paths)], overwrite=force)
    print_notes(files)
    embed = _load_embedder(files) if features else None
    with open_cluster(engine, address) as pool:
        report = checks.check(
            files,
            thresholds=thresholds,
            pool=pool,
            skip_unavailable=skip_unavailable,
            embed=embed,
            progress=core.TqdmProgress(),
        )
    if report_path:
        write_check_report(report, report_path, overwrite=force)
    moves = checks.plan_moves(report) if fix else []
    if not as_json:
        _print_report(report)
    with checks.record_moves(report, moves if yes else (), overwrite=force):
        for move in moves:  # each is printed when it is done, since the next one may fail
            if yes:
                checks.move_files([move])
            if not as_json:
                print(f"{'moved' if yes else 'would move'} {move.source} to {move.target} ({move.code})")
        written = checks.write_results(report, moves if yes else (), overwrite=force)
    if as_json:
        moved = [{"from": str(move.source), "to": str(move.target), "code": move.code} for move in moves]
        print_as_json({**report.to_dict(), "moves": moved})
    print_to_stderr("written: " + ", ".join(map(str, [*written, *report_paths])))
    if fix and not moves:
        print_to_stderr("--fix: no file has to be moved or renamed")
    if yes and (outdated := checks.find_outdated_label_files(report, moves)):
        print_to_stderr(
            "label files that mlimages did not write, or that were edited since, are not updated: "
            f"{', '.join(map(str, outdated))}; use NAME_checked.txt instead"
        )
    if advice := images.describe_if_most_images_missing(report.errors.get("missing", 0), report.num_images):
        print_to_stderr(advice)
    if count := report.errors.get(checks.Code.TWO_LABELS, 0):
        print_to_stderr(
            f"{pluralize(count, 'image')} excluded because of identical images in other classes; use --multi-label if "
            "an image may have several classes"
        )
    if report.num_ok and (training_files := _choose_training_files([checked for checked, _, _ in result_paths])):
        validation = chain.from_iterable(("--val", path) for path in training_files[1:])
        print_next_command("finetune", training_files[0], *validation)
    if strict and report.errors:
        raise typer.Exit(1)


def _choose_training_files(checked: Sequence[Path]) -> list[Path]:
    """Return the training set and, if there is one, the validation set, judging by the names of files and folders.

    If either is missing, the first unused file without a split in its name takes its place, but never a test set.
    """
    folders_differ = len({path.parent.name for path in checked}) > 1

    def find_split(path: Path) -> str:
        words = [path.parent.name.lower()] * folders_differ + re.split(r"[\W_]+", path.stem.lower())
        return next((SPLIT_NAMES_BY_ALIAS[word] for word in reversed(words) if word in SPLIT_NAMES_BY_ALIAS), "")

    def list_paths(*splits: str) -> list[Path]:
        return [path for split in splits for path in checked if find_split(path) == split]

    train = list_paths("train", "")[:1]
    return train + [path for path in list_paths("val", "") if path not in train][:1] if train else []


def _load_embedder(files: Sequence[LabelFile]) -> core.Embedder:
    """Load the network for features, and print the expected time and memory."""
    embed = training.embedder()
    print_to_stderr(embed.describe_time_and_memory(sum(1 for file in files for _ in file.text_items())))
    return embed


def _undo_interrupted_moves(sources: Sequence[Path], *, undo: bool) -> None:
    """Undo the moves of interrupted `check --fix --yes`, or print how to."""
    for record in checks.find_interrupted_moves(sources):
        if undo:
            checks.undo_interrupted_moves(record)
        action = "its moves have been undone" if undo else "repeat the command with --fix --yes"
        print_to_stderr(f"{record}: --fix was interrupted: {action}")


def _print_report(report: checks.CheckReport) -> None:
    print(f"{pluralize(report.num_images, 'image')} checked, {report.num_ok} ok, {report.duration_s:.1f} s")
    if report.feature_pairs is not None:
        print(f"{pluralize(len(report.feature_pairs), 'pair')} of near-duplicates found only by features")
    for title, counts in (("errors (excluded)", report.errors), ("warnings (kept)", report.warnings)):
        print("\n".join([f"{title}: {sum(counts.values())}", *(f"  {n:>7}  {code}" for code, n in counts.items())]))


@takes_options(TableOptions)
def mean(
    table_options: dict[str, Any],
    source: Path = LABELS,
    size: str = typer.Option(None, metavar="N|WxH", help=IMAGE_SIZE_HELP, show_default="224"),
    resize: Resize = typer.Option(
        None,
        help="Resize method; shorter: resize the shorter side, then crop the centre.",
        show_default="shorter",
    ),
    gray: bool = GRAY,
    model: str = typer.Option(
        "", "--model", metavar="NAME|RUN", help="Use the preprocessing of this network or run folder."
    ),
    per_class: bool = typer.Option(
        False, "--per-class", help="Also write the mean image of each class to NAME_per_class.png."
    ),
    out: Path = typer.Option(
        Path("mean.png"),
        "-o",
        "--out",
        metavar="FILE.png",
        help="Output image; .npy and .json files are written beside it.",
    ),
    skip_unavailable: bool = SKIP_UNAVAILABLE,
    engine: Engine = ENGINE,
    address: str = ADDRESS,
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the statistics as JSON."),
) -> None:
    """Compute the mean image and per-channel mean and std.

    Images are resized and cropped as in training with the same options. The mean image is written as .png for viewing,
    and as .npy for `finetune --mean` (float32, channels x height x width, 0..255). The statistics are written as .json.
    The file NAME_used_in_mean.txt beside the label file lists the images that could be read.

    Example: mlimages mean train.txt --size 227 -o mean.png
    """
    require_engine_installed(engine)
    out, size = as_path(out), size or ("" if model else "224")
    settings = {"model": model, "size": size, "resize": resize, "gray": gray}
    if model:
        if (size or resize or gray is not None) and Path(model).is_dir():
            raise typer.BadParameter(
                "a run folder cannot be combined with --size, --resize or --gray", param_hint="--model"
            )
        sides = parse_size(size) if size else None
        image_property = training.get_image_property(model, size=sides, resize=resize, gray=gray)
        if Path(model).is_dir():
            run, size = training.read_config(model), format_size(image_property.width, image_property.height)
            settings = {"model": run.model, "size": size, "resize": run.resize, "gray": run.gray}
    else:
        image_property = make_image_property(size, resize=resize or "shorter", gray=bool(gray))
    settings["no_gray"] = settings["gray"] is False
    data = dataset.TrainingData(read_labels(source, table_options), image_property)
    with open_cluster(engine, address) as pool:
        mean_image = data.make_mean_image(
            out, per_class=per_class, overwrite=force, pool=pool, skip_unavailable=skip_unavailable,
            progress=core.TqdmProgress(),
        )  # fmt: skip
    figures = {
        "mean": mean_image.channel_mean, "std": mean_image.channel_std,
        "count": mean_image.num_images, "broken": len(mean_image.broken_images),
    }  # fmt: skip
    if as_json:
        print_as_json({**figures, "path": str(out)})
        return
    print(f"{out}: mean of {pluralize(mean_image.num_images, 'image')}, {len(mean_image.broken_images)} skipped")
    mean_text, std_text = (
        " ".join(f"{value:.1f}" for value in values) for values in (mean_image.channel_mean, mean_image.channel_std)
    )
    print(f"per channel: mean {mean_text}, std {std_text}")
    options = [*to_cli_args(table_options), *find_validation_option(source), *to_cli_args(settings)]
    print_next_command("finetune", source, *options, "--mean", out.with_suffix(".npy"))
