"""Commands of the step "deploy": export, quantize, predict, evaluate, explain, serve."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import typer

from mlimages.cli import predictions
from mlimages.cli.hints import print_next_command, read_labels, require_model_first, to_arguments
from mlimages.cli.options import FORCE, SKIP_UNAVAILABLE, GroupedCommand, takes_options
from mlimages.cli.process import log_server
from mlimages.core import InputError, Target
from mlimages.labels import TableOptions
from mlimages.serving import ServerSettings

MODEL = typer.Argument(..., metavar="MODEL", help="An .onnx file written by `mlimages export`, or a run folder.")


def register(app: typer.Typer) -> None:
    """Add this step's commands to the command line."""
    for command in (export, quantize, predict, evaluate, explain, serve):
        app.command(command.__name__, cls=GroupedCommand, rich_help_panel="deploy")(command)


def export(
    run: Path = typer.Argument(..., metavar="RUN", help="A run folder written by `mlimages finetune`."),
    out: Path = typer.Option(None, "-o", "--out", metavar="FILE.onnx", help="Output file [RUN/model.onnx]."),
    preprocessing: bool = typer.Option(
        True,
        "--preprocessing/--no-preprocessing",
        help="Include resizing, cropping and normalization in the file, or leave them to the caller.",
    ),
    exact: bool = typer.Option(False, "--exact", help="Make the resize in the file bit-identical to Pillow; slower."),
    target: Target = typer.Option(
        "onnxruntime", help="Target runtime; tensorrt and opencv files do not include preprocessing."
    ),
    calibrate: bool = typer.Option(False, "--calibrate", help="Fit a temperature on the validation images."),
    unknown: float = typer.Option(
        0.0,
        min=0.0,
        max=1.0,
        metavar="FRACTION",
        help='Predict "none of these" below the confidence that this fraction of the validation images reaches; '
        "typically 0.95.",
    ),
    croissant: Path = typer.Option(
        None, "--croissant", metavar="FILE", help="Write Croissant 1.1 metadata (JSON-LD) for the run's images."
    ),
    page: Path = typer.Option(
        None,
        "--page",
        metavar="DIR",
        help="Also write a static web page that runs the model in the browser.",
    ),
    ort_web: Path = typer.Option(
        None,
        "--ort-web",
        metavar="DIR",
        help="Copy onnxruntime-web from this npm package (node_modules/onnxruntime-web); by default, the page loads "
        "it from a CDN.",
    ),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the file's metadata as JSON."),
) -> None:
    """Export a run as one .onnx file with its preprocessing.

    The file holds the weights, the class names and the preprocessing: it takes uint8 RGB images of any size. It is
    written only if ONNX Runtime gives the trained network's predictions for every validation image.

    Example: mlimages export runs/cats -o cats.onnx
    """
    from mlimages.core import TqdmProgress, require_writable
    from mlimages.export import ExportOptions
    from mlimages.reports import has_model_card, read_run, write_croissant
    from mlimages.serving import WebRuntime, write_page
    from mlimages.training import export_run

    options = ExportOptions(
        include_preprocessing=preprocessing, exact=exact, calibrate=calibrate, known_share=unknown, target=target
    )
    if page and not options.resize_form:
        raise typer.BadParameter("--page requires a file with preprocessing")
    if ort_web and not page:
        raise typer.BadParameter("--ort-web requires --page")
    runtime = WebRuntime.from_npm_package(ort_web) if ort_web else WebRuntime()
    require_writable(filter(None, [croissant, *(runtime.page_files(page) if page else ())]), overwrite=force)
    overwrite = force or out is None  # model.onnx is one of the run's own files
    bundle = export_run(run, out or run / "model.onnx", options=options, overwrite=overwrite, progress=TqdmProgress())
    if croissant:
        write_croissant(read_run(run), croissant, overwrite=force)
    print(bundle.to_json() if as_json else bundle.path)
    for line in predictions.export_notes(bundle):
        print(line, file=sys.stderr)
    card = bundle.path.with_name("README.md")
    print(
        f"model card: {card}"
        if has_model_card(bundle)
        else f"model card not written: {card} exists and was not written by mlimages, or was edited since",
        file=sys.stderr,
    )
    if page:
        write_page(bundle, page, runtime=runtime, overwrite=force)
        for line in predictions.page_notes(page, runtime):
            print(line, file=sys.stderr)
    elif bundle.includes_preprocessing:
        print_next_command("predict", bundle.path, "IMAGE...")


@takes_options(TableOptions)
def quantize(
    table: dict[str, Any],
    model: Path = MODEL,
    calibration: Path = typer.Option(
        ...,
        "--calibration",
        metavar="LABELS",
        help="Label file; half of its images are used for calibration, half to measure accuracy.",
    ),
    out: Path = typer.Option(None, "-o", "--out", metavar="FILE.onnx", help="Output file [MODEL-quantized.onnx]."),
    max_drop: float = typer.Option(
        1.0,
        min=0.0,
        metavar="POINTS",
        help="Maximum drop in accuracy or mAP, in percentage points. One more misclassified image is accepted unless "
        "this is 0.",
    ),
    with_float16: bool = typer.Option(False, "--fp16", help="Also measure a float16 variant."),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the measurements as JSON."),
) -> None:
    """Quantize a model if that makes it faster on this machine.

    Tries 8-bit integers with full and with reduced range, measures accuracy and speed of each on this machine, and
    writes the fastest that loses no more than --max-drop, of equally fast ones the most accurate. If none is faster,
    nothing is written. Use at least a hundred labelled images.

    Example: mlimages quantize cats.onnx --calibration data/cats/val.txt
    """
    from mlimages.core import TqdmProgress
    from mlimages.export import quantize
    from mlimages.inference import OnnxBundle

    bundle = OnnxBundle.read(model)
    target = out or bundle.path.with_name(f"{bundle.path.stem}-quantized.onnx")
    found = quantize(
        bundle,
        read_labels(calibration, table),
        target,
        max_drop=max_drop,
        fp16=with_float16,
        overwrite=force,
        progress=TqdmProgress(),
    )
    print(json.dumps(asdict(found)) if as_json else predictions.quantization_text(found))
    if found.chosen:
        print_next_command("evaluate", target, calibration, *to_arguments(table))


def predict(
    model: Path = MODEL,
    sources: list[str] = typer.Argument(
        ..., metavar="IMAGE...", help="Images, folders of images, or - to read one image from standard input."
    ),
    top: int = typer.Option(
        3,
        min=1,
        metavar="N",
        help="Print the N most probable classes; a multi-label model prints all that reach their thresholds.",
    ),
    batch: int = typer.Option(16, min=1, metavar="N", help="Batch size."),
    workers: int = typer.Option(None, min=1, metavar="N", help="Number of images processed in parallel [all cores]."),
    copy_to: Path = typer.Option(None, metavar="DIR", help="Copy each image to DIR/CLASS/, by predicted class."),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON array, one image per line."),
    as_csv: bool = typer.Option(False, "--csv", help="Print CSV: path, fault, known, set, class_1, ..."),
) -> None:
    """Predict the class of images, or all labels of each.

    An image that cannot be read is one line with its error code; the others are still predicted.

    Example: mlimages predict cats.onnx new/ --top 1 --csv
    """
    from mlimages.images import copy_by_class
    from mlimages.inference import Predictor, find_inputs

    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv are mutually exclusive")
    with require_model_first(model, sources):
        predictor = Predictor(model, workers=workers)
    images = [sys.stdin.buffer.read()] if sources == ["-"] else find_inputs(sources)
    stream = predictor.stream(images, top=top, batch=batch)
    results: predictions.Results = (each.result for each in stream)
    if copy_to:
        results = copy_by_class(results, copy_to, class_names=predictor.bundle.class_names)
    show = predictions.print_json if as_json else predictions.print_csv if as_csv else predictions.print_text
    if not show(results, top=top, multi_label=predictor.bundle.multi_label):
        raise typer.Exit(1)


@takes_options(TableOptions)
def evaluate(
    table: dict[str, Any],
    model: Path = MODEL,
    labels: Path = typer.Argument(
        ..., metavar="LABELS|FOLDER", help="A label file, or a folder with one subfolder per class."
    ),
    report: Path = typer.Option(
        None,
        metavar="FILE.html",
        help="Write an HTML report with per-class scores, the confusion matrix and the misclassified images.",
    ),
    explain: int = typer.Option(
        0,
        min=0,
        metavar="N",
        help="Also test on N images whether the network uses what surrounds the centre, such as the background.",
    ),
    skip_unavailable: bool = SKIP_UNAVAILABLE,
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Measure the accuracy and speed of a model on a label file.

    Classes are matched by name, not by order.

    Example: mlimages evaluate cats.onnx data/cats/val.txt
    """
    from mlimages.core import TqdmProgress, record_outputs, write_text
    from mlimages.inference import Predictor, evaluate
    from mlimages.reports import report_html

    with record_outputs(filter(None, [report]), overwrite=force):
        with require_model_first(model, [labels]):
            predictor = Predictor(model)
        found = evaluate(
            predictor,
            read_labels(labels, table),
            explain=explain,
            skip_unavailable=skip_unavailable,
            progress=TqdmProgress(),
        )
        if report:
            write_text(report, report_html(found, f"{model.name} on {labels.name}"))
    print(found.to_json() if as_json else predictions.evaluation_text(found))
    print_next_command("serve", model)


def explain(
    model: Path = MODEL,
    sources: list[str] = typer.Argument(..., metavar="IMAGE...", help="Images, or folders of images."),
    out: Path = typer.Option(..., "-o", "--out", metavar="DIR", help="Folder for one PNG per image."),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per image."),
) -> None:
    """Show which image regions support a prediction.

    Regions of each image are masked one at a time, 50 forward passes in all. The PNG shows in red what lowers the
    probability of the predicted class; the printed line says by how much.

    Example: mlimages explain cats.onnx new/ -o why/
    """
    from mlimages.core import BrokenImage, as_path, escape_unprintable, require_writable, write_output
    from mlimages.inference import Predictor, explain, find_inputs

    with require_model_first(model, sources):
        predictor = Predictor(model)
    images = list(find_inputs(sources))
    files = predictions.overlay_files(images, as_path(out))
    require_writable(files, overwrite=force, inputs=images)
    good = 0
    for image, file in zip(images, files, strict=True):
        found = explain(predictor, image)
        if not isinstance(found, BrokenImage):
            good += 1
            with write_output(file, overwrite=force) as part:
                found.overlay().save(part, "PNG")
        print(
            predictions.explanation_json(found, file)
            if as_json
            else escape_unprintable(predictions.explanation_text(found, file))
        )
    if not good:
        raise typer.Exit(1)


@takes_options(ServerSettings)
def serve(
    values: dict[str, Any],
    model: Path = MODEL,
    host: str = typer.Option(
        "127.0.0.1", metavar="HOST", help="Address to listen on; a non-loopback address requires a token."
    ),
    port: int = typer.Option(8000, min=0, max=65535, metavar="N", help="Port; 0 picks a free one."),
    token: bool = typer.Option(
        False, "--token", help="Require the token in MLIMAGES_TOKEN on loopback too.", rich_help_panel="Access"
    ),
    workers: int = typer.Option(None, min=1, metavar="N", help="Number of images processed in parallel [all cores]."),
) -> None:
    """Serve a model over HTTP, with a page to try it.

    POST an image to /predict; /openapi.json describes all routes, /metrics serves Prometheus metrics, /v2 implements
    the Open Inference Protocol. If other machines can reach the server, every request must have the token in the
    environment variable MLIMAGES_TOKEN.
    SIGHUP reloads the model; SIGTERM or Ctrl-C stops the server after the requests in flight.

    Example: mlimages serve runs/cats --port 8080
    """
    from mlimages.inference import Predictor
    from mlimages.serving import TOKEN_VARIABLE, is_loopback, serve

    secret = os.environ.get(TOKEN_VARIABLE, "").strip() if token or not is_loopback(host) else ""
    if token and not secret:
        raise InputError(f"--token requires the environment variable {TOKEN_VARIABLE}")
    settings = ServerSettings(**{**values, "token": secret})
    log_server(settings.log_format)
    predictor = Predictor(model, workers=workers, max_pixels=settings.max_pixels)
    serve(predictor, host=host, port=port, settings=settings, on_started=partial(_print_url, needs_token=bool(secret)))


def _print_url(url: str, *, needs_token: bool) -> None:
    print(url, flush=True)
    header = '-H "Authorization: Bearer $MLIMAGES_TOKEN" ' if needs_token else ""
    print(
        f"next: open {url} in a browser, or run curl {header}-F file=@IMAGE {url}predict; Ctrl-C stops the server",
        file=sys.stderr,
    )
