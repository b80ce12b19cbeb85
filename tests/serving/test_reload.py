"""SIGHUP reloads the model's file."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from mlimages.inference import OnnxBundle
from tests.serving.apps import encoded

pytestmark = [pytest.mark.train, pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")]


@dataclass(frozen=True, slots=True)
class Serving:
    process: subprocess.Popen[str]
    port: int
    model: Path

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body)
        reply = connection.getresponse()
        status, answer = reply.status, json.loads(reply.read())
        connection.close()
        return status, answer

    def classes(self) -> list[str]:
        answer: list[str] = self.ask("GET", "/healthz")[1]["classes"]
        return answer

    def log_line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()


@pytest.fixture(scope="module")
def serving(cnn_bundle: OnnxBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    model = tmp_path_factory.mktemp("served") / "model.onnx"
    shutil.copyfile(cnn_bundle.path, model)
    command = [sys.executable, "-m", "mlimages", "serve", model, "--port", "0", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    started = Serving(process, int(process.stdout.readline().rsplit(":", 1)[1].strip("/\n")), model)
    started.log_line()  # next: ...
    yield started
    process.kill()
    process.communicate()


def test_sighup_serves_the_new_file_and_requests_in_flight_are_unharmed(
    serving: Serving, cnn_bundle: OnnxBundle, tmp_path: Path
) -> None:
    other = replace(cnn_bundle, path=tmp_path / "other.onnx", class_names=("ant", "bee", "cat"))
    other.write(cnn_bundle.path)
    answers: Counter[tuple[int, bool]] = Counter()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            status, answer = serving.ask("POST", "/predict", encoded(3))
            answers[
                status, answer["predictions"][0]["class_name"] in (*cnn_bundle.class_names, *other.class_names)
            ] += 1

    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    other.path.replace(serving.model)
    serving.process.send_signal(signal.SIGHUP)
    assert f"reloaded {serving.model}" in serving.log_line()
    assert serving.classes() == ["ant", "bee", "cat"]
    assert serving.ask("POST", "/predict?top=3", encoded(3))[0] == 200
    stop.set()
    for client in clients:
        client.join()
    assert set(answers) == {(200, True)}


def test_a_file_that_cannot_be_used_leaves_the_old_model_serving(serving: Serving) -> None:
    classes = serving.classes()
    serving.model.unlink()
    serving.model.write_text("not an ONNX file")
    serving.process.send_signal(signal.SIGHUP)
    assert "cannot reload the model" in serving.log_line()
    assert serving.classes() == classes
    assert serving.ask("POST", "/predict", encoded(3))[0] == 200
