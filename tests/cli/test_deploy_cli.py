"""The words of deployment, as a person types them."""

import csv
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from typer.testing import CliRunner

from mlimages.cli import predictions
from mlimages.cli.main import app
from mlimages.core import BrokenImage, ClassScore, Fault, InputError, LabeledPath, Prediction
from mlimages.export import ExportOptions
from mlimages.inference import InDistributionCalibration, OnnxBundle, Predictor
from mlimages.labels import write_label_file
from mlimages.serving import serve
from mlimages.serving.schemas import ErrorResponse, ProtocolErrorResponse
from tests.conftest import RunCli
from tests.deploying import exported, made_image, made_images

pytestmark = pytest.mark.train


@pytest.fixture
def model(cnn_bundle: OnnxBundle) -> Path:
    return cnn_bundle.path


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Path:
    """A run folder with nothing but the model."""
    (tmp_path / "run").mkdir()
    return shutil.copyfile(model, tmp_path / "run/model.onnx").parent


@pytest.fixture
def items(tmp_path: Path) -> list[LabeledPath]:
    return made_images(tmp_path / "p", 4)


def test_predict_gives_the_same_numbers_from_python_and_from_the_command_line(
    model: Path, items: list[LabeledPath], invoke_cli: RunCli
) -> None:
    told = json.loads(invoke_cli("predict", model, "p", "--json").stdout)
    results = Predictor(model)([item.path for item in items])
    top = [[(score.class_name, score.probability) for score in result.top] for result in results]  # type: ignore[union-attr]
    assert [[(s["class_name"], s["probability"]) for s in one["top"]] for one in told] == top
    named = ", ".join(f"{name} {probability * 100:.1f} %" for name, probability in top[1][:2])
    assert invoke_cli("predict", model, "p/01.png", "--top", "2").stdout == f"p/01.png: {named}\n"


def test_a_broken_image_is_one_line_with_its_code_and_stops_nothing(
    model: Path, items: list[LabeledPath], run_cli: RunCli
) -> None:
    items[1].path.write_text("no image")
    (items[0].path.parent / "photo").touch()
    done = run_cli("predict", model, "p", "none.jpg")
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("p/01.png: broken, not-an-image")
    assert lines[4].startswith("none.jpg: broken, missing")
    assert "p: skipped files whose suffix is not that of an image (number by suffix): 1 without a suffix" in done.stderr
    assert run_cli("predict", model, "none.jpg", check=False).returncode == 1


def test_predict_writes_csv_that_a_table_program_reads(
    model: Path, items: list[LabeledPath], invoke_cli: RunCli
) -> None:
    items[2].path.write_text("no image")
    rows = list(csv.DictReader(io.StringIO(invoke_cli("predict", model, "p", "--csv", "--top", "1").stdout)))
    assert [row["path"] for row in rows] == [f"p/{n:02}.png" for n in range(4)]
    assert [row["fault"] for row in rows] == ["", "", "not-an-image", ""]
    assert set(rows[0]) == {"path", "fault", "known", "set", "class_1", "probability_1"}
    assert (rows[2]["class_1"], rows[2]["probability_1"]) == ("", "")


def test_a_run_folder_is_taken_wherever_a_model_is(
    run: Path, items: list[LabeledPath], run_cli: RunCli, tmp_path: Path
) -> None:
    """`serve` takes it in the tests of a server."""
    write_label_file(tmp_path / "val.txt", items, ("class0", "class1", "class2"))
    assert OnnxBundle.read(str(tmp_path / "run")).path == tmp_path / "run" / "model.onnx"
    assert run_cli("predict", "run", "p").stdout == run_cli("predict", "run/model.onnx", "p").stdout
    assert run_cli("evaluate", "run", "val.txt").stdout.startswith("accuracy")
    assert "measured on" in run_cli("quantize", "run", "--calibration", "val.txt", "--max-drop", "100").stdout


@pytest.mark.parametrize("preprocessing", [True, False])
def test_quantize_proposes_the_next_command_only_if_it_works(
    tmp_path: Path, invoke_cli: RunCli, monkeypatch: pytest.MonkeyPatch, preprocessing: bool
) -> None:
    monkeypatch.setattr("mlimages.export.quantization.MIN_SPEEDUP", 0.0)
    bundle = exported("cifar10_cnn", tmp_path, options=ExportOptions(include_preprocessing=preprocessing))
    write_label_file(tmp_path / "val.txt", made_images(tmp_path / "p", 6), bundle.class_names)
    done = invoke_cli("quantize", "model.onnx", "--calibration", "val.txt", "--max-drop", "100")
    assert ("next: mlimages evaluate model-quantized.onnx val.txt" in done.stderr) == preprocessing
    evaluated = invoke_cli("evaluate", "model-quantized.onnx", "val.txt", check=False)
    assert (evaluated.returncode == 0) == preprocessing
    if not preprocessing:
        assert "only other programs can run it, with the input that `mlimages summary model-q" in evaluated.stderr


HOSTILE_NAMES = [b"na\xefve.png", b"\x1b[31mred.png", b"two\nlines.png", "\u202egnp.x.png".encode(), b"=cmd|' 'A0.png",
                 "\u732b.png".encode()]  # fmt: skip


PREDICT_IN_EVERY_FORM = """
import sys
from mlimages.cli.main import main
model = sys.argv[1]
for form in ([], ["--json"], ["--csv"]):
    sys.argv[1:] = ["predict", model, ".", *form]
    try:
        main()
    except SystemExit as end:
        print(f"exit {end.code}\\0", end="")
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_no_file_name_costs_an_answer_or_reaches_the_terminal_as_a_command(
    model: Path, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "names").mkdir()
    made_image(0).save(tmp_path / "a.png")
    for name in HOSTILE_NAMES:
        path = os.path.join(os.fsencode(tmp_path / "names"), name)  # noqa: PTH118
        shutil.copyfile(tmp_path / "a.png", os.fsdecode(path))
    words = [sys.executable, "-c", PREDICT_IN_EVERY_FORM, model]
    env = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run(words, cwd=tmp_path / "names", capture_output=True, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    lines, array, table, rest = done.stdout.decode(encoding).split("exit 0\0")
    assert rest == ""
    for text in (lines, array, table):
        assert text.count(".png") == len(HOSTILE_NAMES)
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text)
    assert len(lines.splitlines()) == len(HOSTILE_NAMES)
    assert {os.fsencode(one["path"]) for one in json.loads(array)} == set(HOSTILE_NAMES)
    rows = list(csv.reader(io.StringIO(table)))
    assert len(rows) == 1 + len(HOSTILE_NAMES)
    assert not [cell for row in rows for cell in row if cell.startswith("=")]


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt], ids=str)
def test_a_json_array_that_was_cut_off_is_not_valid_json_and_has_whole_lines(
    count: int, error: type[BaseException] | None, cnn_bundle: OnnxBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    def results() -> Iterator[BrokenImage]:
        for _ in range(count):
            yield BrokenImage("a.png", Fault.EMPTY, "the file is empty")
        if error:
            raise error

    with pytest.raises(error) if error else nullcontext():
        predictions.print_json(results(), top=1, bundle=cnn_bundle)
    text = capsys.readouterr().out
    with pytest.raises(json.JSONDecodeError) if error else nullcontext():
        assert len(json.loads(text)) == count
    assert len(json.loads(f"{text}]" if error else text)) == count


@pytest.mark.parametrize(
    ("known", "unknown_below", "reason"),
    [
        (InDistributionCalibration(0.95, 40), 0.0, "unlike the training images (as are about 5 % of the images of "
         "your classes)"),
        (InDistributionCalibration(0.8, 40), 0.0, "unlike the training images (as are about 20 % of the images of "
         "your classes)"),
        (None, 0.625, "with a probability below 62.5 %"),
        (InDistributionCalibration(0.95, 40), 0.625, "unlike the training images (as are about 5 % of the images of "
         "your classes), or with a probability below 62.5 %"),
    ],
)  # fmt: skip
def test_predict_says_why_images_are_none_of_the_classes_with_the_settings_of_the_file(
    cnn_bundle: OnnxBundle, capsys: pytest.CaptureFixture[str], known: InDistributionCalibration | None,
    unknown_below: float, reason: str,
) -> None:  # fmt: skip
    results = [Prediction("a.png", (ClassScore("class0", 0, 0.4),), known=False)] * 2
    bundle = replace(cnn_bundle, known=known, unknown_below=unknown_below)
    assert predictions.print_text(results, top=1, bundle=bundle) == 2
    assert capsys.readouterr().err == f'2 images predicted as "none of these": {reason}\n'


def test_predict_takes_an_image_on_standard_input(model: Path, items: list[LabeledPath]) -> None:
    data = items[0].path.read_bytes()
    done = subprocess.run([sys.executable, "-m", "mlimages", "predict", model, "-"], input=data, capture_output=True)
    assert re.fullmatch(r"-: class\d [\d.]+ %, .*\n", done.stdout.decode())


def test_predict_copies_images_into_a_folder_per_class(
    model: Path, items: list[LabeledPath], invoke_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    made_image(9).save(tmp_path / "other" / "00.png")
    sources = ("p", "other/00.png")
    for _ in range(2):
        invoke_cli("predict", model, *sources, "--copy-to", "sorted")
    copied = sorted(path.read_bytes() for path in (tmp_path / "sorted").rglob("*.png"))
    given = sorted(path.read_bytes() for path in [*(tmp_path / "p").iterdir(), tmp_path / "other" / "00.png"])
    assert copied == given
    said = {result.class_name for result in Predictor(model)([item.path for item in items])}  # type: ignore[union-attr]
    assert said <= {path.name for path in (tmp_path / "sorted").iterdir()}


def test_evaluate_prints_a_table_or_json_and_writes_a_page(
    model: Path, items: list[LabeledPath], run_cli: RunCli, invoke_cli: RunCli, tmp_path: Path
) -> None:
    write_label_file(tmp_path / "val.txt", items, ("class0", "class1", "class2"))
    done = run_cli("evaluate", model, "val.txt", "--report", "r.html")
    assert re.match(r"accuracy [\d.]+ % \(95 % interval \d+ to \d+ %\) on 4 images", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "next: mlimages serve" in done.stderr
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert json.loads(invoke_cli("evaluate", model, "val.txt", "--json").stdout)["count"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("predict p/00.png p", "p/00.png is not an ONNX file"),
        ("export p", "not a run folder"),
        ("predict p p/00.png", "p is a folder without model.onnx"),
        ("predict unfinished p", "mlimages export unfinished"),
        ("predict MODEL empty", "empty is a folder without images"),
        ("predict MODEL p empty", "empty is a folder without images"),
        ("predict MODEL p https://x.example/a.jpg", "https://x.example/a.jpg: URLs are not read here: download"),
        ("predict MODEL - p", "- means standard input"),
        ("serve MODEL --port 0 --cors x.example", "'x.example' is not an origin"),
        ("serve MODEL --port 0 --max-images 0", "max_images is 0"),
        ("serve MODEL --host 0.0.0.0 --port 0", "MLIMAGES_TOKEN"),
        ("serve MODEL --token --port 0", "MLIMAGES_TOKEN"),
    ],
)
def test_what_goes_wrong_is_one_line(
    model: Path, items: list[LabeledPath], run_cli: RunCli, invoke_cli: RunCli, words: str, said: str
) -> None:
    for folder in ("empty", "unfinished"):
        Path(items[0].path.parents[1], folder).mkdir()
    Path(items[0].path.parents[1], "unfinished", "config.json").write_text("{}")
    command = run_cli if words.startswith("serve") else invoke_cli  # `serve` changes the logging of its process
    done = command(*words.replace("MODEL", str(model)).split(), check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(f"mlimages: .*{re.escape(said)}.*\n", done.stderr)


@pytest.mark.parametrize("words", [["predict"], ["evaluate"], ["explain", "-o", "why"]])
def test_swapped_arguments_are_answered_with_their_order(
    model: Path, items: list[LabeledPath], tmp_path: Path, words: list[str]
) -> None:
    (run := tmp_path / "run").mkdir()
    (run / "config.json").write_text("{}")
    image, folder = items[0].path, items[0].path.parent
    for first, second in ((image, model), (image, run), (folder, model)):
        error = CliRunner().invoke(app, [*words, str(first), str(second)]).exception
        assert str(error) == f"{first} is not a model, but {second} is: swap the two arguments"
    missing = CliRunner().invoke(app, [*words, "none.onnx", str(model)]).exception
    assert "no file at none.onnx" in str(missing)


def status_of(port: int, path: str, **headers: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status


@contextmanager
def started(command: list[object], **options: Any) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that serves on a free port, and the port."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], **{"stdout": PIPE, "stderr": PIPE, "text": True, **options}
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline().rsplit(":", 1)[1].strip("/\n"))
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def serving(run: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with started(["-m", "mlimages", "serve", run, "--port", 0]) as server:
        yield server


def test_sigterm_finishes_what_is_in_flight_and_takes_nothing_new(
    serving: tuple[subprocess.Popen[str], int], items: list[LabeledPath]
) -> None:
    process, port = serving
    data = items[0].path.read_bytes()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(
            data
        )
        connection.sendall(head)
        assert connection.recv(64).startswith(b"HTTP/1.1 100")  # the request is in flight now
        process.send_signal(signal.SIGTERM)
        with suppress(ConnectionRefusedError):
            while True:
                with suppress(ConnectionResetError):  # it stood in the door when that was closed
                    socket.create_connection(("127.0.0.1", port), timeout=60).close()
        connection.sendall(data)
        with connection.makefile("rb") as answer:
            reply = answer.read()
    assert reply.startswith(b"HTTP/1.1 200")
    assert b"class_name" in reply
    assert process.wait(120) == 0


def test_a_port_that_is_taken_is_one_line(
    serving: tuple[subprocess.Popen[str], int], model: Path, run_cli: RunCli
) -> None:
    done = run_cli("serve", model, "--port", serving[1], check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"mlimages: cannot listen on 127.0.0.1 port \d+ .*--port\n", done.stderr)


def test_windows_is_told_where_the_server_runs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")
    with pytest.raises(InputError, match="use Linux, macOS or WSL"):
        serve(model)


def test_requests_that_never_reach_a_handler_get_the_errors_of_the_api_and_ctrl_c_ends_the_server_in_silence(
    serving: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = serving
    for request, expected in (
        (b"GET /healthz HTTP/1.1\r\n\r\n", ErrorResponse),
        (b"NO HTTP\r\n\r\n", ErrorResponse),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\n\r\n", ErrorResponse),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\n\r\n", ProtocolErrorResponse),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(request)
            with connection.makefile("rb") as answer:
                head, _, body = answer.read().partition(b"\r\n\r\n")
        assert b"Content-Type: application/json" in head
        expected.model_validate_json(body)
    assert status_of(port, "/healthz") == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


SERVE_IN_A_LITTLE_ROOM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
from mlimages.inference import Predictor
from mlimages.serving import ServerSettings, connections, serve
connections.MIN_IDLE_S = float(sys.argv[2])
settings = ServerSettings(idle_timeout_s=float(sys.argv[3]))
serve(Predictor(sys.argv[1], workers=1), port=0, settings=settings, on_started=lambda url: print(url, flush=True))
"""


@contextmanager
def idle_connections(
    model: Path, log: Path, min_idle_s: str, idle_timeout_s: str
) -> Iterator[tuple[int, list[socket.socket]]]:
    """Serve in few file descriptors, and open more connections that send nothing: the port and the connections."""
    words = ["-c", SERVE_IN_A_LITTLE_ROOM, model, min_idle_s, idle_timeout_s]
    with log.open("w") as file, started(words, stderr=file) as (_, port), ExitStack() as stack:
        connect = partial(socket.create_connection, ("127.0.0.1", port), timeout=60)
        yield port, [stack.enter_context(connect()) for _ in range(250)]


def test_idle_connections_beyond_the_limit_are_refused_until_others_are_closed(model: Path, tmp_path: Path) -> None:
    with idle_connections(model, tmp_path / "log", min_idle_s="1e9", idle_timeout_s="1") as (port, idle):
        assert {connection.recv(4096)[:12] for connection in idle} == {b"", b"HTTP/1.1 503"}
        assert status_of(port, "/healthz") == 200
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_the_longest_idle_connection_makes_room(model: Path, tmp_path: Path) -> None:
    with idle_connections(model, tmp_path / "log", min_idle_s="0.01", idle_timeout_s="1e9") as (port, idle):
        while status_of(port, "/healthz") != 200:
            pass
        assert idle[0].recv(64) == b""


@pytest.mark.parametrize(("option", "status_without"), [(["--token"], 401), ([], 200)])
def test_the_token_from_the_environment_is_asked_or_said_not_to_be_but_never_printed(
    model: Path, option: list[str], status_without: int
) -> None:
    env = {**os.environ, "MLIMAGES_TOKEN": " s3cret\n"}
    with started(["-m", "mlimages", "serve", model, "--port", 0, *option], env=env) as (process, port):
        assert status_of(port, "/metrics") == status_without
        assert status_of(port, "/metrics", Authorization="Bearer s3cret") == 200
        process.kill()
        printed = "".join(process.communicate())
    assert ("requests need no token; behind a proxy" in printed) == (not option)
    assert "s3cret" not in printed


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("-1", "-1"), ("+1.5e3", "+1.5e3"), ("-.5", "-.5"), ("-", "-"), ("cat", "cat"), ("@home", "'@home"),
        ("=1+2", "'=1+2"), ("-1+2", "'-1+2"), ("+1 cat", "'+1 cat"), ("-2+cmd|' /C calc'!A0", "'-2+cmd|' /C calc'!A0"),
    ],
)  # fmt: skip
def test_only_text_that_a_spreadsheet_would_evaluate_gets_an_apostrophe(
    name: str, cell: str, cnn_bundle: OnnxBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions.print_csv([Prediction("a.png", (ClassScore(name, 0, 1.0),))], top=1, bundle=cnn_bundle)
    assert next(csv.reader([capsys.readouterr().out.splitlines()[-1]]))[-2] == cell
