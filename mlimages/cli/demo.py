"""The command `demo`: every step on handwritten digits."""

from __future__ import annotations

from pathlib import Path

import typer

from mlimages.cli.options import GroupedCommand
from mlimages.cli.process import use_one_thread
from mlimages.core import MissingExtraError


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command("demo", cls=GroupedCommand, rich_help_panel="inspect")(demo)


def demo(
    out: Path = typer.Option(
        Path("mlimages-demo"),
        "-o",
        "--out",
        metavar="FOLDER",
        help="Output folder, new or empty.",
    ),
) -> None:
    """Run every step on handwritten digits, offline.

    Serves a web site of real digits with some broken links on this machine, then gathers, labels and checks the
    images and trains on them. Each command is shown before it runs. Takes about a minute on two cores; the results
    stay in the output folder.

    Example: mlimages demo
    """
    use_one_thread()
    try:
        from mlimages.demo import run_demo
    except ModuleNotFoundError as error:
        raise MissingExtraError("demo", "train") from error
    run_demo(out, show=lambda text: print(text, flush=True))
