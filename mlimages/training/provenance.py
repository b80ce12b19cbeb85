"""Provenance of an exported file: label files, weights, and the command that repeats the run."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from mlimages.core import OptionField, option_fields
from mlimages.inference import Provenance
from mlimages.labels import LabelFile
from mlimages.reports import RunFiles, RunFolder, read_image_licenses, read_run
from mlimages.training.config import FineTuneConfig
from mlimages.training.run import PATH_SETTINGS


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
