"""Clients that others wrote."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from mlimages.core import Prediction
from mlimages.inference import OnnxBundle, Predictor
from tests.inference.test_known import with_known
from tests.serving.apps import Served

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def server(serve_with: Any) -> Served:
    return serve_with(max_images=8)


@pytest.fixture(scope="module")
def http() -> Any:
    """Triton's client."""
    with warnings.catch_warnings(action="ignore"):  # of gevent, about its own imports
        return pytest.importorskip("tritonclient.http")


@pytest.mark.parametrize("binary", [True, False])
def test_a_session_of_tritons_client(http: Any, server: Served, cnn_bundle: OnnxBundle, binary: bool) -> None:
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


@pytest.mark.parametrize("binary", [True, False])
def test_known_and_the_prediction_set_are_outputs_for_tritons_client(
    http: Any, serve_with: Any, cnn_bundle: OnnxBundle, tmp_path: Path, binary: bool
) -> None:
    predictor = Predictor(with_known(cnn_bundle, tmp_path / "a.onnx", known=0.2, threshold=0.3), workers=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    want = [one for one in predictor(pixels) if isinstance(one, Prediction)]
    tensor = http.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    names = ["prediction_set", "probabilities", "known"]
    client = http.InferenceServerClient(f"127.0.0.1:{serve_with(predictor).port}")
    described = {output["name"]: output for output in client.get_model_metadata("a")["outputs"]}
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in names]
    for result in (client.infer("a", [tensor], outputs=outputs), client.infer("a", [tensor])):
        assert result.as_numpy("known") == pytest.approx([one.known_score for one in want])
        sets = result.as_numpy("prediction_set").astype(bool)
        got = [{cnn_bundle.class_names[label] for label in row.nonzero()[0]} for row in sets]
        assert got == [set(one.prediction_set or ()) for one in want]
        assert result.as_numpy("probabilities").shape == (2, 3)
        assert all(result.get_output(name)["datatype"] == described[name]["datatype"] for name in names)
    client.close()
    assert described["known"]["parameters"] == {"threshold": 0.5}
    assert described["prediction_set"]["parameters"] == {"level": 0.9}


def test_an_output_that_the_model_lacks_is_refused(http: Any, server: Served) -> None:
    tensor = http.InferInput("image", [1, 4, 4, 3], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 4, 4, 3), np.uint8))
    client = http.InferenceServerClient(f"127.0.0.1:{server.port}")
    with pytest.raises(http.InferenceServerException, match="no output 'known'; its outputs are probabilities"):
        client.infer("model", [tensor], outputs=[http.InferRequestedOutput("known")])
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
