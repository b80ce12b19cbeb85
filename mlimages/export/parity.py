"""Compare the outputs of an exported file with those of the trained network, image by image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlimages import images
from mlimages.core import ExportError, ImageError, LabeledPath, Progress, ThreadPool, format_percent
from mlimages.export.onnx_writer import TrainedNetwork
from mlimages.export.targets import ComputeLogits
from mlimages.inference import OnnxBundle, ParityResult, Task, compute_relative_difference, to_graph_input

NEAR_TIE_MARGIN = 1e-4
"""Largest accepted margin in the network's probabilities if the file and the network predict different classes.

The margin is the difference between the probabilities of the two classes. For a class of a multi-label model, it is
the difference between the probability and the threshold of the class.
"""

LOGIT_TOLERANCE = 1e-3
"""Maximum difference of a logit for the same pixels, relative to the largest absolute logit of the network."""

RESIZE_TOLERANCE = 5e-2
"""Like LOGIT_TOLERANCE, for a file that resizes the image itself: a few pixel values differ from Pillow's by 1 to 3."""

BATCH_SIZE = 8


class ResizeParityError(ExportError):
    """The outputs differ only because of the resize in the exported file; they match with Pillow's resize."""


@dataclass(frozen=True, slots=True)
class NetworkOutputs:
    """Images and their logits from the trained network.

    Attributes:
        labeled_paths: paths and labels of the images that could be decoded.
        logits: float32 `(N, classes)`, one row per image.
    """

    labeled_paths: tuple[LabeledPath, ...]
    logits: NDArray[np.float32]

    def sample(self, max_images: int) -> NetworkOutputs:
        """Return at most `max_images` of the images, evenly spaced, with their logits."""
        if len(self.labeled_paths) <= max_images:
            return self
        indices = np.linspace(0, len(self.labeled_paths) - 1, max_images).round().astype(np.int64)
        return NetworkOutputs(tuple(self.labeled_paths[index] for index in indices), self.logits[indices])

    @property
    def labels(self) -> NDArray[np.int64]:
        """The true class indices `(N,)`; -1 for multi-label images."""
        return np.array([item.label for item in self.labeled_paths], np.int64)


def compute_network_outputs(
    trained_network: TrainedNetwork, items: Iterable[LabeledPath], *, progress: Progress
) -> NetworkOutputs:
    """Return the trained network's logits for every image that can be decoded."""

    def decode() -> Iterator[tuple[LabeledPath, NDArray[np.uint8]]]:
        for item in items:
            with suppress(ImageError):
                yield item, images.load_pixels(item.path, trained_network.preprocessing.image)

    progress.start("network", None, "images")
    decoded_items: list[LabeledPath] = []
    logits = [np.empty((0, len(trained_network.class_names)), np.float32)]
    decoded = decode()
    while batch := list(islice(decoded, BATCH_SIZE)):
        decoded_items += [item for item, _ in batch]
        logits.append(trained_network.compute_logits([pixels for _, pixels in batch]))
        progress.advance(len(batch))
    progress.close()
    return NetworkOutputs(tuple(decoded_items), np.concatenate(logits))


def check_parity(
    trained_network: TrainedNetwork,
    bundle: OnnxBundle,
    outputs: NetworkOutputs,
    compute_logits: ComputeLogits,
    *,
    progress: Progress,
    workers: int = 1,
) -> ParityResult:
    """Compare the outputs of the file with those of the network; this covers the preprocessing if the file includes it.

    Args:
        trained_network: the network.
        bundle: the metadata of the file.
        outputs: the images, and the network's outputs.
        compute_logits: returns the logits of the file.
        progress: shows the number of images compared.
        workers: number of threads that call `compute_logits`.

    Raises:
        ResizeParityError: outputs differ only because of the resize inside the file.
        ExportError: outputs differ; the message names the image with the largest difference.
    """
    comparer = _LogitsComparer(trained_network, bundle.task, compute_logits)
    compare = comparer.compare_end_to_end if bundle.includes_preprocessing else comparer.compare_without_preprocessing
    paths = [item.path for item in outputs.labeled_paths]
    progress.start("onnx", len(paths), "images")
    comparisons: list[_ImageComparison] = []
    for comparison in ThreadPool(workers).map(lambda pair: compare(*pair), zip(paths, outputs.logits, strict=True)):
        comparisons.append(comparison)
        progress.advance()
    progress.close()
    for error, cause in ((ExportError, "network"), (ResizeParityError, "resize")):
        failures = [comparison for comparison in comparisons if comparison.mismatch_cause == cause]
        if failures:
            worst = max(failures, key=lambda comparison: comparison.relative_difference)
            raise error(worst.describe_mismatch(trained_network.class_names))
    near_ties = sum(comparison.torch_classes != comparison.onnx_classes for comparison in comparisons)
    difference = max((comparison.relative_difference for comparison in comparisons), default=0.0)
    return ParityResult(len(comparisons), near_ties, difference)


@dataclass(frozen=True, slots=True)
class _ImageComparison:
    """Comparison of the outputs for one image.

    Attributes:
        relative_difference: largest difference of a logit, relative to the largest absolute logit.
        torch_classes, onnx_classes: indices of the predicted classes: the most probable one, or all that reach their
            thresholds if the model is multi-label.
        mismatch_cause: what a difference beyond the tolerance is due to; "" if the outputs match.
    """

    path: Path
    relative_difference: float
    torch_classes: tuple[int, ...]
    onnx_classes: tuple[int, ...]
    mismatch_cause: Literal["", "network", "resize"]

    def describe_mismatch(self, class_names: tuple[str, ...]) -> str:
        network, file = (
            " and ".join(class_names[label] for label in labels) or "none"
            for labels in (self.torch_classes, self.onnx_classes)
        )
        return (
            "the outputs of the ONNX file do not match the network's; the largest difference is for "
            f"{self.path}: the network predicts {network}, the file {file}; the logits differ by up to "
            f"{format_percent(self.relative_difference)} of the largest one; nothing was written"
        )


@dataclass(frozen=True, slots=True)
class _LogitsComparer:
    """Compares the outputs of an ONNX file with those of the network, for one image at a time."""

    trained_network: TrainedNetwork
    task: Task
    compute_onnx_logits: ComputeLogits

    def compare_end_to_end(self, path: Path, expected_logits: NDArray[np.float32]) -> _ImageComparison:
        """Compare the logits of an exported file, which preprocesses the image at `path`, with those of the network.

        If the logits differ, the file is run again on an image that is already preprocessed, which the resize and crop
        in the file leave unchanged. The logits then show whether the network or the resize is the cause.
        """
        prop, rgb = self.trained_network.preprocessing.image, images.load_rgb(path)
        logits = self.compute_onnx_logits(np.asarray(rgb)[None])[0]  # (classes,)
        end_to_end = self._compare_logits(path, logits, expected_logits, LOGIT_TOLERANCE, cause="resize")
        if not end_to_end.mismatch_cause:
            return end_to_end
        pixels, full_pixels = images.load_pixels(path, prop), images.prepare_pixels(rgb, prop)
        same_pixels_logits = self.compute_onnx_logits(to_graph_input([pixels], prop))[0]
        same_pixels = self._compare_logits(path, same_pixels_logits, expected_logits, LOGIT_TOLERANCE, cause="network")
        if same_pixels.mismatch_cause:
            return same_pixels
        if not np.array_equal(pixels, full_pixels):  # load_pixels may decode a JPEG at reduced size
            expected_logits = self.trained_network.compute_logits([full_pixels])[0]
        return self._compare_logits(path, logits, expected_logits, RESIZE_TOLERANCE, cause="resize")

    def compare_without_preprocessing(self, path: Path, expected_logits: NDArray[np.float32]) -> _ImageComparison:
        """Compare the logits of an exported file without preprocessing with those of the network.

        The input of the file is the image at `path`, preprocessed and normalized here.
        """
        pixels = images.load_pixels(path, self.trained_network.preprocessing.image)
        x = self.trained_network.normalize_pixels([pixels]).numpy()  # (1, C, H, W)
        logits = self.compute_onnx_logits(x)[0]  # (classes,)
        return self._compare_logits(path, logits, expected_logits, LOGIT_TOLERANCE, cause="network")

    def _compare_logits(
        self,
        path: Path,
        logits: NDArray[np.float32],
        expected_logits: NDArray[np.float32],
        tolerance: float,
        *,
        cause: Literal["network", "resize"],
    ) -> _ImageComparison:
        difference = float(compute_relative_difference(logits[None], expected_logits[None])[0])
        torch_classes, onnx_classes = (self.task.predict_classes(each) for each in (expected_logits, logits))
        margin = self.task.compute_margin_over(expected_logits, onnx_classes)
        matches = difference <= tolerance and margin <= NEAR_TIE_MARGIN
        return _ImageComparison(path, difference, torch_classes, onnx_classes, "" if matches else cause)
