"""The command `finetune`."""

from __future__ import annotations

import io
import json
import os
from contextlib import ExitStack, nullcontext, redirect_stderr
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlimages.cli.hints import print_next_command, read_splits, to_cli_args
from mlimages.cli.options import FORCE, takes_options
from mlimages.cli.process import prevent_spinning_threads
from mlimages.core import InputError, Proportion, find_name, format_interval, format_percent
from mlimages.labels import TableOptions
from mlimages.training import FineTuneConfig

if TYPE_CHECKING:
    from mlimages.training import FineTuneResult

ALLOWED_WITH_RESUME = ("resume", "epochs", "tensorboard", "force", "as_json", "help_all")


@takes_options(FineTuneConfig, positional_field="labels", is_required=False)
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
    from mlimages.core import TqdmProgress, require_extra
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
        config = FineTuneConfig(**{**settings, "out": out})
    is_main_process = os.environ.get("RANK", "0") == "0"
    if resume is None:
        with nullcontext() if is_main_process else redirect_stderr(io.StringIO()):  # only one process prints the notes
            for source in filter(None, (config.labels, config.val)):
                read_splits(source, config)  # in every process: if only one failed, the others would wait for it
    with ExitStack() as stack:
        callbacks = [stack.enter_context(ScalarWriter(config.out))] if tensorboard and is_main_process else []
        result = fine_tune(config, overwrite=force, progress=TqdmProgress(), callbacks=callbacks)
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


def _format_result_table(result: FineTuneResult) -> str:
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
