"""What commands and pages say alike."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """How many: "1 class", "2 classes"."""
    return f"{count} {noun if count == 1 else noun + ('es' if noun.endswith('s') else 's')}"
