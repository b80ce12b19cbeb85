"""Run Python commands in processes forked from one that has already imported the libraries.

Each command has a process, folder, environment, output and exit code of its own, as with `subprocess`; what is saved is
importing PyTorch, three seconds of processor time. A test of imports or of start-up starts a process of its own.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIGHT = ("numpy", "PIL.Image", "typer", "aiohttp", "pydantic")
HEAVY = ("torch", "torchvision", "timm", "torch.onnx._internal.exporter._core", "onnxscript", "matplotlib.pyplot")
NUMBER_BYTES = 12


class Forked:
    """A running command."""

    def __init__(self, words: Sequence[str], outputs: Sequence[int], status: socket.socket) -> None:
        self._words, self._outputs, self._status = words, outputs, status
        self.pid = int(status.recv(NUMBER_BYTES))

    def communicate(self, timeout_s: float = 1200) -> subprocess.CompletedProcess[str]:
        """Wait for the end; kill the command after `timeout_s`."""
        self._status.settimeout(timeout_s)
        try:
            code = int(self._status.recv(NUMBER_BYTES))
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(self._words), timeout_s) from None
        self._status.close()
        stdout, stderr = map(_read, self._outputs)
        return subprocess.CompletedProcess(["python", *self._words], code, stdout, stderr)


def _read(descriptor: int) -> str:
    with os.fdopen(descriptor, "r", encoding="utf-8") as file:
        file.seek(0)
        return file.read()


def _unlinked_file() -> int:
    descriptor, path = tempfile.mkstemp()
    Path(path).unlink()
    return descriptor


class ForkServer:
    """The process that imports the libraries and forks one process per command."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
                cwd=Path(__file__).parents[1],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def start(self, words: Sequence[str], folder: Path, env: Mapping[str, str], *, torch: bool) -> Forked:
        """Start `python WORDS...` in `folder`, with PyTorch and what builds on it imported or not."""
        outputs = [_unlinked_file(), _unlinked_file()]
        ours, status = socket.socketpair()
        request = json.dumps({"words": list(words), "folder": str(folder), "env": dict(env), "torch": torch}).encode()
        with status:
            socket.send_fds(self._socket, [b"%*d" % (NUMBER_BYTES, len(request))], [*outputs, status.fileno()])
            self._socket.sendall(request)
        return Forked(words, outputs, ours)

    def close(self) -> None:
        """End the server, not the commands that run."""
        self._socket.close()
        self._process.wait(30)


def _serve(server: socket.socket) -> dict[str, Any] | None:
    """Fork a process per request, in which this returns the request; return None in the server at its end."""
    for name in LIGHT:
        importlib.import_module(name)
    while True:
        size, descriptors, _, _ = socket.recv_fds(server, NUMBER_BYTES, 3)
        if not size:
            return None
        request = json.loads(server.recv(int(size), socket.MSG_WAITALL))
        for name in HEAVY if request["torch"] else ():
            importlib.import_module(name)
        gc.freeze()  # else each process would traverse, and so copy, all these objects when it ends
        if os.fork() == 0 and _is_command(descriptors):
            return request  # type: ignore[no-any-return]
        for descriptor in descriptors:
            os.close(descriptor)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _is_command(descriptors: Sequence[int]) -> bool:
    """Fork the command, in which this returns; the process between reports its id and its exit code."""
    stdout, stderr, status = descriptors
    if pid := os.fork():
        os.write(status, b"%*d" % (NUMBER_BYTES, pid))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(status, b"%*d" % (NUMBER_BYTES, code))
        os._exit(0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in descriptors:
        os.close(descriptor)
    return True


def _run(words: list[str], folder: str, env: dict[str, str]) -> None:
    """Do what `python WORDS...` does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    first, *rest = words
    sys.path[0] = folder
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = [first, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = words, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as server:
        request = _serve(server)
    if request:
        _run(request["words"], request["folder"], request["env"])
