"""Group the images that stay in one split: by a regular expression (`label --group`), or as an earlier split did."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from mlimages.core import InputError, LabeledPath, as_path, format_examples, pluralize, read_settings, relative_name
from mlimages.labels.label_file import LabelFile
from mlimages.labels.splitting import compile_pattern, match_pattern


def group_by_pattern(
    paths: Iterable[Path], pattern: str, *, folder: str | os.PathLike[str] | None = None
) -> dict[Path, str]:
    """Return, by path, the text in the path that a regular expression (or its first capture group, if any) matches.

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


def find_groups(
    items: Iterable[LabeledPath],
    pattern: str,
    *,
    folder: Path,
    assigned: Collection[Path],
    print_note: Callable[[str], None],
) -> dict[Path, str]:
    """Return the groups of `group_by_pattern`, and print how many groups there are, and how many paths match.

    Args:
        items: the images.
        pattern: the regular expression of --group.
        folder: folder of the dataset.
        assigned: paths of the images that are already split.
        print_note: called with the line to print.

    Raises:
        InputError: the regular expression is invalid, or matches no path.
    """
    paths = [item.path for item in items]
    groups = group_by_pattern(paths, pattern, folder=folder)
    if not groups:
        examples = format_examples([relative_name(path, folder) for path in paths[:2]], 1)
        raise InputError(
            f"--group {pattern} matches none of the {len(paths)} paths ({examples}): correct the regular expression, "
            f"which is matched in the paths relative to {folder}"
        )
    listed = f", and {len(groups.keys() & assigned)} of {len(assigned)} that are already split" if assigned else ""
    count = pluralize(len(set(groups.values())), "group")
    print_note(f"--group: {count}; {pattern} matches {len(groups)} of {len(paths)} paths{listed}")
    return groups


def format_grouping(group: str, group_by: str) -> str:
    """Return the options --group and --group-by as `record_settings` records them."""
    return f"--group {group}" if group else f"--group-by {group_by}"


def find_dataset_folder(source: Path, images: str | os.PathLike[str] | None) -> Path:
    """Return the folder to which the paths are relative in which --group is matched; `images` is --images."""
    return source if source.is_dir() else as_path(images or source.parent)


def require_recorded_grouping(split_files: Mapping[Path, LabelFile], grouping: str, *, folder: Path) -> None:
    """Check that images are appended to a split with the grouping with which it was made.

    Args:
        split_files: the label files of the split, by path.
        grouping: the options of the command, as `format_grouping` returns them.
        folder: folder of the dataset, from `find_dataset_folder`.

    Raises:
        InputError: the split was made with another --group, or with --group-by features, or --group matches no image
            of the split: it is of another folder, relative to which it was matched.
    """
    path, settings = next(((path, found) for path in split_files if (found := read_settings(path))), (None, ""))
    _, option, value = settings.partition(" --group")  # an expression is not quoted, and comes last
    recorded = f"{option}{value}".strip()
    name, _, text = recorded.partition(" ")
    if path and recorded not in ("", format_grouping("", "hashes"), grouping):
        raise InputError(
            f"{path} was split with {name}={shlex.quote(text)}: repeat this option, since images that it keeps "
            "together could otherwise get into different splits, or split all images again without --append"
        )
    if recorded == grouping and name == "--group":
        paths = [item.path for file in split_files.values() for item in file]
        if paths and not group_by_pattern(paths, text, folder=folder):
            raise InputError(
                f"--group {text} matches none of the {len(paths)} images that are already split with it: it is matched "
                f"in paths relative to {folder}, such as {relative_name(paths[0], folder)}. Images that belong "
                "together could get into different splits: split all images again, in one folder, without --append"
            )
