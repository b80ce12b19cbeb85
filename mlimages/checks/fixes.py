"""Move broken images to a quarantine folder and correct wrong suffixes; undo these moves if they were interrupted."""

from __future__ import annotations

import errno
import filecmp
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path

from mlimages.checks.codes import Code, Finding
from mlimages.checks.result import CheckReport, Move, update_label_file
from mlimages.checks.rules import get_correct_suffix
from mlimages.core import (
    ImageError,
    InputError,
    atomic_write,
    is_member_path,
    is_remote,
    is_unchanged_output,
    path_from_name,
    relative_name,
    write_text_output,
)
from mlimages.images import identify
from mlimages.labels import LabelFile

logger = logging.getLogger(__name__)

BROKEN_IMAGE_CODES = {Code.EMPTY, Code.NOT_AN_IMAGE, Code.TRUNCATED, Code.CORRUPT, Code.TOO_MANY_PIXELS}
"""Codes of the images that are moved to the quarantine folder."""

_MOVES_PATTERN = ".*_moves.json"


def plan_moves(report: CheckReport) -> list[Move]:
    """Plan to move broken files to `NAME_quarantine` beside the label file, and to correct wrong suffixes.

    Nothing is overwritten: if a target exists, `_2`, `_3` ... is appended. No file is moved twice, and files that an
    earlier check moved to the quarantine stay there. A file to which a listed symbolic link leads is not renamed.
    Symbolic links are moved after the files.

    Raises:
        InputError: a finding is about a remote image or an image in a shard, which cannot be moved.
    """
    if any(is_remote(finding.path) or is_member_path(finding.path) for finding in report.findings):
        raise InputError(
            "--fix cannot move remote images or images in shards: use NAME_checked.txt, which excludes broken images"
        )
    taken: set[Path] = set()
    moves: dict[str, Move] = {}
    for finding in report.findings:
        source = _resolve_parents(finding.path)  # a link to the file itself is kept
        if source in moves or not (wanted := _choose_target_path(report, finding)):
            continue
        candidates = chain([wanted], (wanted.with_stem(f"{wanted.stem}_{number}") for number in count(2)))
        target = next(path for path in candidates if path not in taken and not os.path.lexists(path))
        taken.add(target)
        moves[source] = Move(finding.path, target, finding.code)
    renamed = {source for source, move in moves.items() if move.code == Code.WRONG_SUFFIX}
    for source in sorted(renamed & _find_link_targets(report)) if renamed else ():
        logger.warning("%s is not renamed, since another image is a link to it", moves.pop(source).source)
    return sorted(moves.values(), key=lambda move: move.source.is_symlink())


def _resolve_parents(path: str | os.PathLike[str]) -> str:
    """Return the absolute path with symbolic links in its parent folders resolved; the last part may be a link."""
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118


def _find_link_targets(report: CheckReport) -> set[str]:
    """Return the target of each listed image that is a symbolic link; for a chain of links, every target in it."""
    targets: set[str] = set()
    for item in chain.from_iterable(report.files):
        path = item.path
        while path.is_symlink():
            path = Path(_resolve_parents(path.parent / path.readlink()))
            if str(path) in targets:
                break
            targets.add(str(path))
    return targets


def move_files(moves: list[Move]) -> None:
    """Move each image to its target, creating folders as needed; no file is deleted or overwritten.

    A relative symbolic link is rewritten so that it still leads to the same file. A broken link is moved unchanged: if
    its file has been moved to the quarantine folder, the link usually leads to the file again from its new place.
    """
    for move in moves:
        move_file(move.source, move.target)


def move_file(source: Path, target: Path) -> None:
    """Move a file or link as `move_files` does. If this is interrupted, `source` or `target` is complete, or both."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() and not source.readlink().is_absolute() and source.exists():
        target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
        source.unlink()
        return
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            with atomic_write(target) as part:
                shutil.copy2(source, part)
        source.unlink()


def _choose_target_path(report: CheckReport, finding: Finding) -> Path | None:
    """Return the path to move an image to: in the quarantine folder, or with another suffix; None to keep it."""
    if finding.code in BROKEN_IMAGE_CODES:
        labels = report.files[finding.file_index]
        source, root = (Path(os.path.abspath(path)) for path in (finding.path, labels.img_root))  # noqa: PTH100  # as above
        quarantine = labels.path.with_name(f"{labels.path.stem}_quarantine")
        if source.parent.resolve().is_relative_to(quarantine.resolve()):  # moved by an earlier check
            return None
        name = source.relative_to(root) if source.is_relative_to(root) else Path(source.name)
        return quarantine / name
    if finding.code == Code.WRONG_SUFFIX:
        with suppress(ImageError):
            return finding.path.with_suffix(get_correct_suffix(finding.path.suffix, identify(finding.path).format))
    return None


@contextmanager
def record_moves(report: CheckReport, moves: Sequence[Move], *, overwrite: bool = False) -> Iterator[None]:
    """Context manager: write the planned moves to `.NAME_moves.json` beside the first label file; delete it at the end.

    Within the `with` block, the caller moves the files and writes the results. If the block is interrupted, or raises
    an error, the file stays, and `undo_interrupted_moves` undoes the moves.

    Raises:
        InputError: `overwrite` is false, and there is a file with this name that mlimages did not write.
    """
    if not moves:
        yield
        return
    first = report.files[0].path
    record = first.with_name(f".{first.stem}_moves.json")
    rows = [[*(relative_name(path, record.parent) for path in (move.source, move.target)), move.code] for move in moves]
    labels = [relative_name(file.path, record.parent) for file in report.files]
    text = json.dumps({"version": 1, "label_files": labels, "moves": rows}, indent=1) + "\n"
    write_text_output(record, text, overwrite=overwrite)
    yield
    record.unlink()


def find_interrupted_moves(sources: Iterable[Path]) -> list[Path]:
    """Return the `.NAME_moves.json` files that interrupted checks of these label files or folders have left.

    The sources are not read: a table of which most images have been moved could not be.
    """
    found: dict[Path, None] = {}
    for source in (path for path in sources if not is_remote(path)):
        paths = source.rglob(_MOVES_PATTERN) if source.is_dir() else source.parent.glob(_MOVES_PATTERN)
        found |= dict.fromkeys(path for path in paths if is_unchanged_output(path) and _lists_files_in(path, source))
    return list(found)


def _lists_files_in(record: Path, source: Path) -> bool:
    """Whether a `.NAME_moves.json` file is about the label file `source`, or about one in the folder `source`."""
    names = json.loads(record.read_text(encoding="utf-8"))["label_files"]
    return any(path_from_name(name, record.parent).resolve().is_relative_to(source.resolve()) for name in names)


def undo_interrupted_moves(record: Path) -> None:
    """Undo the moves in a file that `find_interrupted_moves` returned, and delete that file.

    Label files of mlimages that already list the new paths are changed back. A file stays where it is if a label file
    that a user edited lists it there, or another file is in its old place.
    """
    values = json.loads(record.read_text(encoding="utf-8"))
    files = [LabelFile(path_from_name(name, record.parent)) for name in values["label_files"]]
    kept = {os.path.realpath(name) for file in files for name in _list_paths_if_edited(file)}
    old_paths = {}
    for source_name, target_name, _ in values["moves"]:  # files first: a link is moved back after its file
        source, target = path_from_name(source_name, record.parent), path_from_name(target_name, record.parent)
        if os.path.realpath(target) not in kept and _undo_move(source, target):
            old_paths[os.path.realpath(target)] = source
    for file in files:
        update_label_file(file, old_paths)
    record.unlink()


def _undo_move(source: Path, target: Path) -> bool:
    """Move `target` back to `source`; if both exist and are copies of each other, delete `target`.

    Returns:
        whether the file is at `source` and nothing is left at `target`.
    """
    if not os.path.lexists(source):
        if os.path.lexists(target):
            move_file(target, source)
        return os.path.lexists(source)
    if os.path.lexists(target) and _is_copy(target, source):
        target.unlink()
    return not os.path.lexists(target)


def _list_paths_if_edited(file: LabelFile) -> list[str]:
    """Return all paths in a label file if a user wrote or edited it; else, or if it cannot be read, an empty list."""
    with suppress(InputError):
        if not is_unchanged_output(file.path):
            return [name for name, _ in file.text_items()]
    return []


def _is_copy(path: Path, other: Path) -> bool:
    """Whether two links lead to the same file, or two files have the same content."""
    if path.is_symlink() or other.is_symlink():
        return path.is_symlink() and other.is_symlink() and path.resolve() == other.resolve()
    return filecmp.cmp(path, other, shallow=False)
