"""Summarize a label file in one line of text, or as a table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlimages.core import LabeledPath, format_examples, make_html_images, make_html_table, pluralize
from mlimages.labels.class_names import ClassNames

MAX_SHOWN_CLASSES = 20
"""Maximum number of classes in the HTML table."""


def summarize_labels(source: object, num_images: int, class_names: ClassNames) -> str:
    """Return one line with the path or name of the source, the number of images and the classes."""
    images, classes = pluralize(num_images, "image"), pluralize(len(class_names), "class")
    return f"{source}: {images}, {classes}: {format_examples(class_names)}"


def render_class_table(path: Path, items: Iterable[LabeledPath], class_names: ClassNames) -> str:
    """Return an HTML table of the classes: name, number of images, and the first images."""
    count = 0
    by_class: dict[int, list[Path]] = {label: [] for label in range(len(class_names))}
    for item in items:
        count += 1
        for label in item.class_indices:
            by_class.setdefault(label, []).append(item.path)
    rows = [
        (class_names[n], len(paths), make_html_images(paths)) for n, paths in by_class.items() if n < len(class_names)
    ]
    shown = f" (the first {MAX_SHOWN_CLASSES} are shown)" if len(rows) > MAX_SHOWN_CLASSES else ""
    title = f"{path}: {pluralize(count, 'image')}, {pluralize(len(class_names), 'class')}{shown}"
    return make_html_table(title, rows[:MAX_SHOWN_CLASSES], header=("class", "images", "first images"))
