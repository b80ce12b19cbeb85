"""What commands print beside their results: what was understood of the input, and the next command."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlimages.labels import LabelFile


def say_next(*words: object) -> None:
    """Name the command to type next, ready for the shell: a path with a space in it stands in quotes."""
    print("next: mlimages", shlex.join(map(str, words)), file=sys.stderr)


def say(text: str) -> None:
    """Print a line that is no result, on standard error."""
    print(text, file=sys.stderr)


def read_labels(source: Path) -> LabelFile:
    """A label file, or a folder of class folders; what was understood of it is printed."""
    from mlimages.labels import open_labels

    labels = open_labels(source)
    for line in labels.notes:
        say(line)
    return labels


def read_parts(source: Path) -> list[LabelFile]:
    """The label files that a label file or a folder stands for; what was understood of them is printed."""
    from mlimages.labels import open_parts

    parts = list(open_parts(source).values())
    for line in dict.fromkeys(line for labels in parts for line in labels.notes):
        say(line)
    return parts
