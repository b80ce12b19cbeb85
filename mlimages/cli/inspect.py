"""Commands of the step "inspect": contact sheets, and summaries of networks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlimages.cli.hints import print_next_command, read_labels, to_arguments
from mlimages.cli.options import FORCE, GroupedCommand, takes_options
from mlimages.core import (
    BundleError,
    ImageProperty,
    InputError,
    Resize,
    as_path,
    escape_unprintable,
    parse_size,
    pluralize,
)
from mlimages.labels import TableOptions

if TYPE_CHECKING:
    from mlimages.core import NetworkSummary


def register(app: typer.Typer) -> None:
    """Add this step's commands to the command line."""
    app.command("show", cls=GroupedCommand, rich_help_panel="inspect")(show)
    app.command("summary", cls=GroupedCommand, rich_help_panel="inspect")(summary)


@takes_options(TableOptions)
def show(
    table: dict[str, Any],
    source: Path = typer.Argument(
        ...,
        metavar="LABELS|FOLDER|MEAN|MODEL",
        help="Label file, folder with one subfolder per class, or mean image (.npy, .png); with --layer, a run or a "
        "network.",
    ),
    image: Path = typer.Argument(None, metavar="[IMAGE]", help="Input image of the network (with --layer)."),
    layer: str = typer.Option(None, metavar="NAME", help="Draw the filters and feature maps of this layer for IMAGE."),
    out: Path = typer.Option(Path("sheet.png"), "-o", "--out", help="Contact sheet to write: .png or .html."),
    per_class: int = typer.Option(8, min=1, help="Images per class."),
    size: int = typer.Option(224, min=1, help="Input width and height in pixels."),
    resize: Resize = typer.Option("shorter", help="Resize method."),
    gray: bool = typer.Option(False, "--gray", help="Use grayscale images."),
    seed: int = typer.Option(0, help="Random seed of the selection."),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print a summary as JSON."),
) -> None:
    """Draw a contact sheet of images as the network sees them.

    Shows a random sample of each class, resized and cropped as for training, and the error code of a corrupt image.

    With --layer, shows the layer's feature maps for an image, and the filters of a first layer.

    Example: mlimages show labels.txt --size 227 --per-class 10 -o sheet.html
    Example: mlimages show runs/first cat.jpg --layer conv1 -o maps.png
    """
    if (layer is None) != (image is None):
        raise InputError("--layer NAME and IMAGE require each other: mlimages show RUN IMAGE --layer conv1 -o maps.png")
    if layer:
        from mlimages.training import draw_layer

        maps = draw_layer(source, image, layer=layer, out=out, overwrite=force)
        count = sum(len(row.tiles) for row in maps)
        print(json.dumps({"sheet": str(as_path(out)), "tiles": count}) if as_json else as_path(out))
        return
    from mlimages.reports import draw_sheet

    prop = ImageProperty(size, resize=resize, gray_scale=gray)
    rows = draw_sheet(
        source, out, prop=prop, per_class=per_class, seed=seed, table=TableOptions(**table), overwrite=force
    )
    is_mean = source.suffix.lower() in (".npy", ".png")
    labels = None if is_mean or as_path(source).is_dir() else read_labels(source, table)
    shown = {row.name: len(row.tiles) for row in rows}
    tiles = {tile.path: tile for row in rows for tile in row.tiles}  # an image with several classes has several
    broken = [tile.caption for tile in tiles.values() if tile.fault]
    if as_json:
        print(json.dumps({"sheet": str(as_path(out)), "shown": shown, "broken": broken}, ensure_ascii=False))
        return
    print(as_path(out))
    if is_mean:
        return
    images, classes = pluralize(len(tiles), "image"), pluralize(len(shown), "class")
    print(f"{images} of {classes}, {len(broken)} unreadable", file=sys.stderr)
    if labels is None:
        print_next_command("label", source)
    else:
        then = "finetune" if labels.is_multi_label else "probe"
        print_next_command("check" if broken else then, source, *to_arguments(table))


def summary(
    model: str = typer.Argument(
        ..., metavar="MODEL|RUN|FILE.onnx", help="Name of a network, run folder, or exported file."
    ),
    size: str = typer.Option(
        None, metavar="N|WxH", help="Input width and height in pixels [the network's native size]."
    ),
    gray: bool = typer.Option(None, "--gray/--no-gray", help="Use grayscale images."),
    classes: int = typer.Option(1000, min=1, help="Number of classes."),
    freeze: str = typer.Option("none", metavar="LAYER", help="Freeze every layer up to and including this one."),
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON, with every layer."),
) -> None:
    """Show a network layer by layer, with output sizes.

    For each layer: output shape, parameters, whether they are frozen or trained, multiply-adds per image, and how its
    output width is computed: (N + 2P - F)/S + 1 for input width N, padding P, kernel size F and stride S. A width that
    does not divide evenly is marked with "!". For a run or an exported file, the model card is printed below.

    Example: mlimages summary alexnet --size 227 --freeze conv5
    """
    found = _summarize(model, size=parse_size(size) if size else None, gray=gray, num_classes=classes, freeze=freeze)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    print(found)
    if Path(model).exists():
        print(*map(escape_unprintable, _read_model_card(Path(model)).splitlines()), sep="\n")
    else:
        layer = ("--freeze", freeze) if freeze != "none" else ()
        print_next_command("finetune", "labels.txt", "--model", model, *layer, "-o", "runs/first")


def _read_model_card(model: Path) -> str:
    """Return the model card of an exported file, or of a run's file; empty if there is none."""
    from mlimages.inference import OnnxBundle
    from mlimages.reports import model_card

    try:
        return model_card(OnnxBundle.read(model))
    except BundleError:
        return ""


def _summarize(
    model: str, *, size: int | tuple[int, int] | None, gray: bool | None, num_classes: int, freeze: str
) -> NetworkSummary:
    if model.endswith(".onnx"):
        from mlimages.reports import summarize_onnx

        return summarize_onnx(Path(model))
    if Path(model).is_dir():
        from mlimages.training import summarize_run

        return summarize_run(Path(model))
    from mlimages.networks import summarize_model

    return summarize_model(model, size=size, gray=gray, classes=num_classes, upto=freeze)
