"""A run's own log file, whatever the application shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Keep what mlimages logs in the file `path` too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    room = logging.getLogger("mlimages")
    level, onward = room.level, _Onward(room.getEffectiveLevel())
    room.setLevel(min(logging.INFO, room.getEffectiveLevel()))
    room.propagate = False
    room.addHandler(handler)
    room.addHandler(onward)
    try:
        yield
    finally:
        room.removeHandler(onward)
        room.removeHandler(handler)
        room.propagate = True
        room.setLevel(level)
        handler.close()


class _Onward(logging.Handler):
    """Hands the application what it would see without the run's own, more talkative log."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)
