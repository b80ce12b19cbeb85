"""What to search for, and the class that it fills."""

from __future__ import annotations

from collections.abc import Sequence

from mlimages.core import InputError


def parse_queries(texts: Sequence[str]) -> dict[str, str]:
    """`lizard=lizard reptile` is the class lizard, searched as "lizard reptile"; a bare word is both.

    Raises:
        InputError: an empty part, or one class twice.
    """
    classes: dict[str, str] = {}
    for text in texts:
        label, equals, query = (part.strip() for part in text.partition("="))
        if not label or (equals and not query):
            raise InputError(f"cannot search for {text!r}: expected WORDS or CLASS=WORDS")
        if label in classes:
            raise InputError(f"the class {label!r} is given twice")
        classes[label] = query or label
    return classes
