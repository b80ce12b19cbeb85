"""Export the network of a run, with its provenance: label files, weights, and the command that repeats the run."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from torch import nn

from mlimages.core import (
    BundleError,
    OptionField,
    Progress,
    as_path,
    format_command,
    option_fields,
    require_local_path,
    require_writable,
)
from mlimages.export import ExportOptions, NetworkOutputs, TrainedNetwork, export_network
from mlimages.inference import OnnxBundle, Provenance, external_data_path
from mlimages.labels import LabelFile
from mlimages.reports import RunFiles, RunFolder, read_image_licenses, read_run, write_model_card
from mlimages.training.checkpoints import TrainedRun, load_run
from mlimages.training.config import FineTuneConfig
from mlimages.training.known_output import load_known_output
from mlimages.training.run import PATH_SETTINGS

logger = logging.getLogger(__name__)

LARGE_NETWORK_BYTES = 300_000_000
LARGE_NETWORK_IMAGES = 16
"""Number of validation images on which the ONNX file of a network larger than `LARGE_NETWORK_BYTES` (VGG-16, ViT-B) is
checked at the end of a run, since ONNX Runtime needs a third of a second of CPU time per image. `export_run` checks the
file on all validation images."""


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

    An existing README.md is replaced only if mlimages wrote it.

    Args:
        run: run folder.
        out: ONNX file to write.
        options: options of the export.
        network: the custom network that the run trained; its weights are replaced. None if the run's network was given
            by name.
        overwrite: also replace a file that mlimages did not write, or that was edited after mlimages wrote it.
        progress: shows the number of compared validation images.

    Returns:
        The metadata of the exported file.

    Raises:
        InputError: `overwrite` is false, and `out` exists and was not written by mlimages, or was edited after mlimages
            wrote it.
        RunError: `run` is not a run folder, has no weights yet, or one of its files cannot be read.
        ExportError: the network cannot be converted to ONNX, or the outputs of the file differ (the message names the
            image with the largest difference); nothing is written.

    >>> export_run("runs/first", "first.onnx").class_names
    ('cats', 'dogs')
    """
    require_writable([as_path(out), external_data_path(as_path(out))], overwrite=overwrite)
    loaded = load_run(run, network=network)
    return export_trained_run(
        RunFiles(require_local_path(run)), loaded, out, options=options, overwrite=overwrite, progress=progress
    )


def export_trained_run(
    files: RunFiles,
    trained_run: TrainedRun,
    out: str | os.PathLike[str],
    *,
    options: ExportOptions | None = None,
    overwrite: bool,
    progress: Progress | None,
    outputs: NetworkOutputs | None = None,
) -> OnnxBundle:
    """Export a loaded network; see `export_run`.

    Args:
        trained_run: the network, its preprocessing and its classes.
        outputs: logits of the network for the validation images, if they have been computed, as at the end of a run.
    """
    num_bytes = sum(parameter.nbytes for parameter in trained_run.network.parameters())
    is_sampled = outputs is not None and num_bytes > LARGE_NETWORK_BYTES
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
        max_compared_images=LARGE_NETWORK_IMAGES if is_sampled else None,
    )
    write_model_card(bundle)
    return bundle


def read_exported_bundle(files: RunFiles) -> OnnxBundle | None:
    """Return the metadata of the ONNX file in the run folder; None if there is none, or it cannot be read."""
    try:
        return OnnxBundle.read(files.onnx)
    except BundleError:
        return None


def warn_about_lost_options(files: RunFiles, old_bundle: OnnxBundle | None, new_bundle: OnnxBundle) -> None:
    """Log a warning if the run's previous ONNX file was exported with options that the new file lacks."""
    if old_bundle is None:
        return
    options = {
        "--calibrate": old_bundle.temperature != 1.0 and new_bundle.temperature == 1.0,
        "--unknown=FRACTION": old_bundle.unknown_below > 0.0 and new_bundle.unknown_below == 0.0,
        "--exact": old_bundle.exact_resize and not new_bundle.exact_resize,
        "--no-preprocessing": new_bundle.includes_preprocessing and not old_bundle.includes_preprocessing,
        f"--target={old_bundle.provenance.target}": old_bundle.provenance.target != new_bundle.provenance.target,
    }
    if lost := [option for option, is_lost in options.items() if is_lost]:
        again = format_command("export", files.folder, *lost)
        logger.warning(
            "%s was previously exported with %s: to use these options again, run %s", files.onnx, " ".join(lost), again
        )


def read_provenance(files: RunFiles, weights: Path) -> Provenance:
    """Return the provenance of a run; fields that only the export knows keep their defaults.

    Args:
        weights: the checkpoint that is exported, such as `best.safetensors`.
    """
    run = read_run(files.folder)
    splits = {name: path for name, path in (("train", files.train), ("val", files.val)) if path.exists()}
    items = {name: list(LabelFile(path)) for name, path in splits.items()}
    counts = {name: Counter(label for item in each for label in item.class_indices) for name, each in items.items()}
    licenses = Counter(read_image_licenses(item.path for each in items.values() for item in each).values())
    return Provenance(
        weights_sha256=_compute_sha256(weights),
        data_sha256={name: _compute_sha256(path) for name, path in splits.items()},
        split_sizes={name: len(each) for name, each in items.items()},
        class_counts={
            name: tuple(each[label] for label in range(len(run.class_names))) for name, each in counts.items()
        },
        licenses=dict(licenses.most_common()),
        command=make_finetune_command(run),
    )


def make_finetune_command(run: RunFolder) -> str:
    """Return the command that repeats a run, with paths relative to the current folder.

    Of paths outside the current folder, only the name is included, so that the exported file does not disclose folders;
    a user must add the folders. The result is "" if no command repeats the run: its network is a custom one, or one of
    its settings cannot be given on the command line.
    """
    settings, words = run.changed_settings, ["mlimages", "finetune"]
    if str(run.settings["model"])[:1].isupper():
        return ""
    words.append(_shorten_path(settings.get("labels", "labels.txt")))
    for field in option_fields(FineTuneConfig):
        value = settings.get(field.name)
        if field.name in ("labels", "out") or value in (None, "", []):
            continue
        if field.option.is_internal:
            return ""
        words += _make_option_words(field, value)
    return shlex.join([*words, "-o", _shorten_path(run.path)])


def _make_option_words(field: OptionField, value: Any) -> list[str]:
    """Return the words that set an option on the command line: its flag and, unless it is a switch, its value."""
    flag = field.option.flags[0] if field.option.flags else f"--{field.name.replace('_', '-')}"
    if isinstance(value, bool):
        return flag.split("/")[:1] if value else flag.split("/")[1:]  # --cache/--no-cache
    if isinstance(value, list):
        return [flag, ("x" if field.name == "size" else ",").join(map(str, value))]
    return [flag, _shorten_path(value) if field.name in PATH_SETTINGS else str(value)]


def _shorten_path(path: str | Path) -> str:
    """Return the path relative to the current folder.

    If it is outside, only the file's name is returned, so that the export does not disclose the folders.
    """
    whole = Path(os.path.abspath(path))  # noqa: PTH100  # without ".."
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else whole.name


def _compute_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
