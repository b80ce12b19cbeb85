"""Table of the images of a check: one row per image, in the order of the label files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlimages.checks.codes import CODES, Code
from mlimages.checks.measurements import MeasurementTable, make_measurement_table
from mlimages.core import LabelFileError, as_path
from mlimages.labels import Label, LabelFile, format_label, merge_classes

DIGEST_BYTES = 16
"""Number of bytes of each SHA-256 that are stored."""

FINDING_DTYPE = np.dtype([("index", "i4"), ("code", "i1"), ("other", "i4")])
"""A finding: index of the image, index of the code in `CODES`, and index of the related image (-1: none)."""


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Table of images, stored by column in 330 bytes per image; the images of a label file are consecutive.

    Attributes:
        files: the label files.
        file_starts: index of the first image of each label file, then the number of all images `(F + 1,)`.
        class_names: class names of all label files, merged by name.
        class_index_maps: for each label file, an array that maps its class indices to indices in `class_names`.
        distinct_labels: the distinct labels, each a tuple of indices in `class_names` (of one index in single-label
            files).
        label_indices: index in `distinct_labels` of each image's label `(N,)`.
        measurements: `Measurements` of each image `(N,)`; zeros if not decoded.
        digests: first 16 bytes of the SHA-256 of each image `(N, 2)`; zeros if not decoded.
        fault_codes: index in `CODES` of the fault of each image file, such as `truncated` or `wrong-suffix` `(N,)`; -1
            if it has none.
        fault_details: description of that fault `(N,)`; "" if it has none.
    """

    files: tuple[LabelFile, ...]
    file_starts: tuple[int, ...]
    class_names: tuple[str, ...]
    class_index_maps: tuple[NDArray[np.intp], ...]
    distinct_labels: tuple[tuple[int, ...], ...]
    label_indices: NDArray[np.int32]
    measurements: MeasurementTable
    digests: NDArray[np.uint64]
    fault_codes: NDArray[np.int8]
    fault_details: NDArray[np.object_]

    @classmethod
    def from_files(cls, files: Sequence[LabelFile]) -> ImageTable:
        """Create a table with the classes of all images, without reading the images.

        Raises:
            LabelFileError: a label file or one of its lines cannot be read.
        """
        _, own_names = merge_classes(files)
        class_names = tuple(dict.fromkeys(chain(*own_names)))
        index = {name: number for number, name in enumerate(class_names)}
        class_index_maps = tuple(np.array([index[name] for name in names], np.intp) for names in own_names)
        distinct: dict[tuple[int, ...], int] = {(n,): n for n in range(len(class_names))}
        labels = [
            _find_label_indices(file, class_index_map, distinct)
            for file, class_index_map in zip(files, class_index_maps, strict=True)
        ]
        label_indices = np.concatenate([np.empty(0, np.int32), *labels])
        count = len(label_indices)
        return cls(
            files=tuple(files),
            file_starts=tuple(accumulate(map(len, labels), initial=0)),
            class_names=class_names,
            class_index_maps=class_index_maps,
            distinct_labels=tuple(distinct),
            label_indices=label_indices,
            measurements=np.zeros(count, make_measurement_table([]).dtype),
            digests=np.zeros((count, 2), np.uint64),
            fault_codes=np.full(count, -1, np.int8),
            fault_details=np.full(count, "", np.object_),
        )

    def __len__(self) -> int:
        return len(self.label_indices)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have any number of classes."""
        return any(file.is_multi_label for file in self.files)

    def format_label(self, index: int) -> str:
        """Return the class of an image, or its classes separated by `;`."""
        return format_label(self.distinct_labels[self.label_indices[index]], self.class_names)

    def count_by_merged_class(self, file_index: int) -> NDArray[np.intp]:
        """Return the number of images `(K,)` of each of `class_names` in the label file `files[file_index]`.

        It is 0 for the classes of other files.
        """
        counts = np.zeros(len(self.class_names), np.intp)
        counts_by_label = np.bincount(
            self.label_indices[slice(*self.file_starts[file_index : file_index + 2])],
            minlength=len(self.distinct_labels),
        )
        for classes, count in zip(self.distinct_labels, counts_by_label, strict=True):
            counts[list(classes)] += count
        return counts

    @property
    def decoded_mask(self) -> NDArray[np.bool_]:
        """Whether each image was decoded, bool `(N,)`."""
        decoded: NDArray[np.bool_] = self.measurements["width"] > 0
        return decoded

    def iter_labels(self, file_index: int) -> Iterator[tuple[int, str, Label]]:
        """Read the label file `files[file_index]` again; yield each image's index in the table, path and class index in
        that file.

        Raises:
            LabelFileError: the label file has been removed, or has another number of images than the table.
        """
        rows = range(*self.file_starts[file_index : file_index + 2])
        try:
            for index, (path, label) in zip(rows, self.files[file_index].text_items(), strict=True):
                yield index, path, label
        except ValueError as error:
            raise LabelFileError(
                f"{self.files[file_index].path} has changed since the check began: run the check again"
            ) from error

    def iter_all_labels(self) -> Iterator[tuple[int, str, Label]]:
        """Read all label files again, as `iter_labels` does."""
        return chain.from_iterable(map(self.iter_labels, range(len(self.files))))

    def find_paths(self, indices: Collection[int]) -> dict[int, Path]:
        """Return the paths of the images at these indices, by index."""
        return (
            {index: as_path(path) for index, path, _ in self.iter_all_labels() if index in indices} if indices else {}
        )

    def record_fault(self, index: int, code: Code, detail: str) -> None:
        """Set `fault_codes` and `fault_details` of an image."""
        self.fault_codes[index] = CODES.index(code)
        self.fault_details[index] = sys.intern(detail)  # many images have the same

    def count_by_file_and_class(self) -> Counter[tuple[int, str]]:
        """Return the number of images by (index of the label file, class name), without zeros."""
        return Counter({
            (file, self.class_names[number]): int(count)
            for file in range(len(self.files))
            for number, count in enumerate(self.count_by_merged_class(file))
            if count
        })  # fmt: skip


def _find_label_indices(
    file: LabelFile, class_index_map: NDArray[np.intp], distinct_labels: dict[tuple[int, ...], int]
) -> NDArray[np.int32]:
    """Return the index in `distinct_labels` of each image's label; new labels are added to it."""
    known: dict[Label, int] = {}
    rows = np.fromiter((known.setdefault(label, len(known)) for _, label in file.text_items()), np.int32)
    classes_by_label = (list(label) if isinstance(label, tuple) else [label] for label in known)
    own = [tuple(sorted(class_index_map[classes].tolist())) for classes in classes_by_label]
    return np.array([distinct_labels.setdefault(classes, len(distinct_labels)) for classes in own], np.int32)[rows]
