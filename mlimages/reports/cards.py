"""The model card of an exported file, in the format of Hugging Face (https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlimages.core import InputError, Proportion, format_interval, format_percent, pluralize, write_output
from mlimages.gathering import read_manifest
from mlimages.inference import (
    INPUT,
    KNOWN,
    KNOWN_THRESHOLD,
    LOGITS,
    PREDICTION_SET_LEVEL,
    PROBABILITIES,
    OnnxBundle,
    describe_training_use,
)
from mlimages.reports.preprocessing_code import OPEN_IMAGE, describe_preprocessing, format_preprocessing_code

MODEL_CARD_NAME = "README.md"


def write_model_card(bundle: OnnxBundle) -> Path | None:
    """Write the model card beside the .onnx file and return its path; None if a README.md exists that mlimages did not
    write, or that was changed since."""
    path = bundle.path.parent / MODEL_CARD_NAME
    try:
        with write_output(path) as part:
            part.write_text(format_model_card(bundle), encoding="utf-8")
    except InputError:
        return None
    return path


def has_model_card(bundle: OnnxBundle) -> bool:
    """Return whether the README.md beside the .onnx file equals the model card that `format_model_card` returns."""
    path = bundle.path.parent / MODEL_CARD_NAME
    return path.is_file() and path.read_bytes() == format_model_card(bundle).encode()


def format_model_card(bundle: OnnxBundle) -> str:
    """Return the model card in Markdown: metadata for the Hugging Face Hub, description, data, results, limitations,
    usage and training command.

    Example:
        >>> print(format_model_card(OnnxBundle.read("runs/first/model.onnx")).splitlines()[1])
        library_name: onnx
    """
    sections = (
        _describe_model(bundle),
        _describe_data(bundle),
        _describe_results(bundle),
        _describe_limitations(bundle),
        _describe_usage(bundle),
        _describe_training(bundle),
    )
    text = "\n".join(line for lines in sections for line in lines)
    return f"{_format_header(bundle)}\n# {bundle.model}: {_join_names(bundle.class_names)}\n\n{text}\n"


def _format_header(bundle: OnnxBundle) -> str:
    lines = ["---", "library_name: onnx", "pipeline_tag: image-classification", "tags:", "- image-classification",
             "- onnx", "- mlimages"]  # fmt: skip
    if score := bundle.provenance.accuracy or bundle.provenance.mean_ap:
        kind = "mean_average_precision" if bundle.multi_label else "accuracy"
        lines += ["model-index:", f"- name: {json.dumps(bundle.model)}", "  results:", "  - task:",
                  "      type: image-classification", "    dataset:",
                  f"      name: {_describe_evaluated_images(bundle)}",
                  "      type: imagefolder", "    metrics:", f"    - type: {kind}",
                  f"      value: {score[0]:.4f}"]  # fmt: skip
    return "\n".join([*lines, "---"])


def _describe_evaluated_images(bundle: OnnxBundle) -> str:
    provenance = bundle.provenance
    if not provenance.quantization:
        return "validation set"
    num_used, _ = provenance.num_in_splits or (0, 0)
    used = f" ({num_used} of {provenance.num_evaluated_images} used for training)" if num_used else ""
    return f"calibration images{used}"


def _describe_model(bundle: OnnxBundle) -> Iterator[str]:
    image = bundle.preprocessing.image
    takes = "uint8 RGB images `(N, H, W, 3)` of any size"
    if not bundle.includes_preprocessing:
        shape = ", ".join(map(str, bundle.preprocessing.input_shape))
        takes = f"preprocessed float32 images `(N, {shape})`:\n{describe_preprocessing(bundle.preprocessing)}"
    classes = f"{pluralize(len(bundle.class_names), 'class')}: {_join_names(bundle.class_names)}"
    if bundle.multi_label:
        yield f"A multi-label classifier: an image may belong to any number of {classes}."
    else:
        yield f"Classifies images into {classes}."
    yield f"The network is {bundle.model} with an input of {image.width} x {image.height} pixels."
    yield f"`{bundle.path.name}` expects {takes}."


def _describe_data(bundle: OnnxBundle) -> Iterator[str]:
    provenance, nothing = bundle.provenance, (0,) * len(bundle.class_names)
    if not provenance.class_counts:
        return
    train, val = (provenance.class_counts.get(name, nothing) for name in ("train", "val"))
    yield "\n## Data\n\n| class | training | validation |\n|---|---|---|"
    for name, *counts in zip(bundle.class_names, train, val, strict=True):
        yield f"| {_escape_markdown(name)} | {counts[0]} | {counts[1]} |"
    yield f"| {'labels' if bundle.multi_label else 'total'} | {sum(train)} | {sum(val)} |"
    if bundle.multi_label:
        num_train, num_val = (provenance.split_sizes.get(name, 0) for name in ("train", "val"))
        sizes = f"{num_train} training images and {num_val} validation images"
        yield f"\n{sizes}; an image is counted once for each of its labels."
    if provenance.licenses:
        yield "\n| licence, as recorded by `mlimages gather` | images |\n|---|---|"
        yield from (f"| {_escape_markdown(licence)} | {count} |" for licence, count in provenance.licenses.items())
    else:
        yield "\nThe licences of the images are not recorded."


def read_image_licenses(paths: Iterable[Path]) -> dict[Path, str]:
    """Return by path the licence that `gather` recorded for each image; "not recorded" if the source stated none.

    For an image FOLDER/CLASS/NAME, the licence is read from the manifest in FOLDER. Images without an entry in a
    manifest are omitted.
    """
    found: dict[Path, str] = {}
    folders = {path: path.parent.parent for path in paths}
    for folder in sorted(set(folders.values())):
        if any(folder.glob("manifest*.jsonl")):
            used = {path.relative_to(folder).as_posix(): path for path in folders if folders[path] == folder}
            rows = {used[row.path]: row for row in read_manifest(folder) if row.path in used}
            found |= {path: str(row.source.get("license") or "not recorded") for path, row in rows.items()}
    return found


def _describe_results(bundle: OnnxBundle) -> Iterator[str]:
    provenance = bundle.provenance
    yield "\n## Results\n"
    if score := provenance.accuracy or provenance.mean_ap:
        name = "Mean average precision (mAP)" if bundle.multi_label else "Accuracy"
        images = pluralize(provenance.num_evaluated_images, f"{provenance.evaluated_set} image")
        yield f"{name} {format_percent(score[0])} on {images}"
        yield f"(95 % interval {format_interval(Proportion(*score))})."
        yield _describe_training_use(bundle)
    if provenance.calibration_error:
        before, after = provenance.calibration_error
        yield f"Expected calibration error {after:.3f}; before the temperature was fitted, {before:.3f}."
    if provenance.parity and not provenance.parity.num_images:
        yield "The file was not compared with the trained network."
    elif provenance.parity:
        num_compared = provenance.parity.num_images
        num_equal = num_compared - provenance.parity.num_near_ties
        yield f"ONNX Runtime and the trained network agree on {num_equal} of {num_compared} validation images."


def _describe_training_use(bundle: OnnxBundle) -> str:
    """Return a sentence on what the run used the evaluated images for, such as to choose the epoch."""
    if not bundle.provenance.quantization:
        chosen = "Epoch and thresholds were" if bundle.multi_label else "The epoch was"
        return f"{chosen} chosen on these images: expect slightly lower scores on new images."
    note = describe_training_use(bundle.provenance.num_in_splits, score_name=bundle.task.score_name)
    return f"{note[:1].upper()}{note[1:]}." if note else "The run did not use these images."


def _describe_limitations(bundle: OnnxBundle) -> Iterator[str]:
    yield "\n## Limitations\n"
    yield from _describe_decision_rules(bundle)
    if sets := bundle.prediction_sets:
        threshold, is_left_out = sets.thresholds.get(PREDICTION_SET_LEVEL, 0.0), sets.source == "leave-one-out"
        images = pluralize(sets.count, "training image" if is_left_out else f"{sets.source} image")
        level = format_percent(float(PREDICTION_SET_LEVEL), 0)
        yield "Apply the softmax to the output `logits`. The classes with a probability of"
        yield f"at least {threshold:.3f} include the true class in"
        yield f"{level} of cases. If there is no such class, use the most probable one."
        yield f"The threshold {threshold:.3f} was computed from"
        yield f"{images}{' by leave-one-out' if is_left_out else ''}{_make_quantization_suffix(bundle)}."
    evaluated = "the calibration images" if bundle.provenance.quantization else "those of the validation set"
    yield f"Results hold for images like {evaluated}: the same sources, devices and surroundings."
    if bundle.includes_preprocessing and bundle.provenance.target == "onnxruntime":
        yield "This file is for ONNX Runtime. OpenVINO loads it without an error but predicts differently: for other"
        yield "runtimes, export with `--target`."


def _make_quantization_suffix(bundle: OnnxBundle) -> str:
    """Return " before quantization" if the file is quantized, but its thresholds were computed earlier; else "".

    The text ends sentences such as "The threshold was computed from 24 images before quantization."
    """
    sets = bundle.prediction_sets
    is_kept = bundle.provenance.quantization and sets and sets.source != "calibration"
    return " before quantization" if is_kept else ""


def _describe_decision_rules(bundle: OnnxBundle) -> Iterator[str]:
    """Yield lines on how to get an image's classes from the outputs.

    A multi-label model has a threshold for each class. Other models may have the output `known` (0..1), which is low
    for an image of none of the classes.
    """
    if bundle.multi_label:
        yield "An image has each class whose output `probabilities` (sigmoid) reaches the threshold of the class:"
        thresholds = zip(bundle.class_names, bundle.thresholds, strict=True)
        yield ", ".join(f"{_escape_markdown(name)} {threshold:.3f}" for name, threshold in thresholds) + "."
    elif known := bundle.known:
        yield f"Every image gets one of the classes above. If the output `known` is below {KNOWN_THRESHOLD}, the image"
        share = format_percent(1 - known.share, 0)
        before = _make_quantization_suffix(bundle)
        images = pluralize(known.count, f"{'validation' if before else bundle.provenance.evaluated_set} image")
        yield "probably belongs to none of them."
        if before or not bundle.provenance.quantization:
            yield f"`known` is scaled so that about {share} of images like the validation set are wrongly below"
            yield f"{KNOWN_THRESHOLD}. The scale was computed from {images}{before}."
        else:
            yield f"`known` was wrongly below {KNOWN_THRESHOLD} for {share} of {images}."
    else:
        yield "Every image gets one of the classes above, even one that shows none of them."
    if bundle.unknown_below:
        yield f'Below a probability of {format_percent(bundle.unknown_below)} `mlimages` predicts "none of these".'


def _describe_usage(bundle: OnnxBundle) -> Iterator[str]:
    yield "\n## Use\n"
    if bundle.includes_preprocessing:
        yield f"```console\n$ mlimages predict {shlex.quote(bundle.path.name)} image.jpg\n```\n"
    package = "cv2" if _uses_opencv_in_example(bundle) else "onnxruntime"
    prepare = f"{OPEN_IMAGE}\nimage = np.asarray(image)[None]"
    if not bundle.includes_preprocessing:
        prepare = format_preprocessing_code(bundle.preprocessing)
    yield (
        f"```python\nimport numpy as np, {package}\nfrom PIL import Image, ImageOps\n\n"
        f"{prepare}\n{_format_inference_snippet(bundle)}\n"
        f"names = {list(bundle.class_names)!r}\n{_format_decision_snippet(bundle)}\n```\n\n"
        "`mlimages` also composites transparent images on white and scales 16-bit images; this code does not."
    )


def _uses_opencv_in_example(bundle: OnnxBundle) -> bool:
    """Return whether the card's Python example uses OpenCV rather than ONNX Runtime.

    The example of a quantized file always uses ONNX Runtime, in which `quantize` measured the file's accuracy.
    """
    return bundle.provenance.target == "opencv" and not bundle.provenance.quantization


def _format_inference_snippet(bundle: OnnxBundle) -> str:
    """Return the lines of Python that compute the outputs."""
    outputs = [LOGITS, PROBABILITIES, *([KNOWN] if bundle.known else [])]
    variable = "image" if bundle.includes_preprocessing else "x"
    path, names, source = (json.dumps(value, ensure_ascii=False) for value in (bundle.path.name, outputs, INPUT))
    if _uses_opencv_in_example(bundle):
        return (
            f"network = cv2.dnn.readNetFromONNX({path})\nnetwork.setInput({variable}, {source})\n"
            f"{', '.join(outputs)} = network.forward({names})"
        )
    return (
        f"session = onnxruntime.InferenceSession({path})\n"
        f"{', '.join(outputs)} = session.run({names}, {{{source}: {variable}}})"
    )


def _format_decision_snippet(bundle: OnnxBundle) -> str:
    """Return the Python code that prints the predicted class, or the predicted classes of a multi-label model."""
    if not bundle.multi_label:
        return "print(names[probabilities[0].argmax()])"
    return (
        f"thresholds = {list(bundle.thresholds)!r}\n"
        "print([name for name, p, t in zip(names, probabilities[0], thresholds) if p >= t])"
    )


def _describe_training(bundle: OnnxBundle) -> Iterator[str]:
    if bundle.provenance.command:
        yield f"\n## Training\n\n```console\n$ {bundle.provenance.command}\n```"


def _join_names(names: tuple[str, ...]) -> str:
    return ", ".join(map(_escape_markdown, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _escape_markdown(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|" else letter for letter in text)
