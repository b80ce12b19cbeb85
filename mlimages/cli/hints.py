"""What commands print beside their results: what was understood of the input, and the next command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlimages.labels import LabelFile, TableOptions


def say_next(*words: object) -> None:
    """Name the command to type next, ready for the shell: a path with a space in it stands in quotes."""
    print("next: mlimages", shlex.join(map(str, words)), file=sys.stderr)


def given_options(values: Mapping[str, Any]) -> list[object]:
    """Options by name, as they are typed; those that were not given are left out."""
    return [word for name, value in values.items() if value for word in (f"--{name.replace('_', '-')}", value)]


def validation_beside(train: Path) -> list[object]:
    """`--val FILE` of a training file, if there is one of its name: labels_val.txt beside labels_train.txt."""
    head, found, tail = train.name.rpartition("train")
    val = train.with_name(f"{head}val{tail}")
    return ["--val", val] if found and val.exists() else []


def say(text: str) -> None:
    """Print a line that is no result, on standard error."""
    print(text, file=sys.stderr)


def read_labels(source: Path, table: Mapping[str, Any] | None = None) -> LabelFile:
    """A label file, or a folder of class folders; what was understood of it is printed.

    Args:
        table: values of the fields of `TableOptions`.
    """
    from mlimages.labels import TableOptions, open_labels

    labels = open_labels(source, TableOptions(**(table or {})))
    for line in labels.notes:
        say(line)
    return labels


def read_parts(source: Path, table: TableOptions) -> list[LabelFile]:
    """The label files that a label file or a folder stands for; what was understood of them is printed."""
    from mlimages.labels import open_parts

    parts = list(open_parts(source, table).values())
    for line in dict.fromkeys(line for labels in parts for line in labels.notes):
        say(line)
    return parts
