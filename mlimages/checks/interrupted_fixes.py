"""Undo the moves of a `check --fix` that was interrupted, so that a new check starts from the same files."""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlimages.checks.fixes import move_file
from mlimages.checks.result import CheckReport, Move, update_label_file
from mlimages.core import InputError, is_remote, is_unchanged_output, path_from_name, relative_name, write_text_output
from mlimages.labels import LabelFile

_MOVES_PATTERN = ".*_moves.json"


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
