"""Settings of the process, such as threads and signal handlers; only the command line changes them."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
import traceback

from mlimages import serving


def prevent_spinning_threads() -> None:
    """Let idle OpenMP threads sleep, and OpenBLAS use one thread; call this before numpy or torch is imported.

    By default, idle threads spin (busy-wait). When another process was running, they took half of the processor time of
    a run with cached features.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def use_one_thread() -> None:
    """Use one OpenMP thread: for networks as small as LeNet, several threads mostly wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def raise_gc_threshold() -> None:
    """Start a garbage collection after 10,000 allocations, for commands with thousands of live objects.

    With Python's default of 700, garbage collections took a tenth of the time of `gather`, which downloads a thousand
    links at a time.
    """
    gc.set_threshold(10_000)


def escape_unprintable_output() -> None:
    """Escape characters that the terminal's encoding cannot represent, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def interrupt_on_sigterm() -> None:
    """Handle SIGTERM (Slurm, Kubernetes) like Ctrl-C; call this again once Ray has replaced the handler."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def resend_lost_interrupts() -> None:
    """Install a hook that sends SIGINT again if Python has ignored it.

    Python ignores a Ctrl-C that arrives in a finalizer or a callback of a weak reference. PyTorch's export runs
    thousands of such functions.
    """
    report, main_thread = sys.unraisablehook, threading.get_ident()

    def send_interrupt_after_hook() -> None:
        """In a thread: wait until the main thread has left the hook `resend_interrupt`, then send it SIGINT."""
        while any(  # in the hook, the signal would be lost again
            frame.f_code is resend_interrupt.__code__
            for frame, _ in traceback.walk_stack(sys._current_frames()[main_thread])
        ):
            time.sleep(0.001)
        signal.pthread_kill(main_thread, signal.SIGINT)

    def resend_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
        """Handle an exception that Python ignores: send a KeyboardInterrupt again, report any other."""
        if unraisable.exc_type is KeyboardInterrupt:
            threading.Thread(target=send_interrupt_after_hook, daemon=True).start()
        else:
            report(unraisable)

    sys.unraisablehook = resend_interrupt


def configure_server_logging(log_format: str) -> None:
    """Write the log of the server, including the access log, to standard error, as `text` or `json` (`log_format`)."""
    handler, logger = logging.StreamHandler(), logging.getLogger("mlimages.serving")
    handler.setFormatter(
        serving.JsonFormatter() if log_format == "json" else logging.Formatter("%(asctime)s %(message)s")
    )
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def tune_memory_management() -> None:
    """Make glibc reuse freed blocks of up to 4 MB, and skip the garbage collections of CPython at exit.

    When a block above the mmap threshold is freed, glibc raises the threshold to its size (mallopt(3)): this function
    allocates and frees 4 MB. Decoding an image then allocates 2 new pages instead of 26, which saves 4 % of the
    processor time of `check`. With PyTorch loaded, the garbage collections at exit took more than a second.
    """
    bytes(4 * 2**20)
    atexit.register(gc.freeze)
