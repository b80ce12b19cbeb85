"""Commands of the step "train" that look before and after it: probe and compare."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from mlimages.cli.hints import say_next
from mlimages.cli.options import GroupedCommand


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("probe", cls=GroupedCommand, rich_help_panel="train")(probe)
    app.command("compare", cls=GroupedCommand, rich_help_panel="train")(compare)


def probe(
    labels: Path = typer.Argument(..., metavar="LABELS", help="Label file of the pictures to try."),
    out: Path = typer.Option(Path("probe.png"), "-o", "--out", metavar="PNG", help="The plot."),
    model: str = typer.Option("alexnet", help="alexnet, vgg16, any torchvision name, timm:NAME."),
    weights: str = typer.Option("default", metavar="default|none|PATH", help="Where the network's weights come from."),
    size: int = typer.Option(None, min=1, metavar="N", help="Width and height fed to the network, in pixels."),
    gray: bool = typer.Option(None, "--gray/--no-gray", help="Feed one channel."),
    most: int = typer.Option(2000, min=10, help="Of more pictures, try so many, the same share of each class."),
    seed: int = typer.Option(0, help="Of all chance: same seed, same machine, same result."),
    as_json: bool = typer.Option(False, "--json", help="Print what was found as JSON."),
) -> None:
    """Find how many layers of a network to keep.

    One pass of the pictures through the network collects what comes out at every layer; a ridge
    classifier on each, judged by 10-fold cross-validation, says how well that layer tells your classes
    apart. The recommended --freeze is the highest layer within noise of the best: least is left to
    train. The learning curve says whether more pictures would help.

    Example: mlimages probe labels.txt --model alexnet
    """
    from mlimages import training as learning  # says which part to install where it is missing
    from mlimages.core import TqdmProgress
    from mlimages.labels import LabelFile
    from mlimages.reports import plots
    from mlimages.reports import probe_lines as lines_of

    found = learning.probe_cuts(
        LabelFile(labels),
        model=model,
        weights=weights,
        size=size,
        gray=gray,
        most=most,
        seed=seed,
        progress=TqdmProgress(),
    )
    plots.save_png(plots.probe(found), out)
    if as_json:
        print(json.dumps({**found.as_dict(), "plot": str(out)}, ensure_ascii=False))
        return
    print("\n".join(lines_of(found)))
    print(f"plot: {out}", file=sys.stderr)
    chosen = ("--weights", weights) if weights != "default" else ()
    say_next("finetune", labels, "--model", model, *chosen, "--freeze", found.freeze)


def compare(
    runs: list[Path] = typer.Argument(..., metavar="RUN...", help="Two or more run folders of `finetune`."),
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Compare runs: settings, accuracy, noise, time, size.

    The most accurate run comes first; each other one is tested against it on the validation pictures
    that both have seen (McNemar's exact test). "Within noise" means that chance alone would part two
    equal runs as far in more than 5 of 100 cases: then take the smaller or the faster one.

    Example: mlimages compare runs/alexnet runs/resnet18
    """
    from mlimages.reports import as_dict, compare_runs
    from mlimages.reports import comparison_lines as lines_of

    compared = compare_runs(runs)
    if as_json:
        print(json.dumps([as_dict(each) for each in compared], ensure_ascii=False))
        return
    print("\n".join(lines_of(compared)))
    say_next("evaluate", compared[0].run / "model.onnx", "LABELS")
