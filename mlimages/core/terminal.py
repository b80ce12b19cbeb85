"""Text for a terminal: commands, numbers with nouns, tables, and untrusted text without control characters."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import PurePath

_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of the characters that are escaped: control, format and surrogate characters, and line ends."""
_ALLOWED_FORMAT_CHARACTERS = frozenset("\u200c\u200d")
"""The zero-width joiner and non-joiner, which some scripts and emoji need."""


def format_command(*arguments: object) -> str:
    """Return a command of mlimages for a message, in backticks and quoted for the shell, so that it can be pasted.

    A path that begins with a dash is prefixed with `./`, since it would be read as an option.

    Example:
        >>> from pathlib import Path
        >>> format_command("label", Path("-my cats"), "--leaf")
        "`mlimages label './-my cats' --leaf`"
    """
    return f"`mlimages {shlex.join(map(_to_argument, arguments))}`"


def _to_argument(value: object) -> str:
    return f"./{value}" if isinstance(value, PurePath) and str(value).startswith("-") else str(value)


def format_examples(texts: Sequence[str], max_count: int = 10, *, separator: str = ", ") -> str:
    """Return the first `max_count` texts, with ` ...` if there are more.

    Example:
        >>> format_examples(["cats", "dogs", "owls"], 2)
        'cats, dogs ...'
    """
    return separator.join(texts[:max_count]) + " ..." * (len(texts) > max_count)


def pluralize(count: int, noun: str) -> str:
    """Return a number and its noun in the singular or plural: "1 class", "2 classes"."""
    return f"{count} {noun if count == 1 else noun + ('es' if noun.endswith('s') else 's')}"


def escape_unprintable(text: str) -> str:
    r"""Escape control and format characters (line ends, direction overrides), and bytes that are not UTF-8.

    Example:
        >>> escape_unprintable("cat\x1b[2J.png")
        'cat\\x1b[2J.png'
    """
    unsafe = {char for char in text if unicodedata.category(char) in _UNSAFE_CATEGORIES} - _ALLOWED_FORMAT_CHARACTERS
    return text.translate({ord(char): char.encode("unicode_escape").decode() for char in unsafe})


def format_table(rows: Sequence[Sequence[str]], *, left_columns: frozenset[int] = frozenset({0})) -> Iterator[str]:
    """Yield the rows as lines; the columns with an index in `left_columns` are left-aligned, the others right-aligned.

    Example:
        >>> list(format_table([("cats", "12"), ("ants", "7")]))
        ['cats 12', 'ants  7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) if number in left_columns else cell.rjust(width)
                 for number, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        yield " ".join(cells).rstrip()


def format_count(count: float) -> str:
    """Format a number; from 1000, with one decimal and K, M or G.

    Example:
        >>> format_count(34_900), format_count(105.4e6)
        ('34.9K', '105.4M')
    """
    for unit, factor in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f}{unit}"
    return f"{count:.0f}"
