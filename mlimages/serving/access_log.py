"""Log requests, including invalid ones, in one line each, as text or JSON."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

logger = logging.getLogger(__name__)

MIN_LOG_INTERVAL_S = 60.0
"""Minimum time between two log lines about invalid requests, or about rejected connections; limits the log's size."""


class InvalidRequestFilter(logging.Filter):
    """Logging filter that keeps at most one record of an invalid HTTP request per minute, without its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._logged = -MIN_LOG_INTERVAL_S

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged; shorten the record of an invalid request to one line."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        reason = error.message.strip().partition("\n")[0].rstrip(":")
        vars(record).update(msg=f"{record.getMessage()}: {reason}", args=(), exc_info=None)
        now, previous = time.monotonic(), self._logged
        if now - previous >= MIN_LOG_INTERVAL_S:
            self._logged = now
        return now - previous >= MIN_LOG_INTERVAL_S


http_logger = logging.getLogger(f"{__name__}.http")
"""Logger of aiohttp's server."""

http_logger.addFilter(InvalidRequestFilter())


def log_request(request: web.Request, *, status: int, size_bytes: int, duration_s: float) -> None:
    """Log a finished request at level INFO, as text; `JsonFormatter` also writes each value under a JSON key."""
    fields = {
        "client": request.remote or "",
        "method": request.method,
        "path": request.path,
        "status": status,
        "bytes": size_bytes,
        "duration_ms": round(duration_s * 1e3, 1),
    }
    logger.info(
        "%s %s %s %d %d bytes %.1f ms",
        fields["client"], fields["method"], request.rel_url.raw_path, status, size_bytes, duration_s * 1e3,
        extra={"fields": fields},
    )  # fmt: skip


class JsonFormatter(logging.Formatter):
    """Format a log record as one JSON object: time (UTC), level, logger, message, the fields of a request, and the
    traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON object in one line."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values)
