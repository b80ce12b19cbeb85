"""What was found of each picture, kept between runs: by size, time and content."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlimages.files import cache_dir
from mlimages.records import Fault
from mlimages.validation import facts
from mlimages.validation.facts import Facts

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, digest BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pictures (digest BLOB PRIMARY KEY, fault TEXT, detail TEXT, facts BLOB) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file as it was seen: absolute path, size in bytes, time of change in ns."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Examined:
    """One picture's facts, or its fault; with a digest of its bytes (empty where they could not be read)."""

    digest: bytes
    facts: Facts | None = None
    fault: Fault | None = None
    detail: str = ""


class Store:
    """A SQLite file in the cache folder; a store that cannot be used is as good as an empty one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        strict = "-strict" if facts.STRICT_JPEG else ""
        path = cache_dir("checks") / f"facts-{facts.VERSION}{strict}.sqlite"
        try:
            self._db = _connected(path)
        except sqlite3.Error as error:
            logger.warning("no cache of checks (%s: %s)", path, error)
            self._db = _connected(":memory:")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def find(self, stamps: Sequence[Stamp]) -> dict[str, Examined]:
        """What is known of files that have not changed since, by path."""
        marks = ",".join("?" * len(stamps))
        query = (
            "SELECT path, size, mtime_ns, digest, fault, detail, facts FROM files JOIN pictures USING (digest)"
            f" WHERE path IN ({marks})"
        )
        seen = {stamp.path: (stamp.size, stamp.mtime_ns) for stamp in stamps}
        rows = self._read(query, [stamp.path for stamp in stamps])
        return {path: _examined(*rest) for path, size, mtime_ns, *rest in rows if seen[path] == (size, mtime_ns)}

    def find_content(self, digest: bytes) -> Examined | None:
        """What is known of the same bytes, wherever they were seen; from any thread."""
        rows = self._read("SELECT digest, fault, detail, facts FROM pictures WHERE digest = ?", [digest])
        return _examined(*rows[0]) if rows else None

    def keep(self, found: Iterable[tuple[Stamp, Examined]]) -> None:
        """Remember, in one transaction; but not what depends on the thresholds."""
        rows = [(stamp, p) for stamp, p in found if p.digest and p.fault != Fault.TOO_MANY_PIXELS]
        try:
            with self._lock, self._db:
                self._db.executemany(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
                    [(stamp.path, stamp.size, stamp.mtime_ns, picture.digest) for stamp, picture in rows],
                )
                self._db.executemany(
                    "INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)",
                    [(p.digest, p.fault, p.detail, p.facts.pack() if p.facts else None) for _, p in rows],
                )
        except sqlite3.Error as error:
            logger.warning("the cache of checks is not written: %s", error)

    def _read(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        try:
            with self._lock, closing(self._db.execute(query, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            logger.warning("the cache of checks is not read: %s", error)
            return []


def _connected(path: Path | str) -> sqlite3.Connection:
    """Write-ahead logging: several runs may read and write at once, and a killed one leaves nothing half done."""
    db = sqlite3.connect(path, timeout=60, check_same_thread=False)
    db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
    return db


def _examined(digest: bytes, fault: str | None, detail: str, packed: bytes | None) -> Examined:
    return Examined(digest, Facts.unpack(packed) if packed else None, Fault(fault) if fault else None, detail)
