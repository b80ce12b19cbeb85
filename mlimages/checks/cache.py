"""Cache of the measurements of images, keyed by the fingerprint of the file and by its content."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlimages.checks.measurements import MEASUREMENTS_VERSION
from mlimages.checks.near_duplicates import Indices
from mlimages.core import Fault, cache_dir, supports_locks
from mlimages.images import HAS_SIMPLEJPEG

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (id INTEGER PRIMARY KEY, digest BLOB UNIQUE, fault TEXT, detail TEXT, facts BLOB);
CREATE TABLE IF NOT EXISTS links (key BLOB PRIMARY KEY, found BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp BLOB, image INTEGER) WITHOUT ROWID;
"""
"""SQL statements that create the tables: `images` (measurements by SHA-256), `files` (path, fingerprint and id in
`images`) and `links` (the duplicate pairs of a check, by a hash of its images and thresholds).

The ids number the images in the order in which they were first checked. A later check in the same order therefore
reads the database sequentially."""


@dataclass(frozen=True, slots=True)
class FileVersion:
    """The absolute path of a file, and its `core.fingerprint`, which changes whenever the content may have changed."""

    path: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class ExaminedImage:
    """The result of examining an image file.

    Attributes:
        sha256: SHA-256 of the file; `b""` if the file cannot be read or has no content.
        packed_measurements: result of `Measurements.pack`; None if the image cannot be decoded.
        fault: why the image cannot be decoded; None if it can.
        detail: description of the fault.
    """

    sha256: bytes
    packed_measurements: bytes | None = None
    fault: Fault | None = None
    detail: str = ""


class CheckCache(AbstractContextManager["CheckCache", None]):
    """Cache of measurements in a SQLite file; if the file cannot be used, the cache is kept only in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        strict = "-strict" if HAS_SIMPLEJPEG else ""
        path = cache_dir("checks") / f"facts-{MEASUREMENTS_VERSION}{strict}.sqlite"
        try:
            if not supports_locks(path.parent):  # SQLite would wait for its lock for a minute
                raise sqlite3.OperationalError(
                    "its file system does not support locks; set MLIMAGES_CACHE to a folder on another one"
                )
            self._db = _open_or_replace_database(path)
        except sqlite3.Error as error:
            logger.warning("cannot open the cache of `check` (%s: %s): every image is decoded again", path, error)
            self._db = _open_database(":memory:")

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def find_results(self, files: Sequence[FileVersion]) -> dict[str, ExaminedImage]:
        """Return the cached results of unchanged files, by path.

        This starts a read transaction, which `store_results` ends.
        """
        fingerprints = {file.path: file.fingerprint for file in files}
        placeholders = ",".join("?" * len(fingerprints))
        query = (
            "SELECT path, stamp, digest, facts, fault, detail FROM files JOIN images ON image = id"
            f" WHERE path IN ({placeholders})"
        )
        if not self._db.in_transaction:
            self._read_rows("BEGIN", [])  # else each look-up locks the file, which takes longer than reading
        rows = self._read_rows(query, list(fingerprints))
        return {path: _make_examined_image(*rest) for path, stamp, *rest in rows if fingerprints[path] == stamp}

    def find_by_sha256(self, sha256: bytes) -> ExaminedImage | None:
        """Return the cached result of the file content with this SHA-256; None if not cached. Thread-safe."""
        rows = self._read_rows("SELECT digest, facts, fault, detail FROM images WHERE digest = ?", [sha256])
        return _make_examined_image(*rows[0]) if rows else None

    def store_results(self, results: Iterable[tuple[FileVersion | None, ExaminedImage]]) -> None:
        """Store results by content of the file and, if its FileVersion is not None, by path.

        Faults that depend on a threshold, an installed package or the network are not stored.
        """
        temporary = (Fault.TOO_MANY_PIXELS, Fault.UNREADABLE, Fault.UNAVAILABLE)
        rows = [(file, image) for file, image in results if image.sha256 and image.fault not in temporary]
        self._write_rows(
            "INSERT OR IGNORE INTO images (digest, fault, detail, facts) VALUES (?, ?, ?, ?)",
            [(image.sha256, image.fault, image.detail, image.packed_measurements) for _, image in rows],
        )
        self._write_rows(
            "INSERT OR REPLACE INTO files VALUES (?, ?, (SELECT id FROM images WHERE digest = ?))",
            [(file.path, file.fingerprint, image.sha256) for file, image in rows if file],
        )

    def find_duplicate_pairs(self, key: bytes) -> Indices | None:
        """Return the index pairs stored under this key, a hash of the images and thresholds; None if none were stored.

        The result `(N, 2)` is empty if the images were compared and have no duplicates.
        """
        rows = self._read_rows("SELECT found FROM links WHERE key = ?", [key])
        return np.frombuffer(rows[0][0], np.int64).reshape(-1, 2) if rows else None

    def store_duplicate_pairs(self, key: bytes, pairs: Indices) -> None:
        """Store the index pairs of duplicates and near-duplicates under a key."""
        self._write_rows("INSERT OR REPLACE INTO links VALUES (?, ?)", [(key, pairs.astype(np.int64).tobytes())])

    def _write_rows(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Execute a query for each row in one transaction; an error of SQLite is logged."""
        try:
            with self._lock, self._db:
                self._db.commit()
                self._db.executemany(query, rows)
        except sqlite3.Error as error:
            logger.warning("cannot write the cache of `check`: %s", error)

    def _read_rows(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return the rows of a query; an error of SQLite is logged, and the result is empty."""
        try:
            with self._lock, closing(self._db.execute(query, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            logger.warning("cannot read the cache of `check`: %s", error)
            return []


def _open_or_replace_database(path: Path) -> sqlite3.Connection:
    """Open the database; if it is damaged, rename its files to `NAME.damaged` and create a new one."""
    try:
        return _open_database(path)
    except sqlite3.OperationalError:  # it cannot be opened now: another process locks it, or the disk is full
        raise
    except sqlite3.DatabaseError as error:
        logger.warning("the cache of `check` is damaged (%s: %s): every image is decoded again", path, error)
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).replace(path.with_name(f"{path.name}{suffix}.damaged"))
        return _open_database(path)


def _open_database(path: Path | str) -> sqlite3.Connection:
    """Open the database with write-ahead logging: several processes can use it, and a killed one does not damage it."""
    db = sqlite3.connect(path, timeout=60, check_same_thread=False)
    db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
    return db


def _make_examined_image(sha256: bytes, packed: bytes | None, fault: str | None, detail: str) -> ExaminedImage:
    return ExaminedImage(sha256, packed, Fault(fault) if fault else None, detail)
