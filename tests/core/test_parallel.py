"""Processes that run tasks, and end with them."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mlimages.core import ProcessPool, parallel


def run_despite_signals(folder: Path) -> None:
    """Ignore every interruption, as when Python drops the exception of a signal handler in a finalizer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    (folder / str(os.getpid())).touch()
    threading.Event().wait()


def exists(pid: int) -> bool:
    """Ask the system: `is_alive` can be wrong while a thread of the executor waits for the same process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_cannot_be_interrupted_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_STOP_TIMEOUT_S", 0.1)
    running = ProcessPool(2).map_as_completed(run_despite_signals, [tmp_path])
    while not list(tmp_path.iterdir()):
        next(running)
    running.close()  # type: ignore[attr-defined]  # it is a generator
    (pid,) = (int(path.name) for path in tmp_path.iterdir())
    deadline = time.monotonic() + 60
    while exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
