"""Run an exported file in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlimages.core import BundleError, ImageProperty, format_command, summarize_error
from mlimages.inference.bundle import INPUT, KNOWN, LOGITS, PROBABILITIES, OnnxBundle, find_model_file
from mlimages.inference.onnx_file import open_session, read_metadata, run_with_timeout

LogitsAndProbabilities = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits and probabilities, each `(N, classes)`."""

PARITY_TIMEOUT_S = 120.0
"""Time-out of the inference on the parity test image when a file is opened; large networks take seconds."""


class BundleSession:
    """An ONNX Runtime session for an exported file. It is thread-safe, and each call runs on a single thread.

    Args:
        bundle: an exported file that includes its preprocessing, the path of such a file, or a run folder.

    Raises:
        BundleError: the file cannot be opened or run, has no preprocessing, or its logits or its number of classes
            differ from the stored ones.
    """

    def __init__(self, bundle: str | os.PathLike[str] | OnnxBundle) -> None:
        path = bundle.path if isinstance(bundle, OnnxBundle) else find_model_file(bundle)
        self._session = open_session(path)
        if not isinstance(bundle, OnnxBundle):
            bundle = OnnxBundle.from_metadata(path, read_metadata(path, self._session))
        self.bundle = bundle
        if not self.bundle.includes_preprocessing:
            raise BundleError(
                f"{path} does not include preprocessing: only other programs can run it, with the input that "
                f"{format_command('summary', path)} describes; to use the run with mlimages, export it again without "
                "--no-preprocessing and --target"
            )
        self._check_parity()

    def run(self, pixels: Sequence[NDArray[np.uint8]]) -> LogitsAndProbabilities:
        """Return the logits and probabilities of images from `images.load_pixels`, each `(h, w, C)`, in one batch."""
        logits, probabilities, _ = self.compute_all_outputs(pixels)
        return logits, probabilities

    def compute_all_outputs(
        self, pixels: Sequence[NDArray[np.uint8]]
    ) -> tuple[*LogitsAndProbabilities, NDArray[np.float32] | None]:
        """Return logits, probabilities and in-distribution scores `(N,)`. The scores are None if the file has none."""
        names = [LOGITS, PROBABILITIES, *([KNOWN] if self.bundle.known else [])]
        images = to_graph_input(pixels, self.bundle.preprocessing.image)
        logits, probabilities, *known = self._session.run(names, {INPUT: images})
        return logits, probabilities, known[0] if known else None

    def _check_parity(self) -> None:
        """Raise BundleError unless the file returns the stored logits, and one probability per class name."""
        probe = self.bundle.parity_test_image
        image = np.frombuffer(probe.pixels, np.uint8).reshape(1, probe.height, probe.width, 3)
        try:
            logits, probabilities = run_with_timeout(
                self._session, [LOGITS, PROBABILITIES], {INPUT: image}, timeout_s=PARITY_TIMEOUT_S
            )
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise BundleError(f"{self.bundle.path} cannot be run: {summarize_error(error)}") from error
        expected = np.array([probe.logits], np.float32)  # (1, classes)
        if logits.shape != expected.shape or compute_relative_difference(logits, expected)[0] > probe.tolerance:
            raise BundleError(
                f"{self.bundle.path} does not reproduce the logits stored with its test image: export it again"
            )
        if probabilities.shape[1] != len(self.bundle.class_names):
            raise BundleError(
                f"{self.bundle.path} has {len(self.bundle.class_names)} class names but returns "
                f"{probabilities.shape[1]} probabilities per image: export it again"
            )


def to_graph_input(pixels: Sequence[NDArray[np.uint8]], image_property: ImageProperty) -> NDArray[np.uint8]:
    """Pad preprocessed images so that the graph's resize and crop turn them back into the same images.

    The result is uint8 `(N, H, W, 3)`. The graph resizes and crops each image, as `image_property` specifies. With the
    resize methods `shorter` and `position`, the crop in the graph removes the padding. If `image_property.position` is
    negative, the graph adds black pixels, so this function removes them first. The other methods do not change an image
    that already has the output size, so nothing is padded. Gray pixels are repeated over three channels.

    Args:
        pixels: preprocessed images, each `(h, w, C)`, such as from `images.load_pixels`.
        image_property: the preprocessing of the graph.
    """
    top = left = 0
    height, width = image_property.height, image_property.width
    if image_property.resize == "shorter":
        top, left = round((image_property.shorter_px - height) / 2), round((image_property.shorter_px - width) / 2)
        height = width = image_property.shorter_px
    elif image_property.resize == "position":
        left, top = image_property.position
        height, width = max(1, height + top), max(1, width + left)
    frame = np.zeros((len(pixels), height, width, 3), np.uint8)
    for n, image in enumerate(pixels):
        inside = image[max(0, -top) :, max(0, -left) :]
        frame[n, max(0, top) :, max(0, left) :][: inside.shape[0], : inside.shape[1]] = inside
    return frame


def compute_relative_difference(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return for each image the largest difference of a logit, divided by its largest absolute expected logit: `(N,)`.

    For an image with a NaN, it is infinite. Both arguments are `(N, classes)`.
    """
    largest = np.maximum(np.abs(expected).max(axis=1), 1e-6)
    difference: NDArray[np.float32] = np.nan_to_num(np.abs(logits - expected).max(axis=1) / largest, nan=np.inf)
    return difference
