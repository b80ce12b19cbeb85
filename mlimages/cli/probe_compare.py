"""Commands of the step "train", except training: `probe`, `features` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mlimages import core, training
from mlimages.cli.hints import print_as_json, print_next_command, print_to_stderr, read_labels, to_cli_args
from mlimages.cli.options import FORCE, GRAY, INPUT_SIZE, LABELS, WEIGHTS, takes_options
from mlimages.core import DEFAULT_MODEL, MAX_SEED, InputError, parse_size, require_writable, write_text_output
from mlimages.labels import TableOptions


@takes_options(TableOptions)
def probe(
    table_options: dict[str, Any],
    labels: Path = LABELS,
    out: Path = typer.Option(Path("probe.png"), "-o", "--out", metavar="FILE.png", help="Output file of the plot."),
    report: Path = typer.Option(
        None, metavar="FILE.html", help="Write an HTML report with plots and the accuracy of each layer."
    ),
    model: list[str] = typer.Option(
        [DEFAULT_MODEL],
        metavar="NAME",
        help="Network: alexnet, vgg16, any name in torchvision, or timm:NAME; repeatable, to compare networks. small: "
        "all small networks whose weights are on this machine.",
    ),
    weights: str = WEIGHTS,
    size: str = INPUT_SIZE,
    gray: bool = GRAY,
    max_images: int = typer.Option(2000, "--most", min=10, help="Use a stratified sample of at most N images."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, metavar="N", help="Random seed."),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Find how many layers to freeze, and which network to use.

    The leave-one-out accuracy of a ridge classifier on the output of each layer shows how well the layer separates your
    classes. The recommended --freeze is the last layer whose accuracy is not significantly lower than that of the best
    layer. The learning curve shows whether more images would help. With more than one --model or --model small, a
    table compares the accuracy, processor time and size of the networks; --report, --weights, --size and --gray then do
    not apply.

    Example: mlimages probe labels.txt --model efficientnet_lite0 --model alexnet
    """
    compares = len(model) > 1 or model == ["small"]
    if compares:
        _require_no_options({
            "--weights": weights != "default", "--size": size, "--gray": gray is not None, "--report": report
        })  # fmt: skip
    from mlimages.reports import format_model_table, format_probe, render_probe, save_models_plot, save_probe_plot
    from mlimages.training import probe_layers, probe_models

    require_writable(filter(None, (out, report)), overwrite=force)
    data, sampling = read_labels(labels, table_options), {"max_images": max_images, "seed": seed}
    if compares:
        scores = probe_models(data, model, **sampling, progress=core.TqdmProgress())
        save_models_plot(scores, out, overwrite=force)
        best, values, lines = scores.scores[0].probe_result, scores.to_dict(), format_model_table(scores)
    else:
        sides = parse_size(size) if size else None
        best = probe_layers(
            data, model=model[0], weights=weights, size=sides, gray=gray, **sampling, progress=core.TqdmProgress()
        )
        save_probe_plot(best, out, overwrite=force)
        values, lines = best.to_dict(), format_probe(best)
    if report:
        write_text_output(report, render_probe(best), overwrite=force)
    if as_json:
        print_as_json({**values, "plot": out})
        return
    print("\n".join(lines))
    print_to_stderr(f"plot: {out}" + (f", report: {report}" if report else ""))
    input_options = {
        "weights": weights * (weights != "default"), "size": size, "gray": gray, "no_gray": gray is False
    }  # fmt: skip
    options = ("--model", best.model, *to_cli_args(input_options), "--freeze", best.recommended_freeze)
    print_next_command("finetune", labels, *to_cli_args(table_options), *options)


def _require_no_options(single_model_options: dict[str, object]) -> None:
    """Raise InputError if the value of an option that applies to a single network is not empty."""
    if names := [name for name, value in single_model_options.items() if value]:
        raise InputError(
            f"{', '.join(names)} cannot be combined with more than one --model, nor with --model small, which is "
            "several networks: choose one network"
        )


@takes_options(TableOptions)
def features(
    table_options: dict[str, Any],
    labels: Path = LABELS,
    out: Path = typer.Option(Path("features.npz"), "-o", "--out", metavar="FILE.npz", help="Output file (.npz)."),
    model: str = typer.Option(DEFAULT_MODEL, metavar="NAME", help="Network."),
    weights: str = WEIGHTS,
    layer: str = typer.Option(
        None, metavar="NAME", help="Layer, as listed by `probe`.", show_default="last layer before the classifier"
    ),
    size: str = INPUT_SIZE,
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print a summary as JSON."),
) -> None:
    """Write the features of images, for a classifier of your own.

    The .npz file contains the arrays features (float32, images x features), labels, paths and class_names. Feature maps
    are averaged over their positions (global average pooling).

    Example: mlimages features labels.txt --model alexnet --layer fc7 -o features.npz
    """
    require_writable([out], overwrite=force)
    found = training.extract_features(
        read_labels(labels, table_options),
        model=model,
        weights=weights,
        layer=layer,
        size=parse_size(size) if size else None,
        progress=core.TqdmProgress(),
    )
    found.save(out, overwrite=force)
    rows, columns = found.features.shape
    if as_json:
        print_as_json({"features": out, "images": rows, "columns": columns, "layer": found.layer})
        return
    print(out)
    print_to_stderr(f"{rows} images x {columns} features from {found.model}, layer {found.layer}")


def compare(
    runs: list[Path] = typer.Argument(..., metavar="RUN...", help="Two or more run folders written by `finetune`."),
    report: Path = typer.Option(
        None, metavar="FILE.html", help="Write an HTML report with the accuracies and the settings that differ."
    ),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Compare runs: settings, accuracy, significance, time, size.

    The most accurate run is listed first; each other run is compared with it on the validation images that both have in
    common (McNemar's exact test; for multi-label runs, a bootstrap of the mAP). If a difference is "not significant" (p
    of 0.05 or more), prefer the smaller or faster network.

    Example: mlimages compare runs/alexnet runs/resnet18
    """
    from mlimages.reports import compare_runs, format_comparison

    if report:  # before the runs are read, since the extra `train` may be missing
        from mlimages.reports import render_comparison
    require_writable(filter(None, [report]), overwrite=force)
    compared = compare_runs(runs)
    if report:
        write_text_output(report, render_comparison(compared), overwrite=force)
    if as_json:
        print_as_json([run.to_dict() for run in compared])
        return
    print("\n".join(format_comparison(compared)))
    if all(run.test_against_best for run in compared[1:]):  # else no run is the best
        print_next_command("evaluate", compared[0].path / "model.onnx", "LABELS")
