"""Move broken images to a quarantine folder and correct wrong suffixes."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from mlimages.checks.codes import Code, Finding
from mlimages.checks.result import CheckReport, Move
from mlimages.checks.rules import get_correct_suffix
from mlimages.core import ImageError, InputError, atomic_write, is_member_path, is_remote
from mlimages.images import identify

logger = logging.getLogger(__name__)

BROKEN_IMAGE_CODES = {Code.EMPTY, Code.NOT_AN_IMAGE, Code.TRUNCATED, Code.CORRUPT, Code.TOO_MANY_PIXELS}
"""Codes of the images that are moved to the quarantine folder."""


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
