"""Lock a gathered folder, or a shard of it, for one run at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from mlimages.core import GatherError, file_lock

WORK_FOLDER_NAME = ".gather"
"""Folder inside the gathered folder that holds unfinished images during a run."""


@contextmanager
def open_work_folder(out: Path, manifest_stem: str, *, is_exclusive: bool) -> Iterator[Path]:
    """Context manager: lock `out` for a run, and yield an empty folder for unfinished images, removed at the end.

    Args:
        out: the gathered folder.
        manifest_stem: stem of the name of the manifest that the run writes.
        is_exclusive: raise an error if a shard is running, and remove unfinished files of killed shards.

    Raises:
        GatherError: another run uses the folder, or the folder is a symbolic link.
        OSError: the folder cannot be written.
    """
    hidden = out / WORK_FOLDER_NAME / manifest_stem
    for folder in (hidden.parent, hidden):
        if folder.is_symlink():
            raise GatherError(
                f"{folder} is a symbolic link, and a run could delete files in its target: remove the link"
            )
    in_use = GatherError(f"another run is gathering into {out}: wait until it ends, or stop it")
    try:
        with file_lock(hidden.with_name(f"{manifest_stem}.lock"), in_use):
            for other in hidden.parent.iterdir() if is_exclusive else [hidden]:
                if other.suffix != ".lock":  # a running shard whose manifest would be merged: raises an error
                    with nullcontext() if other == hidden else file_lock(other.with_name(f"{other.name}.lock"), in_use):
                        shutil.rmtree(other, ignore_errors=True)
            hidden.mkdir(parents=True)
            try:
                yield hidden
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    finally:
        with suppress(OSError):  # another shard is running
            hidden.parent.rmdir()
