"""Commands of the step "deploy" other than `serve`: `export`, `quantize`, `predict`, `evaluate` and `explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from mlimages import core, images, inference, serving
from mlimages.cli import predictions
from mlimages.cli.hints import open_model, print_next_command, print_to_stderr, read_labels, to_cli_args
from mlimages.cli.options import FORCE, LABELS, MODEL, PARALLEL_IMAGES, SKIP_UNAVAILABLE, takes_options
from mlimages.core import (
    BrokenImage,
    TargetRuntime,
    as_path,
    find_name,
    require_writable,
    write_output,
    write_text_output,
)
from mlimages.labels import TableOptions, require_outside_dataset


def export(
    run: Path = typer.Argument(..., metavar="RUN", help="A run folder written by `mlimages finetune`."),
    out: Path = typer.Option(
        None, "-o", "--out", metavar="FILE.onnx", help="Output file.", show_default="RUN/model.onnx"
    ),
    preprocessing: bool = typer.Option(
        True,
        "--preprocessing/--no-preprocessing",
        help="Include resizing, cropping and normalization in the file; otherwise, the program that runs it does them.",
    ),
    exact: bool = typer.Option(
        False, "--exact", help="Use a slower resize operation whose output is bit-identical to Pillow's."
    ),
    target: TargetRuntime = typer.Option(
        "onnxruntime", help="Target runtime; tensorrt and opencv files do not include preprocessing."
    ),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Calibrate the probabilities by a temperature fitted on the validation images."
    ),
    unknown: float = typer.Option(
        0.0,
        min=0.0,
        max=1.0,
        metavar="FRACTION",
        help='Predict "none of these" if the highest probability is below a threshold, which this fraction of the '
        "validation images reaches. For 0.95, the 5 % with the lowest probabilities are rejected. 0: no threshold.",
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
        help="Copy onnxruntime-web from this npm package (node_modules/onnxruntime-web) into the page's folder.",
        show_default="load it from a CDN",
    ),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the file's metadata as JSON."),
) -> None:
    """Export a run as one .onnx file with its preprocessing.

    The file contains the weights, the class names and the preprocessing, so its input is a uint8 RGB image of any size.
    Its outputs in ONNX Runtime are compared with those of the trained network for every validation image; if one does
    not match, nothing is written.

    Example: mlimages export runs/cats -o cats.onnx
    """
    from mlimages.export import ExportOptions
    from mlimages.reports import has_model_card, read_run, write_croissant
    from mlimages.training import export_run

    options = ExportOptions(
        include_preprocessing=preprocessing, exact_resize=exact, calibrate=calibrate, known_share=unknown, target=target
    )
    if page and not options.resize_implementation:
        raise typer.BadParameter(
            "--page requires a model that includes its preprocessing: omit --no-preprocessing, or use another --target"
        )
    if ort_web and not page:
        raise typer.BadParameter("--ort-web requires --page")
    runtime = serving.OrtWebFiles.from_npm_package(ort_web) if ort_web else serving.OrtWebFiles()
    require_writable(filter(None, [croissant, *(runtime.list_page_files(page) if page else ())]), overwrite=force)
    bundle = export_run(run, out or run / "model.onnx", options=options, overwrite=force, progress=core.TqdmProgress())
    if croissant:
        write_croissant(read_run(run), croissant, overwrite=force)
    print(bundle.to_json() if as_json else bundle.path)
    for line in predictions.describe_export(bundle):
        print_to_stderr(line)
    card = bundle.path.with_name("README.md")
    print_to_stderr(
        f"model card: {card}"
        if has_model_card(bundle)
        else f"no model card written: {card} exists and was not written by mlimages, or was edited since"
    )
    if page:
        serving.write_page(bundle, page, runtime=runtime, overwrite=force)
        for line in predictions.describe_web_page(page, runtime):
            print_to_stderr(line)
    elif bundle.includes_preprocessing:
        print_next_command("predict", bundle.path, "IMAGE...")


@takes_options(TableOptions)
def quantize(
    table_options: dict[str, Any],
    model: Path = MODEL,
    calibration: Path = typer.Option(
        ...,
        "--calibration",
        metavar="LABELS",
        help="Label file or folder; half of its images (at most 100) serve for calibration, the others for evaluation.",
    ),
    out: Path = typer.Option(
        None, "-o", "--out", metavar="FILE.onnx", help="Output file.", show_default="MODEL-quantized.onnx"
    ),
    max_drop: float = typer.Option(
        1.0,
        min=0.0,
        metavar="POINTS",
        help="Maximum drop in accuracy or mAP, in percentage points. Unless this is 0, one more misclassified image "
        "is always accepted for a single-label model.",
    ),
    with_float16: bool = typer.Option(False, "--fp16", help="Also measure a float16 variant."),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the measurements as JSON."),
) -> None:
    """Quantize a model if that makes it faster on this machine.

    Measures the accuracy and speed of two int8 variants: one uses the full range of integers for the weights, the other
    a reduced range. Writes the fastest variant whose accuracy drops by at most --max-drop; if several are within 5 % of
    its speed, the most accurate of them. Variants that are less than 5 % faster than the model are not written. Use at
    least 200 labelled images that the model was not trained on.

    Example: mlimages quantize cats.onnx --calibration data/cats/val.txt
    """
    from mlimages.export import quantize

    bundle = inference.OnnxBundle.read(model)
    target = out or bundle.path.with_name(f"{bundle.path.stem}-quantized.onnx")
    found = quantize(
        bundle,
        read_labels(calibration, table_options),
        target,
        max_drop=max_drop,
        fp16=with_float16,
        overwrite=force,
        progress=core.TqdmProgress(),
    )
    print(json.dumps(found.to_dict()) if as_json else predictions.format_quantization(found))
    if found.written_trial and bundle.includes_preprocessing:
        print_next_command("evaluate", target, calibration, *to_cli_args(table_options))


def predict(
    model: Path = MODEL,
    sources: list[str] = typer.Argument(
        ..., metavar="IMAGE...", help="Images, folders, or - to read one image from standard input."
    ),
    top: int = typer.Option(
        3,
        min=1,
        metavar="N",
        help="Number of classes per image; a multi-label model prints all labels that reach their thresholds.",
    ),
    batch: int = typer.Option(16, min=1, metavar="N", help="Batch size."),
    workers: int = PARALLEL_IMAGES,
    copy_to: Path = typer.Option(
        None,
        metavar="DIR",
        help="Copy each image to DIR/CLASS/ for each class or label predicted; if there is none, to DIR/unknown/.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON array, one image per line."),
    as_csv: bool = typer.Option(
        False,
        "--csv",
        help="Print CSV: path, fault, known, set (likely classes), class_1, probability_1, ...; or for a multi-label "
        "model, path, fault, labels, probabilities.",
    ),
) -> None:
    """Predict the class of each image, or its labels.

    For an image that cannot be read, its error code is printed.

    Example: mlimages predict cats.onnx new/ --top 1 --csv
    """
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv are mutually exclusive: choose one")
    if copy_to:
        require_outside_dataset(copy_to, *sources if sources != ["-"] else [])
    predictor = open_model(model, sources, workers=workers)
    inputs = [sys.stdin.buffer.read()] if sources == ["-"] else inference.find_input_images(sources)
    stream = predictor.stream(inputs, top=top, batch_size=batch)
    results: predictions.Results = (each.result for each in stream)
    if copy_to:
        results = images.copy_by_class(results, copy_to, class_names=predictor.bundle.class_names)
    show = predictions.print_json if as_json else predictions.print_csv if as_csv else predictions.print_text
    if not show(results, top=top, bundle=predictor.bundle):
        raise typer.Exit(1)


@takes_options(TableOptions)
def evaluate(
    table_options: dict[str, Any],
    model: Path = MODEL,
    labels: Path = LABELS,
    report: Path = typer.Option(
        None,
        metavar="FILE.html",
        help="Write an HTML report with per-class scores, the misclassified images and, of a single-label model, the "
        "confusion matrix.",
    ),
    explain: int = typer.Option(
        0,
        min=0,
        metavar="N",
        help="Also test on N images whether predictions depend on the outer part of the image (mostly background).",
    ),
    skip_unavailable: bool = SKIP_UNAVAILABLE,
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Measure the accuracy and speed of a model on a label file.

    Classes are matched by name, not by order.

    Example: mlimages evaluate cats.onnx data/cats/val.txt
    """
    from mlimages.reports import render_evaluation

    require_writable(filter(None, [report]), overwrite=force)
    found = inference.evaluate(
        open_model(model, [labels]),
        read_labels(labels, table_options),
        background_test_images=explain,
        skip_unavailable=skip_unavailable,
        progress=core.TqdmProgress(),
    )
    if report:
        page = render_evaluation(found, f"{find_name(model)} on {find_name(labels)}")
        write_text_output(report, page, overwrite=force)
    print(found.to_json() if as_json else predictions.format_evaluation(found))
    print_next_command("serve", model)


def explain(
    model: Path = MODEL,
    sources: list[str] = typer.Argument(..., metavar="IMAGE...", help="Images, or folders of images."),
    out: Path = typer.Option(..., "-o", "--out", metavar="DIR", help="Output folder, with one PNG file per image."),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per image."),
) -> None:
    """Show which image regions support a prediction.

    Regions of each image are masked one at a time, in 50 forward passes. The PNG file shows in red the regions whose
    masking lowers the probability of the most probable class; the printed line names the region that lowers it most.

    Example: mlimages explain cats.onnx new/ -o why/
    """
    predictor = open_model(model, sources)
    inputs = list(inference.find_input_images(sources))
    files = predictions.choose_overlay_paths(inputs, as_path(out))
    require_writable(files, overwrite=force, inputs=inputs)
    num_explained = 0
    for image, file in zip(inputs, files, strict=True):
        found = inference.explain(predictor, image)
        if not isinstance(found, BrokenImage):
            num_explained += 1
            with write_output(file, overwrite=force) as part:
                found.draw_overlay().save(part, "PNG")
        predictions.print_explanation(found, file, as_json=as_json)
    if not num_explained:
        raise typer.Exit(1)
