"""What is made of a run: its ONNX file and its summary."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlimages.core import NetworkSummary, Progress
from mlimages.export import ExportOptions, TrainedNetwork, export_network
from mlimages.inference import OnnxBundle, Provenance
from mlimages.labels import LabelFile
from mlimages.networks import summarize_model
from mlimages.reports import RunFiles, read_run
from mlimages.training.checkpoints import load_run


def export_run(
    run: Path, out: Path, *, options: ExportOptions | None = None, progress: Progress | None = None
) -> OnnxBundle:
    """Write a run's best network to `out`, with where it comes from.

    Raises:
        RunError: `run` is not a run folder.
        ExportError: the file does not answer as the network does; the worst picture is named and nothing is written.
    """
    files, loaded = RunFiles(run), load_run(run)
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
        trained, out, validation=LabelFile(files.val), options=options, provenance=provenance, progress=progress
    )


def summarize_run(run: Path) -> NetworkSummary:
    """The network of a run folder, at its size, frozen as it was.

    Raises:
        RunError: it is not a run folder.
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
