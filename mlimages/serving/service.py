"""What the handlers share: the engine, the counters, the limits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from aiohttp import web

from mlimages.core import BrokenImage, Prediction
from mlimages.inference import Predictor
from mlimages.serving.engine import Answered, BusyError, Encoded, Engine
from mlimages.serving.metrics import Metrics
from mlimages.serving.problems import busy
from mlimages.serving.settings import ServerSettings


class Service:
    """One bundle, served."""

    def __init__(self, predictor: Predictor, settings: ServerSettings) -> None:
        self.bundle = predictor.bundle
        self.name = re.sub(r"[^\w.-]", "_", predictor.bundle.path.stem)
        self.settings = settings
        self.metrics = Metrics()
        self.engine = Engine(predictor, queue_size=settings.queue_size)
        self.in_flight = 0
        self.stopping = False

    async def answer(self, pictures: Sequence[Encoded], *, top: int) -> list[Prediction | BrokenImage]:
        """Wait for the answers of pictures, with at least `top` classes.

        Raises:
            ProblemError: the queue is full.
        """
        try:
            futures = self.engine.submit(pictures, top=top)
        except BusyError as error:
            raise busy() from error
        answered = await asyncio.gather(*futures)
        for each in answered:
            self._note(each)
        return [each.answer.result for each in answered]

    def _note(self, answered: Answered) -> None:
        answer = answered.answer
        self.metrics.picture(answer.result.fault if isinstance(answer.result, BrokenImage) else "ok")
        self.metrics.stage("queue", answered.queue_s)
        self.metrics.stage("decode", answer.decode_s)
        self.metrics.stage("network", answer.network_s)


SERVICE = web.AppKey("service", Service)
