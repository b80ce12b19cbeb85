"""What every command says at its end."""

from __future__ import annotations

import shlex
import sys


def say_next(*words: object) -> None:
    """Name the command to type next, ready for the shell: a path with a space in it stands in quotes."""
    print("next: mlimages", shlex.join(map(str, words)), file=sys.stderr)
