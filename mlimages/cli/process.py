"""Process-wide settings, applied only by the command line."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import signal
import sys
import threading

GARBAGE_THRESHOLD = 10_000
"""Allocations between garbage collections. At Python's default of 700, a tenth of the time of `gather` went into
traversing the thousand links in flight."""


def use_one_blas_thread() -> None:
    """Keep idle BLAS and OpenMP threads from spinning; numpy and torch read these variables when imported.

    With another process running, spinning threads took half of the processor time of a cached run.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def use_one_thread() -> None:
    """Use one thread: in networks as small as LeNet, several threads mostly wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def raise_gc_threshold() -> None:
    """Raise the garbage collector's threshold, for commands that keep thousands of objects in flight."""
    gc.set_threshold(GARBAGE_THRESHOLD)


def escape_unprintable_output() -> None:
    """Escape characters that the terminal's encoding cannot represent, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def interrupt_on_sigterm() -> None:
    """Handle SIGTERM (Slurm, Kubernetes) like Ctrl-C; call this after Ray has started, whose handler prints a stack."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def repeat_lost_interrupts() -> None:
    """Send Ctrl-C again where Python drops the exception: in a finalizer or in a callback of a weak reference.

    PyTorch's export runs thousands of these.
    """
    report, main_thread = sys.unraisablehook, threading.get_ident()

    def send_again(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGINT)).start()  # after the callback
        else:
            report(unraisable)

    sys.unraisablehook = send_again


def log_server(log_format: str) -> None:
    """Write the server's log, including its access log, to standard error."""
    from mlimages.serving import JsonFormatter

    handler, logger = logging.StreamHandler(), logging.getLogger("mlimages.serving")
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def raise_mmap_threshold() -> None:
    """Raise glibc's mmap threshold by freeing a block of 4 MB, so that smaller blocks are reused (mallopt(3)).

    Decoding an image then allocates 2 new pages instead of 26, which saves 4 % of the processor time of `check`.
    """
    bytes(4 * 2**20)


def disable_gc_at_exit() -> None:
    """Skip CPython's garbage collections at exit for speed, unless torch is loaded, which needs them."""
    atexit.register(_freeze_gc)


def _freeze_gc() -> None:
    if "torch" not in sys.modules:
        gc.freeze()
