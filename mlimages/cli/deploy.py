"""Commands of the step "deploy": a trained network becomes one file that answers everywhere."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from mlimages.cli import predictions
from mlimages.cli.hints import say_next
from mlimages.cli.options import GroupedCommand, takes_options
from mlimages.cli.process import log_server
from mlimages.core import InputError
from mlimages.serving import ServerSettings

BUNDLE = typer.Argument(..., metavar="MODEL.onnx", help="A file that `mlimages export` or `finetune` made.")


def register(app: typer.Typer) -> None:
    """Add this step's commands to the command line."""
    for command in (export, quantize, predict, evaluate, serve):
        app.command(command.__name__, cls=GroupedCommand, rich_help_panel="deploy")(command)


def export(
    run: Path = typer.Argument(..., metavar="RUN", help="A run folder of `mlimages finetune`."),
    out: Path = typer.Option(None, "-o", "--out", help="File to write [RUN/model.onnx]."),
    preprocessing: bool = typer.Option(
        True, "--preprocessing/--no-preprocessing", help="Resize, crop and normalise inside the file."
    ),
    exact: bool = typer.Option(False, "--exact", help="Resize inside as Pillow does to the bit; slower."),
    calibrate: bool = typer.Option(False, "--calibrate", help="Fit a temperature on the validation pictures."),
    unknown: float = typer.Option(
        0.0, min=0.0, max=1.0, metavar="SHARE", help='Answer "unknown" under what SHARE of them reach: 0.95.'
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the file's metadata as JSON."),
) -> None:
    """Write a run as one .onnx file: pixels in, classes out.

    The file holds the weights, the class names and the preparation of the pixels: it takes
    uint8 RGB pictures of any size. It is refused unless ONNX Runtime answers every
    validation picture as the trained network does.

    Example: mlimages export runs/cats -o cats.onnx
    """
    from mlimages.core import TqdmProgress
    from mlimages.export import ExportOptions
    from mlimages.training import export_run

    options = ExportOptions(include_preprocessing=preprocessing, exact=exact, calibrate=calibrate, known_share=unknown)
    bundle = export_run(run, out or run / "model.onnx", options=options, progress=TqdmProgress())
    print(bundle.to_json() if as_json else bundle.path)
    for line in predictions.export_notes(bundle):
        print(line, file=sys.stderr)
    say_next("predict", bundle.path, "PICTURE")


def quantize(
    bundle: Path = BUNDLE,
    calibration: Path = typer.Option(..., "--calibration", metavar="LABELS", help="Pictures to try it on."),
    out: Path = typer.Option(None, "-o", "--out", help="File to write [MODEL-quantized.onnx]."),
    max_drop: float = typer.Option(1.0, min=0.0, metavar="POINTS", help="Accuracy that may be lost, in points."),
    fp16: bool = typer.Option(False, "--fp16", help="Try 16-bit floats too."),
    as_json: bool = typer.Option(False, "--json", help="Print what was tried as JSON."),
) -> None:
    """Make a file smaller and faster, if it pays here.

    Tries 8-bit integers with full and with reduced range, measures the accuracy and the speed of each on
    this machine, and writes the fastest that loses no more than --max-drop; where none is faster it says
    so and writes nothing. A hundred labelled pictures or more are best.

    Example: mlimages quantize cats.onnx --calibration data/cats/val.txt
    """
    from mlimages.core import TqdmProgress
    from mlimages.export import quantize
    from mlimages.inference import OnnxBundle
    from mlimages.labels import LabelFile

    target = out or bundle.with_name(f"{bundle.stem}-quantized.onnx")
    found = quantize(
        OnnxBundle.read(bundle), LabelFile(calibration), target, max_drop=max_drop, fp16=fp16, progress=TqdmProgress()
    )
    print(json.dumps(asdict(found)) if as_json else predictions.quantization_text(found))
    if found.chosen:
        say_next("evaluate", target, calibration)


def predict(
    bundle: Path = BUNDLE,
    sources: list[str] = typer.Argument(
        ..., metavar="PICTURE|FOLDER|-...", help="Pictures, folders of pictures, or - for one on standard input."
    ),
    top: int = typer.Option(3, min=1, help="How many classes to name."),
    batch: int = typer.Option(16, min=1, help="Pictures that go through the network at a time."),
    workers: int = typer.Option(None, min=1, help="Pictures worked on at once [all cores]."),
    copy_to: Path = typer.Option(None, metavar="DIR", help="Copy each picture to DIR/CLASS/."),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON array, one picture a line."),
    as_csv: bool = typer.Option(False, "--csv", help="Print CSV: path, fault, class_1, probability_1, ..."),
) -> None:
    """Name the class of pictures.

    A picture that cannot be read is one line with its code and does not stop the rest.

    Example: mlimages predict cats.onnx new/ --top 1 --csv
    """
    from mlimages.images import copied, find_pictures
    from mlimages.inference import Predictor

    if as_json and as_csv:
        raise typer.BadParameter("--json or --csv, not both")
    pictures = [sys.stdin.buffer.read()] if sources == ["-"] else find_pictures(map(Path, sources))
    answers = Predictor(bundle, workers=workers).stream(pictures, top=top, batch=batch)
    results: predictions.Results = (answer.result for answer in answers)
    if copy_to:
        results = copied(results, copy_to)
    show = predictions.as_json if as_json else predictions.as_csv if as_csv else predictions.as_text
    if not show(results, top=top):
        raise typer.Exit(1)


def evaluate(
    bundle: Path = BUNDLE,
    labels: Path = typer.Argument(..., metavar="LABELS", help="A label file with its class definition."),
    report: Path = typer.Option(None, metavar="FILE.html", help="Write a page: each class, confusion, mistakes."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
) -> None:
    """Measure how good and how fast a file is.

    Class names are matched by name, never by order.

    Example: mlimages evaluate cats.onnx data/cats/val.txt
    """
    from mlimages.core import TqdmProgress, write_text
    from mlimages.inference import Predictor, evaluate
    from mlimages.labels import LabelFile
    from mlimages.reports import report_html

    found = evaluate(Predictor(bundle), LabelFile(labels), progress=TqdmProgress())
    if report:
        write_text(report, report_html(found, f"{bundle.name} on {labels.name}"))
    print(found.to_json() if as_json else predictions.evaluation_text(found))
    say_next("serve", bundle)


@takes_options(ServerSettings)
def serve(
    values: dict[str, Any],
    bundle: Path = BUNDLE,
    host: str = typer.Option("127.0.0.1", metavar="HOST", help="Address to listen at; beyond loopback with a token."),
    port: int = typer.Option(8000, min=0, max=65535, metavar="N", help="Port; 0 for any that is free."),
    token: bool = typer.Option(
        False, "--token", help="Require the token in MLIMAGES_TOKEN on loopback too.", rich_help_panel="Access"
    ),
    workers: int = typer.Option(None, min=1, metavar="N", help="Images processed at once [all cores]."),
) -> None:
    """Serve a model over HTTP, with a page to try it.

    POST an image to /predict; /openapi.json describes all routes, /metrics is for Prometheus, /v2 speaks the Open
    Inference Protocol. Beyond loopback every request must carry the token in the environment variable MLIMAGES_TOKEN.
    SIGHUP reloads the model's file; SIGTERM or Ctrl-C finishes what is in flight.

    Example: mlimages serve runs/cats --port 8080
    """
    from mlimages.inference import Predictor
    from mlimages.serving import TOKEN_VARIABLE, is_loopback, serve

    secret = os.environ.get(TOKEN_VARIABLE, "").strip() if token or not is_loopback(host) else ""
    if token and not secret:
        raise InputError(f"--token needs the environment variable {TOKEN_VARIABLE}")
    settings = ServerSettings(**{**values, "token": secret})
    log_server(settings.log_format)
    predictor = Predictor(bundle, workers=workers, max_pixels=settings.max_pixels)
    serve(predictor, host=host, port=port, settings=settings, started=_print_url)


def _print_url(url: str) -> None:
    print(url, flush=True)
    print(f"next: open it, or curl -F file=@IMAGE {url}predict; Ctrl-C stops it", file=sys.stderr)
