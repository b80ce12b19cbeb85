"""Open and lock the output of a run: a local folder, or a remote folder with a local working folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlimages.core import GatherError, InputError, cache_dir, file_lock, is_remote
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.store.file_storage import FileStorage, ImageStorage
from mlimages.gathering.store.manifest import MANIFEST_NAME, ManifestWriter, make_manifest_path
from mlimages.gathering.store.object_storage import ObjectStorage, RemoteManifestWriter
from mlimages.gathering.store.shard_storage import ShardStorage

WORK_FOLDER_NAME = ".gather"
"""Folder inside the gathered folder that holds unfinished images during a run."""


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The open output folder of a run.

    Attributes:
        manifest: path of `manifest.jsonl`, or with --shard of `manifest-00002-of-00008.jsonl`. It is in the gathered
            folder or, if that is remote, in a local folder that contains copies of all its manifests.
        temp_folder: the local folder of unfinished images.
        storage: the stored images.
        writer: writes the rows of this run: to `manifest`, or if the gathered folder is remote, to new files
            `manifest-ID.jsonl` beside it.
    """

    manifest: Path
    temp_folder: Path
    storage: ImageStorage
    writer: ManifestWriter | RemoteManifestWriter


def open_output_folder(out: Path, options: GatherOptions, exit_stack: ExitStack) -> OutputFolder:
    """Open an output folder; closing `exit_stack` closes the folder.

    Raises:
        GatherError: another run uses the folder, or the folder cannot be written.
        InputError: the folder is remote, but tar shards can only be written to local folders.
    """
    if is_remote(out):
        return _open_remote(out, options, exit_stack)
    manifest = make_manifest_path(out, options.shard)
    storage: ImageStorage = FileStorage(out)
    if options.layout == "tar":
        storage = ShardStorage(out, manifest.stem.replace("manifest", "images"))
        exit_stack.callback(storage.close)
    try:
        temp_folder = exit_stack.enter_context(open_work_folder(out, manifest.stem, is_exclusive=not options.shard))
    except OSError as error:
        if out.is_symlink() and not out.exists():
            raise GatherError(
                f"{out} is a link to {out.readlink()}, which does not exist: create that folder"
            ) from error
        raise GatherError(f"{out} cannot be written: {error.strerror}") from error
    return OutputFolder(manifest, temp_folder, storage, ManifestWriter(manifest))


def _open_remote(out: Path, options: GatherOptions, exit_stack: ExitStack) -> OutputFolder:
    if options.layout == "tar":
        raise InputError(f"--layout tar requires a local folder: gather into one, then copy it to {out}")
    folder = Path(exit_stack.enter_context(TemporaryDirectory(dir=cache_dir("gathered"))))
    manifest = make_manifest_path(folder, options.shard)
    objects = ObjectStorage(out, folder)
    exit_stack.callback(objects.close)
    objects.refresh_manifests()
    temp_folder = folder / "parts"
    temp_folder.mkdir()
    writer = RemoteManifestWriter(manifest, objects.upload_manifest, keep_duplicates=options.keep_duplicates)
    return OutputFolder(manifest, temp_folder, objects, writer)


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
