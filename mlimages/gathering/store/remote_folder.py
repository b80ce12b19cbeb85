"""Gathering into an address: in a folder here first, whose new files are put there at the end."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from mlimages.core import GatherError, cache_dir, is_remote, put
from mlimages.gathering.store.attribution import STEM
from mlimages.gathering.store.manifest import has_manifest_name, manifest_path, manifests, read_rows
from mlimages.gathering.store.stored_files import QUARANTINE, aside_path

_AT_ONCE = 16
"""Objects put at one time."""


@contextmanager
def mirrored(out: Path, shard: tuple[int, int] | None) -> Iterator[Path]:
    """`out` itself or, of an address, a folder with its manifests whose new pictures and manifests are put there.

    Each shard has a folder of its own, in the cache. A file that lies at the address already is a hole of the same
    size here, so that its name is taken. An interrupted run's folder stays, and the next run goes on with it.

    Raises:
        GatherError: the address cannot be read or written.
    """
    if not is_remote(out):
        yield out
        return
    folder = cache_dir("gathered") / hashlib.sha256(repr((str(out), shard)).encode()).hexdigest()[:32]
    folder.mkdir(exist_ok=True)
    there = _pull(out, folder, shard)
    held = _files(folder)
    hashes = {row.path: row.sha256 for row in read_rows(manifests(folder)) if row.path in held}
    yield folder
    try:
        _push(out, folder, there)
        gone = (held.keys() - _files(folder).keys()) & there.keys()
        _remove(out, folder, {name: hashes.get(name) for name in gone})
    except Exception as error:
        text = f"{out} cannot be written: {error}; the pictures wait in {folder}, the same command goes on"
        raise GatherError(text) from error
    shutil.rmtree(folder)


@contextmanager
def looked_at(out: Path) -> Iterator[Path]:
    """As `mirrored`, but nothing is put and nothing stays.

    Raises:
        GatherError: the address cannot be read.
    """
    if not is_remote(out):
        yield out
        return
    with tempfile.TemporaryDirectory(dir=cache_dir("gathered")) as folder:
        _pull(out, Path(folder), None)
        yield Path(folder)


def _pull(address: Path, folder: Path, shard: tuple[int, int] | None) -> Mapping[str, int]:
    """Fetch the manifests, if there are none yet, and leave holes; what lies at the address, and its size."""
    try:
        there = _sizes(address)
        if not manifests(folder):
            for name in there:
                is_own = has_manifest_name(name) if shard is None else name == manifest_path(folder, shard).name
                if is_own or ("/" not in name and fnmatch(name, f"{STEM}*.md")):
                    (folder / name).write_bytes((address / name).read_bytes())
    except Exception as error:  # whatever the address's own library raises
        raise GatherError(f"{address} cannot be read: {error}") from error
    own = (row.path or "" for row in read_rows(manifests(folder)))  # in a shard: others' names bear other numbers
    for name in own if shard else there:
        if name in there and "/" in name and ".." not in name.split("/") and not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as hole:
                hole.truncate(there[name])
    return there


def _push(address: Path, folder: Path, there: Mapping[str, int]) -> None:
    files = _files(folder)
    new = [name for name, size in files.items() if "/" in name and there.get(name) != size]
    pictures = [name for name in new if not name.startswith(QUARANTINE) or (folder / name).read_bytes().strip(b"\0")]
    with ThreadPoolExecutor(_AT_ONCE, "put") as pool:
        for _ in pool.map(lambda name: put(folder / name, address / name), pictures):
            pass
    for name in files:
        if "/" not in name:
            put(folder / name, address / name)


def _remove(address: Path, folder: Path, hashes: Mapping[str, str | None]) -> None:
    """Remove what went from the folder, if its bytes are its row's; what was put aside here is put aside there."""
    for name, sha256 in hashes.items():
        if "/" in name:
            data = (address / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                continue
            aside = aside_path(name, sha256)
            if (folder / aside).exists():
                (address / aside).parent.mkdir(parents=True, exist_ok=True)
                (address / aside).write_bytes(data)
        (address / name).unlink()


def _sizes(address: Path) -> dict[str, int]:
    """What lies at the address, by its name below it."""
    address.fs.invalidate_cache()  # type: ignore[attr-defined]  # an address is no Path to mypy
    root = address.path.rstrip("/")  # type: ignore[attr-defined]
    found = address.fs.find(root, detail=True)  # type: ignore[attr-defined]
    return {name.removeprefix(root).lstrip("/"): info["size"] for name, info in found.items()}


def _files(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
