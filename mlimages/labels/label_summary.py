"""Statistics of written label files, and where labels come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlimages.labels.label_file import LabelFile


@dataclass(frozen=True, slots=True)
class LabelFileSummary:
    """Statistics of a written label file.

    Attributes:
        path: path of the label file.
        num_images: number of images.
        class_counts: number of images by class name.
        is_multi_label: whether the label of an image is a list of classes, which may be empty, instead of one class.
    """

    path: Path
    num_images: int
    class_counts: Mapping[str, int]
    is_multi_label: bool = False

    @property
    def rare_classes(self) -> tuple[str, ...]:
        """Classes with fewer than two images."""
        return tuple(name for name, count in self.class_counts.items() if count < 2)


def find_source(labels: LabelFile) -> Path:
    """Return the path of the label file or, if the labels were not read from a file, of the folder of images."""
    return labels.path if labels.path.exists() else labels.img_root


def summarize_label_file(labels: LabelFile) -> LabelFileSummary:
    """Return statistics of a label file; a class without images is included only if the class definition names it."""
    (count, counts), defined = labels.count_images(), len(labels.defined_class_names)
    names = enumerate(labels.class_names)
    classes = {name: counts[label] for label, name in names if counts[label] or label < defined}
    return LabelFileSummary(labels.path, count, classes, labels.is_multi_label)
