"""Clients that others wrote."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from mlimages.inference import OnnxBundle, Predictor
from mlimages.serving import ServerSettings, make_app
from tests.serving.test_server import Served, run_app

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def server(cnn_bundle: OnnxBundle) -> Iterator[Served]:
    yield from run_app(make_app(Predictor(cnn_bundle, workers=2), ServerSettings(max_images=8)))


@pytest.mark.parametrize("binary", [True, False])
def test_a_session_of_tritons_client(server: Served, cnn_bundle: OnnxBundle, binary: bool) -> None:
    with warnings.catch_warnings(action="ignore"):  # of gevent, about its own imports
        http = pytest.importorskip("tritonclient.http")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    client = http.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("model", "1")
    assert client.get_model_metadata("model", "1")["inputs"][0]["datatype"] == "UINT8"
    tensor = http.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    wanted = [http.InferRequestedOutput("probabilities", binary_data=binary)]
    result = client.infer("model", [tensor], model_version="1", outputs=wanted, request_id="7")
    want = [
        [score.probability for score in sorted(one.top, key=lambda score: score.label)]
        for one in Predictor(cnn_bundle)(list(pixels))  # type: ignore[union-attr]
    ]
    assert result.as_numpy("probabilities") == pytest.approx(np.array(want), abs=1e-5)
    assert result.get_response()["id"] == "7"
    classes = [http.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    named = client.infer("model", [tensor], outputs=classes).as_numpy("probabilities")
    assert named.shape == (2, 2)
    assert str(named[0, 0], "utf-8").split(":")[2].startswith("class") if binary else named[0, 0].count(":") == 2
    with pytest.raises(http.InferenceServerException, match="Content-Encoding"):
        client.infer("model", [tensor], request_compression_algorithm="gzip")
    assert client.infer("model", [tensor], response_compression_algorithm="gzip").as_numpy("probabilities").size == 6
    client.close()


def test_schemathesis_finds_no_answer_that_the_openapi_document_does_not_describe(server: Served) -> None:
    with warnings.catch_warnings(action="ignore"):  # of its own dependencies
        schemathesis = pytest.importorskip("schemathesis")
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
        for operation in schema.get_all_operations():

            @settings(
                max_examples=5, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
            )
            @given(case=operation.ok().as_strategy())
            def check(case: Any) -> None:  # random bytes are no image: 422, and no request with wrong values
                case.call_and_validate(excluded_checks=[schemathesis.checks.CHECKS.get_one("positive_data_acceptance")])

            check()
