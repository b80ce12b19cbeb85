"""The service, over real sockets."""

import asyncio
import base64
import contextlib
import gzip
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from mlimages import images
from mlimages.core import ClassScore, Prediction
from mlimages.inference import (
    Explanation,
    InDistributionCalibration,
    OnnxBundle,
    PredictionSetThresholds,
    Predictor,
    explain,
)
from mlimages.serving import ServerSettings, inference_protocol, make_app, schemas
from mlimages.serving.access_log import InvalidRequestFilter, http_logger
from mlimages.serving.bodies import read_uploads
from mlimages.serving.problems import ApiError
from mlimages.serving.service import SERVICE_KEY
from tests.deploying import made_image
from tests.serving.apps import Reply, Served, bomb, encoded, form, run_app, upload_of

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def server(bundle: OnnxBundle, serve_with: Any) -> Served:
    return serve_with(Predictor(bundle, workers=2, max_pixels=1_000_000), max_bytes=1 << 20, max_images=8)


@pytest.fixture(scope="module")
def bundle(cnn_bundle: OnnxBundle) -> OnnxBundle:
    return cnn_bundle


def best(bundle: OnnxBundle, data: bytes) -> tuple[str, float]:
    (result,) = Predictor(bundle)([data])
    assert isinstance(result, Prediction)
    return result.class_name, pytest.approx(result.probability, rel=1e-5)


class Watched(Predictor):
    """Calls `before` with the images of each batch."""

    def __init__(self, bundle: OnnxBundle, before: Callable[[Sequence[Any]], None], *, workers: int = 1) -> None:
        super().__init__(bundle, workers=workers)
        self.before = before

    def predict_batch(self, batch: Any, **options: Any) -> Any:
        self.before(batch)
        return super().predict_batch(batch, **options)


def wait_for_metric(served: Served, line: bytes) -> None:
    """Wait until a line of the metrics ends with `line`."""
    deadline = time.monotonic() + 60
    while line + b"\n" not in served.ask("GET", "/metrics").body:
        assert time.monotonic() < deadline, line


def test_a_raw_image_is_answered_as_predict_answers_it(server: Served, bundle: OnnxBundle) -> None:
    reply = server.ask("POST", "/predict", encoded(3))
    (one,) = reply.json["predictions"]
    assert reply.status == 200
    assert (one["class_name"], one["probability"]) == best(bundle, encoded(3))
    assert sum(score["probability"] for score in one["top"]) == pytest.approx(1)


def test_a_form_with_several_files_is_answered_one_by_one_in_order(server: Served, bundle: OnnxBundle) -> None:
    files = ("a.png", encoded(1)), ("broken.jpg", b"no image"), ("b.jpg", encoded(2, "JPEG"))
    reply = server.ask_form("/predict?top=1", *files)
    first, second, third = reply.json["predictions"]
    assert reply.status == 200
    assert (first["name"], first["class_name"], first["probability"]) == ("a.png", *best(bundle, encoded(1)))
    assert (second["name"], second["error"]["code"]) == ("broken.jpg", "not-an-image")
    assert (third["class_name"], third["probability"]) == best(bundle, encoded(2, "JPEG"))
    assert len(first["top"]) == 1


FILE = b'Content-Disposition: form-data; name="f"; filename='


@pytest.mark.parametrize(
    ("kind", "before", "headers", "after", "name"),
    [
        ('boundary="a b"', b"--a b\r\n", FILE + b'"a.png"', b"\r\n--a b--", "a.png"),
        ("charset=utf-8; Boundary=x", b"hello\r\n--x\r\n", FILE + b'"a.png"', b"\r\n--x--\r\nbye", "a.png"),
        ("boundary=x", b"--x \t\r\n", FILE.upper() + b"a.png\r\nContent-Type: image/png", b"\r\n--x--", "a.png"),
        ("boundary=x", b"--x\r\n", FILE[:-1] + b"*=UTF-8''na%C3%AFve.png", b"\r\n--x--", "na\u00efve.png"),
        ("boundary=x", b"--x\r\n", FILE + "\"l\u00e4ng;e\\\"r.png\"".encode(), b"\r\n--x--", 'l\u00e4ng;e"r.png'),
        ("boundary=x", b'--x\r\nContent-Disposition: form-data; name="t"\r\n\r\n5\r\n--x\r\n', FILE + b'""',
         b"\r\n--x--", ""),
    ],
    ids=["quoted boundary", "text around it", "other cases", "encoded name", "quoted name", "a field beside it"],
)  # fmt: skip
def test_a_form_is_read_however_a_client_may_write_it(
    server: Served, kind: str, before: bytes, headers: bytes, after: bytes, name: str
) -> None:
    data = encoded() + b"no line begins with it: --x\r\n-x\r\n\r\n"
    reply = server.ask(
        "POST", "/predict", before + headers + b"\r\n\r\n" + data + after, Content_Type=f"multipart/form-data; {kind}"
    )
    assert reply.status == 200, reply.body
    assert [one["name"] for one in reply.json["predictions"]] == [name]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"--x",
        b"--x--",
        b"--x--\r\n",
        b"--x\r\n--x--",
        b"--x\r\n" + FILE + b'"a.png"\r\n\r\ncut',
        b"--x\r\n" + FILE + b'"a.png"\r\n--x--',
        b"--x\r\n" + FILE + b'"' + b"a" * 5000 + b'"\r\n\r\nb\r\n--x--',
        b"--x\r\nContent-Disposition: form-data\r\n\r\nno file\r\n--x--",
        b"\n" * 100_000 + b"--x\r\n" + FILE + b'"a.png"\r\n\r\nb\r\n--x--',
        b"--x\r\n" + b"A: b\r\n" * 99 + FILE + b'"a.png"\r\n\r\nb\r\n--x--',
        b"--x\r\nContent-Transfer-Encoding: base64\r\n" + FILE + b'"a.png"\r\n\r\nYQ==\r\n--x--',
        b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n" + FILE + b'"a"\r\n\r\n--y\r\n\r\nb\r\n--y--\r\n--x--',
    ],
)
def test_a_form_that_is_cut_or_holds_no_file_is_400(server: Served, body: bytes) -> None:
    reply = server.ask("POST", "/predict", body, Content_Type="multipart/form-data; boundary=x")
    assert (reply.status, reply.code) == (400, "bad-request")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty"),
        (b"\x00" * 500, "not-an-image"),
        (b"<html><body>no image</body></html>", "not-an-image"),
        (encoded(0, "JPEG")[:-300], "truncated"),
        (bomb(), "too-many-pixels"),
        (gzip.compress(encoded()), "not-an-image"),
    ],
    ids=["empty", "zeros", "html", "cut", "bomb", "gzip"],
)
def test_an_image_that_cannot_be_used_is_422_with_the_code_that_check_uses(
    server: Served, body: bytes, code: str
) -> None:
    reply = server.ask("POST", "/predict", body)
    assert (reply.status, reply.code) == (422, code)
    assert "/" not in reply.json["error"]["message"]


@pytest.mark.parametrize("path", ["/predict", "/v2/models/model/infer"])
def test_a_compressed_body_is_not_unpacked(server: Served, path: str) -> None:
    reply = server.ask("POST", path, gzip.compress(bytes(50_000_000)), Content_Encoding="gzip")
    assert (reply.status, reply.code) == (415, "unsupported-media-type")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("GET", "/nothing", None, {}, 404, "not-found"),
        ("GET", "/predict", None, {}, 405, "method-not-allowed"),
        ("DELETE", "/", None, {}, 405, "method-not-allowed"),
        ("POST", "/predict?top=0", b"x", {}, 400, "bad-request"),
        ("POST", "/predict?threshold=0.9", b"x", {}, 400, "bad-request"),
        ("POST", "/predict", b'{"image": ""}', {"Content_Type": "application/json"}, 415, "unsupported-media-type"),
        ("POST", "/predict?top=many", b"x", {}, 400, "bad-request"),
        ("POST", "/predict?top=99999999999999999999", b"x", {}, 400, "bad-request"),
        ("POST", "/predict?top=" + "1" * 4400, b"x", {}, 400, "bad-request"),
        ("POST", "/predict?top=4", b"x", {}, 400, "bad-request"),
        ("POST", "/predict?top=", b"x", {}, 400, "bad-request"),
        ("GET", "/v2/models/model/versions/2", None, {}, 404, "not-found"),
        ("POST", "/predict", b"\0" * (1 << 20 | 1), {}, 413, "too-large"),
        ("POST", "/predict", b"--x--", {"Content_Type": "multipart/form-data"}, 400, "bad-request"),
        ("POST", "/predict", b"nothing", {"Content_Type": "multipart/form-data; boundary=x"}, 400, "bad-request"),
        ("POST", "/predict", b"--x--\r\n", {"Content_Type": "multipart/form-data; boundary=x"}, 400, "bad-request"),
        ("POST", "/v2/models/other/infer", b"{}", {}, 404, "not-found"),
    ],
)
def test_every_error_is_json_with_a_code(
    server: Served, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, code: str
) -> None:
    reply = server.ask(method, path, body, **headers)
    assert (reply.status, reply.code) == (status, code)
    assert len(str(reply.json["error"])) > len(code)


def test_curl_that_changes_the_bytes_is_told_so(server: Served) -> None:
    kind, whole = "application/x-www-form-urlencoded", encoded()
    assert server.ask("POST", "/predict", whole, Content_Type=kind).status == 200
    reply = server.ask("POST", "/predict", re.sub(rb"[\r\n\0]", b"", whole), Content_Type=kind)
    assert (reply.status, reply.code) == (422, "not-an-image")
    assert reply.json["error"]["message"].endswith("; curl -d changes the bytes of a file: use -F file=@IMAGE instead")


def test_what_is_not_http_is_one_line_of_the_log_a_minute(
    server: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_logger, "filters", [InvalidRequestFilter()])
    for _ in range(3):
        with server.connect(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.0 400 ")
    lines = [each for each in caplog.records if each.name.startswith(("aiohttp", http_logger.name))]
    assert [each.getMessage() for each in lines] == [
        "Error handling request from 127.0.0.1: Duplicate 'Host' header found."
    ]
    assert lines[0].exc_info is None


def test_fields_beside_as_many_files_as_are_allowed_are_no_further_files(server: Served) -> None:
    files, kind = form(*[(f"{n}.png", encoded(n)) for n in range(8)])
    field = b'--edge\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    end = b"--edge--\r\n"
    for body in (field + files, files.removesuffix(end) + field * 3 + end):
        reply = server.ask("POST", "/predict", body, Content_Type=kind)
        assert (reply.status, len(reply.json["predictions"])) == (200, 8)
    body, kind = form(("a.png", encoded()))
    assert server.ask("POST", "/explain", field + body, Content_Type=kind).status == 200
    reply = server.ask("POST", "/predict", field * 17 + files, Content_Type=kind)
    assert (reply.status, reply.code) == (413, "too-many-images")


PIECES = [
    b"--x\r\n", b"--x--", b"\r\n", b"\r\n\r\n", b"\n", FILE, b'"a.png"', b"filename*=", b"filename*0=", b"''", b"%41",
    b"; ", b"=", b'"', b"\\", b"utf-8", b"\0", b"\xff", b"Content-Transfer-Encoding: base64", b"Content-Length: 3",
    b"A: b", b"Content-Type: multipart/mixed; boundary=x", b"Content-Encoding: gzip", b'name="_charset_"', b"-" * 70,
]  # fmt: skip


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(st.lists(st.sampled_from(PIECES), max_size=40), st.sampled_from(["form-data", "mixed", "byteranges"]))
def test_no_form_fails_the_server(parts: list[bytes], subtype: str) -> None:
    request = upload_of(b"".join(parts), Content_Type=f"multipart/{subtype}; boundary=x")
    with contextlib.suppress(ApiError):  # any other exception is a fault
        asyncio.run(read_uploads(request, ServerSettings()))


@pytest.mark.parametrize(
    "repeated", [b";", b"\n", b'; a="', b"\\", b"filename*=''%41;", b"A: b\r\n", b"--x\r\n\r\n\r\n"]
)
@pytest.mark.parametrize("head", [b"", FILE, FILE + b'"'])
def test_a_small_form_costs_little_time(head: bytes, repeated: bytes) -> None:
    part = b"--x\r\n" + head + repeated * (1900 // len(repeated)) + b"\r\n\r\nb\r\n"
    request = upload_of(part * 4 + b"--x--", Content_Type="multipart/form-data; boundary=x")
    begin = time.process_time()
    with contextlib.suppress(ApiError):
        asyncio.run(read_uploads(request, ServerSettings()))
    assert time.process_time() - begin < 0.5


def test_a_body_without_a_length_is_bounded_as_it_comes(server: Served) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect(head) as connection:
        chunk = b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"
        for _ in range(17):
            connection.sendall(chunk)
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_no_other_site_may_read_an_answer(server: Served) -> None:
    reply = server.ask("POST", "/predict", encoded(), Origin="https://elsewhere.example")
    assert not [name for name in reply.headers if name.lower().startswith("access-control")]
    preflight = server.ask("OPTIONS", "/predict", Origin="https://elsewhere.example")
    assert preflight.status == 405


@pytest.fixture
def held(serve_with: Any, bundle: OnnxBundle) -> Iterator[SimpleNamespace]:
    """A server that predicts the image of `first` until `go_on`, while that of `second` waits in a queue for two."""
    begun, go_on, predicted = threading.Event(), threading.Event(), []

    def hold(batch: Sequence[bytes]) -> None:
        predicted.extend(batch)
        begun.set()
        go_on.wait(60)

    served = serve_with(Watched(bundle, hold), queue_size=2)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with served.connect(head % len(encoded(1)) + encoded(1)) as first:
        assert begun.wait(60)
        with served.connect(head % len(encoded(2)) + encoded(2)) as second:
            wait_for_metric(served, b"mlimages_queue_images 1.0")
            yield SimpleNamespace(served=served, first=first, second=second, go_on=go_on, predicted=predicted)


def test_a_full_queue_is_503_with_retry_after_and_a_request_that_never_fits_is_413(held: SimpleNamespace) -> None:
    served: Served = held.served
    busy, too_many = (served.ask_form("/predict", *[(f"{n}.png", encoded()) for n in range(count)]) for count in (2, 3))
    held.go_on.set()
    assert held.second.recv(64).startswith(b"HTTP/1.1 200")
    assert (busy.status, busy.code, busy.headers["Retry-After"]) == (503, "busy", "1")
    assert (too_many.status, too_many.code) == (413, "too-many-images")
    assert served.ask_form("/predict", ("1.png", encoded()), ("2.png", encoded())).status == 200


def test_images_that_wait_are_answered_in_batches_each_with_its_own_answer(serve_with: Any, bundle: OnnxBundle) -> None:
    sizes: list[int] = []
    served = serve_with(Watched(bundle, lambda batch: sizes.append(len(batch))))
    served.app[SERVICE_KEY].engine.max_batch_size = 4
    found = served.ask_form("/predict", *[(f"{n}.png", encoded(n)) for n in range(12)]).json["predictions"]
    assert [(one["class_name"], one["probability"]) for one in found] == [best(bundle, encoded(n)) for n in range(12)]
    assert sum(sizes) == 12
    assert 1 < max(sizes) <= 4


def test_an_image_whose_client_has_gone_is_not_worked_on(held: SimpleNamespace) -> None:
    held.second.close()
    wait_for_metric(held.served, b'status="499"} 1.0')
    held.go_on.set()
    assert held.first.recv(64).startswith(b"HTTP/1.1 200")
    assert held.served.ask("POST", "/predict", encoded(3)).status == 200
    assert held.predicted == [encoded(1), encoded(3)]


def test_a_request_that_drips_is_ended_in_time(serve_with: Any) -> None:
    served = serve_with(timeout_s=0.2)
    with served.connect(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc") as connection:
        reply = connection.recv(4096)
    assert reply.startswith(b"HTTP/1.1 408")
    assert b'"timeout"' in reply


@pytest.mark.parametrize("header", [b"Bearer \xff", b"\xff\xfe"])
def test_an_authorization_that_is_not_text_is_400(serve_with: Any, header: bytes) -> None:
    served = serve_with(token="s3cret")
    head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: %b\r\n\r\n" % header
    with served.connect(head) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def test_with_a_token_images_and_classes_are_for_its_bearers_alone(serve_with: Any) -> None:
    served = serve_with(token="s3cret")
    for path in ("/", "/healthz", "/openapi.json", "/v2/health/ready"):
        assert served.ask("GET", path).status == 200
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
        reply = served.ask("POST", "/predict", encoded(), **given)
        assert (reply.status, reply.code) == (401, "unauthorized")
        assert served.ask("GET", "/metrics", **given).status == 401
        assert served.ask("GET", "/v2/models/model", **given).status == 401
    assert served.ask("POST", "/predict", encoded(), Authorization="Bearer s3cret").status == 200


def test_a_failure_inside_is_500_that_tells_nothing_and_the_next_request_is_answered(
    serve_with: Any, bundle: OnnxBundle, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([RuntimeError("/home/someone/secret")])

    def fail_once(_: object) -> None:
        for failure in failures:
            raise failure

    served = serve_with(Watched(bundle, fail_once))
    reply = served.ask("POST", "/predict", encoded())
    assert (reply.status, reply.code) == (500, "internal")
    assert b"secret" not in reply.body
    assert "/home/someone/secret" in caplog.text
    assert served.ask("POST", "/predict", encoded()).status == 200


def refuse_poison(batch: Sequence[bytes]) -> None:
    """Fail with the whole batch, as ONNX Runtime does, if one of its images is `poison`."""
    if b"poison" in batch:
        raise RuntimeError("/home/someone/secret")


def test_an_image_that_fails_its_batch_costs_no_other_image_its_answer(
    serve_with: Any, bundle: OnnxBundle, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve_with(Watched(bundle, refuse_poison))
    served.app[SERVICE_KEY].engine.max_batch_size = 4
    files = [(f"{n}", b"poison" if n % 3 == 1 else encoded(n)) for n in range(12)]
    reply = served.ask_form("/predict", *files)
    assert reply.status == 200
    for (_, data), one in zip(files, reply.json["predictions"], strict=True):
        if data == b"poison":
            assert one["error"]["code"] == "internal"
        else:
            assert (one["class_name"], one["probability"]) == best(bundle, data)
    assert b"secret" not in reply.body


def test_honest_clients_beside_hostile_ones_are_all_answered(
    serve_with: Any, bundle: OnnxBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = images.load_pixels

    def failing(source: Any, *args: Any, **options: Any) -> Any:
        if source == b"odd":
            raise NotImplementedError("odd")
        return load(source, *args, **options)

    monkeypatch.setattr(images, "load_pixels", failing)
    served = serve_with(Watched(bundle, refuse_poison, workers=2))
    served.app[SERVICE_KEY].engine.max_batch_size = 4
    want = best(bundle, encoded(1))
    sent = [(b"poison", 500), (b"odd", 422), (encoded(1), 200), (encoded(1), 200)] * 10
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda each: served.ask("POST", "/predict", each[0]), sent))
    assert [reply.status for reply in replies] == [status for _, status in sent]
    assert all(
        (one["class_name"], one["probability"]) == want
        for reply in replies
        if reply.status == 200
        for one in reply.json["predictions"]
    )


def test_an_explanation_is_that_of_python_for_one_image_that_can_be_used(server: Served, bundle: OnnxBundle) -> None:
    want = explain(Predictor(bundle), encoded())
    assert isinstance(want, Explanation)
    for body, kind in ((encoded(), "image/png"), form(("a.png", encoded()))):
        reply = server.ask("POST", "/explain", body, Content_Type=kind)
        assert reply.json["class_name"] == want.class_name
        assert reply.json["place"] == want.most_influential_region
        np.testing.assert_allclose(reply.json["hidden"], want.masked_probabilities, rtol=1e-5)
        np.testing.assert_array_equal(
            Image.open(io.BytesIO(base64.b64decode(reply.json["overlay"]))), want.draw_overlay()
        )
    assert server.ask_form("/explain", ("a.png", encoded()), ("b.png", encoded())).code == "too-many-images"
    assert server.ask("POST", "/explain", b"no image").code == "not-an-image"
    assert server.ask("POST", "/explain?top=1", encoded()).code == "bad-request"


def test_an_explanation_takes_no_thread_of_predictions_and_one_of_its_own(
    serve_with: Any, bundle: OnnxBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def held(predictor: Predictor, image: bytes, *, workers: int) -> Any:
        assert workers == 1
        begun.set()
        go_on.wait(60)
        return explain(predictor, image, workers=workers)

    monkeypatch.setattr("mlimages.serving.engine.explain", held)
    served = serve_with()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.ask, "POST", "/explain", encoded())
        begun.wait(60)
        second = served.ask("POST", "/explain", encoded())
        assert (second.status, second.code, second.headers["Retry-After"]) == (503, "busy", "1")
        assert served.ask("POST", "/predict", encoded()).status == 200
        go_on.set()
        assert first.result().status == 200
    assert served.ask("POST", "/explain", encoded()).status == 200


def test_no_explain_refuses_explanations_alone(serve_with: Any) -> None:
    served = serve_with(explain=False)
    refused = served.ask("POST", "/explain", encoded())
    assert (refused.status, refused.code) == (403, "not-allowed")
    assert served.ask("POST", "/predict", encoded()).status == 200
    assert served.ask("GET", "/healthz").json["explain"] is False


def test_what_is_under_the_threshold_is_not_known(serve_with: Any, bundle: OnnxBundle) -> None:
    served = serve_with(Predictor(replace(bundle, unknown_below=0.999), workers=1))
    (one,) = served.ask("POST", "/predict", encoded()).json["predictions"]
    assert (one["known"], one["class_name"]) == (False, None)
    assert served.ask("POST", "/explain", encoded(3)).json["known"] is False


def test_metrics_count_requests_images_and_stages(serve_with: Any) -> None:
    served, other = serve_with(), serve_with()
    served.ask("POST", "/predict", encoded())
    served.ask("POST", "/predict", b"junk")
    served.ask("GET", "/nothing")
    other.ask("POST", "/predict", b"")
    reply = served.ask("GET", "/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(reply.body.decode())
    found = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert found["mlimages_requests_total", "/predict", "200"] == 1
    assert found["mlimages_requests_total", "/predict", "422"] == 1
    assert found["mlimages_requests_total", "unknown", "404"] == 1
    assert found["mlimages_images_total", "ok"] == 1
    assert found["mlimages_images_total", "not-an-image"] == 1
    assert found["mlimages_stage_seconds_count", "network"] == 2
    assert ("mlimages_images_total", "empty") not in found, "each application counts for itself"


MODELS = {
    ("get", "/healthz"): schemas.Health,
    ("get", "/v2"): schemas.ServerMetadata,
    ("get", "/v2/health/live"): schemas.ServerLive,
    ("get", "/v2/health/ready"): schemas.ServerReady,
    ("get", "/v2/models/{name}"): schemas.ModelMetadata,
    ("get", "/v2/models/{name}/versions/{version}"): schemas.ModelMetadata,
    ("get", "/v2/models/{name}/ready"): schemas.ModelReady,
    ("get", "/v2/models/{name}/versions/{version}/ready"): schemas.ModelReady,
    ("post", "/predict"): schemas.Predictions,
    ("post", "/explain"): schemas.Explanation,
    ("post", "/v2/models/{name}/infer"): schemas.InferResponse,
    ("post", "/v2/models/{name}/versions/{version}/infer"): schemas.InferResponse,
}


def undescribed(answer: Any, model: Any) -> set[str]:
    """Keys of an answer, nested ones too, that its model does not have."""
    if isinstance(answer, list):
        return {key for one, part in zip(answer, model, strict=True) for key in undescribed(one, part)}
    if not isinstance(answer, dict) or not isinstance(model, BaseModel):
        return set()
    known = answer.keys() & type(model).model_fields.keys()
    parts = (undescribed(answer[key], getattr(model, key)) for key in known)
    return (set(answer) - known).union(*parts)


def test_every_answer_is_what_the_openapi_document_says(server: Served) -> None:
    document = server.ask("GET", "/openapi.json").json
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == {*MODELS, ("get", "/metrics")}
    served = {route.resource.canonical for route in server.app.router.routes() if route.resource}
    assert set(document["paths"]) == served - {"/", "/openapi.json"}
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}
    bodies = {True: json.dumps({"inputs": [tensor]}).encode(), False: encoded()}
    for (method, path), model in MODELS.items():
        body = bodies["infer" in path] if method == "post" else None
        reply = server.ask(method.upper(), path.format(name="model", version="1"), body)
        assert reply.status == 200, (path, reply.body)
        assert not undescribed(reply.json, model.model_validate_json(reply.body)), path
        said = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        assert said == {"$ref": f"#/components/schemas/{model.__name__}"}
    text = json.dumps(document)
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) <= set(document["components"]["schemas"])


def test_the_default_of_top_in_the_openapi_document_is_the_servers(server: Served) -> None:
    (top,) = server.ask("GET", "/openapi.json").json["paths"]["/predict"]["post"]["parameters"]
    (one,) = server.ask("POST", "/predict", encoded()).json["predictions"]
    assert top["schema"] == {"type": "integer", "minimum": 1, "maximum": 3, "default": len(one["top"])}


def infer(server: Served, *, version: str = "", image: dict[str, Any] | None = None, **request: Any) -> Reply:
    """Ask for the inference of one pixel, or of what `image` gives in its place."""
    pixel = {"shape": [1, 1, 1, 3], "data": [1, 2, 3]} if image is None else image
    body = json.dumps({"inputs": [{"name": "image", "datatype": "UINT8", **pixel}], **request}).encode()
    return server.ask("POST", f"/v2/models/model{version}/infer", body)


def test_the_inference_protocol_answers_pixels_as_predict_answers_the_image(server: Served, bundle: OnnxBundle) -> None:
    pixels = np.asarray(made_image(4))
    (want,) = Predictor(bundle)([encoded(4)])
    assert isinstance(want, Prediction)
    reply = infer(server, image={"shape": [1, *pixels.shape], "data": pixels.tolist()}, id="7")
    (output,) = reply.json["outputs"]
    assert (reply.json["id"], output["name"], output["shape"]) == ("7", "probabilities", [1, 3])
    by_label = {score.label: score.probability for score in want.top}
    assert output["data"] == pytest.approx([by_label[label] for label in range(3)], rel=1e-5)


def test_the_inference_protocol_takes_and_gives_binary_tensors(server: Served) -> None:
    pixels = np.stack([np.asarray(made_image(5)), np.asarray(made_image(6))])
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape)}
    size = {"parameters": {"binary_data_size": pixels.nbytes}}
    header = json.dumps({"inputs": [{**tensor, **size}], "parameters": {"binary_data_output": True}}).encode()

    def ask(header_length: int | str, data: bytes = b"") -> Reply:
        body = header + pixels.tobytes() + data
        return server.ask("POST", "/v2/models/model/infer", body, Inference_Header_Content_Length=str(header_length))

    reply = ask(len(header))
    for refused, message in (
        (ask(len(header), b"xx"), f"binary_data_size is {pixels.nbytes}, but {pixels.nbytes + 2} bytes"),
        (ask(99_999_999), "Inference-Header-Content-Length is 99999999, but the body has"),
        (ask(-1), "Inference-Header-Content-Length is '-1': expected the number of bytes of the JSON"),
        (ask("abc"), "Inference-Header-Content-Length is 'abc': expected the number of bytes of the JSON"),
        (ask("9" * 5000), "expected the number of bytes of the JSON"),
        (
            server.ask("POST", "/v2/models/model/infer", header + pixels.tobytes()),
            "if binary data follows the JSON, send the header Inference-Header-Content-Length",
        ),
    ):
        assert refused.status == 400
        assert message in refused.json["error"]
    length = int(reply.headers["Inference-Header-Content-Length"])
    got = np.frombuffer(reply.body[length:], "<f4").reshape(2, 3)
    plain = infer(server, image={"shape": pixels.shape, "data": pixels.ravel().tolist()})
    np.testing.assert_allclose(got.ravel(), plain.json["outputs"][0]["data"], rtol=1e-5)


@pytest.mark.parametrize("nothing", [{}, {"parameters": None}, {"parameters": {}}, {"parameters": {"other": 1}}])
def test_parameters_that_say_nothing_are_taken_everywhere(server: Served, nothing: dict[str, Any]) -> None:
    image = {"shape": [1, 1, 1, 3], "data": [1, 2, 3], **nothing}
    for outputs in ({}, {"outputs": None}, {"outputs": [{"name": "probabilities", **nothing}]}):
        reply = infer(server, version="/versions/1", image=image, **outputs, **nothing)
        assert reply.status == 200, reply.body
        assert "id" not in reply.json


@pytest.mark.parametrize("count", [1, 2, 99])
def test_the_inference_protocol_names_the_most_probable_classes(server: Served, bundle: OnnxBundle, count: int) -> None:
    pixels = np.stack([np.asarray(made_image(5)), np.asarray(made_image(6))])
    for binary in (False, True):
        wanted = {"name": "probabilities", "parameters": {"classification": count, "binary_data": binary}}
        reply = infer(server, image={"shape": pixels.shape, "data": pixels.tolist()}, outputs=[wanted])
        length = int(reply.headers.get("Inference-Header-Content-Length", len(reply.body)))
        (output,) = json.loads(reply.body[:length])["outputs"]
        assert (output["datatype"], output["shape"]) == ("BYTES", [2, min(count, 3)])
        texts = output["data"] if not binary else elements(reply.body[length:])
        results = Predictor(bundle)(list(pixels), top=count)
        for text, score in zip(texts, (score for result in results for score in result.top), strict=True):  # type: ignore[union-attr]
            probability, label, name = text.split(":")
            assert (int(label), name) == (score.label, score.class_name)
            assert float(probability) == pytest.approx(score.probability, abs=1e-5)


def elements(data: bytes) -> list[str]:
    """A binary BYTES tensor."""
    texts = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        texts.append(data[4:end].decode())
        data = data[end:]
    return texts


def test_the_inference_protocol_says_what_it_serves(server: Served) -> None:
    assert server.ask("GET", "/v2").json["name"] == "mlimages"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/model/ready"):
        assert server.ask("GET", path).status == 200
    described = server.ask("GET", "/v2/models/model").json
    assert described["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert described["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]


@pytest.mark.parametrize(
    "tensor",
    [
        {"shape": [1, 2, 2, 3], "data": [1] * 11},
        {"shape": [1, 2, 2, 3], "data": [256] * 12},
        {"shape": [1, 2, 2, 3], "data": [0.5] * 12},
        {"shape": [1, 2, 2, 3], "data": "text"},
        {"shape": [0, 2, 2, 3], "data": []},
        {"shape": [-1, 2, 2, 3], "data": []},
        {"shape": [2, 2, 3], "data": [1] * 12},
        {"shape": [1, 10**9, 10**9, 3], "data": [1]},
        {"shape": [1, 2, 2, 3], "parameters": {"binary_data_size": 12}},
        {"shape": [1, 2, 2, 3], "parameters": {"binary_data_size": -1}},
        {"shape": [1, 2, 2, 3]},
        {},
    ],
)
def test_a_wrong_inference_request_is_400(server: Served, tensor: dict[str, Any]) -> None:
    reply = infer(server, image=tensor)
    assert (reply.status, reply.code) == (400, "bad-request")
    assert isinstance(reply.json["error"], str)  # as the protocol wants it


@pytest.mark.parametrize(
    ("name", "message"), [("features", "probabilities"), ("known", "no output 'known'; its outputs are probabilities")]
)
def test_an_output_that_the_model_does_not_give_is_400(server: Served, name: str, message: str) -> None:
    reply = infer(server, outputs=[{"name": name}])
    assert (reply.status, reply.code) == (400, "bad-request")
    assert message in reply.json["error"]


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b"[" * 100_000, b'{"inputs": []}', b'{"inputs": 3}'])
def test_what_is_no_inference_request_at_all_is_400(server: Served, body: bytes) -> None:
    assert server.ask("POST", "/v2/models/model/infer", body).status == 400


def test_a_dropped_connection_costs_nobody_else_an_answer(server: Served, bundle: OnnxBundle) -> None:
    for _ in range(20):
        server.connect(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nabc").close()
    (one,) = server.ask("POST", "/predict", encoded(3)).json["predictions"]
    assert (one["class_name"], one["probability"]) == best(bundle, encoded(3))


def test_an_application_that_ends_stops_the_threads_of_its_model(bundle: OnnxBundle) -> None:
    app = make_app(Predictor(bundle, workers=1))
    with run_app(app) as served:
        assert served.ask("GET", "/healthz").status == 200
    with pytest.raises(RuntimeError, match="after shutdown"):
        app[SERVICE_KEY].engine.explain(encoded())


def test_a_server_that_stops_is_alive_but_neither_it_nor_its_model_is_ready() -> None:
    service = SimpleNamespace(is_stopping=True, model_name="a")

    def ask(handler: Any) -> tuple[int, Any]:
        request = make_mocked_request("GET", "/", app={SERVICE_KEY: service}, match_info={"name": "a"})  # type: ignore[arg-type]
        reply = asyncio.run(handler(request))
        return reply.status, json.loads(reply.text)

    assert ask(inference_protocol.get_readiness) == (503, {"ready": False})
    assert ask(inference_protocol.get_model_readiness) == (503, {"name": "a", "ready": False})
    assert ask(inference_protocol.get_liveness) == (200, {"live": True})


@pytest.mark.parametrize("data", [[[[[1, 2, 3], [1, 2]]]], [[1, 2], 3], [[1], [2, 3]]])
def test_ragged_data_is_refused_in_words_of_ours(server: Served, data: object) -> None:
    reply = infer(server, image={"shape": [1, 1, 2, 3], "data": data})
    assert reply.status == 400
    assert reply.json["error"].endswith("the data must be a flat list of integers, or nested lists of equal lengths")


@pytest.mark.parametrize(("count", "status", "code"), [(8, 200, None), (9, 413, "too-many-images")])
def test_the_inference_protocol_takes_as_many_images_as_are_allowed(
    server: Served, count: int, status: int, code: str | None
) -> None:
    reply = infer(server, image={"shape": [count, 1, 1, 3], "data": [7] * 3 * count})
    assert (reply.status, reply.json.get("code")) == (status, code)


def test_the_arrays_of_the_outputs_are_those_of_the_predictions(bundle: OnnxBundle) -> None:
    names = bundle.class_names
    results = [
        Prediction("", (ClassScore(names[1], 1, 0.75), ClassScore(names[0], 0, 0.25)), known_score=0.5,
                   prediction_set=(names[1],)),
        Prediction("", (ClassScore(names[2], 2, 1.0),)),
    ]  # fmt: skip
    arrays = inference_protocol._make_output_arrays(list(results), bundle)
    assert {name: (array.dtype.str, array.tolist()) for name, array in arrays.items()} == {
        "probabilities": ("<f4", [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]),
        "known": ("<f4", [0.5, 0.0]),
        "prediction_set": ("|b1", [[False, True, False], [False, False, False]]),
    }
    with pytest.raises(ApiError, match="broken"):
        inference_protocol._make_output_arrays([*results, ApiError(422, "corrupt", "broken")], bundle)


@pytest.mark.parametrize(
    ("values", "described"),
    [
        ({}, []),
        ({"known": InDistributionCalibration(0.95, 40)}, [("known", "FP32", [-1], {"threshold": 0.5})]),
        ({"prediction_sets": PredictionSetThresholds("validation", 40, {"0.8": 0.25})}, []),
        (
            {"prediction_sets": PredictionSetThresholds("validation", 40, {"0.9": 0.25})},
            [("prediction_set", "BOOL", [-1, 3], {"level": 0.9})],
        ),
    ],
)
def test_outputs_with_thresholds_are_described(
    bundle: OnnxBundle, values: dict[str, Any], described: list[object]
) -> None:
    first, *others = inference_protocol._describe_outputs(replace(bundle, **values))
    assert (first.name, first.datatype, first.shape) == ("probabilities", "FP32", [-1, 3])
    assert [(each.name, each.datatype, each.shape, each.parameters) for each in others] == described


def test_each_output_is_binary_or_not_as_requested() -> None:
    request = {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}],
        "outputs": [{"name": "known", "parameters": {"binary_data": True}}, {"name": "probabilities"}],
    }
    arrays = {"probabilities": np.array([[0.25, 0.75]], "<f4"), "known": np.array([0.5], "<f4")}
    reply = inference_protocol._make_infer_response(
        "model", ("ant", "bee"), schemas.InferRequest.model_validate(request), arrays
    )
    length = int(reply.headers["Inference-Header-Content-Length"])
    known, probabilities = json.loads(reply.body[:length])["outputs"]  # type: ignore[index]
    assert (known["parameters"], "data" in known) == ({"binary_data_size": 4}, False)
    assert (probabilities["data"], "parameters" in probabilities) == ([0.25, 0.75], False)
    assert reply.body[length:] == arrays["known"].tobytes()  # type: ignore[index]
