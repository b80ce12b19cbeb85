"""Import libraries without the telemetry that they would start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "ORT_DISABLE_TELEMETRY"


@contextmanager
def ort_telemetry_disabled() -> Iterator[None]:
    """Import ONNX Runtime within this context: it decides at its first import whether the process has telemetry.

    Since 1.29 it stores an identifier in the user's cache folder otherwise, and reports each model that is loaded:
    https://github.com/microsoft/onnxruntime/pull/27379. The environment is restored, since it belongs to the user.
    """
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if before is not None:
            os.environ[_VARIABLE] = before
