"""What every command says alike."""

from __future__ import annotations

import shlex
import sys


def counted(count: int, noun: str) -> str:
    """How many: "1 class", "2 classes"."""
    return f"{count} {noun if count == 1 else noun + ('es' if noun.endswith('s') else 's')}"


def say_next(*words: object) -> None:
    """Name the command to type next, ready for the shell: a path with a space in it stands in quotes."""
    print("next: mlimages", shlex.join(map(str, words)), file=sys.stderr)
