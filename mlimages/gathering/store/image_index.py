"""Index of the images gathered so far: hashes and paths.

SQLite stores the tables in temporary files and keeps at most 16 MB of each in memory, for any number of images.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mlimages.core import FetchResult, Reason
from mlimages.gathering.links import hash_host_and_path

MIN_PLACEHOLDER_PATHS = 5
"""An image is a host's placeholder for removed images if at least this many paths of the host return its bytes."""

_HASH_BANDS = ((0, 22), (22, 21), (43, 21))
"""Offset and width in bits of three bands of a 64-bit hash; hashes at most two bits apart agree in at least one."""

_MAX_HAMMING_DISTANCE = 2
_MIN_ONES_AND_ZEROS = 8
"""Minimum number of ones and of zeros in a hash; hashes with fewer are of plain images, which all look similar."""
_MASK_64_BITS = 2**64 - 1

_CREATE_TABLES_SQL = """
CREATE TABLE copies (sha256 BLOB PRIMARY KEY, count INT, kept INT, path TEXT, label TEXT, is_placeholder INT)
    WITHOUT ROWID;
CREATE TABLE firsts (sha256 BLOB PRIMARY KEY, manifest INT, path TEXT) WITHOUT ROWID;
CREATE TABLE images (dhash INT, path TEXT, band0 INT, band1 INT, band2 INT);
CREATE INDEX by_band0 ON images (band0);
CREATE INDEX by_band1 ON images (band1);
CREATE INDEX by_band2 ON images (band2);
"""


_SAME_BAND_SQL = " UNION ALL ".join(f"SELECT dhash, rowid, path FROM images WHERE band{band} = ?" for band in range(3))
_NO_MATCH = 65, 0, ""
"""Distance in bits, row id and path if no image has an equal band; any two 64-bit hashes are closer."""


def open_temporary_database(sql: str) -> sqlite3.Connection:
    """Open a temporary SQLite database, which is removed when it is closed, and run `sql`, which creates its tables."""
    tables = sqlite3.connect("", isolation_level=None)
    tables.executescript(f"PRAGMA journal_mode = OFF; PRAGMA cache_size = -16000; BEGIN; {sql}")
    return tables


@dataclass(frozen=True, slots=True)
class ImageCopies:
    """The links that returned the same bytes, and the copies of this image that are stored.

    Attributes:
        num_links: number of links that returned these bytes, including duplicates that are not stored.
        num_stored: number of copies that are stored in the folder.
        path: path of the stored copy that was added last. If the user has deleted all copies, the former path of a
            deleted copy. None if no copy was ever stored, or if the image is in quarantine.
        label: label of the stored copy that was added last; "" if none was stored.
        is_placeholder: whether the image is known as a placeholder of a host.
    """

    num_links: int = 0
    num_stored: int = 0
    path: str | None = None
    label: str = ""
    is_placeholder: bool = False

    def with_row(self, row: FetchResult) -> ImageCopies:
        """Return these counts with the link of `row` added."""
        is_placeholder = self.is_placeholder or row.reason is Reason.PLACEHOLDER
        copies = replace(self, num_links=self.num_links + 1, is_placeholder=is_placeholder)
        if row.status != "ok" or not row.path:
            return copies
        if row.removed:  # later links with these bytes are still duplicates
            return replace(copies, path=self.path or row.path)
        return replace(copies, path=row.path, label=row.label, num_stored=self.num_stored + 1)


class ImageIndex:
    """Finds earlier images with the same bytes, or with a difference hash at most two bits away."""

    def __init__(self) -> None:
        self._tables = open_temporary_database(_CREATE_TABLES_SQL)
        self._placeholder_detector = PlaceholderDetector()
        self.placeholder_targets: set[str] = set()  # URLs to which links of placeholders were redirected

    def close(self) -> None:
        """Remove the temporary databases."""
        self._tables.close()
        self._placeholder_detector.close()

    def find_copies(self, sha256: str) -> ImageCopies:
        """Return what is known about the copies of the image with this SHA-256; the counts are 0 if it is new."""
        query = "SELECT count, kept, path, label, is_placeholder FROM copies WHERE sha256 = ?"
        row = self._tables.execute(query, (bytes.fromhex(sha256),)).fetchone()
        return ImageCopies(*row) if row else ImageCopies()

    def update_copies(self, sha256: str, copies: ImageCopies) -> None:
        """Replace what `find_copies` returns for this SHA-256."""
        row = (copies.num_links, copies.num_stored, copies.path, copies.label, copies.is_placeholder)
        self._tables.execute("INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?, ?, ?)", (bytes.fromhex(sha256), *row))

    def add(self, row: FetchResult) -> None:
        """Add the image of a manifest row; failed links are ignored."""
        if row.sha256 is None or row.status == "failed":
            return
        if row.reason is Reason.PLACEHOLDER and row.final_url and row.final_url != row.url:
            self.placeholder_targets.add(row.final_url)
        self._placeholder_detector.add(row.sha256, row.url)
        self.update_copies(row.sha256, self.find_copies(row.sha256).with_row(row))
        if row.status == "ok" and row.path and row.dhash and not row.removed:
            self.add_difference_hash(row.dhash, row.path)

    def becomes_placeholder(self, sha256: str, url: str) -> bool:
        """Return whether an image is a host's placeholder, given that `url` returns it too.

        Copies that were kept on purpose (`keep_duplicates`) are not placeholders.
        """
        copies = self.find_copies(sha256)
        if copies.is_placeholder or copies.num_stored > 1 or copies.num_links < MIN_PLACEHOLDER_PATHS - 1:
            return copies.is_placeholder
        self._placeholder_detector.add(sha256, url)
        return self._placeholder_detector.is_placeholder(sha256)

    def find_first_copy(self, sha256: str) -> tuple[int, str] | None:
        """Return (index of its manifest, path) of the first image with this SHA-256, from `add_first_copy`, or None."""
        query = "SELECT manifest, path FROM firsts WHERE sha256 = ?"
        row: tuple[int, str] | None = self._tables.execute(query, (bytes.fromhex(sha256),)).fetchone()
        return row

    def add_first_copy(self, sha256: str, manifest_index: int, path: str) -> None:
        """Record the first image with this SHA-256; later calls for the same SHA-256 have no effect.

        `manifest_index` is the index of its manifest in the list of the manifests that are merged.
        """
        self._tables.execute(
            "INSERT OR IGNORE INTO firsts VALUES (?, ?, ?)", (bytes.fromhex(sha256), manifest_index, path)
        )

    def add_difference_hash(self, dhash: str, path: str) -> None:
        """Add an image for `find_near_duplicate`, unless it is plain (sky, a gradient): all such images are similar."""
        value = int(dhash, 16)
        if _MIN_ONES_AND_ZEROS <= value.bit_count() <= 64 - _MIN_ONES_AND_ZEROS:
            signed = value - 2**64 if value >= 2**63 else value  # as SQLite stores integers
            row = (signed, path, *_split_into_bands(value))
            self._tables.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?)", row)

    def find_near_duplicate(self, dhash: str) -> str | None:
        """Return the path of the image with the nearest hash; None if more than two bits differ.

        If several are equally near, the first that was added is returned.
        """
        value = int(dhash, 16)
        rows = self._tables.execute(_SAME_BAND_SQL, _split_into_bands(value))
        found = ((((signed ^ value) & _MASK_64_BITS).bit_count(), number, path) for signed, number, path in rows)
        apart, _, path = min(found, default=_NO_MATCH)
        return path if apart <= _MAX_HAMMING_DISTANCE else None


class PlaceholderDetector:
    """Counts the paths of each host that return the same bytes, to find the host's placeholder images."""

    def __init__(self) -> None:
        self._tables = open_temporary_database(
            "CREATE TABLE locations (sha256 BLOB, host INT, path INT, PRIMARY KEY (sha256, host, path)) WITHOUT ROWID;"
        )

    def add(self, sha256: str, url: str) -> None:
        """Count a link whose image has this SHA-256."""
        location = hash_host_and_path(url)
        row = (bytes.fromhex(sha256), location >> 32, location & (2**32 - 1))
        self._tables.execute("INSERT OR IGNORE INTO locations VALUES (?, ?, ?)", row)

    def is_placeholder(self, sha256: str) -> bool:
        """Return whether at least MIN_PLACEHOLDER_PATHS paths of one host return the image with this SHA-256."""
        query = "SELECT 1 FROM locations WHERE sha256 = ? GROUP BY host HAVING count(*) >= ?"
        return self._tables.execute(query, (bytes.fromhex(sha256), MIN_PLACEHOLDER_PATHS)).fetchone() is not None

    def find_placeholders(self) -> Iterator[str]:
        """Yield the SHA-256 of each image that at least MIN_PLACEHOLDER_PATHS paths of one host return."""
        query = "SELECT DISTINCT sha256 FROM locations GROUP BY sha256, host HAVING count(*) >= ?"
        for (sha256,) in self._tables.execute(query, (MIN_PLACEHOLDER_PATHS,)):
            yield sha256.hex()

    def close(self) -> None:
        """Remove the temporary database."""
        self._tables.close()


def _split_into_bands(dhash: int) -> tuple[int, ...]:
    return tuple(dhash >> shift & ((1 << width) - 1) for shift, width in _HASH_BANDS)
