"""Predict with ONNX Runtime on all cores, from the same pixels as in training."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlimages import images
from mlimages.core import (
    MAX_PIXELS,
    BrokenImage,
    ClassScore,
    Fault,
    ImageError,
    MlimagesError,
    Prediction,
    Proportion,
    ThreadPool,
    as_path,
    check_at_least,
    count_available_cores,
    format_interval,
    format_percent,
    is_remote,
    make_html_table,
    pluralize,
)
from mlimages.images import MIN_REMOTE_READERS
from mlimages.inference.bundle import OnnxBundle
from mlimages.inference.calibration import softmax
from mlimages.inference.inputs import URL_ERROR_MESSAGE, is_unsupported_url
from mlimages.inference.session import BundleSession

KNOWN_THRESHOLD = 0.5
"""Minimum value of the output `known` at which an image counts as in-distribution."""

PREDICTION_SET_LEVEL = "0.9"
"""Coverage level of the prediction sets, that is, the probability with which a set includes the true class."""

ImageInput = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image
"""A path, an encoded image, a PIL image, or pixels: uint8 RGB `(H, W, 3)` or gray `(H, W)`, upright."""


@dataclass(frozen=True, slots=True)
class TimedResult:
    """The result for one image, and the time that it took.

    Attributes:
        result: the prediction, or why the image could not be decoded.
        decode_s: seconds to read the image and preprocess its pixels.
        inference_s: seconds to compute the outputs of the batch, divided by the number of its images.
        logits: the output `logits`, float32 `(classes,)`; None if the image could not be decoded.
    """

    result: Prediction | BrokenImage
    decode_s: float
    inference_s: float = 0.0
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class OutputRow:
    """The outputs of the exported model for one image.

    Attributes:
        probabilities: float32 `(classes,)`.
        logits: float32 `(classes,)`.
        known_score: in-distribution score (0..1), the output `known`; None if the file has no such output.
        prediction_set: class indices of the prediction set, the most probable first; None if the file has no threshold
            for prediction sets.
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]
    known_score: float | None = None
    prediction_set: tuple[int, ...] | None = None


def compute_prediction_set(probabilities: NDArray[np.floating], threshold: float) -> tuple[int, ...]:
    """Return the indices of the classes whose probability `(classes,)` reaches the threshold, the most probable first.

    If no class reaches it, the set contains the most probable class.

    Args:
        probabilities: softmax of the logits `(classes,)`, without temperature.
        threshold: a threshold of `compute_conformal_thresholds`.
    """
    order = (-probabilities).argsort(kind="stable").tolist()
    return tuple(label for label in order if probabilities[label] >= threshold) or (order[0],)


class Predictor:
    """Predicts the class of images; thread-safe. Unpickling a predictor opens its file again.

    Args:
        bundle: an .onnx file written by `mlimages export`, or a run folder.
        workers: number of threads that decode and compute; by default one per available core.
        max_pixels: maximum number of pixels (width x height) of an encoded image, given as path or bytes; a larger one
            is not decoded but becomes a BrokenImage.

    Raises:
        InputError: `workers` or `max_pixels` is below 1.
        BundleError: the file cannot be used, or the logits of its parity test image differ from the stored ones.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | OnnxBundle,
        *,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_at_least(1, workers=workers, max_pixels=max_pixels)
        self._session = BundleSession(bundle)
        self.bundle = self._session.bundle
        self.workers = workers or count_available_cores()
        self.max_pixels = max_pixels

    def __reduce__(self) -> tuple[Callable[..., Predictor], tuple[OnnxBundle]]:
        """Pickle the bundle and the settings: the file is opened again where the predictor is used."""
        return partial(type(self), workers=self.workers, max_pixels=self.max_pixels), (self.bundle,)

    def __repr__(self) -> str:
        return f"Predictor({str(self.bundle.path)!r}, workers={self.workers})"

    def _repr_html_(self) -> str:
        rows = [("classes", ", ".join(self.bundle.class_names)), ("network", self.bundle.model)]
        provenance = self.bundle.provenance
        if score := provenance.accuracy or provenance.mean_ap:
            images = pluralize(provenance.num_evaluated_images, f"{provenance.evaluated_set} image")
            text = f"{format_percent(score[0])} on {images}"
            name = "mAP" if self.bundle.multi_label else "accuracy"
            rows.append((name, f"{text} (95 % interval {format_interval(Proportion(*score))})"))
        return make_html_table(f"model {self.bundle.path}", rows)

    def __call__(
        self, images: ImageInput | Iterable[ImageInput], *, top: int | None = None
    ) -> list[Prediction | BrokenImage]:
        """Return one result per image, in order, with the `top` classes (all by default); a list even for one image.

        An array of shape `(N, H, W, 3)` is N images.

        Raises:
            TypeError: an input is neither a path, bytes, a PIL image nor a uint8 array.
            ValueError: the shape of an image is neither (H, W) nor (H, W, 3), or `top` is less than 1.

        Example:
            >>> predictor = Predictor("runs/first/model.onnx")
            >>> [len(result.top) for result in predictor(["photos/cats/0.png", "photos/dogs/0.png"], top=1)]
            [1, 1]
        """
        inputs = _to_list(images)
        batch = max(1, min(16, -(-len(inputs) // self.workers)))
        return [answer.result for answer in self.stream(inputs, top=top, batch_size=batch)]

    def stream(
        self, images: Iterable[ImageInput], *, top: int | None = None, batch_size: int = 16
    ) -> Iterator[TimedResult]:
        """Yield one result per image, in order, while `images` is being read.

        At most a few batches per worker are in memory.

        Args:
            top: number of classes in each prediction; all by default.
            batch_size: number of images that a worker processes at a time.

        Raises:
            TypeError, ValueError: as for a call of the predictor, or `batch_size` is less than 1.
        """
        if top is not None and top < 1:
            raise ValueError(f"top is {top}: expected the number of classes to return, at least 1")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected the number of images in a batch, at least 1")
        source = iter(images)
        chunks = iter(lambda: list(islice(source, batch_size)), [])
        for answers in ThreadPool(self.workers, prefetch_factor=2).map(partial(self.predict_batch, top=top), chunks):
            yield from answers

    def predict_batch(self, images: Sequence[ImageInput], *, top: int | None = None) -> list[TimedResult]:
        """Decode and predict one batch in the calling thread."""
        decode = ThreadPool(MIN_REMOTE_READERS).map if any(map(_is_remote_input, images)) else map
        decoded = list(decode(self.decode, images))
        good = [pixels for pixels, _ in decoded if not isinstance(pixels, BrokenImage)]
        begin = time.perf_counter()
        rows = iter(self.compute_output_rows(good) if good else ())
        inference_s = (time.perf_counter() - begin) / max(1, len(good))
        results = []
        for image, (pixels, decode_s) in zip(images, decoded, strict=True):
            if isinstance(pixels, BrokenImage):
                results.append(TimedResult(pixels, decode_s))
                continue
            row = next(rows)
            prediction = self.make_prediction(get_input_path(image), row, top=top)
            results.append(TimedResult(prediction, decode_s, inference_s, row.logits))
        return results

    def decode(self, image: ImageInput) -> tuple[NDArray[np.uint8] | BrokenImage, float]:
        """Decode, resize and crop an image for the network; return the pixels, and the time taken in seconds.

        Returns:
            The pixels, uint8 `(h, w, C)`, or a BrokenImage if the image cannot be decoded; and the seconds.

        Raises:
            TypeError: `image` is none of the inputs of `Predictor`.
            ValueError: `image` is an array whose shape is neither (H, W) nor (H, W, 3).
        """
        _check_input(image)
        begin = time.perf_counter()
        prop = self.bundle.preprocessing.image
        try:
            if isinstance(image, Image.Image):
                pixels = images.prepare_pixels(images.to_upright_rgb(image), prop)
            elif isinstance(image, np.ndarray):
                pixels = images.prepare_pixels(Image.fromarray(image).convert("RGB"), prop)
            else:
                if isinstance(image, str) and is_unsupported_url(image):
                    raise ImageError(Fault.MISSING, URL_ERROR_MESSAGE)
                source = image if isinstance(image, bytes | Path) else as_path(image)
                pixels = images.load_pixels(source, prop, max_pixels=self.max_pixels)
        except Exception as error:  # decoders raise errors of any kind; they must not affect the other images
            return _make_broken_image(get_input_path(image), error), time.perf_counter() - begin
        return pixels, time.perf_counter() - begin

    def compute_output_rows(self, pixels: Sequence[NDArray[np.uint8]]) -> list[OutputRow]:
        """Compute the outputs for images from `decode` in one batch; return one row per image."""
        logits, probabilities, known = self._session.compute_all_outputs(pixels)
        thresholds = self.bundle.prediction_sets.thresholds if self.bundle.prediction_sets else {}
        shares = softmax(logits) if PREDICTION_SET_LEVEL in thresholds else None  # (N, classes)
        return [
            OutputRow(
                probabilities[n],
                logits[n],
                None if known is None else float(known[n]),
                None if shares is None else compute_prediction_set(shares[n], thresholds[PREDICTION_SET_LEVEL]),
            )
            for n in range(len(pixels))
        ]

    def compute_probabilities(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Compute the probabilities of images from `decode` in one batch, float32 `(N, classes)`."""
        return self._session.run(pixels)[1]

    def make_prediction(self, path: str, row: OutputRow, *, top: int | None = None) -> Prediction:
        """Convert one row of outputs to a Prediction, whose classes are sorted by decreasing probability."""
        order: list[int] = (-row.probabilities).argsort(kind="stable").tolist()
        names, labels = self.bundle.class_names, self.bundle.task.apply_thresholds(row.probabilities)
        every = tuple(ClassScore(names[label], label, float(row.probabilities[label])) for label in order)
        scores = every[:top]
        known = None if row.known_score is None else row.known_score >= KNOWN_THRESHOLD
        if self.bundle.unknown_below:
            known = known is not False and scores[0].probability >= self.bundle.unknown_below
        return Prediction(
            path,
            scores,
            known=known,
            known_score=row.known_score,
            prediction_set=None if row.prediction_set is None else tuple(names[label] for label in row.prediction_set),
            labels=None if labels is None else tuple(score for score in every if score.label in labels),
        )


def _to_list(images: ImageInput | Iterable[ImageInput]) -> list[ImageInput]:
    """Return the images as a list; a single image is put into a list, an array of four dimensions is split."""
    if isinstance(images, str | bytes | os.PathLike | Image.Image) or _is_path_object(images):
        return [images]  # type: ignore[list-item]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise TypeError(f"expected an image or an iterable of images, got {type(images).__name__}")
    return list(images)


def _is_path_object(image: object) -> bool:
    """Return whether `image` is a `pathlib.Path` or a remote path, which has the same methods."""
    return hasattr(image, "read_bytes")


def _is_remote_input(image: ImageInput) -> bool:
    """Return whether the image must be downloaded from remote storage."""
    return is_remote(image) if isinstance(image, str) else _is_path_object(image) and not isinstance(image, os.PathLike)


def _check_input(image: ImageInput) -> ImageInput:
    """Return `image`; raise TypeError or ValueError if it is not one of the inputs of `Predictor`."""
    if isinstance(image, str | bytes | os.PathLike | Image.Image) or _is_path_object(image):
        return image
    if not isinstance(image, np.ndarray):
        raise TypeError(f"expected a path, bytes, a PIL image or a uint8 array, got {type(image).__name__}")
    if image.dtype != np.uint8:
        raise TypeError(f"expected a uint8 array with values 0 to 255, got {image.dtype}: convert it first")
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or 0 in image.shape:
        raise ValueError(f"expected an array of shape (H, W, 3) or (H, W), got {image.shape}")
    return image


def _make_broken_image(path: str, error: Exception) -> BrokenImage:
    if isinstance(error, ImageError):
        return BrokenImage(path, error.fault, error.detail)
    if isinstance(error, MlimagesError):  # from `as_path`
        return BrokenImage(path, Fault.MISSING, str(error))
    return BrokenImage(path, Fault.CORRUPT, f"the decoder failed ({type(error).__name__})")


def get_input_path(image: ImageInput) -> str:
    """Return the path of an image as text; "" for an image in memory."""
    if isinstance(image, bytes | np.ndarray | Image.Image):
        return ""
    return os.fspath(image) if isinstance(image, os.PathLike) else str(image)
