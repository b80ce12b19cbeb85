"""A bounded queue of images, and threads that decode and classify them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlimages.core import BrokenImage
from mlimages.inference import Explanation, Predictor, TimedResult, explain
from mlimages.serving.problems import ApiError, make_busy_error

MAX_BATCH_SIZE = 4
"""Maximum batch size; larger batches gain little and take more memory."""

_MAX_BATCH_TIME_RATIO = 0.85
"""Batches are used only if their time per image, divided by the time of a single image, is below this ratio.

With AlexNet, 0.65 was measured.
"""

ImageData = bytes | NDArray[np.uint8]
"""An encoded image, or its pixels as uint8 RGB `(H, W, 3)`."""


@dataclass(frozen=True, slots=True)
class EngineResult:
    """The result for one image, and the seconds that the image spent in the queue."""

    timed_result: TimedResult
    queue_s: float


@dataclass(frozen=True, slots=True)
class _QueuedImage:
    """An image in the queue, since the time `queued_at_s` of `time.perf_counter`; `top` classes are to be returned."""

    image: ImageData
    top: int
    future: asyncio.Future[EngineResult]
    queued_at_s: float


class Engine:
    """Classifies images in several threads, each of which processes one batch at a time.

    Args:
        predictor: `predictor.workers` is the number of threads.
        queue_size: maximum number of queued images.
    """

    def __init__(self, predictor: Predictor, *, queue_size: int) -> None:
        self.predictor = predictor
        self.max_batch_size = MAX_BATCH_SIZE if is_batching_faster(predictor) else 1
        self._queue_size = queue_size
        self._waiting: deque[_QueuedImage] = deque()
        self._executor = ThreadPoolExecutor(predictor.workers, "predict")
        self._explainers = ThreadPoolExecutor(predictor.workers, "explain")  # separate, so that predictions do not wait
        self._free_explainers = threading.Semaphore(predictor.workers)

    @property
    def num_queued(self) -> int:
        """Number of images in the queue."""
        return len(self._waiting)

    def submit(self, images: Sequence[ImageData], *, top: int) -> list[asyncio.Future[EngineResult]]:
        """Add images to the queue, and return one future per image.

        The result of an image has `top` classes, or more if another image of its batch needs more.

        Raises:
            ApiError: the queue has no room for all images, or is too small for so many. No image is added.
        """
        if len(images) > self._queue_size:
            raise ApiError(
                413, "too-many-images", f"at most {self._queue_size} images per request, since the queue holds no more"
            )
        if self.num_queued + len(images) > self._queue_size:
            raise make_busy_error()
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        batch = [_QueuedImage(image, top, loop.create_future(), now) for image in images]
        self._waiting.extend(batch)
        for _ in batch:
            self._executor.submit(self._predict_next_batch)
        return [item.future for item in batch]

    def explain(self, image: bytes) -> asyncio.Future[Explanation | BrokenImage]:
        """Start to explain an image in an idle thread, and return a future of the explanation.

        The thread is in use until the explanation is finished, even if the request is cancelled.

        Raises:
            ApiError: all threads are busy.
        """
        if not self._free_explainers.acquire(blocking=False):
            raise make_busy_error()
        future = self._explainers.submit(explain, self.predictor, image, workers=1)
        future.add_done_callback(lambda _: self._free_explainers.release())
        return asyncio.wrap_future(future)

    def close(self) -> None:
        """Finish the queued images, then stop the threads."""
        self._executor.shutdown()
        self._explainers.shutdown()

    def _predict_next_batch(self) -> None:
        """Classify the next batch; do nothing if other threads have already taken all images of the queue."""
        batch = self._take_batch()
        if batch:
            batch[0].future.get_loop().call_soon_threadsafe(_resolve_futures, batch, self._predict_images(batch))

    def _take_batch(self) -> list[_QueuedImage]:
        """Remove the next batch from the queue and return it; the longer the queue, the larger the batch.

        Cancelled images are dropped.
        """
        batch: list[_QueuedImage] = []
        size = 1 + min(self.max_batch_size - 1, self.num_queued // self.predictor.workers)
        with suppress(IndexError):  # the queue is empty
            while len(batch) < size:
                item = self._waiting.popleft()
                if not item.future.cancelled():
                    batch.append(item)
        return batch

    def _predict_images(self, batch: Sequence[_QueuedImage]) -> list[EngineResult | Exception]:
        """Return a result or an error per image; if a batch fails, retry its images one by one."""
        begin = time.perf_counter()
        try:
            results = self.predictor.predict_batch([item.image for item in batch], top=max(item.top for item in batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [result for item in batch for result in self._predict_images([item])]
        return [EngineResult(result, begin - item.queued_at_s) for item, result in zip(batch, results, strict=True)]


def _resolve_futures(batch: Sequence[_QueuedImage], results: Sequence[EngineResult | Exception]) -> None:
    """Set the results of the images' futures; called in the event loop."""
    for item, result in zip(batch, results, strict=True):
        if item.future.done():  # the client disconnected
            continue
        if isinstance(result, Exception):
            item.future.set_exception(result)
        else:
            item.future.set_result(result)


def is_batching_faster(predictor: Predictor) -> bool:
    """Return whether batches take clearly less time per image than single images, measured on this machine."""
    prop = predictor.bundle.preprocessing.image
    image = np.zeros((prop.height, prop.width, prop.channels), np.uint8)

    def measure_seconds_per_image(num_images: int) -> float:
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            predictor.compute_probabilities([image] * num_images)
            seconds.append(time.perf_counter() - begin)
        return min(seconds) / num_images

    return measure_seconds_per_image(MAX_BATCH_SIZE) < _MAX_BATCH_TIME_RATIO * measure_seconds_per_image(1)
