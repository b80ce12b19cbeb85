"""State shared by the handlers: the engine, the metrics, the settings."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence

from aiohttp import web

from mlimages.core import BrokenImage, Prediction
from mlimages.inference import Explanation, OnnxBundle, Predictor
from mlimages.serving.engine import BusyError, Engine, ImageData, QueuedResult
from mlimages.serving.metrics import Metrics
from mlimages.serving.problems import ProblemError, busy_error, internal_error, timeout_error
from mlimages.serving.settings import ServerSettings

logger = logging.getLogger(__name__)


class Service:
    """State of the server of one model.

    Attributes:
        in_flight: the connections with a request in progress.
        request_ended: called with a connection when its request is finished.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings) -> None:
        self.name = re.sub(r"[^\w.-]", "_", predictor.bundle.path.stem)
        self.settings = settings
        self.engine = Engine(predictor, queue_size=settings.queue_size)
        self.metrics = Metrics(lambda: self.engine.num_queued)
        self.in_flight: set[object] = set()
        self.request_ended: Callable[[object], None] = lambda connection: None
        self.stopping = False
        self._reloading: asyncio.Task[None] | None = None
        self._wants_reload = False

    @property
    def bundle(self) -> OnnxBundle:
        """The current model; a handler reads it only once, since a reload replaces it."""
        return self.engine.predictor.bundle

    def request_reload(self) -> None:
        """Start to reload the model's file; if a reload is running, reload again after it, since the file may have
        changed."""
        self._wants_reload = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload_until_current())

    async def _reload_until_current(self) -> None:
        while self._wants_reload:
            self._wants_reload = False
            await self.reload()

    async def reload(self) -> None:
        """Reload the model's file for new requests; requests in flight finish with the previous model.

        If the file cannot be used, the previous model is kept and the reason is logged.
        """
        old = self.engine
        predictor = old.predictor
        try:
            self.engine = await asyncio.to_thread(_open_engine, predictor, self.settings.queue_size)
        except Exception as error:  # keep the previous model, whatever is wrong with the new file
            logger.error("cannot reload the model, keeping the one in memory: %s", error)
            return
        logger.info("reloaded %s", predictor.bundle.path)
        await asyncio.to_thread(old.close)

    async def predict(self, images: Sequence[ImageData], *, top: int) -> list[Prediction | ProblemError]:
        """Return one result per image, each prediction with at least `top` classes.

        The images are queued before the first `await`, so that the model of the caller's `bundle` predicts them.

        Raises:
            ProblemError: the queue is full, or the time-out expired.
        """
        try:
            futures = self.engine.submit(images, top=top)
        except BusyError as error:
            raise busy_error() from error
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                outcomes = await asyncio.gather(*futures, return_exceptions=True)
        except TimeoutError as error:
            raise timeout_error() from error
        results = [self._to_result(outcome) for outcome in outcomes]
        for result in results:
            self.metrics.count_image(result.code if isinstance(result, ProblemError) else "ok")
        return results

    async def explain(self, image: bytes) -> Explanation:
        """Return the explanation of an image.

        Raises:
            ProblemError: the image cannot be used, no thread is free, or the time-out expired.
        """
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                found = await self.engine.explain(image)
        except BusyError as error:
            raise busy_error() from error
        except TimeoutError as error:
            raise timeout_error() from error
        if isinstance(found, BrokenImage):
            raise ProblemError(422, found.fault, found.detail)
        return found

    def _to_result(self, outcome: QueuedResult | BaseException) -> Prediction | ProblemError:
        if isinstance(outcome, BaseException):
            logger.error("an image could not be classified", exc_info=outcome)
            return internal_error()
        timed = outcome.timed
        self.metrics.record_stage("queue", outcome.queue_s)
        self.metrics.record_stage("decode", timed.decode_s)
        self.metrics.record_stage("network", timed.network_s)
        if isinstance(timed.result, BrokenImage):
            return ProblemError(422, timed.result.fault, timed.result.detail)
        return timed.result


def _open_engine(predictor: Predictor, queue_size: int) -> Engine:
    fresh = Predictor(predictor.bundle.path, workers=predictor.workers, max_pixels=predictor.max_pixels)
    return Engine(fresh, queue_size=queue_size)


SERVICE = web.AppKey("service", Service)
