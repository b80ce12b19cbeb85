"""The gathered folder: pictures under their final names, the manifest, and what is known of both."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlimages.core import FetchResult, GatherError, ImageRef, Reason
from mlimages.gathering.download.fetch import Fetched
from mlimages.gathering.download.image_facts import Facts, Rejection
from mlimages.gathering.links import row_key
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.store.attribution import write_attributions
from mlimages.gathering.store.file_names import safe_folder, safe_name, url_stem
from mlimages.gathering.store.manifest import KeySet, ManifestWriter, manifest_path, manifests, read_rows
from mlimages.gathering.store.merge_manifests import PLACEHOLDER_LINKS, settle
from mlimages.gathering.store.near_duplicates import LikenessIndex
from mlimages.gathering.store.tally import Tally

HIDDEN = ".gather"
"""Where unfinished pictures lie, inside the gathered folder while a run is at work; emptied at every start."""

_PARTING_S = 2.0
"""How long a run that was killed may take to let go of the folder."""


@dataclass(slots=True)
class _Copies:
    """Links that gave the same bytes: how many, and where these lie."""

    count: int = 0
    path: str | None = None
    label: str = ""
    is_gone: bool = False


class Gathered:
    """One gathered folder, open for adding; use as a context manager.

    Args:
        asks_again: a shard takes links that other manifests of the folder hold, too: it is given those that are wanted.

    Raises:
        GatherError: another run is at work in it, or it cannot be written.
    """

    def __init__(self, out: Path, options: GatherOptions, *, asks_again: bool = False) -> None:
        self.out = out
        self._options = options
        self._asks_again = asks_again
        self._manifest = manifest_path(out, options.shard)
        self._hidden = out / HIDDEN / self._manifest.stem
        self._numbers = itertools.count(1)
        self.added = 0
        self.has_attributions = False

    def __enter__(self) -> Gathered:
        with ExitStack() as stack:
            try:
                stack.enter_context(_locked(self._hidden))
                if not self._options.shard:
                    _tidy_shards(self._hidden)
                for leftover in self._hidden.iterdir():
                    leftover.unlink()
            except OSError as error:
                raise GatherError(f"{self.out} cannot be written: {error.strerror}") from error
            stack.callback(self._tidy)
            self._read(self._options.retry_failed)
            if not self._is_settled:
                self._settle()
                self._read(self._options.retry_failed)
            self._writer = stack.enter_context(closing(ManifestWriter(self._manifest)))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _tidy(self) -> None:
        shutil.rmtree(self._hidden, ignore_errors=True)
        with suppress(OSError):  # another shard is at work beside this one
            self._hidden.parent.rmdir()

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
            url=ref.url,
            label=ref.label,
            final_url=fetched.final_url,
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
        if row.status != "failed" and not self._options.keep_duplicates:
            if copies.is_gone or copies.count + 1 >= PLACEHOLDER_LINKS:
                row = replace(row, status="failed", reason=Reason.PLACEHOLDER, path=None)
            elif copies.path:
                row = replace(row, status="duplicate", path=None, same_as=copies.path)
        self.added += 1
        self._note(row_key(row.label, row.url), row)
        if row.reason is Reason.PLACEHOLDER:
            self._discard(row.sha256)
        return row

    def finish(self) -> None:
        """Bring the manifest into its final form, a row per link, if this run left it otherwise."""
        if not self._is_settled:
            self._settle()
        if self.has_attributions:
            write_attributions(self.out)

    def _settle(self) -> None:
        self._likeness = LikenessIndex()  # makes room for the one of settling
        settle(self.out, self._paths(), self._manifest, keep_duplicates=self._options.keep_duplicates)
        self._read(reopen=frozenset())

    def _paths(self) -> list[Path]:
        if self._options.shard:
            return [self._manifest] if self._manifest.exists() else []
        return manifests(self.out)

    def _read(self, reopen: Collection[Reason]) -> None:
        self._done = KeySet()
        self._reopened = KeySet()
        self._copies: dict[bytes, _Copies] = {}
        self._likeness = LikenessIndex()
        self.tally = Tally()
        paths = self._paths()
        self._is_settled = paths in ([], [self._manifest])
        for row in read_rows(paths):
            key = row_key(row.label, row.url)
            self._is_settled &= key not in self._done
            if self._is_open(row, reopen):
                self._reopened.add(key)
            else:
                self._note(key, row)
        self._is_settled &= not any(copies.is_gone and copies.path for copies in self._copies.values())
        if self._options.shard and not self._asks_again:
            self._read_others(reopen)

    def _read_others(self, reopen: Collection[Reason]) -> None:
        """Count what a shard finds done beside it; its pictures are compared once the shards are settled."""
        for row in read_rows(path for path in reversed(manifests(self.out)) if path != self._manifest):
            key = row_key(row.label, row.url)
            if key not in self._done and not self._is_open(row, reopen):
                self._done.add(key)
                self.tally.add(row)

    def _is_open(self, row: FetchResult, reopen: Collection[Reason]) -> bool:
        return row.reason in reopen or bool(row.path and not _is_there(self.out / row.path, row.bytes))

    def _note(self, key: int, row: FetchResult) -> None:
        self._done.add(key)
        self.tally.add(row)
        self.has_attributions |= "attribution" in row.source
        if row.sha256 is None or (row.status == "failed" and row.reason is not Reason.PLACEHOLDER):
            return
        copies = self._copies.setdefault(bytes.fromhex(row.sha256), _Copies())
        copies.count += 1
        copies.is_gone |= row.reason is Reason.PLACEHOLDER
        if row.path and row.dhash:
            copies.path, copies.label = row.path, row.label
            self._likeness.add(row.dhash, row.path)

    def _outcome(self, ref: ImageRef, fetched: Fetched, found: Facts | Rejection | None, part: Path) -> dict[str, Any]:
        if found is None:
            return {"status": "failed", "reason": fetched.reason, "detail": fetched.detail}
        values = {name: getattr(found, name) for name in found.__slots__}
        if isinstance(found, Rejection):
            return {"status": "failed", **values}
        suffix = values.pop("suffix")
        copies = self._copies.get(bytes.fromhex(found.sha256), _Copies())
        if copies.is_gone or (copies.count + 1 >= PLACEHOLDER_LINKS and not self._options.keep_duplicates):
            detail = "the same bytes lie behind many links"
            return {"status": "failed", "reason": Reason.PLACEHOLDER, "detail": detail, **values}
        if copies.path and not self._options.keep_duplicates:
            return {"status": "duplicate", "same_as": copies.path, **values}
        like = self._likeness.find(found.dhash)
        return {"status": "ok", "path": self._place(ref, found, part, suffix), "same_as": like, **values}

    def _place(self, ref: ImageRef, facts: Facts, part: Path, suffix: str) -> str:
        for path in self._free_paths(ref, suffix):
            target = f"{self.out}/{path}"  # strings: pathlib would cost more than the system calls
            if os.path.exists(target) and not self._is_orphan(Path(target), facts):  # noqa: PTH110
                continue
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

    def _is_orphan(self, target: Path, facts: Facts) -> bool:
        """Whether an earlier run was stopped between placing this very picture and recording it."""
        if bytes.fromhex(facts.sha256) in self._copies or not _is_there(target, facts.bytes):
            return False
        return hashlib.sha256(target.read_bytes()).hexdigest() == facts.sha256

    def _discard(self, sha256: str | None) -> None:
        """Remove the picture that turned out to be a host's for "gone"; its rows are mended when settling."""
        copies = self._copies.get(bytes.fromhex(sha256 or ""))
        if copies and copies.path:
            (self.out / copies.path).unlink(missing_ok=True)
            self.tally.classes[copies.label] -= 1
            copies.path = None
        self._is_settled &= copies is None or copies.count == 1


def _move(part: Path, target: str) -> None:
    try:
        os.replace(part, target)  # noqa: PTH105
    except FileNotFoundError:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)


def _is_there(path: Path, size: int | None) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _tidy_shards(own: Path) -> None:
    """Remove what killed shards left unfinished; refuse where one is at work, since its manifest is about to go."""
    for shard in own.parent.iterdir():
        if shard != own:
            with _locked(shard):
                shutil.rmtree(shard)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second run (where the system can: not on Windows)."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return

    def lock() -> int | None:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
        os.close(handle)  # another run holds it, or has just taken it along as it went
        return None

    patient_until = time.monotonic() + _PARTING_S
    while (handle := lock()) is None:
        if time.monotonic() > patient_until:
            raise GatherError(f"another gather is at work in {folder.parents[1]}: wait for it, or stop it")
        time.sleep(0.05)
    try:
        yield
    finally:
        os.close(handle)
