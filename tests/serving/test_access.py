"""Who may send requests to the service, and what it tells and logs of them."""

import json
import logging
import re
from dataclasses import replace
from typing import Any

import pytest

from mlimages.core import InputError
from mlimages.inference import OnnxBundle, Predictor
from mlimages.serving import JsonFormatter, ServerSettings
from mlimages.serving.service import SERVICE_KEY
from tests.serving.apps import Served, encoded

pytestmark = pytest.mark.train

SITE = "https://shop.example"


@pytest.fixture(scope="module")
def served(serve_with: Any) -> Served:
    return serve_with(allowed_hosts=("images.example.org",))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LOCALHOST.", 200),
        ("app.localhost", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.20", 200),
        ("images.example.org", 200),
        ("Images.Example.ORG:443", 200),
        ("", 200),
        ("attacker.example", 421),
        ("127.0.0.1.attacker.example", 421),
        ("localhost.attacker.example", 421),
        ("images.example.org.attacker.example", 421),
        ("a@localhost:1", 200),
        ("[::1", 421),
        ("[attacker.example]", 421),
    ],
)
def test_a_name_that_is_not_the_servers_gets_no_answer(served: Served, host: str, status: int) -> None:
    for method, path in (("GET", "/"), ("GET", "/healthz"), ("POST", "/predict"), ("GET", "/v2/models/model")):
        reply = served.ask(method, path, encoded() if method == "POST" else None, Host=host)
        assert reply.status == status, path
        if status == 421:
            assert reply.code == "misdirected-request"


def test_any_name_is_taken_where_the_settings_say_so(serve_with: Any) -> None:
    assert serve_with(allowed_hosts=("*",)).ask("GET", "/healthz", Host="any.example").status == 200


def test_pages_of_an_allowed_origin_may_read_answers_and_errors(serve_with: Any) -> None:
    served = serve_with(cors_origins=(SITE,), token="s3cret")
    preflight = served.ask(
        "OPTIONS", "/predict", Origin=SITE, Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization",
    )  # fmt: skip
    assert preflight.status == 204
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    for status, headers in ((401, {}), (200, {"Authorization": "Bearer s3cret"})):
        reply = served.ask("POST", "/predict", encoded(), Origin=SITE, **headers)
        assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (status, SITE)
        assert reply.headers["Vary"] == "Origin"
    other = served.ask("POST", "/predict", encoded(), Origin="https://other.example", Authorization="Bearer s3cret")
    assert other.status == 200
    assert "Access-Control-Allow-Origin" not in other.headers


@pytest.mark.parametrize(
    "origin",
    ["shop.example", "https://shop.example/", "https://shop.example/page", "null", "", "https://", "https://*.example",
     "https://Shop.example", "HTTPS://shop.example", "https://shop.example:443", "http://shop.example:80",
     "https://shop.example:x", "https://a@shop.example", "https://shop.example ", "https://[::1", "https://müll.example",
     "https://shop.example?x", "ftp://shop.example"],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_refused_before_the_server_starts(origin: str) -> None:
    with pytest.raises(InputError, match="not an origin"):
        ServerSettings(cors_origins=(origin,))


@pytest.mark.parametrize("origin", ["*", SITE, "http://localhost:3000", "http://[::1]:8080", "https://10.0.0.1:8443"])
def test_an_origin_that_a_browser_sends_is_accepted(origin: str) -> None:
    assert ServerSettings(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize(
    "name",
    ["https://images.example.org", "images.example.org:8443", "images.example.org/", "*.example.org", "",
     " images.example.org", "images.example.org ", "images..example.org", ".example.org", "a@example.org",
     "müll.example", "[::1]", "images.example.org,other.example.org"],
)  # fmt: skip
def test_a_host_name_that_no_request_can_have_is_refused_before_the_server_starts(name: str) -> None:
    with pytest.raises(InputError, match="is not a host name: expected one without scheme"):
        ServerSettings(allowed_hosts=(name,))


@pytest.mark.parametrize("name", ["Images.example.org", "images.example.org.", "xn--mll-hoa.example", "a_b", "::1"])
def test_a_host_name_that_a_request_can_have_is_accepted_and_matches(serve_with: Any, name: str) -> None:
    host = f"[{name}]" if ":" in name else name
    assert serve_with(allowed_hosts=(name,)).ask("GET", "/healthz", Host=f"{host.upper()}:8443").status == 200


@pytest.mark.parametrize("token", [" s3cret", "s3cret\n", "two\nlines", "nul\0"])
def test_a_token_that_no_header_can_contain_is_refused_and_not_printed(token: str) -> None:
    with pytest.raises(InputError, match="the token begins or ends with white space") as caught:
        ServerSettings(token=token)
    assert token.strip() not in str(caught.value)


@pytest.mark.parametrize(
    ("credentials", "status"),
    [("Bearer s3cret", 200), ("bearer s3cret", 200), ("BEARER  s3cret", 200), ("s3cret", 401), ("Basic s3cret", 401),
     ("Bearer S3CRET", 401), ("Bearers3cret", 401), ("Bearer", 401), ("", 401)],
)  # fmt: skip
def test_the_scheme_of_the_token_may_have_any_case(serve_with: Any, credentials: str, status: int) -> None:
    assert serve_with(token="s3cret").ask("GET", "/metrics", Authorization=credentials).status == status


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "max_images", "queue_size", "timeout_s", "idle_timeout_s"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 0"):
        ServerSettings(**{name: 0})


def test_a_token_is_not_shown_by_repr() -> None:
    assert "s3cret" not in repr(ServerSettings(token="s3cret"))


def test_healthz_names_model_classes_and_threshold_to_those_who_may_know(
    serve_with: Any, cnn_bundle: OnnxBundle
) -> None:
    served = serve_with(Predictor(replace(cnn_bundle, unknown_below=0.25)), token="s3cret")
    assert served.ask("GET", "/healthz").json == {"status": "ok"}
    assert served.ask("GET", "/healthz", Authorization="Bearer s3cret").json == {
        "status": "ok",
        "model": "cifar10_cnn",
        "classes": ["class0", "class1", "class2"],
        "threshold": 0.25,
        "explain": True,
    }


def test_the_access_log_has_a_line_for_each_request_if_the_settings_say_so_as_text_and_as_json(
    serve_with: Any, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve_with(access_log=True)
    with caplog.at_level(logging.INFO, "mlimages.serving"):
        serve_with().ask("GET", "/healthz")  # which logs no requests
        served.ask("GET", "/healthz?secret=1")
        served.ask("GET", "/a%0Ab")
    good, bad = caplog.records
    assert good.getMessage().startswith("127.0.0.1 GET /healthz")
    assert "\n" not in bad.getMessage()
    values = json.loads(JsonFormatter().format(good))
    assert values["status"] == 200
    assert values["path"] == "/healthz"
    assert values["bytes"] > 0
    assert {"time", "level", "client", "method", "duration_ms"} <= set(values)
    assert json.loads(JsonFormatter().format(bad))["status"] == 404


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/healthz", {}, 200),
        ("GET", "/metrics", {}, 401),
        ("GET", "/nothing", {"Authorization": "Bearer s3cret"}, 404),
        ("PUT", "/predict", {"Authorization": "Bearer s3cret"}, 405),
        ("POST", "/predict", {"Authorization": "Bearer s3cret"}, 422),
        ("GET", "/healthz", {"Host": "attacker.example"}, 421),
        ("OPTIONS", "/predict", {"Origin": SITE, "Access-Control-Request-Method": "POST"}, 204),
    ],
)
def test_every_answer_of_a_server_that_stops_closes_its_connection_and_is_counted(
    serve_with: Any, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    served = serve_with(cors_origins=(SITE,), token="s3cret")
    assert served.ask(method, path, **headers).headers["Connection"] is None
    served.app[SERVICE_KEY].is_stopping = True
    reply = served.ask(method, path, **headers)
    assert (reply.status, reply.headers["Connection"]) == (status, "close")
    counts = served.app[SERVICE_KEY].metrics.to_text().decode()
    assert re.search(rf'mlimages_requests_total{{route="[^"]*",status="{status}"}} 2\.0', counts)
