"""Commands of the step "inspect": `show`, `summary` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mlimages import inference, networks, reports, training
from mlimages.cli.hints import print_as_json, print_next_command, print_to_stderr, read_labels, to_cli_args
from mlimages.cli.options import FORCE, GRAY, IMAGE_SIZE_HELP, INPUT_SIZE, RESIZE, make_image_property, takes_options
from mlimages.cli.process import use_one_thread
from mlimages.core import (
    MAX_SEED,
    BundleError,
    InputError,
    MissingExtraError,
    Resize,
    as_path,
    escape_unprintable,
    parse_size,
    pluralize,
)
from mlimages.labels import TableOptions


@takes_options(TableOptions)
def show(
    table_options: dict[str, Any],
    source: Path = typer.Argument(
        ...,
        metavar="LABELS|FOLDER|MEAN|MODEL",
        help="A label file, a folder with one subfolder per class, or a mean image (.npy, .png); with --layer, a run "
        "folder or the name of a network.",
    ),
    image: Path = typer.Argument(None, metavar="IMAGE", help="Input image of the network (with --layer)."),
    layer: str = typer.Option(
        None,
        metavar="NAME",
        help="Draw the feature maps of this layer for IMAGE. If it is a convolution with 1 or 3 input channels, as the "
        "first one is, also draw its filters.",
    ),
    out: Path = typer.Option(Path("sheet.png"), "-o", "--out", help="Output file: .png or .html."),
    per_class: int = typer.Option(8, min=1, help="Maximum number of images per class; a sheet has at most 600 images."),
    size: str = typer.Option("224", metavar="N|WxH", help=IMAGE_SIZE_HELP),
    resize: Resize = RESIZE,
    gray: bool = typer.Option(False, "--gray", help="Convert images to grayscale."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, metavar="N", help="Random seed for the choice of images."),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print a summary as JSON."),
) -> None:
    """Draw a contact sheet of images as the network sees them.

    The sheet shows a random sample of each class, resized and cropped as for training, and the error codes of corrupt
    images.

    With --layer, it shows the feature maps of that layer for IMAGE. The image is resized and cropped as the network
    requires.

    Example: mlimages show labels.txt --size 227 --per-class 10 -o sheet.html
    Example: mlimages show runs/first cat.jpg --layer conv1 -o maps.png
    """
    if (layer is None) != (image is None):
        raise InputError(
            "--layer NAME requires IMAGE, and IMAGE requires --layer, as in `mlimages show RUN IMAGE --layer conv1`"
        )
    if layer:
        maps = training.draw_layer(source, image, layer=layer, out=out, overwrite=force)
        count = sum(len(row.tiles) for row in maps)
        if as_json:
            print_as_json({"sheet": as_path(out), "tiles": count})
        else:
            print(as_path(out))
        return
    image_property = make_image_property(size, resize=resize, gray=gray)
    rows = reports.draw_contact_sheet(
        source,
        out,
        image_property=image_property,
        per_class=per_class,
        seed=seed,
        table=TableOptions(**table_options),
        overwrite=force,
    )
    is_mean = source.suffix.lower() in (".npy", ".png")
    labels = None if is_mean or as_path(source).is_dir() else read_labels(source, table_options)
    shown = {row.name: len(row.tiles) for row in rows}
    tiles = {tile.path: tile for row in rows for tile in row.tiles}  # an image with several classes has several
    broken = [tile.caption for tile in tiles.values() if tile.fault]
    if as_json:
        print_as_json({"sheet": as_path(out), "shown": shown, "broken": broken})
        return
    print(as_path(out))
    if is_mean:
        return
    images, classes = pluralize(len(tiles), "image"), pluralize(len(shown), "class")
    print_to_stderr(f"{images} of {classes}, {len(broken)} unreadable")
    if labels is None:
        print_next_command("label", source)
    else:
        then = "finetune" if labels.is_multi_label else "probe"
        print_next_command("check" if broken else then, source, *to_cli_args(table_options))


def summary(
    model: str = typer.Argument(
        ..., metavar="MODEL|RUN|FILE.onnx", help="Name of a network, run folder, or exported file."
    ),
    size: str = INPUT_SIZE,
    gray: bool = GRAY,
    classes: int = typer.Option(1000, min=1, help="Number of classes."),
    freeze: str = typer.Option("none", metavar="LAYER", help="Freeze every layer up to and including this one."),
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON, with every layer."),
) -> None:
    """Show a network layer by layer, with output sizes.

    For each layer, the table has the output shape, the number of parameters, whether they are frozen or trained, the
    multiply-adds per image, and the formula of the output width: (N + 2P - F)/S + 1 for input width N, padding P,
    kernel size F and stride S. "!" marks a division with a remainder. For an exported file, or a run that has one, the
    model card follows. --size, --gray, --classes and --freeze apply only to a network given by its name.

    Example: mlimages summary alexnet --size 227 --freeze conv5
    """
    sides = parse_size(size) if size else None
    if model.endswith(".onnx"):
        found = reports.summarize_onnx(Path(model))
    elif Path(model).is_dir():
        found = training.summarize_run_network(Path(model))
    else:
        found = networks.summarize_model(model, size=sides, gray=gray, num_classes=classes, freeze=freeze)
    if as_json:
        print_as_json(found.to_dict())
        return
    print(found)
    if Path(model).exists():
        for line in _read_model_card(Path(model)).splitlines():
            print(escape_unprintable(line))
    else:
        layer = ("--freeze", freeze) if freeze != "none" else ()
        shape = to_cli_args({"size": size, "gray": gray, "no_gray": gray is False})
        print_next_command("finetune", "labels.txt", "--model", model, *shape, *layer, "-o", "runs/first")


def _read_model_card(model: Path) -> str:
    """Return the model card of an exported file or of a run; "" if there is no exported file that can be read."""
    try:
        return reports.format_model_card(inference.OnnxBundle.read(model))
    except BundleError:
        return ""


def demo(
    out: Path = typer.Option(
        Path("mlimages-demo"), "-o", "--out", metavar="FOLDER", help="Output folder, new or empty."
    ),
) -> None:
    """Run every step on handwritten digits, offline.

    A web site on this machine serves images of real digits and some broken links. The demo gathers, labels and checks
    the images, and compares networks that are trained on them with and without pretrained layers. It prints each
    command, except those that repeat a training with another number of images or random seed. It takes about a minute
    on two cores; the results stay in the output folder.

    Example: mlimages demo
    """
    use_one_thread()
    try:
        from mlimages.demo import run_demo
    except ModuleNotFoundError as error:
        raise MissingExtraError("demo", "train") from error
    run_demo(out, show=lambda text: print(text, flush=True))
