"""Describe a label file in a line of text, and as a table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlimages.core import LabeledPath, counted, html_images, html_table
from mlimages.labels.class_names import ClassNames
from mlimages.labels.tables import SHOWN

SHOWN_CLASSES = 20
"""Maximum number of rows of the table."""


def summary_line(path: Path, items: Iterable[object], names: ClassNames) -> str:
    """Return one line with the path, the number of images and the classes."""
    shown = ", ".join(names[:SHOWN]) + " ..." * (len(names) > SHOWN)
    return f"{path}: {counted(sum(1 for _ in items), 'image')}, {counted(len(names), 'class')}: {shown}"


def as_html(path: Path, items: Iterable[LabeledPath], names: ClassNames) -> str:
    """Return a table of the classes: name, number of images, and the first images."""
    count = 0
    by_class: dict[int, list[Path]] = {label: [] for label in range(len(names))}
    for item in items:
        count += 1
        for label in item.class_indices:
            by_class.setdefault(label, []).append(item.path)
    rows = [(names[n], len(paths), html_images(paths)) for n, paths in by_class.items() if n < len(names)]
    left = f", {len(rows) - SHOWN_CLASSES} more" if len(rows) > SHOWN_CLASSES else ""
    title = f"{path}: {counted(count, 'image')}, {counted(len(names), 'class')}"
    return html_table(title, rows[:SHOWN_CLASSES], header=("class", "images", f"the first images{left}"))
