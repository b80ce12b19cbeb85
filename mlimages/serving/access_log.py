"""Access log: one line per request, as text or JSON."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from aiohttp import web

logger = logging.getLogger(__name__)


def log_request(request: web.Request, *, status: int, size_bytes: int, duration_s: float) -> None:
    """Log a finished request at level INFO, with the fields of the JSON line."""
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
    """Format a log record as one JSON object: time (UTC), level, logger, message, and the fields of a request."""

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
