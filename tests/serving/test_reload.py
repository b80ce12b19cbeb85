"""SIGHUP reloads the model's file."""

import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlimages.export import export_network
from mlimages.inference import OnnxBundle
from tests.deploying import trained
from tests.serving.apps import Client, encoded

pytestmark = [pytest.mark.train, pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")]


@dataclass(frozen=True, slots=True)
class Serving(Client):
    process: subprocess.Popen[str]
    model: Path

    def classes(self) -> list[str]:
        return list(self.ask("GET", "/healthz").json["classes"])

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
    started = Serving(int(process.stdout.readline().rsplit(":", 1)[1].strip("/\n")), process, model)
    started.log_line()  # next: ...
    yield started
    process.kill()
    process.communicate()


def test_sighup_serves_the_new_file_and_requests_in_flight_are_unharmed(serving: Serving, tmp_path: Path) -> None:
    other = export_network(trained("cifar10_cnn", classes=5, seed=1), tmp_path / "other.onnx", validation=())
    answers: Counter[tuple[int, int]] = Counter()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            reply = serving.ask("POST", "/predict", encoded(3))
            answers[reply.status, len(reply.json["predictions"][0]["top"])] += 1

    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    other.path.replace(serving.model)
    serving.process.send_signal(signal.SIGHUP)
    assert f"reloaded {serving.model}" in serving.log_line()
    assert serving.classes() == [f"class{n}" for n in range(5)]
    assert serving.ask("POST", "/predict?top=5", encoded(3)).status == 200
    stop.set()
    for client in clients:
        client.join()
    assert set(answers) <= {(200, 3), (200, 5)}
    assert answers


def test_a_file_that_cannot_be_used_leaves_the_old_model_serving(serving: Serving) -> None:
    classes = serving.classes()
    serving.model.unlink()
    serving.model.write_text("not an ONNX file")
    serving.process.send_signal(signal.SIGHUP)
    assert "cannot reload the model" in serving.log_line()
    assert serving.classes() == classes
    assert serving.ask("POST", "/predict", encoded(3)).status == 200
