"""Helpers of commands: reading label files, and printing notes, JSON and the next command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlimages import inference
from mlimages.core import BundleError, format_command
from mlimages.labels import LabelFile, TableOptions, open_labels


def print_next_command(*arguments: object) -> None:
    """Print the command to run next, quoted for the shell."""
    print_to_stderr(f"next: {format_command(*arguments)[1:-1]}")


def to_cli_args(values: Mapping[str, Any]) -> list[object]:
    """Return the command-line arguments for options with these values, by name; False and empty values are omitted."""
    return [
        word
        for name, value in values.items()
        if value
        for word in (f"--{name.replace('_', '-')}", *([] if value is True else [value]))
    ]


def find_validation_option(train_file: Path) -> list[object]:
    """Return `["--val", FILE]` if FILE exists, such as labels_val.txt for labels_train.txt; else an empty list."""
    before, match, after = train_file.name.rpartition("train")
    val = train_file.parent / f"{before}val{after}"
    return ["--val", val] if match and val.exists() else []


def open_model(
    model: Path, other_arguments: Sequence[str | Path], *, workers: int | None = None
) -> inference.Predictor:
    """Open a model, the first argument of a command.

    Raises:
        BundleError: `model` cannot be read. If it exists but is not a model, and one of the other arguments is one
            (judging by file names), the message asks to swap them.
    """
    try:
        return inference.Predictor(model, workers=workers)
    except BundleError as error:
        other_model = next((other for other in other_arguments if _is_model_path(Path(other))), None)
        if other_model is None or _is_model_path(model) or not model.exists():
            raise
        raise BundleError(f"{model} is not a model, but {other_model} is: swap the two arguments") from error


def _is_model_path(path: Path) -> bool:
    """Whether a path is an .onnx file or a run folder, judging by file names."""
    return path.suffix == ".onnx" or (path / "model.onnx").exists() or (path / "config.json").exists()


def print_to_stderr(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr)


def print_as_json(values: object) -> None:
    """Print a value as one line of JSON."""
    print(json.dumps(values, ensure_ascii=False, default=str))


def read_labels(source: Path, table_options: Mapping[str, Any] | None = None) -> LabelFile:
    """Open a label file or a folder of class folders, and print notes about how it was read.

    Args:
        source: path of the label file or folder.
        table_options: values of the fields of `TableOptions`, by name.
    """
    labels = open_labels(source, TableOptions(**(table_options or {})))
    print_notes([labels])
    return labels


def print_notes(files: Iterable[LabelFile]) -> None:
    """Print the notes about how label files and folders were read, each of them once."""
    for line in dict.fromkeys(line for labels in files for line in labels.notes):
        print_to_stderr(line)
