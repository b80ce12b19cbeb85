"""State that the handlers share: the engine, the metrics and the settings."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence

from aiohttp import web

from mlimages.core import BrokenImage, Prediction
from mlimages.inference import Explanation, OnnxBundle, Predictor
from mlimages.serving.engine import Engine, EngineResult, ImageData
from mlimages.serving.metrics import Metrics
from mlimages.serving.problems import ApiError, make_internal_error, make_timeout_error
from mlimages.serving.settings import ServerSettings

logger = logging.getLogger(__name__)


class Service:
    """State of a server, which serves one model.

    Attributes:
        model_name: name of the model in the Open Inference Protocol.
        settings: settings of the server.
        engine: runs the model; replaced by a reload.
        metrics: metrics since the start of the server.
        in_flight: the connections with a request in progress.
        on_request_end: called with a connection when its request is finished.
        is_stopping: whether the server is stopping, so that a connection is closed after its next response.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings) -> None:
        self.model_name = re.sub(r"[^\w.-]", "_", predictor.bundle.path.stem)
        self.settings = settings
        self.engine = Engine(predictor, queue_size=settings.queue_size)
        self.metrics = Metrics(lambda: self.engine.num_queued)
        self.in_flight: set[object] = set()
        self.on_request_end: Callable[[object], None] = lambda connection: None
        self.is_stopping = False
        self._reloading: asyncio.Task[None] | None = None
        self._needs_reload = False

    @property
    def bundle(self) -> OnnxBundle:
        """Metadata of the current model, which a reload may replace at any time: in a request, read this only once."""
        return self.engine.predictor.bundle

    def request_reload(self) -> None:
        """Start to reload the model's file; if a reload is in progress, reload again after it, since the file may have
        changed in the meantime."""
        self._needs_reload = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload_while_needed())

    async def _reload_while_needed(self) -> None:
        while self._needs_reload:
            self._needs_reload = False
            await self.reload()

    async def reload(self) -> None:
        """Reload the model's file for new requests; requests in flight finish with the previous model.

        If the file cannot be loaded, the previous model is kept and the reason is logged.
        """
        previous = self.engine
        predictor = previous.predictor
        try:
            self.engine = await asyncio.to_thread(_reopen_engine, predictor, self.settings.queue_size)
        except Exception as error:  # keep the previous model, whatever is wrong with the new file
            logger.error("cannot reload the model, keeping the previous one: %s", error)
            return
        logger.info("reloaded %s", predictor.bundle.path)
        await asyncio.to_thread(previous.close)

    async def predict(self, images: Sequence[ImageData], *, top: int) -> list[Prediction | ApiError]:
        """Return a prediction or an error for each image.

        A prediction has `top` classes, or more if a request in the same batch asked for more. The images are queued
        before the first `await`. A caller that has just read `bundle` therefore gets the predictions of that model,
        even if it is reloaded meanwhile.

        Raises:
            ApiError: the queue is full, or the time-out expired.
        """
        futures = self.engine.submit(images, top=top)
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                outcomes = await asyncio.gather(*futures, return_exceptions=True)
        except TimeoutError as error:
            raise make_timeout_error() from error
        results = [self._make_prediction_or_error(outcome) for outcome in outcomes]
        for result in results:
            self.metrics.images.labels(result.code if isinstance(result, ApiError) else "ok").inc()
        return results

    async def explain(self, image: bytes) -> Explanation:
        """Return the explanation of the prediction for an encoded image.

        Raises:
            ApiError: the image cannot be decoded, no thread is free, or the time-out expired.
        """
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                explanation = await self.engine.explain(image)
        except TimeoutError as error:
            raise make_timeout_error() from error
        if isinstance(explanation, BrokenImage):
            raise ApiError(422, explanation.fault, explanation.detail)
        return explanation

    def _make_prediction_or_error(self, outcome: EngineResult | BaseException) -> Prediction | ApiError:
        """Return the prediction or the error of an image, and record the duration of its stages."""
        if isinstance(outcome, BaseException):
            logger.error("cannot classify an image", exc_info=outcome)
            return make_internal_error()
        timed = outcome.timed_result
        self.metrics.stages["queue"].observe(outcome.queue_s)
        self.metrics.stages["decode"].observe(timed.decode_s)
        self.metrics.stages["network"].observe(timed.inference_s)
        if isinstance(timed.result, BrokenImage):
            return ApiError(422, timed.result.fault, timed.result.detail)
        return timed.result


def _reopen_engine(predictor: Predictor, queue_size: int) -> Engine:
    """Return a new engine that runs the current file of the predictor's model with the predictor's settings."""
    reloaded = Predictor(predictor.bundle.path, workers=predictor.workers, max_pixels=predictor.max_pixels)
    return Engine(reloaded, queue_size=queue_size)


SERVICE_KEY = web.AppKey("service", Service)
