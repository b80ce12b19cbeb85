"""Print predictions as text, JSON and CSV, and format the results of other commands of the step "deploy"."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path

from mlimages import export, inference, serving
from mlimages.cli.hints import print_to_stderr
from mlimages.core import (
    BrokenImage,
    ClassScores,
    Prediction,
    Proportion,
    escape_unprintable,
    format_command,
    format_interval,
    format_percent,
    pluralize,
)

Results = Iterable[Prediction | BrokenImage]

_NUMBER_PATTERN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def print_text(results: Results, *, top: int, bundle: inference.OnnxBundle) -> int:
    """Print one line per image; return the number of predictions."""
    num_predictions = num_unknown = 0
    for result in results:
        num_predictions += isinstance(result, Prediction)
        num_unknown += isinstance(result, Prediction) and result.known is False
        print(escape_unprintable(f"{result.path or '-'}: {_format_result(result)}"))
    if num_unknown:
        print_to_stderr(f'{pluralize(num_unknown, "image")} predicted as "none of these": {_describe_unknown(bundle)}')
    return num_predictions


def _describe_unknown(bundle: inference.OnnxBundle) -> str:
    """Return why images are predicted as "none of these", and how often this is wrong: the false rejection rate."""
    reasons = []
    if known := bundle.known:
        share = format_percent(1 - known.share, 0)
        reasons.append(f"unlike the training images (as are about {share} of the images of your classes)")
    if bundle.unknown_below:
        reasons.append(f"with a probability below {format_percent(bundle.unknown_below)}")
    return ", or ".join(reasons)


def print_json(results: Results, *, top: int, bundle: inference.OnnxBundle) -> int:
    """Print a JSON array with one image per line; return the number of predictions.

    The closing bracket is printed only after the last image. Interrupted output is therefore not valid JSON, and no
    program takes it for the complete array.
    """
    num_predictions = 0
    separator = "\n"
    print("[", end="")
    try:
        for result in results:
            num_predictions += isinstance(result, Prediction)
            print(separator, _to_json(result_to_dict(result)), sep="", end="")
            separator = ",\n"
    except BaseException:
        print()
        raise
    print("\n]")
    return num_predictions


def print_csv(results: Results, *, top: int, bundle: inference.OnnxBundle) -> int:
    """Print a header and one CSV row per image; return the number of predictions."""
    num_predictions = 0
    rows = csv.writer(sys.stdout, lineterminator="\n")
    numbered = [f"{column}_{n}" for n in range(1, top + 1) for column in ("class", "probability")]
    header = ["path", "fault", *(["labels", "probabilities"] if bundle.multi_label else ["known", "set", *numbered])]
    rows.writerow(header)
    for result in results:
        num_predictions += isinstance(result, Prediction)
        cells = [_escape_formula(result.path), *_format_csv_cells(result)]
        rows.writerow([*cells, *[""] * (len(header) - len(cells))])
    return num_predictions


def describe_export(bundle: inference.OnnxBundle) -> Iterator[str]:
    """Yield lines about the exported file: whether it agrees with the trained network, and how to use it."""
    provenance, runtime = bundle.provenance, export.RUNTIMES[bundle.provenance.target]
    for name, parity in (("ONNX Runtime", provenance.parity), (runtime.name, provenance.target_parity)):
        if parity and not parity.num_images:
            yield "the file was not compared with the trained network: no validation image can be read"
        elif parity:
            ties = f" except for {pluralize(parity.num_near_ties, 'near tie')}" if parity.num_near_ties else ""
            images = pluralize(parity.num_images, "validation image")
            yield f"{name} makes the same predictions as the trained network for {images}{ties}"
    if runtime.parity_skip_reason and not provenance.target_parity:
        yield f"the file was not compared in {runtime.name}: {runtime.parity_skip_reason}"
    if not bundle.includes_preprocessing:
        command = format_command("summary", bundle.path)
        yield f"the file does not include preprocessing: resize, crop and normalize images as {command} shows"
    if bundle.exact_resize:
        yield "the file resizes images exactly as Pillow does, bit for bit"
    if provenance.calibration_error:
        before, after = provenance.calibration_error
        yield f"temperature {bundle.temperature:.3f}: calibration error {before:.3f} before, {after:.3f} after"
    if bundle.unknown_below:
        yield f'the prediction is "none of these" if the confidence is below {format_percent(bundle.unknown_below)}'
    if (data := inference.external_data_path(bundle.path)).exists():
        yield f"the weights are larger than 2 GB and stored in {data}: keep this file beside the .onnx file"


def describe_web_page(folder: Path, runtime: serving.OrtWebFiles) -> Iterator[str]:
    """Yield lines about the page in a folder; the last is the command to run next."""
    size = sum(len(content) for content in runtime.files.values())
    if runtime.origin:
        source = f"onnxruntime-web {runtime.version} from {runtime.origin}"
        yield f"page: {folder / 'index.html'}, which loads {source} and checks its hash"
        yield "to copy onnxruntime-web into the folder instead, use --ort-web node_modules/onnxruntime-web"
    else:
        yield f"page: {folder / 'index.html'}, with onnxruntime-web {runtime.version} ({size / 1e6:.1f} MB)"
    yield f"next: {shlex.join(['python3', '-m', 'http.server', '-d', str(folder)])}, and open http://localhost:8000/"


def choose_overlay_paths(images: Sequence[os.PathLike[str]], folder: Path) -> list[Path]:
    """Return the path of the PNG file for each image; a number is appended to duplicate names."""
    names: dict[str, None] = {}  # ordered
    for stem in (Path(os.fspath(image)).stem for image in images):
        names[next(name for name in chain([stem], (f"{stem}-{n}" for n in count(2))) if name not in names)] = None
    return [folder / f"{name}.png" for name in names]


def print_explanation(explanation: inference.Explanation | BrokenImage, file: Path, *, as_json: bool) -> None:
    """Print an explanation, whose overlay is `file`, as a line of text or JSON."""
    if isinstance(explanation, BrokenImage):
        text, values = _format_result(explanation), result_to_dict(explanation)
    else:
        text, values = f"{explanation} ({file})", {
            "path": explanation.path,
            "class_name": explanation.class_name,
            "probability": explanation.probability,
            "known": explanation.known,
            "lowest": explanation.min_probability,
            "place": explanation.most_influential_region,
            "hidden": explanation.masked_probabilities.tolist(),
            "overlay": str(file),
        }  # fmt: skip
    print(_to_json(values) if as_json else escape_unprintable(f"{explanation.path}: {text}"))


def format_evaluation(evaluation: inference.Evaluation) -> str:
    """Format accuracy, the scores of each class and speed as text."""
    name, score = evaluation.score_name, evaluation.score
    width = max(map(len, ("class", *evaluation.class_names)))
    lines = [
        f"{name} {format_percent(score.value)} (95 % interval {format_interval(score)}) "
        f"on {pluralize(evaluation.num_images, 'image')}",
        *filter(None, [evaluation.training_note]),
        f"loss {evaluation.loss:.3f}, calibration error {evaluation.calibration_error:.3f}",
        *_format_class_scores(evaluation, width),
    ]
    if evaluation.num_unknown:
        lines.append(f'predicted as "none of these": {pluralize(evaluation.num_unknown, "image")}')
    if evaluation.broken_images:
        examples = ", ".join(f"{image.path} ({image.fault})" for image in evaluation.broken_images[:3])
        more = f" and {len(evaluation.broken_images) - 3} more" if len(evaluation.broken_images) > 3 else ""
        lines.append(f"{pluralize(len(evaluation.broken_images), 'image')} could not be read: {examples}{more}")
    if evaluation.background_use:
        lines.append(_format_background_test(evaluation.background_use))
    decode, network = evaluation.decode_ms, evaluation.network_ms
    lines.append(
        f"{evaluation.images_per_s:.0f} images/s; latency p50/p95 in ms: decode {decode.p50:.1f}/{decode.p95:.1f}, "
        f"network {network.p50:.1f}/{network.p95:.1f}"
    )
    return "\n".join(lines)


def _format_class_scores(evaluation: inference.Evaluation, width: int) -> Iterator[str]:
    """Yield the lines of a table of scores by class; a multi-label model also has average precision and threshold."""
    labels = evaluation.multi_label_scores
    header = "       AP  threshold" if labels else ""
    yield f"{'class':{width}}    images{header}  precision   recall       F1"
    rows = labels.class_scores if labels else evaluation.per_class
    for one in rows:
        more = (
            ""
            if isinstance(one, ClassScores)
            else f"  {_format_proportion(one.average_precision):>7}  {one.threshold:9.3f}"
        )
        precision, recall, f1 = (
            _format_proportion(share if one.count else None) for share in (one.precision, one.recall, one.f1)
        )
        shares = f"{precision:>9}  {recall:>7}  {f1:>7}"
        yield f"{one.name:{width}}  {one.count:8}{more}  {shares}"
    if absent := [one.name for one in rows if not one.count]:
        excluded = " and excluded from mAP" if labels else ""
        yield f"no image of {', '.join(absent)}: the scores of a class without images are undefined (-){excluded}"


def _format_background_test(background_test: inference.BackgroundTest) -> str:
    """Format the accuracy on images whose centre was replaced, and whether the network uses the area around it."""
    correct, chance = format_percent(background_test.accuracy), format_percent(background_test.chance_accuracy)
    verdict = "the network uses" if background_test.is_significant else "no evidence that the network uses"
    return (
        f"with the centre replaced by that of another image, {correct} of the predictions are still correct "
        f"({chance} by chance, p = {background_test.p_value:.2g}): {verdict} the outer part of the image"
    )


def format_quantization(result: export.Quantization) -> str:
    """Format the measurements of each variant, and the chosen one, as text."""
    lines = [f"{'variant':20}  {result.score_name:>8}  calibration error    images/s      MB"]
    lines += [
        f"{trial.name:20}  {format_percent(trial.accuracy):>8}  {trial.calibration_error:17.3f}  "
        f"{trial.images_per_s:10.1f}"
        f"  {trial.size_bytes / 1e6:6.1f}"
        for trial in result.trials
    ]
    lines.append(f"measured on {pluralize(result.num_images, 'image')} on one core of this machine")
    lines += filter(None, [result.training_note])
    names = [trial.name for trial in result.trials[1:]]
    lines += [f"{name}: {refusal}" for name, refusal in zip(names, result.rejection_reasons, strict=True) if refusal]
    lines.append(f"written: {result.written_trial.name}" if result.written_trial else "nothing written")
    lines += filter(None, [result.thresholds_note])
    return "\n".join(lines)


def _format_result(result: Prediction | BrokenImage) -> str:
    if isinstance(result, BrokenImage):
        return f"broken, {result.fault}: {result.detail}"
    scores = result.top if result.labels is None else result.labels
    classes = ", ".join(f"{score.class_name} {format_percent(score.probability)}" for score in scores)
    if result.labels is not None:
        return classes or "none"
    if result.known is False:
        return f"none of these (nearest: {classes})"
    likely = result.prediction_set or ()
    return f"{' or '.join(likely)} ({classes})" if len(likely) > 1 else classes


def result_to_dict(result: Prediction | BrokenImage) -> dict[str, object]:
    """Return a result as a dict that `json.dumps` can write."""
    if isinstance(result, BrokenImage):
        return asdict(result)
    given = asdict(result)
    if result.labels is not None:
        return {name: given[name] for name in ("path", "labels", "top")}
    del given["labels"]
    return {"path": result.path, "class_name": None if result.known is False else result.class_name, **given}


def _format_csv_cells(result: Prediction | BrokenImage) -> list[object]:
    if isinstance(result, BrokenImage):
        return [result.fault]
    if result.labels is not None:
        names = "|".join(_escape_formula(label.class_name) for label in result.labels) or "[]"
        return ["", names, "|".join(f"{label.probability:.6f}" for label in result.labels)]
    score = "" if result.known_score is None else f"{result.known_score:.6f}"
    classes = "|".join(map(_escape_formula, result.prediction_set or ()))
    pairs = [cell for score in result.top for cell in (_escape_formula(score.class_name), f"{score.probability:.6f}")]
    return ["unknown" if result.known is False else "", score, classes, *pairs]


def _escape_formula(text: str) -> str:
    """Escape control characters; add an apostrophe before text that a spreadsheet would evaluate as a formula."""
    safe = escape_unprintable(text)
    is_formula = len(safe) > 1 and safe.startswith(("=", "+", "-", "@")) and not _NUMBER_PATTERN.fullmatch(safe)
    return f"'{safe}" if is_formula else safe


def _to_json(values: dict[str, object]) -> str:
    """Return JSON, with non-ASCII and control characters escaped if the terminal cannot display them."""
    text = json.dumps(values, ensure_ascii=False)
    encoding = sys.stdout.encoding or "utf-8"
    is_safe = escape_unprintable(text) == text and text.encode(encoding, "replace").decode(encoding) == text
    return text if is_safe else json.dumps(values)


def _format_proportion(proportion: Proportion | None) -> str:
    """Return a proportion in percent, or `-` for None."""
    return format_percent(proportion.value) if proportion else "-"
