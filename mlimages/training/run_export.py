"""Export a run to ONNX and summarize its network."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mlimages.core import NetworkSummary, Progress
from mlimages.export import ExportOptions, TrainedNetwork, export_network
from mlimages.inference import OnnxBundle, Provenance
from mlimages.labels import LabelFile
from mlimages.networks import summarize_model
from mlimages.reports import RunFiles, read_run
from mlimages.training.checkpoints import load_run


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> OnnxBundle:
    """Export a run's best network to ONNX, with the hashes of its weights and label files as metadata.

    Args:
        run: run folder.
        out: ONNX file to write.
        options: of the export.
        progress: shows the number of validation images compared.

    Returns:
        The exported file, ready for `predictor`.

    Raises:
        RunError: `run` is not a run folder.
        ExportError: its outputs differ from the network's; nothing is written, the worst image is named.

    >>> bundle = export_run("runs/cats", "cats.onnx")  # doctest: +SKIP
    """
    files, loaded = RunFiles(Path(run)), load_run(run)
    trained = TrainedNetwork(
        loaded.network, loaded.preprocessing, loaded.class_names, loaded.config.model, loaded.mean_image
    )
    splits = {name: path for name, path in (("train", files.train), ("val", files.val)) if path.exists()}
    provenance = Provenance(
        weights_sha256=_sha256(loaded.weights),
        data_sha256={name: _sha256(path) for name, path in splits.items()},
        split_sizes={name: sum(1 for _ in LabelFile(path)) for name, path in splits.items()},
    )
    return export_network(
        trained, Path(out), validation=LabelFile(files.val), options=options, provenance=provenance, progress=progress
    )


def summarize_run(run: str | os.PathLike[str]) -> NetworkSummary:
    """Summarize the network of a run, layer by layer: output shapes, parameters, which of them are frozen.

    Raises:
        RunError: `run` is not a run folder.

    >>> summary = summarize_run("runs/cats")  # doctest: +SKIP
    """
    folder = read_run(run)
    image, settings = folder.preprocessing.image, folder.settings
    return summarize_model(
        settings["model"],
        size=image.width,
        gray=image.gray_scale,
        classes=len(folder.class_names),
        upto=settings["freeze"],
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
