"""Commands of the step "curate": a folder becomes a data set that can be trusted."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlimages.cli.engines import ADDRESS, ENGINE, Engine, cluster_of
from mlimages.cli.hints import say_next
from mlimages.cli.options import GroupedCommand
from mlimages.core import ImageProperty, InputError, Resize, as_path, counted, demand_free, note_written

if TYPE_CHECKING:
    from mlimages.checks import CheckReport
    from mlimages.labels import LabelFile

FORCE = typer.Option(False, "--force", help="Replace files that mlimages did not write, or that were changed since.")
SHOWN_CLASSES = 20
PARTS = {2: ("train", "val"), 3: ("train", "val", "test")}


def register(app: typer.Typer) -> None:
    """Add this step's commands to the command line."""
    app.command("label", cls=GroupedCommand, rich_help_panel="curate")(label)
    app.command("check", cls=GroupedCommand, rich_help_panel="curate")(check)
    app.command("mean", cls=GroupedCommand, rich_help_panel="curate")(mean)


def label(
    source: Path = typer.Argument(..., metavar="FOLDER|LABELS", help="A folder of class folders, or a label file."),
    out: Path = typer.Option(
        None, "-o", "--out", help="Label file to write: .txt, .csv, .tsv, .jsonl [FOLDER/labels.txt]."
    ),
    split: str = typer.Option("", metavar="SHARES", help="Write train, val (and test) files: 0.8,0.2 or 0.8,0.1,0.1."),
    seed: int = typer.Option(0, help="Seed of the split."),
    group: str = typer.Option(
        "", metavar="REGEX", help="Split: keep together what this finds in the paths [pictures that look the same]."
    ),
    leaf: bool = typer.Option(False, "--leaf", help="Each folder that holds pictures is a class, nested ones too."),
    classes: Path = typer.Option(None, metavar="FILE", help="Class definition that fixes the numbers (0 cats ...)."),
    class_from: str = typer.Option(
        "", "--class-from", metavar="REGEX", help="The class is what this finds in the path below FOLDER, not a folder."
    ),
    number: int = typer.Option(None, "--label", metavar="N", min=0, help="All pictures of FOLDER are of class N."),
    append: bool = typer.Option(False, "--append", help="Add to the label file; what it lists already stays as it is."),
    drop: Path = typer.Option(None, metavar="FILE", help="Leave out the paths in the first column of this .tsv."),
    as_folders: Path = typer.Option(None, metavar="DIR", help="Lay the pictures out as DIR/[train/]CLASS/ too."),
    copy: bool = typer.Option(False, "--copy", help="With --as-folders: copies in place of links."),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print what was written as JSON."),
) -> None:
    """Make a label file from folders; split or convert one.

    Each folder inside FOLDER is a class. The label file lists a picture a line, `path label`;
    NAME_class_def.txt beside it names the classes. A label file in place of FOLDER is
    converted to the form that the output's suffix names, or split.

    Example: mlimages label data/cats -o cats.txt --split 0.8,0.2 --seed 1
    """
    from mlimages import labels

    source, out = as_path(source), out and as_path(out)
    target = out or (source / "labels.txt" if source.is_dir() else source)
    if not source.exists():
        raise InputError(f"no folder or label file at {source}")
    if not (out or split or as_folders or source.is_dir()):
        raise InputError(f"{source} is a label file already: say -o FILE to convert it, or --split 0.8,0.2")
    listed, folders = _listed(source, leaf=leaf, classes=classes, number=number, class_from=class_from)
    if folders and (split or append):
        raise InputError(f"{source} is split already ({', '.join(folders)}): leave out --split and --append")
    if drop:
        listed, folders = _dropped(listed, drop), {name: _dropped(part, drop) for name, part in folders.items()}
    if append and target.exists():
        listed = labels.append(labels.LabelFile(target), listed, by_number=number is not None)
        force = force or target.suffix == ".txt"  # all that stands there stays
    names = _part_names(split) if split else tuple(folders) or ("",)
    paths = [target.with_name(f"{target.stem}_{name}{target.suffix}") if name else target for name in names]
    if writes := bool(out or split or source.is_dir()):
        demand_free(chain.from_iterable((path, labels.class_definition_path(path)) for path in paths), overwrite=force)
    parts = _parts(listed, split, seed=seed, group=group) if split else tuple(folders.values()) or (listed,)
    if as_folders:
        labels.lay_out(dict(zip(names, parts, strict=True)), as_folders, copy=copy)
    written = [part.write(path, overwrite=force).path for path, part in zip(paths, parts, strict=True) if writes]
    _tell_written(written, as_folders, as_json=as_json)


def check(
    sources: list[Path] = typer.Argument(..., metavar="LABELS...", help="Label files; several to find leaks."),
    page: Path = typer.Option(None, "--report", metavar="FILE.html", help="Write a page to look at, in one file."),
    fix: bool = typer.Option(False, "--fix", help="Say which files would be moved or renamed; with --yes, do it."),
    yes: bool = typer.Option(False, "--yes", help="With --fix: move broken files to NAME_quarantine, rename suffixes."),
    strict: bool = typer.Option(False, "--strict", help="Exit 1 where there are errors."),
    threshold: list[str] = typer.Option(
        [], "--threshold", metavar="NAME=VALUE", help="Draw a line elsewhere (named above); may be given several times."
    ),
    engine: Engine = ENGINE,
    address: str = ADDRESS,
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print counts and groups as JSON."),
) -> None:
    """Find broken, doubled, leaking and odd pictures.

    Every picture is decoded once; what was found is remembered, so that a second run decodes nothing. Beside each
    label file come NAME_checked.txt (without the errors), NAME_rejected.tsv (path, label, code, detail) and
    NAME_warnings.tsv (kept, but look). A picture that two files hold leaks: it stays in the smaller one.

    Thresholds: max_pixels 89478485, min_side_px 32, max_aspect 3.0, max_crop_loss 0.5, blank_spread 4,
    contrast_spread 40, dark_level 64, bright_level 225, blur 0.3, placeholder_share 0.8, placeholder_copies 5,
    near_bits 16, turned_bits 12, near_correlation 0.9, crop_correlation 0.95, plain_correlation 0.99,
    imbalance 10.0.

    Example: mlimages check train.txt val.txt --report check.html
    """
    from mlimages import checks as validation
    from mlimages.core import TqdmProgress

    if page:  # before the pictures are decoded: the extra that the page needs may be missing
        from mlimages.reports import write_report
    lines = validation.Thresholds.parse(threshold)
    pages = [page] if page else []
    demand_free([*pages, *chain.from_iterable(map(validation.outcome_paths, sources))], overwrite=force)
    with cluster_of(engine, address) as pool:
        report = validation.check(sources, thresholds=lines, pool=pool, progress=TqdmProgress())
    if page:
        write_report(report, page)
        note_written(pages)
    moves = validation.plan_moves(report) if fix else []
    if yes:
        validation.carry_out(moves)
    written = validation.write_outcome(report, moves if yes else (), overwrite=force)
    if as_json:
        moved = [{"from": str(move.source), "to": str(move.target), "code": move.code} for move in moves]
        _print_json({**report.to_dict(), "moves": moved})
    else:
        _tell_checked(report)
        for move in moves:
            print(f"{'moved' if yes else 'would move'} {move.source} to {move.target} ({move.code})")
    _say("written: " + ", ".join(map(str, [*written, *pages])))
    say_next("mean", written[0], "--size", 224)
    if strict and report.errors:
        raise typer.Exit(1)


def _tell_checked(report: CheckReport) -> None:
    print(f"{counted(report.checked, 'picture')} checked, {report.ok} ok, {report.seconds:.1f} s")
    for title, counts in (("errors (left out)", report.errors), ("warnings (kept)", report.warnings)):
        print("\n".join([f"{title}: {sum(counts.values())}", *(f"  {n:>7}  {code}" for code, n in counts.items())]))


def mean(
    source: Path = typer.Argument(..., metavar="LABELS", help="A label file."),
    size: int = typer.Option(224, min=1, metavar="N", help="Width and height in pixels."),
    resize: Resize = typer.Option("shorter", help="How a picture gets that size; shorter: scaled, centre cropped."),
    gray: bool = typer.Option(False, "--gray", help="One channel in place of three."),
    per_class: bool = typer.Option(False, "--per-class", help="Draw each class's mean too: NAME_per_class.png."),
    out: Path = typer.Option(Path("mean.png"), "-o", "--out", help="Picture; .npy and .json are written beside it."),
    engine: Engine = ENGINE,
    address: str = ADDRESS,
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
) -> None:
    """Compute the mean image and per-channel mean and std.

    Pictures are prepared as in training. Writes a picture to look at, .npy (float32, channels x height x width,
    0..255) to compute with, .json with the figures, and NAME_used_in_mean.txt beside the label file.

    Example: mlimages mean train.txt --size 227 -o mean.png
    """
    from mlimages.core import TqdmProgress
    from mlimages.dataset import TrainingData
    from mlimages.labels import LabelFile

    out = as_path(out)
    prop, labels = ImageProperty(size, resize=resize, gray_scale=gray), LabelFile(source)
    data = TrainingData(labels, prop)
    made_files = [out.with_suffix(suffix) for suffix in (".png", ".npy", ".json")]
    made_files += [out.with_name(f"{out.stem}_per_class.png")] if per_class else []
    demand_free(made_files, overwrite=force)
    with cluster_of(engine, address) as pool:
        made = data.make_mean_image(out, per_class=per_class, pool=pool, progress=TqdmProgress())
    note_written(made_files)
    figures = {"mean": made.channel_mean, "std": made.channel_std, "count": made.count, "broken": len(made.broken)}
    if as_json:
        _print_json({**figures, "path": str(out)})
        return
    print(f"{out}: mean of {counted(made.count, 'picture')}, {len(made.broken)} left out")
    print("by channel: mean " + _figures(made.channel_mean) + ", std " + _figures(made.channel_std))
    prepared = ["--size", size, *(["--resize", resize] if resize != "shorter" else []), *(["--gray"] if gray else [])]
    say_next("finetune", source, *prepared, "--mean", out.with_suffix(".npy"))


def _figures(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _listed(
    source: Path, *, leaf: bool, classes: Path | None, number: int | None, class_from: str
) -> tuple[LabelFile, Mapping[str, LabelFile]]:
    """The images, and those of each part where the folder is split already."""
    from mlimages import labels

    names = labels.read_class_names(classes) if classes else None
    if not source.is_dir():
        return labels.LabelFile(source, class_names=names), {}
    if class_from:
        return labels.label_dir_by_pattern(source, class_from), {}
    if number is not None:
        return labels.label_dir(source, number), {}
    found = labels.label_dir_auto(source, leaf=leaf, class_names=names)
    for what in found.left_out:
        _say(f"left out: {what}")
    return found.labels, found.parts


def _dropped(listed: LabelFile, drop: Path) -> LabelFile:
    from mlimages import labels

    paths = list(labels.listed_paths(drop))
    left = listed.without(paths)
    gone = sum(1 for _ in listed.named()) - sum(1 for _ in left.named())
    if paths and not gone:
        raise InputError(f"{drop}: none of the {len(paths)} images that it lists is in {listed.path}")
    _say(f"dropped: {counted(gone, 'image')} ({drop} lists {len(paths)})")
    return left


def _shares(split: str) -> list[float]:
    try:
        return [float(share) for share in split.split(",")]
    except ValueError:
        return []


def _part_names(split: str) -> tuple[str, ...]:
    try:
        return PARTS[len(_shares(split))]
    except KeyError as error:
        raise InputError(f"--split {split}: expected two or three shares that add up to 1, as 0.8,0.2") from error


def _parts(listed: LabelFile, split: str, *, seed: int, group: str) -> tuple[LabelFile, ...]:
    from mlimages import labels

    shares = _shares(split)
    labels.demand_shares(shares)
    if group:
        return listed.split(shares, seed=seed, groups=labels.groups_by_pattern((one.path for one in listed), group))
    from mlimages.checks import split_labels
    from mlimages.core import TqdmProgress

    return split_labels(listed, shares, seed, progress=TqdmProgress())


def _tell_written(paths: list[Path], folder: Path | None, *, as_json: bool) -> None:
    from mlimages.labels import LabelFile

    files, told = [], []
    for path in paths:
        file = LabelFile(path)
        names, counts = file.class_names, Counter(item.label for item in file)
        classes = {name: counts[number] for number, name in enumerate(names)}
        files.append({"path": str(path), "count": counts.total(), "classes": classes})
        shown = ", ".join(f"{name} {count}" for name, count in list(classes.items())[:SHOWN_CLASSES])
        more = " ..." * (len(classes) > SHOWN_CLASSES)
        told.append(f"{path}: {counted(counts.total(), 'image')}, {counted(len(classes), 'class')}: {shown}{more}")
        if few := [name for name, count in classes.items() if count < 2]:
            _say(f"{path}: no image or only one of {', '.join(few)}")
        if len(classes) == 1:
            _say(f"{path}: one class only: a classifier needs two")
    if as_json:
        _print_json({"files": files, "folder": str(folder) if folder else None})
        return
    for line in told:
        print(line)
    if folder:
        print(f"{folder}: the same as folders")
    if paths:
        say_next("check", *paths)


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, ensure_ascii=False))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
