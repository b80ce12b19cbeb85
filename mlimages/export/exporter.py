"""Export a network to an .onnx file if the outputs of the file match those of the trained network."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlimages.core import (
    InputError,
    LabeledPath,
    NoProgress,
    Progress,
    TargetRuntime,
    as_path,
    average_precisions,
    count_available_cores,
    find_f1_thresholds,
    is_remote,
    is_unchanged_output,
    pluralize,
    require_writable,
    temporary_folder_beside,
    wilson_interval,
    write_output,
)
from mlimages.export.onnx_writer import DecisionParameters, TrainedNetwork, write_onnx
from mlimages.export.parity import NetworkOutputs, ResizeParityError, check_parity, compute_network_outputs
from mlimages.export.preprocessing_graph import ResizeImplementation
from mlimages.export.targets import RUNTIMES, load_in_runtime
from mlimages.inference import MultiLabel, OnnxBundle, Provenance, calibration, external_data_path
from mlimages.labels import LabelFile

logger = logging.getLogger(__name__)

MAX_WORKERS = 4
"""Maximum number of images compared at the same time: each takes 0.1 GB with VGG-16."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of `export_network`.

    Attributes:
        include_preprocessing: the file takes uint8 images `(N, H, W, 3)` of any size, and resizes, crops and normalizes
            them; otherwise, it takes normalized float32 `(N, C, H, W)`.
        exact_resize: the file resizes images bit-identically to Pillow, which is several times slower. If this is
            False but the faster resize changes the outputs too much, the file is exported again with the exact resize;
            for openvino, the export fails instead.
        calibrate: fit a temperature on the validation set.
        known_share: share (0..1) of the validation images to accept, from which a threshold is computed. An image whose
            highest probability is below the threshold is predicted as "none of these". 0 stores no threshold.
        target: the runtime that will run the file; files for tensorrt and opencv do not include preprocessing.

    Raises:
        InputError: the target is unknown; `exact_resize` is set, but the target does not support it, or
            `include_preprocessing` is false; or `known_share` is outside 0..1.

    Examples:
        >>> from mlimages.export import ExportOptions
        >>> ExportOptions(calibrate=True).resize_implementation
        'operator'
    """

    include_preprocessing: bool = True
    exact_resize: bool = False
    calibrate: bool = False
    known_share: float = 0.0
    target: TargetRuntime = "onnxruntime"

    def __post_init__(self) -> None:
        if self.target not in RUNTIMES:
            raise InputError(f"target is {self.target!r}: it must be one of {', '.join(RUNTIMES)}")
        if not 0 <= self.known_share <= 1:
            raise InputError(f"known_share is {self.known_share}: it must be a share from 0 to 1")
        if self.exact_resize and not self.include_preprocessing:
            raise InputError(
                "--exact requires a model that includes its preprocessing: omit --exact or --no-preprocessing"
            )
        if self.exact_resize and RUNTIMES[self.target].resize_implementation != "operator":
            raise InputError(f"{RUNTIMES[self.target].name} does not support the exact resize: omit --exact")

    @property
    def resize_implementation(self) -> ResizeImplementation | None:
        """Implementation of the resize inside the file; None if the file has no preprocessing."""
        if not self.include_preprocessing:
            return None
        return "exact" if self.exact_resize else RUNTIMES[self.target].resize_implementation


def export_network(
    trained_network: TrainedNetwork,
    out: str | os.PathLike[str],
    *,
    validation: Iterable[LabeledPath] | str | os.PathLike[str],
    options: ExportOptions | None = None,
    provenance: Provenance | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    outputs: NetworkOutputs | None = None,
    max_compared_images: int | None = None,
) -> OnnxBundle:
    """Export a network to an .onnx file if its outputs and those of the file match for the validation images.

    The outputs of the file are computed in ONNX Runtime and, if it is installed, in the target runtime. The thresholds
    of a multi-label network are chosen on the validation images.

    Args:
        trained_network: the network.
        out: the .onnx file. Weights beyond 1.9 GB are written to `NAME.onnx.data` beside it.
        validation: a label file, its path, or labelled paths; images that cannot be decoded are skipped.
        options: options of the export.
        provenance: details of the training; the export adds package versions, the parity result and measured scores.
        overwrite: replace an existing file even if mlimages did not write it or it was changed afterwards.
        progress: counts the validation images, first while the network processes them, then while they are compared.
        outputs: the network's logits for the validation images; computed by default.
        max_compared_images: compare at most this many validation images, evenly spaced; all by default.

    Returns:
        The metadata of the file, as returned by `OnnxBundle.read(out)`.

    Raises:
        ExportError: the network cannot be converted, or the file's outputs differ (the message names the worst image);
            nothing is written.
        LabelFileError: the label file cannot be read.
        InputError: `calibrate` or `known_share` is set, but no validation image can be read or the network is
            multi-label; `calibrate` is set, but the probabilities carry no information about the true classes; or
            `overwrite` is false, and an existing file was not written by mlimages or was changed afterwards.

    Examples:
        >>> from mlimages.export import TrainedNetwork, export_network
        >>> from mlimages.networks import build_model
        >>> model = build_model("lenet5", num_classes=2, weights="none")
        >>> trained_network = TrainedNetwork(model.network, model.preprocessing, ("cats", "dogs"), model.name)
        >>> bundle = export_network(trained_network, "pets.onnx", validation="labels.txt")
        >>> bundle.class_names, bundle.provenance.parity.num_images
        (('cats', 'dogs'), 12)
    """
    options, progress, out = options or ExportOptions(), progress or NoProgress(), as_path(out)
    require_writable([out, external_data_path(out)], overwrite=overwrite)
    items = list(LabelFile(as_path(validation)) if isinstance(validation, str | os.PathLike) else validation)
    outputs = outputs or compute_network_outputs(trained_network, items, progress=progress)
    if options.calibrate or options.known_share:
        if trained_network.multi_label:
            raise InputError(
                "--calibrate and --unknown do not apply to multi-label models, whose thresholds are chosen on the "
                "validation images: omit both options"
            )
        if not outputs.labeled_paths:
            raise InputError(f"{_explain_lack_of_images(items)}: --calibrate and --unknown require validation images")
    if not outputs.labeled_paths:
        logger.warning("%s: the ONNX file will not be compared with the network", _explain_lack_of_images(items))
    if trained_network.multi_label:
        decision_parameters, provenance = _choose_class_thresholds(outputs, provenance or Provenance())
    else:
        decision_parameters, provenance = _calibrate(outputs, options, provenance or Provenance())

    compared = outputs if max_compared_images is None else outputs.sample(max_compared_images)

    def write_and_check_bundle(path: Path, resize_implementation: ResizeImplementation | None) -> OnnxBundle:
        """Export the network to `path`; raise an error if the outputs of the file and the network differ."""
        written, compute_logits = write_onnx(
            trained_network,
            path,
            resize_implementation=resize_implementation,
            decision_parameters=decision_parameters,
            provenance=provenance,
        )
        workers = min(MAX_WORKERS, count_available_cores())
        parity = check_parity(trained_network, written, compared, compute_logits, progress=progress, workers=workers)
        target_parity = None
        if compute_target_logits := load_in_runtime(options.target, path):
            target_parity = check_parity(trained_network, written, compared, compute_target_logits, progress=progress)
        checked = replace(written.provenance, parity=parity, target=options.target, target_parity=target_parity)
        bundle = replace(written, provenance=checked)
        bundle.write(path)
        return bundle

    if not is_remote(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() if is_remote(out) else temporary_folder_beside(out) as folder:
        path = Path(folder, out.name)
        try:
            bundle = write_and_check_bundle(path, options.resize_implementation)
        except ResizeParityError as error:
            if options.resize_implementation != "operator":
                raise
            logger.info("%s: exporting again with a resize that is bit-identical to Pillow's", error)
            bundle = write_and_check_bundle(path, "exact")
        _move_exported_files(path, out, overwrite=overwrite)
    return replace(bundle, path=out)


def _explain_lack_of_images(items: Sequence[LabeledPath]) -> str:
    """Return why no image was decoded: there are none, or none of them can be read."""
    if not items:
        return "there are no validation images"
    if len(items) == 1:
        return f"the only validation image, {items[0].path}, cannot be read"
    return f"none of the {len(items)} validation images can be read (the first is {items[0].path})"


def _move_exported_files(path: Path, out: Path, *, overwrite: bool) -> None:
    """Move the file at `path`, and its `.onnx.data` file, to `out`.

    If there is no `.onnx.data` file, delete an old one beside `out` that mlimages wrote.
    """
    has_data_file = external_data_path(path).exists()
    for file in sorted(path.parent.iterdir(), reverse=True):  # NAME.onnx.data before NAME.onnx, which refers to it
        with write_output(out.with_name(file.name), overwrite=overwrite) as part:
            file.replace(part)
    if not has_data_file and is_unchanged_output(external_data_path(out)):  # from the file that was replaced
        external_data_path(out).unlink()


def _choose_class_thresholds(
    network_outputs: NetworkOutputs, provenance: Provenance
) -> tuple[DecisionParameters, Provenance]:
    """Return the thresholds of a multi-label network, and `provenance` with the measured mAP added."""
    task, classes = MultiLabel(), network_outputs.logits.shape[1]
    probabilities = task.compute_probabilities(network_outputs.logits).astype(np.float32)  # as in the file
    targets = task.make_targets(network_outputs.labeled_paths, classes).astype(bool)
    if count := len(network_outputs.labeled_paths):
        mean = average_precisions(probabilities, targets).mean
        provenance = replace(provenance, mean_ap=(mean.value, mean.low, mean.high), num_evaluated_images=count)
    return DecisionParameters(thresholds=find_f1_thresholds(probabilities, targets)), provenance


def _calibrate(
    network_outputs: NetworkOutputs, options: ExportOptions, provenance: Provenance
) -> tuple[DecisionParameters, Provenance]:
    """Return the temperature and the "unknown" threshold that `options` ask for, and the updated provenance.

    The accuracy is added to the provenance. If a temperature is fitted, so are the calibration errors before and after
    temperature scaling.

    Raises:
        InputError: a temperature is to be fitted, but equal probabilities for all classes are the most likely.
    """
    labels, uncalibrated = network_outputs.labels, calibration.softmax(network_outputs.logits)
    temperature = calibration.fit_temperature(network_outputs.logits, labels) if options.calibrate else 1.0
    if math.isclose(temperature, calibration.TEMPERATURE_BOUNDS[1], rel_tol=1e-3):
        raise InputError(
            "--calibrate cannot fit a temperature: the probabilities of the network carry no information about the "
            f"true classes of {pluralize(len(labels), 'validation image')}; check their labels, train for more epochs "
            "or on more images, or omit --calibrate"
        )
    calibrated = calibration.softmax(network_outputs.logits, temperature)
    share = options.known_share
    unknown_below = calibration.find_confidence_threshold(share, calibrated) if share else 0.0
    correct, count = int((uncalibrated.argmax(axis=1) == labels).sum()), len(labels)
    if count:
        accuracy = (correct / count, *wilson_interval(correct, count))
        provenance = replace(provenance, accuracy=accuracy, num_evaluated_images=count)
    if options.calibrate:
        before, after = (calibration.expected_calibration_error(p, labels) for p in (uncalibrated, calibrated))
        provenance = replace(provenance, calibration_error=(before, after))
    return DecisionParameters(temperature, unknown_below), provenance
