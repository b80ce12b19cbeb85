"""Each command of the command line, sub-commands included."""

from collections.abc import Iterator
from typing import Any

import typer.main

from mlimages.cli.main import app


def _iter_commands(command: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    children = getattr(command, "commands", {})
    if not children:
        yield words, command
    for name, child in sorted(children.items()):
        yield from _iter_commands(child, [*words, name])


COMMANDS = list(_iter_commands(typer.main.get_command(app), []))
"""The words of each command, and the command."""
