"""Commands of the step "train": `probe`, `features`, `compare` and `finetune`."""

from __future__ import annotations

import io
import json
import os
from contextlib import ExitStack, nullcontext, redirect_stderr
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer

from mlimages import core, training
from mlimages.cli.hints import print_as_json, print_next_command, print_notes, print_to_stderr, read_labels, to_cli_args
from mlimages.cli.options import FORCE, GRAY, INPUT_SIZE, LABELS, WEIGHTS, takes_options
from mlimages.cli.process import prevent_spinning_threads
from mlimages.core import (
    DEFAULT_MODEL,
    MAX_SEED,
    InputError,
    Proportion,
    find_name,
    format_interval,
    format_percent,
    parse_size,
    require_extra,
    require_writable,
    write_text_output,
)
from mlimages.labels import TableOptions, open_splits

ALLOWED_WITH_RESUME = ("resume", "epochs", "tensorboard", "force", "as_json", "help_all")


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


@takes_options(training.FineTuneConfig, positional_field="labels", is_required=False)
def finetune(
    settings: dict[str, Any],
    ctx: typer.Context,
    resume: Path = typer.Option(
        None,
        metavar="RUN",
        help="Resume the run in this folder with its settings; --epochs N sets a new total number of epochs.",
        rich_help_panel="Output",
    ),
    tensorboard: bool = typer.Option(
        False, "--tensorboard", help="Write TensorBoard logs.", rich_help_panel="advanced:Output"
    ),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the results as JSON.", rich_help_panel="Output"),
) -> None:
    """Fine-tune a pretrained network on a label file.

    The layers up to --freeze keep their pretrained weights; their outputs are computed once and cached. The run folder
    contains the weights, metrics, a report, and model.onnx for `mlimages predict`. To continue an interrupted run, run
    the same command again, or use --resume RUN.

    Example: mlimages finetune cats.txt --model alexnet --freeze conv5 --epochs 20 -o runs/cats
    """
    prevent_spinning_threads()
    from mlimages.training import ScalarWriter, fine_tune, read_config

    if tensorboard:
        require_extra("--tensorboard", "tensorboard", "tensorboard")
    if resume is not None:
        _require_no_settings(ctx, resume)
        config = read_config(resume)
        if _is_option_given(ctx, "epochs"):
            config = replace(config, epochs=settings["epochs"])
    elif settings["labels"] is None:
        raise InputError("expected a label file, a folder with one subfolder per class, or --resume RUN")
    else:
        out = settings["out"] or Path("runs", Path(find_name(settings["labels"])).stem)
        config = training.FineTuneConfig(**{**settings, "out": out})
    is_main_process = os.environ.get("RANK", "0") == "0"
    if resume is None:
        with nullcontext() if is_main_process else redirect_stderr(io.StringIO()):  # only one process prints the notes
            for source in filter(None, (config.labels, config.val)):
                # in every process: if only one failed, the others would wait for it
                print_notes(open_splits(source, config).values())
    with ExitStack() as stack:
        callbacks = [stack.enter_context(ScalarWriter(config.out))] if tensorboard and is_main_process else []
        result = fine_tune(config, overwrite=force, progress=core.TqdmProgress(), callbacks=callbacks)
    if not is_main_process:
        return
    print(json.dumps(result.to_dict(), indent=1) if as_json else _format_result_table(result))
    model = result.onnx or result.run / "model.onnx"
    # the thresholds of a multi-label model were chosen on the validation images, so these cannot evaluate it
    if config.val and result.val_map is None and resume is not None:  # `val` may be that of another copy of the run
        print_next_command("evaluate", model, result.run / "val.txt")
    elif config.val and config.val.exists() and result.val_map is None:
        print_next_command("evaluate", model, config.val, *to_cli_args(asdict(TableOptions.from_options(config))))
    else:
        print_next_command("predict", model, "IMAGE...")


def _require_no_settings(ctx: typer.Context, run: Path) -> None:
    """Raise InputError if a setting is given with --resume, which reads the settings from the run folder."""
    settings = [param for param in ctx.command.params if param.name and param.name not in ALLOWED_WITH_RESUME]
    names = [max(param.opts, key=len) for param in settings if _is_option_given(ctx, str(param.name))]
    if names:
        raise InputError(
            f"--resume uses the settings of {run}, of which only --epochs can be changed: omit {', '.join(names)}"
        )


def _is_option_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _format_result_table(result: training.FineTuneResult) -> str:
    more = f" and {len(result.broken) - 3} more, see {result.run / 'log.txt'}" if len(result.broken) > 3 else ""
    score = Proportion(*(result.val_map or (result.val_accuracy, *result.val_interval)))
    correct = "" if result.val_map else f"{round(result.val_accuracy * result.val_images)} of "
    probe = result.probe_accuracy if result.val_map is None else result.probe_map
    best = result.best_epoch or "the closed-form head"
    rows = {
        "mAP" if result.val_map else "accuracy": f"{format_percent(score.value)} ({correct}{result.val_images} images; "
        f"95 % interval {format_interval(score)})",
        "before": "" if probe is None else f"{format_percent(probe)} with the closed-form head",
        "images": f"{result.train_images} for training, {result.val_images} for validation",
        "skipped": ", ".join(f"{image.path} ({image.fault})" for image in result.broken[:3]) + more,
        "without": result.missing_outputs_note,
        "classes": ", ".join(result.classes[:20])
        + (f" and {len(result.classes) - 20} more, see {result.run / 'classes.txt'}" if result.classes[20:] else ""),
        "network": f"{result.model}, frozen: {result.freeze}"
        + (
            f"; the head uses all layers (weight of the lower layers: {result.depths_share:g})"
            if result.depths_share
            else ""
        ),
        "epochs": f"{result.epochs}; best epoch: {best} (chosen on the validation set)",
        "training": f"{result.seconds:.1f} s",
        "run": str(result.run),
        "onnx": str(result.onnx or ""),
    }
    for name, path in {"report": result.run / "report.html", "suspects": result.run / "suspects.tsv"}.items():
        rows[name] = str(path) if path.exists() else ""
    return "\n".join(f"{name:<9} {value}" for name, value in rows.items() if value)
