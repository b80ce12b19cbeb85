"""A network becomes one .onnx file, refused unless ONNX Runtime answers as the trained network does."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mlimages.core import LabeledPath, NoProgress, Progress, is_remote, replacing, wilson_interval
from mlimages.export.onnx_writer import TrainedNetwork, export_network
from mlimages.export.parity import Answers, ResizeParityError, check_parity, network_answers
from mlimages.inference import OnnxBundle, Provenance, calibration, data_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a network is exported.

    Attributes:
        include_preprocessing: take uint8 pictures of any size; else the bare network, float32 `(N, C, H, W)`.
        exact: resize inside by Pillow's own integer weights, to the bit, at several times the cost.
        calibrate: fit a temperature on the validation pictures.
        known_share: store a threshold that this share (0..1) of the validation pictures reach; 0 for none.
    """

    include_preprocessing: bool = True
    exact: bool = False
    calibrate: bool = False
    known_share: float = 0.0


def export_trained(
    trained: TrainedNetwork,
    out: Path,
    *,
    validation: Iterable[LabeledPath],
    options: ExportOptions | None = None,
    provenance: Provenance | None = None,
    progress: Progress | None = None,
) -> OnnxBundle:
    """Write a network to `out` once its file has answered every validation picture as the network does.

    Raises:
        ExportError: it does not; the worst picture is named and nothing is written.
    """
    options, progress = options or ExportOptions(), progress or NoProgress()
    answers = network_answers(trained, validation, progress=progress)
    temperature, unknown_below, provenance = _judge(answers, options, provenance or Provenance())

    def write(*, exact: bool) -> OnnxBundle:
        written = export_network(
            trained,
            part,
            include_preprocessing=options.include_preprocessing,
            exact=exact,
            temperature=temperature,
            unknown_below=unknown_below,
            provenance=provenance,
        )
        parity = check_parity(trained, written, answers, progress=progress)
        bundle = replace(written, provenance=replace(written.provenance, parity=parity))
        bundle.write(part)
        return bundle

    if not is_remote(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=None if is_remote(out) else out.parent, prefix=".export.") as folder:
        part = Path(folder, out.name)
        try:
            bundle = write(exact=options.exact)
        except ResizeParityError as error:
            logger.info("%s: trying the exact resize", error)
            bundle = write(exact=True)
        is_whole = not data_path(part).exists()
        for made in sorted(part.parent.iterdir(), reverse=True):  # weights beyond 2 GB before the file that needs them
            with replacing(out.with_name(made.name)) as whole:
                made.replace(whole)
        if is_whole:
            data_path(out).unlink(missing_ok=True)  # of the file that was replaced
    return replace(bundle, path=out)


def _judge(answers: Answers, options: ExportOptions, provenance: Provenance) -> tuple[float, float, Provenance]:
    """Temperature, threshold, and the provenance with what the validation pictures say."""
    labels, plain = answers.labels, calibration.softmax(answers.logits)
    temperature = calibration.fit_temperature(answers.logits, labels) if options.calibrate else 1.0
    mended = calibration.softmax(answers.logits, temperature)
    unknown_below = calibration.threshold_keeping(options.known_share, mended) if options.known_share else 0.0
    right, count = int((plain.argmax(axis=1) == labels).sum()), len(labels)
    if count:
        accuracy = (right / count, *wilson_interval(right, count))
        provenance = replace(provenance, accuracy=accuracy, accuracy_count=count)
    if options.calibrate:
        before, after = (calibration.expected_calibration_error(each, labels) for each in (plain, mended))
        provenance = replace(provenance, calibration_error=(before, after))
    return temperature, unknown_below, provenance
