"""A server over its life, in one event loop: good and hostile requests at once, new model files, stops.

`MLIMAGES_STATEFUL_EXAMPLES` (4) makes it try more sequences.
"""

import asyncio
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import ClientSession, web
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client.parser import text_string_to_metric_families

from mlimages.core import Prediction
from mlimages.inference import OnnxBundle, Predictor
from mlimages.serving import ServerSettings, make_app
from mlimages.serving import service as service_module
from mlimages.serving.service import SERVICE_KEY, Service
from tests.serving.apps import Reply, bomb, encoded, form

pytestmark = pytest.mark.train

T = TypeVar("T")
SETTINGS = ServerSettings(max_bytes=1 << 18, max_images=4, timeout_s=20.0)
IMAGES = [encoded(1), encoded(2, "JPEG"), encoded(3, "WEBP"), encoded(4, "GIF")]
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}
HOSTILE: list[tuple[str, str, bytes | None, dict[str, str], int, str]] = [
    ("GET", "/nothing", None, {}, 404, "not-found"),
    ("PUT", "/predict", b"x", {}, 405, "method-not-allowed"),
    ("POST", "/predict", b"", {}, 422, "empty"),
    ("POST", "/predict", IMAGES[1][:-300], {}, 422, "truncated"),
    ("POST", "/predict", b"<html>no image</html>", {}, 422, "not-an-image"),
    ("POST", "/predict", bomb(), {}, 422, "too-many-pixels"),
    ("POST", "/predict", bytes(1 << 18 | 1), {}, 413, "too-large"),
    ("POST", "/predict", b"{}", JSON, 415, "unsupported-media-type"),
    ("POST", "/predict", b"--edge--", FORM, 400, "bad-request"),
    ("POST", "/predict", form(*[("a.png", IMAGES[0])] * 5)[0], FORM, 413, "too-many-images"),
    ("POST", "/predict?top=9", IMAGES[0], {}, 400, "bad-request"),
    ("POST", "/predict?nothing=1", IMAGES[0], {}, 400, "bad-request"),
    ("POST", "/predict", IMAGES[0], {"Host": "elsewhere.example"}, 421, "misdirected-request"),
    ("POST", "/v2/models/model/infer", b"{}", JSON, 400, "bad-request"),
    ("POST", "/v2/models/other/infer", b"{}", JSON, 404, "not-found"),
]
"""Method, address, body, headers; status and code of the answer."""
CUT_OFF = [
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\nabc",
    b"POST /predict HTTP/1.1\r\nHost: loc",
    b"\x16\x03\x01\x02\0 hello",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"",
]
"""What clients send that go away without reading an answer."""
Answer = tuple[str, float]


@pytest.fixture(scope="module", autouse=True)
def _bundle(cnn_bundle: OnnxBundle) -> Iterator[None]:
    BUNDLES.append(cnn_bundle)
    yield
    BUNDLES.clear()
    EXPECTED.clear()


BUNDLES: list[OnnxBundle] = []
EXPECTED: dict[str, list[Answer]] = {}


class ServerLife(RuleBasedStateMachine):
    """The model: which classes the server in memory knows, what its file holds, and how it answered so far."""

    def __init__(self) -> None:
        super().__init__()
        self._open = ExitStack()
        self.file = Path(self._open.enter_context(tempfile.TemporaryDirectory())) / "model.onnx"
        self.loop = asyncio.new_event_loop()
        self.session = self.wait(_session())
        self.runner: web.AppRunner | None = None

    def wait(self, job: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(job, 60))

    def teardown(self) -> None:
        if self.runner:
            self.wait(self.runner.cleanup())
        self.wait(self.session.close())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self._open.close()

    @initialize()
    def first_model(self) -> None:
        self.put_file("a")
        self.start()

    @precondition(lambda self: self.runner is None and self.content in ("a", "b"))
    @rule()
    def start(self) -> None:
        async def started() -> web.AppRunner:
            runner = web.AppRunner(make_app(Predictor(self.file, workers=2), SETTINGS), handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return runner

        self.runner = self.wait(started())
        self.port = self.runner.addresses[0][1]
        self.service: Service = self.runner.app[SERVICE_KEY]
        self.model = self.content
        self.counts = Counter[tuple[str, str]]()

    @rule(content=st.sampled_from(["a", "b", "garbage", "cut", "none"]))
    def put_file(self, content: str) -> None:
        self.content = content
        self.file.unlink(missing_ok=True)
        if content in ("a", "b"):
            names = tuple(f"{content}{number}" for number in range(3))
            replace(BUNDLES[0], path=self.file, class_names=names).write(BUNDLES[0].path)
            if content not in EXPECTED:
                found = Predictor(self.file)(IMAGES)
                EXPECTED[content] = [(one.class_name, one.probability) for one in found if isinstance(one, Prediction)]
        elif content != "none":
            self.file.write_bytes(BUNDLES[0].path.read_bytes()[:5000] if content == "cut" else b"no model")

    async def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, data=body, headers=headers) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def is_answered(self, number: int, *, as_form: bool, models: str) -> None:
        """A good request is answered as Python answers it, by one of these models."""
        body, kind = (
            form(("a", IMAGES[number]), ("b", b"broken"), ("c", IMAGES[-1])) if as_form else (IMAGES[number], "")
        )
        reply = await self.ask("POST", "/predict?top=3", body, {"Content-Type": kind or "image/png"})
        self.counts["/predict", str(reply.status)] += 1
        assert reply.status == 200
        found = [
            (one["class_name"], pytest.approx(one["probability"], rel=1e-5))
            if "error" not in one
            else one["error"]["code"]
            for one in reply.json["predictions"]
        ]
        indices = [number, None, -1] if as_form else [number]
        assert found in [
            ["not-an-image" if index is None else EXPECTED[model][index] for index in indices] for model in models
        ]

    async def is_refused(self, number: int) -> None:
        method, path, body, headers, status, code = HOSTILE[number]
        reply = await self.ask(method, path, body, headers)
        assert (path, reply.status, reply.code) == (path, status, code)
        route = path.partition("?")[0]
        self.counts["unknown" if status == 405 else ROUTES.get(route, route), str(status)] += 1

    async def goes_away(self, number: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(CUT_OFF[number])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    @precondition(lambda self: self.runner)
    @rule(data=st.data(), reload=st.booleans())
    def requests(self, data: st.DataObject, reload: bool) -> None:
        """Good and hostile requests at once, while the model's file may be read anew."""
        new = self.content if reload and self.content in ("a", "b") else self.model
        good = data.draw(st.lists(st.tuples(st.integers(0, len(IMAGES) - 1), st.booleans()), min_size=1, max_size=5))
        refused = data.draw(st.lists(st.integers(0, len(HOSTILE) - 1), max_size=4))
        away = data.draw(st.lists(st.integers(0, len(CUT_OFF) - 1), max_size=2))

        async def all_at_once() -> None:
            async with asyncio.TaskGroup() as group:
                for number, as_form in good:
                    group.create_task(self.is_answered(number, as_form=as_form, models=self.model + new))
                for number in refused:
                    group.create_task(self.is_refused(number))
                for number in away:
                    group.create_task(self.goes_away(number))
                if reload:
                    group.create_task(self.service.reload())

        self.wait(all_at_once())
        self.model = new

    @precondition(lambda self: self.runner)
    @rule(content=st.sampled_from(["a", "b"]))
    def reload_twice(self, content: str) -> None:
        """A file that comes while another is read is served in the end."""

        opened, replaced = threading.Event(), threading.Event()
        open_engine = service_module._reopen_engine

        def held(*args: Any) -> Any:
            try:
                return open_engine(*args)
            finally:
                opened.set()
                replaced.wait(60)

        async def reloaded() -> None:
            self.service.request_reload()
            await asyncio.to_thread(opened.wait, 60)
            self.put_file(content)
            self.service.request_reload()
            replaced.set()
            assert self.service._reloading
            await self.service._reloading

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(service_module, "_reopen_engine", held)
            self.wait(reloaded())
        self.model = content

    @precondition(lambda self: self.runner)
    @rule(number=st.integers(0, len(IMAGES) - 1))
    def stop(self, number: int) -> None:
        """A request in flight is answered, and says that it was the last."""

        async def stopped() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.is_answered(number, as_form=True, models=self.model))
                self.service.is_stopping = True
            health = await self.ask("GET", "/healthz")
            assert (health.json["status"], health.headers["Connection"]) == ("stopping", "close")
            assert self.runner
            await self.runner.cleanup()

        self.wait(stopped())
        self.runner = None

    @invariant()
    def the_server_is_well(self) -> None:
        if self.runner is None:
            return
        health, metrics = self.wait(self.ask("GET", "/healthz")), self.wait(self.ask("GET", "/metrics"))
        assert (health.status, health.json["status"]) == (200, "ok")
        assert health.json["classes"] == [f"{self.model}{number}" for number in range(3)]
        assert self.service.engine.num_queued == 0
        found = {
            (sample.labels["route"], sample.labels["status"]): sample.value
            for family in text_string_to_metric_families(metrics.body.decode())
            for sample in family.samples
            if sample.name == "mlimages_requests_total" and sample.labels["route"] not in ("/healthz", "/metrics")
        }
        assert {key: count for key, count in found.items() if key[1] not in ("400", "499")} == {
            key: count for key, count in self.counts.items() if key[1] != "400"
        }  # what went away may have been answered, or not


ROUTES = {"/nothing": "unknown"} | dict.fromkeys(
    ("/v2/models/model/infer", "/v2/models/other/infer"), "/v2/models/{name}/infer"
)
"""How the metrics name what is requested, where not by its path."""


async def _session() -> ClientSession:
    return ClientSession()


TestServerLife = ServerLife.TestCase
TestServerLife.settings = settings(
    max_examples=int(os.environ.get("MLIMAGES_STATEFUL_EXAMPLES", "4")), stateful_step_count=12, deadline=None
)
