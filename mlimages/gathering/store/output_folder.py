"""Open the output of a run: a local folder, or a remote folder with a local working folder."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlimages.core import GatherError, InputError, cache_dir, is_remote
from mlimages.gathering.options import GatherOptions
from mlimages.gathering.store.file_storage import FileStorage, ImageStorage
from mlimages.gathering.store.lock import open_work_folder
from mlimages.gathering.store.manifest import ManifestWriter, make_manifest_path
from mlimages.gathering.store.object_storage import ObjectStorage, RemoteManifestWriter
from mlimages.gathering.store.shard_storage import ShardStorage


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The open output folder of a run.

    Attributes:
        manifest: path of `manifest.jsonl`, or with --shard of `manifest-00002-of-00008.jsonl`. Its folder contains all
            manifests; if the gathered folder is remote, it is a local folder with copies of them.
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
    return _open_remote(out, options, exit_stack) if is_remote(out) else _open_local(out, options, exit_stack)


def _open_local(out: Path, options: GatherOptions, exit_stack: ExitStack) -> OutputFolder:
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
