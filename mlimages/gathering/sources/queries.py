"""Search queries and their classes."""

from __future__ import annotations

from collections.abc import Sequence

from mlimages.core import InputError


def parse_queries(query_texts: Sequence[str]) -> dict[str, str]:
    """Parse `lizard=lizard reptile` as the class lizard, searched as "lizard reptile"; plain words are both.

    Raises:
        InputError: a part is empty, or a class occurs twice.
    """
    classes: dict[str, str] = {}
    for text in query_texts:
        label, equals, query = (part.strip() for part in text.partition("="))
        if not label or (equals and not query):
            raise InputError(f"cannot search for {text!r}: expected QUERY or CLASS=QUERY")
        if label in classes:
            raise InputError(f"the class {label!r} appears twice: name each class once, as CLASS=QUERY")
        classes[label] = query or label
    return classes
