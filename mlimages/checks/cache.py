"""Cache of image facts between runs, keyed by file state and content."""

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

import numpy as np

from mlimages.checks.image_facts import VERSION
from mlimages.checks.near_duplicates import Links
from mlimages.core import Fault, cache_dir
from mlimages.images import STRICT_JPEG

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (id INTEGER PRIMARY KEY, digest BLOB UNIQUE, fault TEXT, detail TEXT, facts BLOB);
CREATE TABLE IF NOT EXISTS links (key BLOB PRIMARY KEY, found BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp BLOB, image INTEGER) WITHOUT ROWID;
"""
"""Images are stored in the order of the first check: files checked again in that order are read sequentially."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file at one time: absolute path and `file_state`."""

    path: str
    state: bytes


@dataclass(frozen=True, slots=True)
class Examined:
    """An image's packed facts or its fault, and the SHA-256 of its bytes (empty if they could not be read)."""

    digest: bytes
    facts: bytes | None = None
    fault: Fault | None = None
    detail: str = ""


class Store:
    """A SQLite file in the cache folder; a store that cannot be used is as good as an empty one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        strict = "-strict" if STRICT_JPEG else ""
        path = cache_dir("checks") / f"facts-{VERSION}{strict}.sqlite"
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
        """What is known of files that have not changed since, by path; `find_content` sees that state until `keep`."""
        marks = ",".join("?" * len(stamps))
        query = (
            "SELECT path, stamp, digest, facts, fault, detail FROM files JOIN images ON image = id"
            f" WHERE path IN ({marks})"
        )
        if not self._db.in_transaction:
            self._read("BEGIN", [])  # else each look-up locks the file anew, which takes longer than itself
        seen = {stamp.path: stamp.state for stamp in stamps}
        rows = self._read(query, [stamp.path for stamp in stamps])
        return {path: _examined(*rest) for path, state, *rest in rows if seen[path] == state}

    def find_content(self, digest: bytes) -> Examined | None:
        """What is known of the same bytes, wherever they were seen; from any thread."""
        rows = self._read("SELECT digest, facts, fault, detail FROM images WHERE digest = ?", [digest])
        return _examined(*rows[0]) if rows else None

    def keep(self, found: Iterable[tuple[Stamp, Examined]]) -> None:
        """Remember, in one transaction; but not what another threshold or a further package would change."""
        passing = (Fault.TOO_MANY_PIXELS, Fault.UNREADABLE, Fault.UNAVAILABLE)
        rows = [(stamp, p) for stamp, p in found if p.digest and p.fault not in passing]
        self._write(
            "INSERT OR IGNORE INTO images (digest, fault, detail, facts) VALUES (?, ?, ?, ?)",
            [(p.digest, p.fault, p.detail, p.facts) for _, p in rows],
        )
        self._write(
            "INSERT OR REPLACE INTO files VALUES (?, ?, (SELECT id FROM images WHERE digest = ?))",
            [(stamp.path, stamp.state, image.digest) for stamp, image in rows],
        )

    def find_links(self, key: bytes) -> Links | None:
        """The duplicates and near-duplicates found when the same set was compared before."""
        rows = self._read("SELECT found FROM links WHERE key = ?", [key])
        return np.frombuffer(rows[0][0], np.int64).reshape(-1, 2) if rows else None

    def keep_links(self, key: bytes, found: Links) -> None:
        """Remember for the same set."""
        self._write("INSERT OR REPLACE INTO links VALUES (?, ?)", [(key, found.astype(np.int64).tobytes())])

    def _write(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            with self._lock, self._db:
                self._db.commit()
                self._db.executemany(query, rows)
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


def _examined(digest: bytes, facts: bytes | None, fault: str | None, detail: str) -> Examined:
    return Examined(digest, facts, Fault(fault) if fault else None, detail)
