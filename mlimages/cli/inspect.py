"""Commands of the step "look": see pictures as the network sees them, and the network itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mlimages.cli.hints import say_next
from mlimages.cli.options import GroupedCommand
from mlimages.core import ImageProperty, Resize, counted

if TYPE_CHECKING:
    from mlimages.core import NetworkSummary


def register(app: typer.Typer) -> None:
    """Add this step's commands to the command line."""
    app.command("show", cls=GroupedCommand, rich_help_panel="look")(show)
    app.command("summary", cls=GroupedCommand, rich_help_panel="look")(summary)


def show(
    source: Path = typer.Argument(
        ..., metavar="LABELS|FOLDER|MEAN", help="A label file, a folder of class folders, or a mean (.npy or .png)."
    ),
    out: Path = typer.Option(Path("sheet.png"), "-o", "--out", help="The sheet: .png or .html."),
    per_class: int = typer.Option(8, min=1, help="Pictures of each class."),
    size: int = typer.Option(224, min=1, help="Width and height in pixels as the network gets them."),
    resize: Resize = typer.Option("shorter", help="How a picture gets that size."),
    gray: bool = typer.Option(False, "--gray", help="One channel, as a network for grey pictures gets them."),
    seed: int = typer.Option(0, help="Which pictures are chosen."),
    as_json: bool = typer.Option(False, "--json", help="Print what was drawn as JSON."),
) -> None:
    """Draw a contact sheet as the network sees the pictures.

    Some pictures of each class, chosen by chance with a seed, each resized and cropped as for
    training: what the crop cuts away is not there, a broken picture shows its code.

    Example: mlimages show labels.txt --size 227 --per-class 10 -o sheet.html
    """
    from mlimages.reports import draw_sheet

    prop = ImageProperty(size, resize=resize, gray_scale=gray)
    rows = draw_sheet(source, out, prop=prop, per_class=per_class, seed=seed)
    shown = {row.name: len(row.tiles) for row in rows}
    broken = [tile.caption for row in rows for tile in row.tiles if tile.fault]
    if as_json:
        print(json.dumps({"sheet": str(out), "shown": shown, "broken": broken}, ensure_ascii=False))
        return
    print(out)
    if source.suffix.lower() in (".npy", ".png"):
        return
    pictures, classes = counted(sum(shown.values()), "picture"), counted(len(shown), "class")
    print(f"{pictures} of {classes}, {len(broken)} of them broken", file=sys.stderr)
    if source.is_dir():
        say_next("label", source)
    else:
        say_next("check" if broken else "probe", source)


def summary(
    model: str = typer.Argument(
        ..., metavar="MODEL|RUN|FILE.onnx", help="A network's name, a run folder, or an exported file."
    ),
    size: int = typer.Option(None, min=1, help="Width and height in pixels [what the network is made for]."),
    gray: bool = typer.Option(None, "--gray/--no-gray", help="Feed one channel."),
    classes: int = typer.Option(1000, min=1, help="How many classes the last layer tells apart."),
    freeze: str = typer.Option("none", metavar="LAYER", help="Freeze up to this layer, as `finetune --freeze`."),
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON, every layer included."),
) -> None:
    """Show a network layer by layer, with the arithmetic.

    For each layer: the shape of what it gives at this size, its parameters, whether they are frozen
    or trained, its multiply-adds for one picture, and how its width comes about:
    (N + 2P - F)/S + 1 for N pixels, P of padding on each side, a window of F, a stride of S.
    A size that does not divide evenly is marked with "!".

    Example: mlimages summary alexnet --size 227 --freeze conv5
    """
    from mlimages.reports import layer_lines as lines_of

    found = _summarize(model, size=size, gray=gray, classes=classes, freeze=freeze)
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
        return
    print("\n".join(lines_of(found)))
    if not Path(model).exists():
        layer = ("--freeze", freeze) if freeze != "none" else ()
        say_next("finetune", "labels.txt", "--model", model, *layer, "-o", "runs/first")


def _summarize(model: str, *, size: int | None, gray: bool | None, classes: int, freeze: str) -> NetworkSummary:
    if model.endswith(".onnx"):
        from mlimages.reports import summarize_onnx

        return summarize_onnx(Path(model))
    if Path(model).is_dir():
        from mlimages.training import summarize_run

        return summarize_run(Path(model))
    from mlimages.networks import summarize_model

    return summarize_model(model, size=size, gray=gray, classes=classes, upto=freeze)
