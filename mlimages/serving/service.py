"""What the handlers share: the engine, the counters, the limits."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence

from aiohttp import web

from mlimages.core import BrokenImage, Prediction
from mlimages.inference import OnnxBundle, Predictor
from mlimages.serving.engine import Answered, BusyError, Encoded, Engine
from mlimages.serving.metrics import Metrics
from mlimages.serving.problems import ProblemError, busy, internal
from mlimages.serving.settings import ServerSettings

logger = logging.getLogger(__name__)


class Service:
    """One model, served.

    Attributes:
        in_flight: the connections on which a request is being answered.
        request_ended: called with a connection when its request has been answered.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings) -> None:
        self.name = re.sub(r"[^\w.-]", "_", predictor.bundle.path.stem)
        self.settings = settings
        self.engine = Engine(predictor, queue_size=settings.queue_size)
        self.metrics = Metrics(lambda: self.engine.waiting)
        self.in_flight: set[object] = set()
        self.request_ended: Callable[[object], None] = lambda connection: None
        self.stopping = False
        self._reloading: asyncio.Task[None] | None = None

    @property
    def bundle(self) -> OnnxBundle:
        """The model that answers now; a handler reads it once, since a reload replaces it."""
        return self.engine.predictor.bundle

    def start_reload(self) -> None:
        """Open the model's file again, beside what is in flight; a reload that is under way goes on alone."""
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self.reload())

    async def reload(self) -> None:
        """Answer further requests with the file as it is now; those in flight end with the model they began with.

        A file that cannot be used changes nothing; the log says why.
        """
        old = self.engine
        predictor = old.predictor
        try:
            self.engine = await asyncio.to_thread(_reopened, predictor, self.settings.queue_size)
        except Exception as error:  # whatever is wrong with the new file, the old model goes on
            logger.error("the model was not reloaded, the one in memory goes on: %s", error)
            return
        logger.info("reloaded %s", predictor.bundle.path)
        await asyncio.to_thread(old.close)

    async def answer(self, images: Sequence[Encoded], *, top: int) -> list[Prediction | ProblemError]:
        """One outcome per image, each prediction with at least `top` classes.

        The images are put in the queue before the first `await`, so that the caller's `bundle` is the one that answers.

        Raises:
            ProblemError: the queue is full, or there is no answer in time.
        """
        try:
            futures = self.engine.submit(images, top=top)
        except BusyError as error:
            raise busy() from error
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                outcomes = await asyncio.gather(*futures, return_exceptions=True)
        except TimeoutError as error:
            raise ProblemError(503, "timeout", "no answer in time: try again later", {"Retry-After": "5"}) from error
        results = [self._result(outcome) for outcome in outcomes]
        for result in results:
            self.metrics.image(result.code if isinstance(result, ProblemError) else "ok")
        return results

    def _result(self, outcome: Answered | BaseException) -> Prediction | ProblemError:
        if isinstance(outcome, BaseException):
            logger.error("an image could not be answered", exc_info=outcome)
            return internal()
        answer = outcome.answer
        self.metrics.stage("queue", outcome.queue_s)
        self.metrics.stage("decode", answer.decode_s)
        self.metrics.stage("network", answer.network_s)
        if isinstance(answer.result, BrokenImage):
            return ProblemError(422, answer.result.fault, answer.result.detail)
        return answer.result


def _reopened(predictor: Predictor, queue_size: int) -> Engine:
    fresh = Predictor(predictor.bundle.path, workers=predictor.workers, max_pixels=predictor.max_pixels)
    return Engine(fresh, queue_size=queue_size)


SERVICE = web.AppKey("service", Service)
