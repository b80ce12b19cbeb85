"""Export the network of a run."""

from __future__ import annotations

import logging
import os

from torch import nn

from mlimages.core import BundleError, Progress, as_path, format_command, require_local_path, require_writable
from mlimages.export import ExportOptions, NetworkOutputs, TrainedNetwork, export_network
from mlimages.inference import OnnxBundle
from mlimages.labels import LabelFile
from mlimages.reports import RunFiles, write_model_card
from mlimages.training.checkpoints import TrainedRun, load_run
from mlimages.training.known import load_known_output
from mlimages.training.reproduction import read_provenance

logger = logging.getLogger(__name__)


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: ExportOptions | None = None,
    network: nn.Module | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> OnnxBundle:
    """Export the best network of a run to ONNX, with its provenance as metadata, and write a model card.

    A README.md that mlimages did not write is not replaced.

    Args:
        run: run folder.
        out: ONNX file to write.
        options: options of the export.
        network: the custom network of the run; its weights are replaced.
        overwrite: replace a file that mlimages did not write, or that was changed since.
        progress: shows the number of validation images compared.

    Returns:
        The metadata of the exported file.

    Raises:
        InputError: the file exists, was not written by mlimages or was changed since, and `overwrite` is false.
        RunError: `run` is not a run folder.
        ExportError: the network cannot be converted to ONNX, or the file's outputs differ (the message names the worst
            image); nothing is written.

    >>> export_run("runs/first", "first.onnx").class_names
    ('cats', 'dogs')
    """
    require_writable([as_path(out)], overwrite=overwrite)
    loaded = load_run(run, network=network)
    return export_trained(
        RunFiles(require_local_path(run)), loaded, out, options=options, overwrite=overwrite, progress=progress
    )


def export_trained(
    files: RunFiles,
    trained_run: TrainedRun,
    out: str | os.PathLike[str],
    *,
    options: ExportOptions | None = None,
    overwrite: bool,
    progress: Progress | None,
    outputs: NetworkOutputs | None = None,
) -> OnnxBundle:
    """Export a loaded network; `outputs` are its logits for the validation images, if they are known."""
    trained = TrainedNetwork(
        trained_run.network,
        trained_run.preprocessing,
        trained_run.class_names,
        trained_run.config.model,
        trained_run.mean_image,
        load_known_output(files),
        trained_run.multi_label,
    )
    bundle = export_network(
        trained,
        out,
        validation=LabelFile(files.val),
        options=options,
        provenance=read_provenance(files, trained_run.weights),
        overwrite=overwrite,
        progress=progress,
        outputs=outputs,
    )
    write_model_card(bundle)
    return bundle


def read_exported(files: RunFiles) -> OnnxBundle | None:
    """Return the metadata of the file that the run exported before; None if there is none."""
    try:
        return OnnxBundle.read(files.onnx)
    except BundleError:
        return None


def warn_about_lost_options(files: RunFiles, before: OnnxBundle | None, now: OnnxBundle) -> None:
    """Warn if the exported file of a run had options of `mlimages export` that the new one does not have."""
    if before is None:
        return
    options = {
        "--calibrate": before.temperature != 1.0 and now.temperature == 1.0,
        "--unknown=FRACTION": before.unknown_below > 0.0 and now.unknown_below == 0.0,
        "--exact": before.exact_resize and not now.exact_resize,
        "--no-preprocessing": now.includes_preprocessing and not before.includes_preprocessing,
        f"--target={before.provenance.target}": before.provenance.target != now.provenance.target,
    }
    if lost := [option for option, is_lost in options.items() if is_lost]:
        again = format_command("export", files.folder, *lost)
        logger.warning("%s was exported with %s before: repeat %s", files.onnx, " ".join(lost), again)
