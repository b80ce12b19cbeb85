"""Settings of the whole process, which the command line alone makes."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import sys

GARBAGE_THRESHOLD = 10_000
"""Allocations until the garbage collector runs. At Python's 700 it took a tenth of a gather run's time, going through
the thousand links in flight over and over."""


def use_one_blas_thread() -> None:
    """Keep idle BLAS and OpenMP threads from spinning; read by numpy and torch when they are imported.

    Spinning threads burnt half of a cached run's samples beside another process.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def use_one_thread() -> None:
    """Compute in one thread: for networks as small as LeNet, more threads only wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def collect_garbage_rarely() -> None:
    """Raise the garbage collector's threshold, for commands that keep thousands of objects in flight."""
    gc.set_threshold(GARBAGE_THRESHOLD)


def escape_what_cannot_be_printed() -> None:
    """Let no file name end a command: what the terminal's encoding cannot hold is printed as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def log_server(log_format: str) -> None:
    """Write the server's log lines, its access log included, to standard error."""
    from mlimages.serving import JsonFormatter

    handler, logger = logging.StreamHandler(), logging.getLogger("mlimages.serving")
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def skip_collection_at_exit() -> None:
    """Spare Python the three collections of its end; with torch loaded they must run."""
    atexit.register(_freeze)


def _freeze() -> None:
    if "torch" not in sys.modules:
        gc.freeze()
