"""The command `demo`."""

from __future__ import annotations

from pathlib import Path

import typer

from mlimages.cli.process import use_one_thread
from mlimages.core import MissingExtraError


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
