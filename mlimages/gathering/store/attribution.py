"""Write ATTRIBUTION.md, which names the authors of the images."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from mlimages.core import atomic_write
from mlimages.gathering.store.manifest import read_manifest

ATTRIBUTION_STEM = "ATTRIBUTION"
"""Name of ATTRIBUTION.md without its suffix."""


def write_attributions(folder: Path) -> Path:
    """Write ATTRIBUTION.md, with a line for each image whose provider requires attribution; return its path.

    The last line has a hash of the other lines, which shows whether the user changed the file: a changed file is kept,
    and the list is written to ATTRIBUTION-2.md (if that was changed too, to ATTRIBUTION-3.md, and so on).
    """
    names = (f"{ATTRIBUTION_STEM}-{count}.md" for count in itertools.count(2))
    paths = (folder / name for name in itertools.chain([f"{ATTRIBUTION_STEM}.md"], names))
    path = next(path for path in paths if not path.exists() or _has_valid_checksum(path))
    digest = hashlib.sha256()
    with atomic_write(path) as part, part.open("wb") as out:
        for line in _iter_attribution_lines(folder):
            digest.update(line)
            out.write(line)
        out.write(_make_checksum_line(digest.hexdigest()))
    return path


def _iter_attribution_lines(folder: Path) -> Iterator[bytes]:
    yield b"# Where these images come from\n\n"
    for row in read_manifest(folder):
        if row.status == "ok" and not row.removed and "attribution" in row.source:
            text = f"- {row.path}: {' '.join(str(row.source['attribution']).split())}\n"
            yield text.encode("utf-8", "replace")


def _make_checksum_line(sha256: str) -> bytes:
    return f"\n<!-- written by mlimages, sha256 {sha256} -->\n".encode()


def _has_valid_checksum(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    data = path.read_bytes()
    length = len(_make_checksum_line("0" * 64))
    return data[-length:] == _make_checksum_line(hashlib.sha256(data[:-length]).hexdigest())
