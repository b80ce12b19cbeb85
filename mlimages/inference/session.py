"""A bundle opened in ONNX Runtime: the only place that runs an exported file."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlimages.core import BundleError, ImageProperty
from mlimages.inference.bundle import INPUT, KNOWN, LOGITS, PROBABILITIES, OnnxBundle, model_file
from mlimages.inference.onnx_metadata import open_session, read_metadata

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits and probabilities, each `(N, classes)`."""


class BundleSession:
    """A bundle's network, ready to answer; thread-safe.

    Args:
        bundle: a file with its preprocessing inside, its path, or a run folder.
        threads: per call; 1 where several calls run at once.

    Raises:
        BundleError: ONNX Runtime cannot run the file, or its logits for its own probe differ.
    """

    def __init__(self, bundle: str | os.PathLike[str] | OnnxBundle, *, threads: int = 1) -> None:
        path = bundle.path if isinstance(bundle, OnnxBundle) else model_file(bundle)
        self._session = open_session(path, threads=threads)
        if not isinstance(bundle, OnnxBundle):
            bundle = OnnxBundle.from_metadata(path, read_metadata(path, self._session))
        self.bundle = bundle
        if not self.bundle.includes_preprocessing:
            raise BundleError(f"{path} was exported without preprocessing: export it again with --preprocessing")
        self._check_probe()

    def run(self, pixels: Sequence[NDArray[np.uint8]]) -> Outputs:
        """Answer images prepared by `images.load_pixels`, each `(h, w, C)`, in one batch."""
        return self.run_raw(at_fixed_point(pixels, self.bundle.preprocessing.image))

    def run_all(self, pixels: Sequence[NDArray[np.uint8]]) -> tuple[*Outputs, NDArray[np.float32] | None]:
        """Like `run`, with the output `known` `(N,)`, where the file has one."""
        names = [LOGITS, PROBABILITIES, *([KNOWN] if self.bundle.known else [])]
        images = at_fixed_point(pixels, self.bundle.preprocessing.image)
        logits, probabilities, *known = self._session.run(names, {INPUT: images})
        return logits, probabilities, known[0] if known else None

    def run_raw(self, images: NDArray[np.uint8]) -> Outputs:
        """Answer upright RGB images `(N, H, W, 3)` of any size; the graph itself prepares them."""
        logits, probabilities = self._session.run([LOGITS, PROBABILITIES], {INPUT: images})
        return logits, probabilities

    def _check_probe(self) -> None:
        probe = self.bundle.probe
        image = np.frombuffer(probe.pixels, np.uint8).reshape(1, probe.height, probe.width, 3)
        try:
            logits, probabilities = self.run_raw(image)
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise BundleError(f"{self.bundle.path} cannot be run: {_first_line(error)}") from error
        want = np.array([probe.logits], np.float32)  # (1, classes)
        if logits.shape != want.shape or relative_difference(logits, want)[0] > probe.tolerance:
            raise BundleError(f"{self.bundle.path} does not answer as its own probe says: export it again")
        if probabilities.shape[1] != len(self.bundle.class_names):
            raise BundleError(f"{self.bundle.path} names {len(self.bundle.class_names)} classes "
                              f"and answers {probabilities.shape[1]}: export it again")  # fmt: skip


def at_fixed_point(pixels: Sequence[NDArray[np.uint8]], prop: ImageProperty) -> NDArray[np.uint8]:
    """Prepared pixels `(h, w, C)`, framed so that a graph's own preparation gives them back: `(N, H, W, 3)`.

    `shorter` leaves a square of its own size alone and crops the centre, `position` crops there; the others leave a
    image of the prepared size alone. Grey is repeated over three channels: its luma is itself.
    """
    top = left = 0
    height, width = prop.height, prop.width
    if prop.resize == "shorter":
        top, left = round((prop.shorter_px - height) / 2), round((prop.shorter_px - width) / 2)
        height = width = prop.shorter_px
    elif prop.resize == "position":
        left, top = prop.position
        height, width = max(1, height + top), max(1, width + left)
    frame = np.zeros((len(pixels), height, width, 3), np.uint8)
    for n, one in enumerate(pixels):
        inside = one[max(0, -top) :, max(0, -left) :]
        frame[n, max(0, top) :, max(0, left) :][: inside.shape[0], : inside.shape[1]] = inside
    return frame


def relative_difference(logits: NDArray[np.float32], want: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each image's greatest difference of a logit, relative to its largest: `(N,)` from two `(N, classes)`."""
    largest = np.maximum(np.abs(want).max(axis=1), 1e-6)
    difference: NDArray[np.float32] = np.nan_to_num(np.abs(logits - want).max(axis=1) / largest, nan=np.inf)
    return difference


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
