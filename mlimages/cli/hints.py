"""Output of commands on standard error: notes on the input, and the next command."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlimages.core import BundleError, format_command

if TYPE_CHECKING:
    from mlimages.labels import LabelFile, TableOptions


def print_next_command(*words: object) -> None:
    """Print the next command to run, quoted for the shell."""
    print("next:", format_command(*words)[1:-1], file=sys.stderr)


def to_arguments(values: Mapping[str, Any]) -> list[object]:
    """Return the command-line arguments for the options whose value is set."""
    return [
        word
        for name, value in values.items()
        if value
        for word in (f"--{name.replace('_', '-')}", *([] if value is True else [value]))
    ]


def find_validation_option(train_file: Path) -> list[object]:
    """Return `--val FILE` if a training file has a validation file, such as labels_val.txt beside labels_train.txt."""
    head, found, tail = train_file.name.rpartition("train")
    val = train_file.with_name(f"{head}val{tail}")
    return ["--val", val] if found and val.exists() else []


@contextmanager
def require_model_first(model: Path, other_arguments: Sequence[str | Path]) -> Iterator[None]:
    """If `model` cannot be read as a model and another argument is one, say that the model comes first.

    Raises:
        BundleError: as raised within, or the arguments are swapped.
    """
    try:
        yield
    except BundleError as error:
        found = next((other for other in other_arguments if _is_model(Path(other))), None)
        if found is None or _is_model(model) or not model.exists():
            raise
        raise BundleError(f"{model} is not a model: the model, {found}, comes first") from error


def _is_model(path: Path) -> bool:
    """Whether a path is an .onnx file or a run folder, by its names alone."""
    return path.suffix == ".onnx" or (path / "model.onnx").exists() or (path / "config.json").exists()


def print_note(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr)


def read_labels(source: Path, table: Mapping[str, Any] | None = None) -> LabelFile:
    """Open a label file or a folder of class folders, and print its notes.

    Args:
        table: values of the fields of `TableOptions`.
    """
    from mlimages.labels import TableOptions, open_labels

    labels = open_labels(source, TableOptions(**(table or {})))
    for line in labels.notes:
        print_note(line)
    return labels


def read_parts(source: Path, table: TableOptions) -> list[LabelFile]:
    """Open a label file, or the train, val and test parts of a folder, and print their notes."""
    from mlimages.labels import open_parts

    parts = list(open_parts(source, table).values())
    for line in dict.fromkeys(line for labels in parts for line in labels.notes):
        print_note(line)
    return parts
