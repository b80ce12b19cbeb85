"""Fixtures that all tests share: real data, real servers, the command line."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import hypothesis
import pytest
from typer.testing import CliRunner

from mlimages.cli.main import app
from mlimages.core import MlimagesError
from mlimages.inference import OnnxBundle
from tests.browser import Browser, OpenPage, Page, as_url, chromium
from tests.forked import ForkServer
from tests.servers import closed_port

hypothesis.settings.register_profile("mlimages", deadline=None, derandomize=True)  # the same on any machine and load
hypothesis.settings.load_profile("mlimages")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images and weights; skips without it."""
    folder = os.environ.get("MLIMAGES_TEST_DATA")
    if not folder:
        pytest.skip("MLIMAGES_TEST_DATA is not set: no real images and weights to test with")
    return Path(folder).resolve()


@pytest.fixture(scope="session", autouse=True)
def _interrupts_arrive() -> None:
    """A shell starts what runs in its background deaf to Ctrl-C, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLIMAGES_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def cnn_bundle(tmp_path_factory: pytest.TempPathFactory) -> OnnxBundle:
    """A small network with random weights, exported; six images lie beside it in `images/`."""
    from tests.deploying import exported

    return exported("cifar10_cnn", tmp_path_factory.mktemp("cnn"))


@pytest.fixture(scope="session")
def bucket() -> Iterator[dict[str, str]]:
    """The environment that leads to an empty bucket `bucket` of a local server."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    port = closed_port()
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
           "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    make_bucket = Request(f"{env['AWS_ENDPOINT_URL']}/bucket", method="PUT")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            is_running = False
            while not is_running:
                assert server.poll() is None, "the server does not start"
                with suppress(URLError):
                    urlopen(make_bucket).close()
                    is_running = True
            yield env
        finally:
            server.terminate()


RunCli = Callable[..., subprocess.CompletedProcess[str]]
NEED_TORCH = frozenset({"demo", "export", "features", "finetune", "probe", "summary"})
_servers: list[ForkServer] = []


def fork_server() -> ForkServer:
    """The fork server of this test process; the first call starts it."""
    if not _servers:
        _servers.append(ForkServer())
    return _servers[0]


@pytest.fixture(scope="session", autouse=True)
def _close_fork_server() -> Iterator[None]:
    yield
    for server in _servers:
        server.close()


def cli_in(folder: Path) -> RunCli:
    """Run `mlimages ARGS...` in a process of its own, in `folder`, 80 columns wide."""

    def run(*args: object, check: bool = True, timeout_s: float = 1200, **env: str) -> subprocess.CompletedProcess[str]:
        words = [str(arg) for arg in args]
        command = fork_server().start(
            ["-m", "mlimages", *words],
            folder,
            {**os.environ, "COLUMNS": "80", **env},
            torch=not NEED_TORCH.isdisjoint(words[:1]),
        )
        done = command.communicate(timeout_s)
        assert not check or done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """`cli_in` for `tmp_path`."""
    return cli_in(tmp_path)


@pytest.fixture
def invoke_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunCli:
    """`run_cli` in this process: it is faster, but shares its logging, and prints no log messages."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        words = [str(arg) for arg in args]
        done = CliRunner().invoke(app, words, env={"COLUMNS": "80", **env})
        error, code, stderr = done.exception, done.exit_code, done.stderr
        if isinstance(error, MlimagesError):  # as `mlimages.cli.main.main` prints it
            stderr += f"mlimages: {error}\n"
        elif error and not isinstance(error, SystemExit):
            raise error
        assert not check or code == 0, f"exit {code}\n{done.stdout}\n{stderr}"
        return subprocess.CompletedProcess(words, code, done.stdout, stderr)

    return run


@pytest.fixture(scope="module")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = chromium()
    if executable is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium): no page can be opened")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def open_page(_browser: Browser) -> Iterator[OpenPage]:
    """Open an address or a file in headless Chromium: `open_page(url_or_path, width=400, dark=True) -> Page`."""
    pages: list[Page] = []

    def open_(url_or_path: str | Path, *, width: int = 1400, height: int = 900, dark: bool = False) -> Page:
        pages.append(Page(_browser, as_url(url_or_path), width=width, height=height, dark=dark))
        return pages[-1]

    yield open_
    for page in pages:
        page.close()
