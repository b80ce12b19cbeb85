"""Commands of the step "train" that look before and after it: probe and compare."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("compare", rich_help_panel="train")(compare)


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
    from mlimages.insight.compare import as_dict, compare_runs, lines_of

    compared = compare_runs(runs)
    if as_json:
        print(json.dumps([as_dict(each) for each in compared], ensure_ascii=False))
        return
    print("\n".join(lines_of(compared)))
    print(f"next: mlimages evaluate {compared[0].run / 'model.onnx'} LABELS", file=sys.stderr)
