"""Manifests become one: a row per link, each picture kept once, "gone" pictures kept not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mlimages.core import FetchResult, Reason, replacing
from mlimages.gathering.links import row_key
from mlimages.gathering.store.manifest import KeySet, dump_row, read_rows
from mlimages.gathering.store.near_duplicates import LikenessIndex

PLACEHOLDER_LINKS = 5
"""Links with the same bytes, from which on these are a host's picture for "gone"."""


def settle(folder: Path, manifests: list[Path], into: Path, *, keep_duplicates: bool) -> None:
    """Rewrite `manifests` as the one file `into`, and remove the pictures that its rows no longer name.

    Of several rows for one link the last counts; the order is that in which links were finished. Likeness is told
    anew: a picture's nearest may lie in another manifest, or be removed.
    """
    last, copies, gone = _survey(manifests)
    if not keep_duplicates:
        gone |= {sha256 for sha256, count in copies.items() if count >= PLACEHOLDER_LINKS}
    kept: dict[str, str] = {}
    likeness = LikenessIndex()
    dropped: set[str] = set()
    with replacing(into) as part, part.open("wb") as out:
        for row in _latest(read_rows(manifests), last, dropped):
            settled = _settled(row, gone, {} if keep_duplicates else kept)
            if settled.path and settled.sha256 and settled.dhash:
                like = likeness.find(settled.dhash)
                likeness.add(settled.dhash, settled.path)
                kept.setdefault(settled.sha256, settled.path)
                dropped.discard(settled.path)
                settled = replace(settled, same_as=like)
            elif row.path:
                dropped.add(row.path)
            out.write(dump_row(settled))
    for path in sorted(dropped):
        (folder / path).unlink(missing_ok=True)
    for manifest in manifests:
        if manifest != into:
            manifest.unlink()


def _survey(manifests: list[Path]) -> tuple[dict[int, int], Counter[str], set[str]]:
    """The number of the last row of links that have several, how many links gave each sha256, and those known gone."""
    seen = KeySet()
    last: dict[int, int] = {}
    copies: Counter[str] = Counter()
    gone: set[str] = set()
    for number, row in enumerate(read_rows(manifests)):
        key = row_key(row.label, row.url)
        if key in seen:
            last[key] = number
        elif row.status != "failed" and row.sha256:
            copies[row.sha256] += 1
        seen.add(key)
        if row.reason is Reason.PLACEHOLDER and row.sha256:
            gone.add(row.sha256)
    return last, copies, gone


def _latest(rows: Iterable[FetchResult], last: dict[int, int], dropped: set[str]) -> Iterator[FetchResult]:
    for number, row in enumerate(rows):
        if last.get(row_key(row.label, row.url), number) == number:
            yield row
        elif row.path:
            dropped.add(row.path)


def _settled(row: FetchResult, gone: set[str], kept: dict[str, str]) -> FetchResult:
    if row.status == "failed" or row.sha256 is None:
        return row
    if row.sha256 in gone:
        return replace(row, status="failed", reason=Reason.PLACEHOLDER, path=None, same_as=None)
    same = kept.get(row.sha256)
    if same in (None, row.path):
        return row
    return replace(row, status="duplicate", path=None, same_as=same)
