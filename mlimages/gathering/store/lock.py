"""One run at a time in a gathered folder (of each shard of it)."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlimages.core import GatherError

HIDDEN = ".gather"
"""Where unfinished images lie, inside the gathered folder while a run is at work; emptied at every start."""

_PARTING_S = 2.0
"""How long a run that was killed may take to let go of the folder."""


@contextmanager
def work_folder(out: Path, stem: str, *, alone: bool) -> Iterator[Path]:
    """The empty folder for unfinished images of the run with the manifest `stem`, locked; removed at the end.

    Args:
        alone: no shard may be at work beside it; what killed ones left unfinished is removed.

    Raises:
        GatherError: another run is at work, or the folder is a symbolic link.
        OSError: it cannot be written.
    """
    hidden = out / HIDDEN / stem
    for folder in (hidden.parent, hidden):
        if folder.is_symlink():
            raise GatherError(f"{folder} is a symbolic link: remove it, since this folder is emptied at every start")
    with _locked(hidden):
        if alone:
            _remove_other_shards(hidden)
        for leftover in hidden.iterdir():
            leftover.unlink()
        try:
            yield hidden
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
            with suppress(OSError):  # another shard is at work beside this one
                hidden.parent.rmdir()


def _remove_other_shards(own: Path) -> None:
    """Remove what killed shards left unfinished; refuse where one is at work, since its manifest is about to go."""
    for shard in own.parent.iterdir():
        if shard != own:
            with _locked(shard):
                shutil.rmtree(shard)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second run, where system and file system can (not Windows, not Lustre)."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return

    def lock() -> int | None:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP ...: nobody can hold a lock here
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
        os.close(handle)  # the other run has just removed the folder
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
