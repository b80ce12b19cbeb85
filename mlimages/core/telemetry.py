"""Import and start libraries without their telemetry."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def disable_telemetry(env_variable: str, value: str) -> Iterator[None]:
    """Context manager: set an environment variable that disables a library's telemetry, and remove it at the end.

    A value that the user has set is kept.
    """
    is_decided = env_variable in os.environ
    os.environ.setdefault(env_variable, value)
    try:
        yield
    finally:
        if not is_decided:
            del os.environ[env_variable]
