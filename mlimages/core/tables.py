"""Text tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


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
