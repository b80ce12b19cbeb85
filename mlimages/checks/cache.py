"""Cache of image facts, keyed by file state and content."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from mlimages.checks.image_facts import VERSION
from mlimages.checks.near_duplicates import IndexPairs
from mlimages.core import Fault, cache_dir
from mlimages.images import STRICT_JPEG

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (id INTEGER PRIMARY KEY, digest BLOB UNIQUE, fault TEXT, detail TEXT, facts BLOB);
CREATE TABLE IF NOT EXISTS links (key BLOB PRIMARY KEY, found BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp BLOB, image INTEGER) WITHOUT ROWID;
"""
"""Images are stored in the order of the first check, so that repeating it reads the file sequentially."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """The state of a file: absolute path and `fingerprint`."""

    path: str
    state: bytes


@dataclass(frozen=True, slots=True)
class ExaminedImage:
    """The serialized measurements of an image or its fault, and the SHA-256 of its bytes (empty if unreadable)."""

    digest: bytes
    facts: bytes | None = None
    fault: Fault | None = None
    detail: str = ""


class FactsCache:
    """Cache of measurements in a SQLite file; if the file cannot be used, nothing is cached."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        strict = "-strict" if STRICT_JPEG else ""
        path = cache_dir("checks") / f"facts-{VERSION}{strict}.sqlite"
        try:
            self._db = _connect(path)
        except sqlite3.Error as error:
            logger.warning("cannot open the check cache, continuing without it (%s: %s)", path, error)
            self._db = _connect(":memory:")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def find(self, file_stamps: Sequence[Stamp]) -> dict[str, ExaminedImage]:
        """Return the cached results of unchanged files by path, from a snapshot that lasts until `store_results`."""
        marks = ",".join("?" * len(file_stamps))
        query = (
            "SELECT path, stamp, digest, facts, fault, detail FROM files JOIN images ON image = id"
            f" WHERE path IN ({marks})"
        )
        if not self._db.in_transaction:
            self._read("BEGIN", [])  # else each look-up locks the file, which takes longer than reading
        seen = {stamp.path: stamp.state for stamp in file_stamps}
        rows = self._read(query, [stamp.path for stamp in file_stamps])
        return {path: _make_examined_image(*rest) for path, state, *rest in rows if seen[path] == state}

    def find_content(self, digest: bytes) -> ExaminedImage | None:
        """Return the cached result of the bytes with this SHA-256; safe to call from any thread."""
        rows = self._read("SELECT digest, facts, fault, detail FROM images WHERE digest = ?", [digest])
        return _make_examined_image(*rows[0]) if rows else None

    def store_results(self, results: Iterable[tuple[Stamp, ExaminedImage]]) -> None:
        """Store results in one transaction, except faults that depend on a threshold or on an installed package."""
        passing = (Fault.TOO_MANY_PIXELS, Fault.UNREADABLE, Fault.UNAVAILABLE)
        rows = [(stamp, p) for stamp, p in results if p.digest and p.fault not in passing]
        self._write(
            "INSERT OR IGNORE INTO images (digest, fault, detail, facts) VALUES (?, ?, ?, ?)",
            [(p.digest, p.fault, p.detail, p.facts) for _, p in rows],
        )
        self._write(
            "INSERT OR REPLACE INTO files VALUES (?, ?, (SELECT id FROM images WHERE digest = ?))",
            [(stamp.path, stamp.state, image.digest) for stamp, image in rows],
        )

    def find_duplicate_pairs(self, key: bytes) -> IndexPairs | None:
        """Return the index pairs stored under this key, which identifies the set that was compared."""
        rows = self._read("SELECT found FROM links WHERE key = ?", [key])
        return np.frombuffer(rows[0][0], np.int64).reshape(-1, 2) if rows else None

    def store_duplicate_pairs(self, key: bytes, pairs: IndexPairs) -> None:
        """Store the index pairs of duplicates and near-duplicates of a set."""
        self._write("INSERT OR REPLACE INTO links VALUES (?, ?)", [(key, pairs.astype(np.int64).tobytes())])

    def _write(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            with self._lock, self._db:
                self._db.commit()
                self._db.executemany(query, rows)
        except sqlite3.Error as error:
            logger.warning("cannot write the check cache: %s", error)

    def _read(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        try:
            with self._lock, closing(self._db.execute(query, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            logger.warning("cannot read the check cache: %s", error)
            return []


def _connect(path: Path | str) -> sqlite3.Connection:
    """Open the database with write-ahead logging: several runs may use it, and a killed one leaves it consistent."""
    db = sqlite3.connect(path, timeout=60, check_same_thread=False)
    db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
    return db


def _make_examined_image(digest: bytes, packed_facts: bytes | None, fault: str | None, detail: str) -> ExaminedImage:
    return ExaminedImage(digest, packed_facts, Fault(fault) if fault else None, detail)
