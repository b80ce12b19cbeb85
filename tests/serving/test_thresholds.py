"""Every limit of the server, with a value just below it, at it and just above."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from aiohttp import web

from mlimages.core import Prediction, option_fields
from mlimages.inference import OnnxBundle, Predictor
from mlimages.serving import ServerSettings
from mlimages.serving.bodies import read_uploads
from mlimages.serving.connections import ConnectionLimiter
from mlimages.serving.engine import Engine
from mlimages.serving.problems import ApiError
from mlimages.serving.service import Service
from tests.gathering.test_interleaving import VirtualTime
from tests.serving.apps import encoded, form, upload_of


def status_of(work: Coroutine[Any, Any, object]) -> int:
    """The status with which this ends, in virtual time."""
    clock = VirtualTime()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now_s  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            runner.run(work)
        except ApiError as problem:
            return problem.status
    return 200


def status_of_upload(request: web.Request, **limits: Any) -> int:
    return status_of(read_uploads(request, ServerSettings(**limits)))


def status_of_bytes(count: int) -> int:
    """The status of a body that comes without a length; with its length, it has the same."""
    unmeasured = status_of_upload(upload_of(bytes(count)), max_bytes=100)
    assert status_of_upload(upload_of(b"x", Content_Length=str(count)), max_bytes=100) == unmeasured
    return unmeasured


def status_of_images(count: int) -> int:
    body, kind = form(*[(f"{number}.png", b"x") for number in range(count)])
    return status_of_upload(upload_of(body, Content_Type=kind), max_images=8)


def status_of_pieces(seconds: float) -> int:
    return status_of_upload(upload_of(*[bytes(1 << 14)] * 4, every_s=seconds), timeout_s=30.0)


def status_of_response(seconds: float) -> int:
    def submit(*_: object, **__: object) -> list[asyncio.Task[None]]:
        return [asyncio.ensure_future(asyncio.sleep(seconds))]

    service = Mock(engine=Mock(submit=submit, explain=asyncio.sleep), settings=ServerSettings(timeout_s=30.0))
    explained = status_of(Service.explain(service, cast(bytes, seconds)))
    assert status_of(Service.predict(service, [b"x"], top=1)) == explained
    return explained


def status_of_waiting(idle_s: float) -> int:
    ends, service = [], SimpleNamespace(in_flight=set(), settings=ServerSettings(idle_timeout_s=20.0))
    connection = Mock(force_close=lambda: ends.append(408))
    limiter = ConnectionLimiter(
        cast(Any, SimpleNamespace(connections=[connection])), cast(Service, service), max_connections=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: 0.0)
        limiter.mark_active(connection)
        patch.setattr("time.monotonic", lambda: idle_s)
        limiter.close_idle_connections()
    return [*ends, 200][0]


@pytest.mark.parametrize(("idle_s", "makes_room"), [(0.99, False), (1.0, True), (1.01, True)])
@pytest.mark.parametrize("is_busy", [False, True])
def test_the_longest_idle_connection_makes_room(idle_s: float, makes_room: bool, is_busy: bool) -> None:
    ended, newer, older = [], Mock(), Mock(force_close=lambda: ended.append("older"))
    service = SimpleNamespace(in_flight={older} if is_busy else set())
    server = SimpleNamespace(connections=[newer, older])
    limiter = ConnectionLimiter(cast(Any, server), cast(Service, service), max_connections=2)
    with pytest.MonkeyPatch.context() as patch:
        for now_s, connection in ((0.0, older), (0.5, newer)):
            patch.setattr("time.monotonic", lambda now_s=now_s: now_s)
            limiter.mark_active(connection)
        patch.setattr("time.monotonic", lambda: idle_s)
        assert limiter._close_longest_idle_connection() is (makes_room and not is_busy)
        assert ended == ["older"] * (makes_room and not is_busy)
        assert not limiter._close_longest_idle_connection()  # until the next turn of the loop lists it no more


@pytest.mark.parametrize(
    ("measured", "values", "expected"),
    [
        (status_of_bytes, (99, 100, 101), [200, 200, 413]),
        (status_of_images, (7, 8, 9), [200, 200, 413]),
        (status_of_pieces, (29.9, 30.1), [200, 408]),  # at 30 s, the piece and the time-out come in either order
        (status_of_response, (29.9, 30.1), [200, 503]),
        (status_of_waiting, (19.9, 20.0, 20.1), [200, 200, 408]),
    ],
)  # fmt: skip
def test_a_limit_of_a_request(measured: Callable[[float], int], values: tuple[float, ...], expected: list[int]) -> None:
    assert list(map(measured, values)) == expected


@pytest.mark.train
@pytest.mark.parametrize(("room", "is_too_long"), [(2, True), (3, False), (4, False)])
def test_the_limit_of_the_queue(cnn_bundle: OnnxBundle, room: int, is_too_long: bool) -> None:
    async def submit() -> None:
        engine = Engine(Predictor(cnn_bundle, workers=1), queue_size=room)
        try:
            await asyncio.gather(*engine.submit([encoded()] * 3, top=1))
        finally:
            engine.close()

    if is_too_long:
        with pytest.raises(ApiError, match="at most 2 images per request"):
            asyncio.run(submit())
    else:
        asyncio.run(submit())


@pytest.mark.train
def test_the_limit_of_pixels(cnn_bundle: OnnxBundle) -> None:
    image = encoded()
    width, height = int.from_bytes(image[16:20]), int.from_bytes(image[20:24])
    found = [Predictor(cnn_bundle, max_pixels=width * height + step)([image])[0] for step in (-1, 0, 1)]
    assert [isinstance(result, Prediction) for result in found] == [False, True, True]


def test_every_limit_is_tested_here() -> None:
    limits = {field.name for field in option_fields(ServerSettings) if field.option.group == "Limits"}
    assert limits == {"max_bytes", "max_images", "timeout_s", "idle_timeout_s", "queue_size", "max_pixels", "explain"}
