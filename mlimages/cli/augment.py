"""The command `augment` of the step "curate"."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import typer

from mlimages import core, dataset
from mlimages.cli.hints import print_as_json, print_next_command, print_to_stderr, read_labels
from mlimages.cli.options import IMAGE_SIZE_HELP, LABELS, RESIZE, make_image_property, takes_options
from mlimages.core import MAX_SEED, Resize, pluralize
from mlimages.labels import TableOptions, require_outside_dataset

MAX_ANGLES = 360
"""Maximum number of angles of --rotate."""


@takes_options(TableOptions)
def augment(
    table_options: dict[str, Any],
    labels: Path = LABELS,
    out: Path = typer.Option(..., "-o", "--out", help="Output: NAME.npz, or a new folder."),
    size: str = typer.Option(..., metavar="N|WxH", help=IMAGE_SIZE_HELP),
    resize: Resize = RESIZE,
    rotate: str = typer.Option(
        "",
        metavar="FROM:TO:STEP",
        help="Counterclockwise rotations in degrees, from FROM up to but excluding TO: -30:30:6 means -30, -24, ..., "
        "24.",
    ),
    flip: bool = typer.Option(False, "--flip", help="Also mirror each image."),
    split: str = typer.Option(
        "",
        metavar="FRACTIONS",
        help="Split into train, val (and test) with these fractions of the images, such as 0.7,0.15,0.15; "
        "only train is augmented.",
    ),
    limit_per_class: int = typer.Option(None, min=1, metavar="N", help="Use at most N images per class."),
    seed: int = typer.Option(
        0, min=0, max=MAX_SEED, metavar="N", help="Random seed for --split, --limit-per-class and shuffling."
    ),
    output_format: Literal["npz", "npy", "folder"] = typer.Option(
        None, "--as", help="Output format.", show_default="npz for NAME.npz, else folder"
    ),
    force: bool = typer.Option(False, "--force", help="Overwrite an existing .npz file.", rich_help_panel="Output"),
    as_json: bool = typer.Option(False, "--json", help="Print a summary as JSON."),
) -> None:
    """Rotate and mirror images; write arrays or a folder.

    For each image, the output has one copy without rotation and one for each angle; with --flip, also a mirrored
    version of each copy. With --split, the images are split first and only the training set is augmented, so that it
    contains no copies of validation or test images.

    The format npz is one file for numpy.load with the arrays x_train (uint8, images x height x width x 3), y_train
    (int64; for a multi-label file float32, images x classes), x_val, y_val and class_names; without --split, the arrays
    are named x and y. The format npy has the same arrays as files in a folder. The format folder has the images, and a
    label file for each split.

    Example: mlimages augment labels.txt -o cats.npz --size 100 --rotate -30:30:6 --flip --split 0.75,0.25
    """
    angles, fractions = _parse_angles(rotate), _parse_fractions(split)
    image_property = make_image_property(size, resize=resize)

    output_format = output_format or ("npz" if out.suffix == ".npz" else "folder")
    if output_format == "folder":
        require_outside_dataset(out, labels)
    images = read_labels(labels, table_options)
    summary = dataset.augment(
        images.limit_per_class(limit_per_class, seed=seed) if limit_per_class else images,
        out,
        image_property=image_property,
        angles_deg=angles,
        flip=flip,
        split=fractions,
        seed=seed,
        format=output_format,
        overwrite=force,
        progress=core.TqdmProgress(),
    )
    _print_summary(summary, as_json=as_json)


def _parse_angles(text: str) -> range:
    """Parse `FROM:TO:STEP`; the text "" means no rotations."""
    if not text:
        return range(0)
    try:
        angles = range(*map(int, text.split(":")))
    except (ValueError, TypeError):
        angles = range(0)
    if text.count(":") != 2 or not 0 < len(angles) <= MAX_ANGLES:
        raise typer.BadParameter(
            f"{text}: expected FROM:TO:STEP in whole degrees, with at most {MAX_ANGLES} angles, such as -30:30:6",
            param_hint="--rotate",
        )
    return angles


def _parse_fractions(text: str) -> list[float]:
    """Parse the fractions of --split, such as `0.75,0.25`; the text "" means a single set."""
    try:
        fractions = [float(share) for share in text.split(",")] if text else [1.0]
    except ValueError:
        fractions = []
    if not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise typer.BadParameter(
            f"{text}: expected fractions that add up to 1, such as 0.75,0.25", param_hint="--split"
        )
    return fractions


def _print_summary(summary: dataset.AugmentSummary, *, as_json: bool) -> None:
    for image in summary.broken_images:
        print_to_stderr(f"skipped: {image.path}: {image.fault}: {image.detail}")
    for note in summary.notes:
        print_to_stderr(note)
    if as_json:
        print_as_json(summary.to_dict())
        return
    for split in summary.splits:
        originals = pluralize(split.num_originals, "original image")
        print(f"{split.name or 'all'}: {pluralize(split.num_images, 'image')} from {originals}")
    print_to_stderr(f"written: {summary.out}")
    _print_next_step(summary)


def _print_next_step(summary: dataset.AugmentSummary) -> None:
    name, out = summary.splits[0].name, summary.out
    x, y = (f"{axis}_{name}" if name else axis for axis in "xy")
    if summary.format == "npz":
        text = f'data = numpy.load("{out}"); data["{x}"], data["{y}"], data["class_names"]'
    elif summary.format == "npy":
        text = f'numpy.load("{out / x}.npy", mmap_mode="r"), numpy.load("{out / y}.npy")'
    else:
        validation = ("--val", out / "val.txt") if name else ()
        print_next_command("finetune", out / f"{name or 'labels'}.txt", *validation, "-o", f"runs/{out.name}")
        return
    print_to_stderr(f"next, in Python: {text}")
