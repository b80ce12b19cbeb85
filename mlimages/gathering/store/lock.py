"""One run at a time in a gathered folder (of each shard of it)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from mlimages.core import GatherError, file_lock

HIDDEN = ".gather"
"""Where unfinished images lie, inside the gathered folder while a run is at work; emptied at every start."""


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
    in_use = GatherError(f"another gather is at work in {out}: wait for it, or stop it")
    try:
        with file_lock(hidden.with_name(f"{stem}.lock"), in_use):
            for other in hidden.parent.iterdir() if alone else [hidden]:
                if other.suffix != ".lock":  # a shard's manifest is about to be merged: refuse where it is at work
                    with nullcontext() if other == hidden else file_lock(other.with_name(f"{other.name}.lock"), in_use):
                        shutil.rmtree(other, ignore_errors=True)
            hidden.mkdir(parents=True)
            try:
                yield hidden
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    finally:
        with suppress(OSError):  # another shard is at work beside this one
            hidden.parent.rmdir()
