"""Text that others chose (file names, class names) made harmless for a terminal."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Format characters that words of some languages, and emoji, are written with."""


def printable(text: str) -> str:
    r"""The text with control characters, direction overrides and bytes that are not UTF-8 written as escapes.

    Example:
        >>> printable("cat\x1b[2J.png")
        'cat\\x1b[2J.png'
    """
    return "".join(_escaped(char) if _is_unsafe(char) else char for char in text)


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
