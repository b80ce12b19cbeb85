"""Group the images that stay in one split: by a regular expression (`label --group`), or as an earlier split did."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from mlimages.core import InputError, as_path, read_settings, relative_name
from mlimages.labels.splitting import compile_pattern, match_pattern


def group_by_pattern(
    paths: Iterable[Path], pattern: str, *, folder: str | os.PathLike[str] | None = None
) -> dict[Path, str]:
    """Return, by path, the text that a regular expression matches, or that of its first capture group if it has one.

    Images with the same text stay together. Paths that do not match are left out.

    Args:
        paths: the paths of the images.
        pattern: the regular expression.
        folder: folder of the dataset; the expression is matched in the paths relative to it. By default, it is matched
            in the paths as they are, which may contain folders above the dataset.

    Raises:
        InputError: the regular expression is invalid.
    """
    expression, root = compile_pattern(pattern), None if folder is None else as_path(folder)
    names = ((path, path.as_posix() if root is None else relative_name(path, root)) for path in paths)
    found = ((path, match_pattern(expression, name)) for path, name in names)
    return {path: text for path, text in found if text is not None}


def format_grouping(group: str, group_by: str) -> str:
    """Return the options --group and --group-by as `record_settings` records them."""
    return f"--group {group}" if group else f"--group-by {group_by}"


def require_recorded_grouping(split_files: Iterable[Path], grouping: str) -> None:
    """Check that images are appended to a split with the grouping with which it was made.

    Args:
        split_files: paths of the label files of the split.
        grouping: the options of the command, as `format_grouping` returns them.

    Raises:
        InputError: the split was made with another --group, or with --group-by features.
    """
    path, settings = next(((path, found) for path in split_files if (found := read_settings(path))), (None, ""))
    _, option, value = settings.partition(" --group")  # an expression is not quoted, and comes last
    recorded = f"{option}{value}".strip()
    if path and recorded not in ("", format_grouping("", "hashes"), grouping):
        name, _, text = recorded.partition(" ")
        raise InputError(
            f"{path} was split with {name}={shlex.quote(text)}: repeat this option, since images that it keeps "
            "together could otherwise get into different splits, or split all images again without --append"
        )
