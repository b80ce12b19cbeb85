"""The command `demo`: the whole road on handwritten digits."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from mlimages.cli.options import GroupedCommand
from mlimages.core import MissingExtraError


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command("demo", cls=GroupedCommand, rich_help_panel="look")(demo)


def demo(
    out: Path = typer.Option(Path("mlimages-demo"), "-o", "--out", help="Folder for all that is made, made anew."),
) -> None:
    """Walk the whole road on handwritten digits.

    No network and no key: a web site of real digits, some of its links broken, is served on this
    machine, then gathered, labelled, checked and learned. Each command is shown before it
    runs. Takes a minute or two; all that it makes stays in the folder to look at.

    Example: mlimages demo
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # LeNet is too small to share among threads: they would only wait
    try:
        from mlimages.demo import walk
    except ImportError as error:
        raise MissingExtraError("demo", "train") from error
    walk(out, say=lambda text: print(text, flush=True))
