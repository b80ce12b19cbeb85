"""Commands of the step "train": a pretrained network learns your classes."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from mlimages.cli.hints import say_next
from mlimages.core import InputError, Resize

if TYPE_CHECKING:
    from mlimages.training import FineTuneResult

UNITS_S = {"s": 1, "m": 60, "h": 3600}


def register(app: typer.Typer) -> None:
    """Add this step's commands to the command line."""
    app.command("finetune", rich_help_panel="train")(finetune)


def finetune(
    labels: Path = typer.Argument(None, metavar="LABELS", help="Label file to train on."),
    out: Path = typer.Option(None, "-o", "--out", metavar="RUN", help="Folder for all that comes of it [runs/LABELS]."),
    resume: Path = typer.Option(None, metavar="RUN", help="Go on with an interrupted run; no other option is needed."),
    val: Path = typer.Option(None, metavar="FILE", help="Label file to validate on [a fifth of LABELS]."),
    model: str = typer.Option("alexnet", help="lenet5, alexnet, vgg16, any torchvision name, timm:NAME."),
    weights: str = typer.Option("default", metavar="default|none|PATH", help="Where the network's weights come from."),
    freeze: str = typer.Option("head", help="Keep all up to this layer; head: train the last alone; none: train all."),
    freeze_regex: str = typer.Option("", metavar="REGEX", help="Keep the parameters with this in their names instead."),
    epochs: int = typer.Option(20, min=1, help="Passes over the pictures."),
    augment: Literal["auto", "none", "flip", "light", "strong"] = typer.Option(
        "auto", help="Train on changed views too; auto: light where pretrained layers learn."
    ),
    rotate: float = typer.Option(0.0, min=0, max=180, metavar="DEG", help="Turn the views by up to DEG either way."),
    seed: int = typer.Option(0, help="Of all chance: same seed, same machine, same result."),
    size: int = typer.Option(None, min=1, metavar="N", help="Width and height fed to the network, in pixels."),
    resize: Resize = typer.Option(None, help="How a picture gets that size."),
    mean: str = typer.Option("", metavar="FILE|channel|none", help="Mean image (.npy, .png) or figures to subtract."),
    std: str = typer.Option("", metavar="X[,Y,Z]", help="Divide by this, by channel, after --scale."),
    scale: float = typer.Option(0.0, min=0, help="Divide pixels (0 to 255) by this."),
    gray: bool = typer.Option(None, "--gray/--no-gray", help="Feed one channel."),
    bgr: bool = typer.Option(None, "--bgr/--no-bgr", help="Feed blue first, as Caffe's networks want it."),
    lr: str = typer.Option("auto", metavar="auto|X", help="Highest learning rate."),
    optimizer: Literal["adamw", "sgd"] = typer.Option("adamw", help="How steps are made of gradients."),
    momentum: float = typer.Option(0.9, min=0, max=1, help="Of --optimizer sgd."),
    weight_decay: float = typer.Option(0.01, min=0, help="Pull of the weights towards zero."),
    batch_size: int = typer.Option(32, min=1, help="Pictures per step."),
    label_smoothing: float = typer.Option(0.0, min=0, max=1, help="Share of each target spread over all classes."),
    class_weights: Literal["none", "balanced"] = typer.Option("none", help="balanced: rare classes count more."),
    early_stop: int = typer.Option(0, min=0, metavar="N", help="Stop after N epochs without a better accuracy."),
    time_budget: str = typer.Option("", metavar="10m", help="Stop training after so long (s, m, h)."),
    interpolate: bool = typer.Option(
        False, "--interpolate", help="Try means of the weights before and after, at the end."
    ),
    cache: bool = typer.Option(True, "--cache/--no-cache", help="Keep decoded pictures and the frozen part's outputs."),
    cache_gb: float = typer.Option(10.0, min=0, help="How much disk for that."),
    device: Literal["auto", "cpu", "cuda", "mps"] = typer.Option("auto", help="Where to compute."),
    tensorboard: bool = typer.Option(False, "--tensorboard", help="Write the figures by epoch for TensorBoard too."),
    as_json: bool = typer.Option(False, "--json", help="Print the closing figures as JSON."),
) -> None:
    """Fine-tune a network on a label file, lower layers frozen.

    Starts from pretrained weights, keeps the layers up to --freeze as they are and trains the rest. What the frozen
    layers make of each picture is computed once and kept. The run folder holds everything: settings, figures by
    epoch, weights, and model.onnx for `mlimages predict`. Interrupted, the same command goes on.

    Example: mlimages finetune cats.txt --model alexnet --freeze conv5 --epochs 20 -o runs/cats
    """
    # Read when torch and numpy are loaded: threads that wait by spinning burn the cores that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from mlimages.core import TqdmProgress
    from mlimages.training import FineTuneConfig, ScalarWriter, fine_tune, read_config

    if resume is not None:
        config = read_config(resume)
    elif labels is None:
        raise InputError("say which label file to train on, or --resume RUN; `mlimages label FOLDER` makes one")
    else:
        config = FineTuneConfig(
            labels=labels,
            out=out or Path("runs") / labels.stem,
            val=val,
            model=model,
            weights=weights,
            freeze=freeze,
            freeze_regex=freeze_regex,
            size=size,
            resize=resize,
            gray=gray,
            mean=mean,
            std=_numbers(std),
            scale=scale,
            bgr=bgr,
            epochs=epochs,
            lr=0.0 if lr == "auto" else _number(lr, "--lr"),
            optimizer=optimizer,
            momentum=momentum,
            weight_decay=weight_decay,
            batch_size=batch_size,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            augment=augment,
            rotate_deg=rotate,
            early_stop=early_stop,
            time_budget_s=_seconds(time_budget),
            interpolate=interpolate,
            seed=seed,
            cache=cache,
            cache_gb=cache_gb,
            device=device,
        )
    is_first = os.environ.get("RANK", "0") == "0"  # else one of torchrun's other processes
    with ExitStack() as open_:
        callbacks = [open_.enter_context(ScalarWriter(config.out))] if tensorboard and is_first else []
        result = fine_tune(config, progress=TqdmProgress(), callbacks=callbacks)
    if not is_first:
        return
    print(json.dumps(result.to_dict(), indent=1) if as_json else _table(result))
    say_next("predict", result.onnx or result.run / "model.onnx", "PICTURE...")


def _table(result: FineTuneResult) -> str:
    low, high = result.val_interval
    more = f" and {len(result.broken) - 3} more, see {result.run / 'log.txt'}" if len(result.broken) > 3 else ""
    right = round(result.val_accuracy * result.val_images)
    kept = result.best_epoch or "the closed-form head"
    rows = {
        "accuracy": f"{result.val_accuracy:.1%} ({right} of {result.val_images}; 95 % from {low:.1%} to {high:.1%})",
        "before": "" if result.probe_accuracy is None else f"{result.probe_accuracy:.1%} with the closed-form head",
        "pictures": f"{result.train_images} trained on, {result.val_images} validated on",
        "left out": ", ".join(f"{each.path} ({each.fault})" for each in result.broken[:3]) + more,
        "classes": ", ".join(result.classes),
        "network": f"{result.model}, frozen: {result.freeze}",
        "epochs": f"{result.epochs}; kept: {kept}, the best on these same pictures",
        "time": f"{result.seconds:.1f} s",
        "run": str(result.run),
        "onnx": str(result.onnx or ""),
    }
    return "\n".join(f"{name:<9} {value}" for name, value in rows.items() if value)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part, "--std") for part in text.split(",") if part)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} takes a number, not {text!r}") from None


def _seconds(text: str) -> float:
    if not text:
        return 0.0
    unit = text[-1] if text[-1] in UNITS_S else "s"
    return _number(text.removesuffix(unit), "--time-budget") * UNITS_S[unit]
