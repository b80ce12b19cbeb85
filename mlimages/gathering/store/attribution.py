"""ATTRIBUTION.md: whose pictures these are."""

from __future__ import annotations

from pathlib import Path

from mlimages.core import replacing
from mlimages.gathering.store.manifest import read_manifest

NAME = "ATTRIBUTION.md"


def write_attributions(folder: Path) -> None:
    """List the pictures whose provider asks to be named, one a line, as the manifest has them."""
    with replacing(folder / NAME) as part, part.open("w", encoding="utf-8") as out:
        out.write("# Where these pictures come from\n\n")
        for row in read_manifest(folder):
            if row.status == "ok" and not row.removed and "attribution" in row.source:
                out.write(f"- {row.path}: {' '.join(str(row.source['attribution']).split())}\n")
