"""Load libraries without the telemetry that they start by default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def disable_telemetry(variable: str, value: str) -> Iterator[None]:
    """Set the environment variable that disables a library's telemetry while the library is imported or started.

    A value that the user has set is kept. At the end, the variable is restored.
    """
    is_decided = variable in os.environ
    os.environ.setdefault(variable, value)
    try:
        yield
    finally:
        if not is_decided:
            del os.environ[variable]
