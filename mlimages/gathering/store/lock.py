"""Lock a gathered folder, or a shard of it, for one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlimages.core import GatherError, file_lock
from mlimages.gathering.store.manifest import MANIFEST_NAME

WORK_FOLDER_NAME = ".gather"
"""Folder inside the gathered folder that holds unfinished images during a run."""


@contextmanager
def open_work_folder(out: Path, manifest_stem: str, *, is_exclusive: bool) -> Iterator[Path]:
    """Context manager: lock `out` for a run, and yield a folder for unfinished images, which are removed at the end.

    Args:
        out: the gathered folder.
        manifest_stem: stem of the name of the manifest that the run writes. If several processes each write a manifest,
            it is a random ID.
        is_exclusive: whether the run merges all manifests; False for a shard, which may run beside other shards.

    Raises:
        GatherError: another run of the same shard uses the folder; another run uses it, and one of the two is
            exclusive; or the work folder is a symbolic link.
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
            _remove_unfinished_images(hidden)
            # before looking at the others, so that of two runs at least one sees the other
            hidden.mkdir(parents=True, exist_ok=True)
            try:
                for other in hidden.parent.iterdir() if is_exclusive else [hidden.with_name(Path(MANIFEST_NAME).stem)]:
                    if other.suffix != ".lock" and other != hidden and other.is_dir() and not other.is_symlink():
                        # raises an error if it is in use: the exclusive run would remove the manifest of the shard
                        with file_lock(other.with_name(f"{other.name}.lock"), in_use):
                            _remove_unfinished_images(other)
                yield hidden
            finally:
                _remove_unfinished_images(hidden)
    finally:
        with suppress(OSError):  # another shard is running
            hidden.parent.rmdir()


def _remove_unfinished_images(folder: Path) -> None:
    """Remove the files that a run leaves in its work folder, and the folder unless it contains files of the user."""
    for path in folder.glob("*.part"):
        if path.stem.isdecimal() and (path.is_file() or path.is_symlink()):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
