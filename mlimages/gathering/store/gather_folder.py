"""The gathered folder: pictures under their final names, the manifest, and what is known of both."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlimages.core import FetchResult, GatherError, ImageRef, Reason
from mlimages.gathering.download.fetch import Fetched
from mlimages.gathering.download.image_facts import Facts, Rejection
from mlimages.gathering.download.reasons import NOT_ANSWERED
from mlimages.gathering.links import place_of, recorded_url, row_key, without_credentials
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.store.attribution import write_attributions
from mlimages.gathering.store.file_names import safe_folder, safe_name, url_stem
from mlimages.gathering.store.lock import work_folder
from mlimages.gathering.store.manifest import (
    KeySet,
    ManifestWriter,
    manifest_path,
    manifests,
    read_closing,
    read_rows,
    read_rows_after,
)
from mlimages.gathering.store.merge_manifests import are_of_a_placeholder, settle
from mlimages.gathering.store.missing import corrected_rows
from mlimages.gathering.store.near_duplicates import LikenessIndex
from mlimages.gathering.store.stored_files import StoredFiles
from mlimages.gathering.store.tally import Tally

_MOST_PLACES = 256
"""Remembered of links with the same bytes; settling the manifests counts all."""


@dataclass(slots=True)
class _Copies:
    """Links that gave the same bytes: their places, how many are kept, and where the last of these lies."""

    places: tuple[int, ...] = ()
    count: int = 0
    kept: int = 0
    path: str | None = None
    label: str = ""
    is_gone: bool = False

    def is_gone_with(self, url: str) -> bool:
        """Whether they are a host's placeholder if `url` gives them, too; copies that are kept on purpose are none."""
        return self.is_gone or (self.kept < 2 and are_of_a_placeholder((*self.places, place_of(url))))

    def add(self, url: str) -> None:
        """Count one link."""
        self.count += 1
        if len(self.places) < _MOST_PLACES and (place := place_of(url)) not in self.places:
            self.places = (*self.places, place)


class Gathered:
    """One gathered folder, open for adding; use as a context manager.

    Args:
        asks_again: a shard takes links that other manifests of the folder hold, too: it is given those that are wanted.
        has_holes: files that lie at an address are empty space of the same size in the folder.

    Raises:
        GatherError: another run is at work in it, it cannot be written, or so many of its images are missing that they
            may not have been deleted on purpose.
    """

    def __init__(self, out: Path, options: GatherOptions, *, asks_again: bool = False, has_holes: bool = False) -> None:
        self.out = out
        self._files = StoredFiles(out, has_holes=has_holes)
        self._options = options
        self._asks_again = asks_again
        self._manifest = manifest_path(out, options.shard)
        self._numbers = itertools.count(1)
        self.added = 0
        self.has_attributions = False

    def __enter__(self) -> Gathered:
        with ExitStack() as stack:
            try:
                alone = not self._options.shard
                self._hidden = stack.enter_context(work_folder(self.out, self._manifest.stem, alone=alone))
            except OSError as error:
                raise GatherError(f"{self.out} cannot be written: {error.strerror}") from error
            self._writer = ManifestWriter(self._manifest)
            stack.callback(lambda: self._writer.close())
            self._read(asks=True)
            if self._is_touched:
                self._correct()
                self._read(asks=True)
            if not self._is_settled:
                self._settle()
                self._read(asks=True)
            stack.callback(self._close_manifest)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def _correct(self) -> None:
        """Note in the manifest what somebody deleted or moved since the last run."""
        choice = self._options
        paths = self._paths() if self._asks_again else manifests(self.out)
        was_closed = all(read_closing(path).is_whole for path in paths)
        rows = corrected_rows(self.out, self._files, paths, keep=choice.keep_deleted, restore=choice.restore_deleted)
        for row in list(rows):  # the manifest is read to its end before it grows
            self._writer.append(row)
        if was_closed:
            self._close_manifest()

    def _close_manifest(self) -> None:
        """End the manifest by a closing line: images missing from here on were deleted by somebody."""
        closing = read_closing(self._manifest)
        if closing.is_whole:
            return
        self._files.sync(row.path for row in read_rows_after(self._manifest, closing.lines) if row.path)
        keeps_duplicates = self._options.keep_duplicates or closing.keeps_duplicates
        self._writer.append_closing(keep_duplicates=keeps_duplicates)

    def claim(self, ref: ImageRef) -> bool:
        """Take a link into work; False if it was finished or claimed before."""
        key = row_key(ref.label, ref.url)
        if key in self._done:
            return False
        self._done.add(key)
        return True

    def new_part(self) -> Path:
        """A file for a picture on its way."""
        return self._hidden / f"{next(self._numbers)}.part"

    def add(self, ref: ImageRef, fetched: Fetched, found: Facts | Rejection | None, part: Path) -> FetchResult:
        """Record one finished link; a good picture takes its final name.

        Raises:
            GatherError: the folder cannot be written.
        """
        row = FetchResult(
            url=recorded_url(ref.url),
            label=ref.label,
            final_url=fetched.final_url and without_credentials(fetched.final_url),
            http_status=fetched.http_status,
            attempts=fetched.attempts,
            elapsed_s=fetched.elapsed_s,
            fetched_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            source=ref.source,
            **self._outcome(ref, fetched, found, part),
        )
        if found and not row.path:
            part.unlink(missing_ok=True)
        self._writer.append(row)
        self.added += 1
        key = row_key(ref.label, ref.url)
        self._is_settled &= key not in self._reopened
        self._note(key, row)
        if row.reason is Reason.PLACEHOLDER:
            self._discard(row.sha256)
        return row

    def adopt(self, row: FetchResult) -> FetchResult:
        """Count a row that a shard recorded in its own manifest; as it will be once the shards are settled."""
        copies = self._copies.get(bytes.fromhex(row.sha256 or ""), _Copies())
        if row.status in ("ok", "duplicate") and not self._options.keep_duplicates:
            if copies.is_gone_with(row.url):
                row = replace(row, status="placeholder", reason=Reason.PLACEHOLDER, path=None)
            elif copies.path:
                row = replace(row, status="duplicate", path=None, same_as=copies.path)
        self.added += 1
        self._note(row_key(row.label, row.url), row)
        if row.reason is Reason.PLACEHOLDER:
            self._discard(row.sha256)
        return row

    def finish(self) -> None:
        """Bring the manifest into its final form, a row per link, if this run left it otherwise."""
        self._close_manifest()
        if not self._is_settled:
            self._settle()
        elif self._has_reopened:
            self._read(asks=False)  # not all of them were asked for again; they count as they are
        if self.has_attributions:
            write_attributions(self.out)

    def _settle(self) -> None:
        self._likeness = LikenessIndex()  # makes room for the one of settling
        paths = self._paths()
        keeps_duplicates = self._options.keep_duplicates or any(read_closing(path).keeps_duplicates for path in paths)
        settle(self._files, paths, self._manifest, keep_duplicates=keeps_duplicates)
        self._writer.close()
        self._writer = ManifestWriter(self._manifest)
        self._read(asks=False)

    def _paths(self) -> list[Path]:
        if self._options.shard:
            return [self._manifest] if self._manifest.exists() else []
        return manifests(self.out)

    def _read(self, *, asks: bool) -> None:
        """Learn what is done; where the run `asks`, links that are open are not."""
        self._done = KeySet()
        self._reopened = KeySet()
        self._has_reopened = False
        self._is_touched = False
        self._copies: dict[bytes, _Copies] = {}
        self._likeness = LikenessIndex()
        self.tally = Tally()
        paths = self._paths()
        self._is_settled = paths in ([], [self._manifest])
        for row in read_rows(paths):
            key = row_key(row.label, row.url)
            self._is_settled &= key not in self._done
            size = self._size_of(row)
            if self._is_open(row, size, asks=asks):
                self._reopened.add(key)
                self._has_reopened = True
            else:
                self._note(key, row)
                self.tally.changed += size not in (None, row.bytes)
        self._is_settled &= not any(copies.is_gone and copies.path for copies in self._copies.values())
        if self._options.shard and not self._asks_again:
            self._read_others(asks=asks)

    def _read_others(self, *, asks: bool) -> None:
        """Count what a shard finds done beside it; its pictures are compared once the shards are settled."""
        for row in read_rows(path for path in reversed(manifests(self.out)) if path != self._manifest):
            key = row_key(row.label, row.url)
            size = self._size_of(row)
            if key not in self._done and not self._is_open(row, size, asks=asks):
                self._done.add(key)
                self.tally.add(row)
                self.tally.changed += size not in (None, row.bytes)

    def _size_of(self, row: FetchResult) -> int | None:
        """Bytes of the row's image; None where it should have none, or it is missing."""
        if row.status != "ok" or not row.path:
            return None
        size = self._files.size(row.path)
        self._is_touched |= bool(row.removed) == (size is not None) or size == 0
        return None if row.removed else size

    def _is_open(self, row: FetchResult, size: int | None, *, asks: bool) -> bool:
        """Whether a link is asked for again; `size` is that of its image, if there is one."""
        if row.removed:
            return asks and self._options.restore_deleted
        if row.status == "ok":
            return size is None
        return asks and (row.reason in self._options.retry_failed or not (row.final or self._options.no_retry))

    def _note(self, key: int, row: FetchResult) -> None:
        self._done.add(key)
        self.tally.add(row)
        self.has_attributions |= "attribution" in row.source
        if row.sha256 is None or row.status == "failed":
            return
        copies = self._copies.setdefault(bytes.fromhex(row.sha256), _Copies())
        copies.add(row.url)
        copies.is_gone |= row.reason is Reason.PLACEHOLDER
        if row.status == "ok" and row.path and row.dhash:
            if row.removed:  # further links to its bytes are duplicates all the same
                copies.path = copies.path or row.path
                return
            copies.path, copies.label = row.path, row.label
            copies.kept += 1
            self._likeness.add(row.dhash, row.path)

    def _outcome(self, ref: ImageRef, fetched: Fetched, found: Facts | Rejection | None, part: Path) -> dict[str, Any]:
        if found is None:
            status = "placeholder" if fetched.reason is Reason.PLACEHOLDER else "failed"
            final = fetched.reason not in NOT_ANSWERED
            return {
                "status": status,
                "reason": fetched.reason,
                "final": final,
                "detail": without_credentials(fetched.detail),
            }
        values = {name: getattr(found, name) for name in found.__slots__}
        if isinstance(found, Rejection):
            is_of_machine = found.reason is Reason.DECODER  # out of memory, or a decoder that hung or died
            return {"status": "failed", "final": not is_of_machine, **values}
        suffix = values.pop("suffix")
        values["detail"] = found.detail or fetched.detail
        copies = self._copies.get(bytes.fromhex(found.sha256), _Copies())
        if copies.is_gone or (copies.is_gone_with(ref.url) and not self._options.keep_duplicates):
            values["detail"] = "the same bytes lie behind many paths of one host"
            return {"status": "placeholder", "reason": Reason.PLACEHOLDER, **values}
        if copies.path and not self._options.keep_duplicates:
            return {"status": "duplicate", "same_as": copies.path, **values}
        like = self._likeness.find(found.dhash)
        return {"status": "ok", "path": self._place(ref, found, part, suffix), "same_as": like, **values}

    def _place(self, ref: ImageRef, facts: Facts, part: Path, suffix: str) -> str:
        for path in self._free_paths(ref, suffix):
            target = f"{self.out}/{path}"  # strings: pathlib would cost more than the system calls
            if os.path.lexists(target):
                if not self._is_orphan(path, facts):
                    continue
                part.unlink()
                return path
            try:
                _move(part, target)
            except OSError as error:
                raise GatherError(f"{target} cannot be written: {error.strerror}") from error
            return path
        raise AssertionError("there is always a next name")

    def _free_paths(self, ref: ImageRef, suffix: str) -> Iterator[str]:
        """The plain name first (in a shard, which others will be joined with, never), then with the link's number."""
        stem = f"{safe_folder(ref.label)}/{(ref.name and safe_name(ref.name, default='')) or url_stem(ref.url)}"
        if not self._options.shard:
            yield f"{stem}{suffix}"
        number = f"{row_key(ref.label, ref.url):016x}"
        yield f"{stem}-{number[:8]}{suffix}"
        for count in itertools.count(2):
            yield f"{stem}-{number}-{count}{suffix}"

    def _is_orphan(self, path: str, facts: Facts) -> bool:
        """Whether an earlier run was stopped between placing this very picture and recording it."""
        if bytes.fromhex(facts.sha256) in self._copies or self._files.size(path) != facts.bytes:
            return False
        return self._files.sha256(path) == facts.sha256

    def _discard(self, sha256: str | None) -> None:
        """Put the picture aside that turned out to be a host's for "gone"; its rows are mended when settling."""
        copies = self._copies.get(bytes.fromhex(sha256 or ""))
        if copies and copies.path and self._files.put_aside(copies.path, sha256 or ""):
            self.tally.classes[copies.label] -= 1
            copies.path = None
        self._is_settled &= copies is None or copies.count == 1


def _move(part: Path, target: str) -> None:
    try:
        os.replace(part, target)  # noqa: PTH105
    except FileNotFoundError:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
